"""The part of Rex-Omni that needs torch: loading, preparing pixels, generating, measuring tokens.

Facts this module stands on:

- ``Qwen2_5_VLProcessor`` wants torchvision, but only for its video half; joined from an image
  processor and a tokenizer it works without, and it loads hub repositories as published.
- A static cache is compiled for its length, so prompts are padded to few different lengths.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.utils.logging import disable_progress_bar

from labeling_pipeline.annotations import FinishReason, Generation
from labeling_pipeline.errors import ModelError
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.cards import ModelCard, ModelSettings
from labeling_pipeline.models.generation_runtime import (
    LoopStopper,
    TokenBytes,
    TokenRecord,
    TokenRecorder,
    choose_device,
    free_memory,
    load_options,
    padded_frame,
    source_of,
    told_what_failed,
    use_few_threads,
)
from labeling_pipeline.tasks import Request, Task

_STATIC_LENGTHS = 128
"""Prompts for a static cache are padded to multiples of this."""


class ImageTextProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its video half."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None) -> None:  # type: ignore[no-untyped-def]
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class RexOmniRuntime:
    """A loaded checkpoint.

    Raises:
        ModelError: the checkpoint could not be loaded; says from where and why.
        ConfigurationError: the settings do not go with each other.
        MissingDependencyError: a package is not installed; told before anything is downloaded.
    """

    def __init__(self, card: ModelCard, settings: ModelSettings) -> None:
        # Its bar would break into ours, for weights that load in milliseconds.
        disable_progress_bar()
        self.card = card
        self.settings = settings
        self.device = choose_device(settings.device)
        options = load_options(card, settings, self.device, in_place=True)
        source = source_of(card, settings)
        with told_what_failed(card):
            self.image_processor = AutoImageProcessor.from_pretrained(
                card.checkpoint,
                backend="pil",
                min_pixels=card.min_pixels,
                max_pixels=card.max_pixels,
                **source,
            )
            self.tokenizer = AutoTokenizer.from_pretrained(
                card.checkpoint, padding_side="left", **source
            )
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                card.checkpoint, **options, **source
            ).eval()
        self.processor = ImageTextProcessor(
            image_processor=self.image_processor,
            tokenizer=self.tokenizer,
            chat_template=self.tokenizer.chat_template,
        )
        self._token_bytes = TokenBytes(self.tokenizer)
        ids = self.tokenizer.convert_tokens_to_ids
        self._first_bin = ids("<0>")
        if ids(f"<{protocol.BINS - 1}>") != self._first_bin + protocol.BINS - 1:
            raise ModelError(
                f"{card.checkpoint}: expected {protocol.BINS} coordinate tokens <0> .. <999> in a "
                "row in the vocabulary; this is not a Rex-Omni checkpoint"
            )
        self._box_start = ids(protocol.BOX_START)
        self._none = self.tokenizer(protocol.ABSENT, add_special_tokens=False).input_ids[0]
        self._ends = [ids("<|im_end|>"), ids("<|endoftext|>")]

    def prepare(self, request: Request) -> "PreparedRequest":
        """Cut the frame into patches and write the prompt around as many image tokens."""
        use_few_threads(self.model)
        frame = padded_frame(request.image, self.card)
        prompt = _prompt(request, frame)
        pixels = self.image_processor(images=[Image.fromarray(frame)], return_tensors="pt")
        merged = self.image_processor.merge_size**2
        count = int(pixels["image_grid_thw"].prod()) // merged
        image_token = self.processor.image_token
        text = self._chat(prompt).replace(image_token, image_token * count, 1)
        return PreparedRequest(
            prompt=prompt,
            task=request.task,
            input_ids=self.tokenizer(text).input_ids,
            pixel_values=pixels["pixel_values"].to(self.model.dtype),
            image_grid_thw=pixels["image_grid_thw"],
            frame_size_px=(frame.shape[1], frame.shape[0]),
        )

    @torch.inference_mode()
    def forward(self, prepared: Sequence["PreparedRequest"]) -> list[Generation]:
        """Answer a batch greedily."""
        use_few_threads(self.model)
        started = time.perf_counter()
        inputs = self.tokenizer.pad(
            {"input_ids": [p.input_ids for p in prepared]},
            pad_to_multiple_of=_STATIC_LENGTHS if self.settings.static_cache else None,
            return_tensors="pt",
        )
        # Without the token types the 3-D positions of the image would silently be lost.
        image_tokens = inputs["input_ids"] == self.processor.image_token_id
        inputs["mm_token_type_ids"] = image_tokens.to(torch.int)
        inputs["pixel_values"] = torch.cat([p.pixel_values for p in prepared])
        inputs["image_grid_thw"] = torch.cat([p.image_grid_thw for p in prepared])
        inputs = inputs.to(self.device)
        recorder = TokenRecorder(self._first_bin, self._none)
        processors: list[LogitsProcessor] = [recorder]
        if self.card.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(self.card.repetition_penalty))
        prompt_length = inputs["input_ids"].shape[1]
        loops = LoopStopper(
            [p.task for p in prepared], prompt_length, self._ends, self._token_bytes
        )
        sequences = self.model.generate(
            **inputs,
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=self.card.max_new_tokens,
            eos_token_id=self._ends,
            pad_token_id=self._ends[-1],
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([loops]),
            cache_implementation="static" if self.settings.static_cache else None,
        )
        answers = sequences[:, prompt_length:]
        records = recorder.finish(answers)
        latency_s = (time.perf_counter() - started) / len(prepared)
        return [
            self._generation(one, ids, record, loops.stopped_at.get(row), latency_s)
            for row, (one, ids, record) in enumerate(
                zip(prepared, answers.tolist(), records, strict=True)
            )
        ]

    def free_memory(self) -> None:
        """Give back what nobody uses any more and what the allocator keeps for itself."""
        free_memory(self.device)

    def _chat(self, prompt: str) -> str:
        messages = [
            {"role": "system", "content": protocol.SYSTEM_PROMPT},
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": prompt}],
            },
        ]
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )

    def _generation(
        self,
        prepared: "PreparedRequest",
        ids: list[int],
        record: "TokenRecord",
        stopped_at: int | None,
        latency_s: float,
    ) -> Generation:
        end = next((i for i, token in enumerate(ids) if token in self._ends), len(ids))
        reason = FinishReason.STOP if end < len(ids) else FinishReason.LENGTH
        if stopped_at is not None:
            end, reason = stopped_at, FinishReason.LOOP
        kept = ids[:end]
        # The closing token was chosen and measured too; padding was not.
        measured = end + (reason is FinishReason.STOP)
        box_starts = [i for i, token in enumerate(kept) if token == self._box_start]
        return Generation(
            prompt=prepared.prompt,
            tokens=self._token_bytes.texts(kept),
            token_logprobs=tuple(record.logprobs[: len(kept)].tolist()),
            token_window_mass=tuple(record.window_mass[: len(kept)].tolist()),
            none_probs=tuple(
                float(record.none_probs[i + 1]) for i in box_starts if i + 1 < measured
            ),
            finish_reason=reason,
            frame_size_px=prepared.frame_size_px,
            latency_s=latency_s,
        )


@dataclass(frozen=True)
class PreparedRequest:
    """A request ready for the forward pass.

    input_ids: the whole chat, with one image token for every merged patch.
    pixel_values: (patches, 1176), in the dtype of the model.
    image_grid_thw: (1, 3) int, patches along time, height and width.
    frame_size_px: (width, height) that coordinates refer to.
    """

    prompt: str
    task: Task
    input_ids: list[int]
    pixel_values: torch.Tensor
    image_grid_thw: torch.Tensor
    frame_size_px: tuple[int, int]

    @property
    def input_length(self) -> int:
        """Tokens of image and prompt."""
        return len(self.input_ids)


def _prompt(request: Request, frame: np.ndarray) -> str:
    """The prompt of a request; reference boxes are told in bins of the frame."""
    height, width = frame.shape[:2]
    references = [
        [
            protocol.to_bin(x0, width),
            protocol.to_bin(y0, height),
            protocol.to_bin(x1, width),
            protocol.to_bin(y1, height),
        ]
        for x0, y0, x1, y1 in request.reference_boxes
    ]
    return protocol.prompt(request.task, request.labels, request.skeleton, references)
