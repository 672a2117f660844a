"""The part of Rex-Omni that needs torch: loading, preparing pixels, generating, measuring tokens.

Facts this module stands on:

- ``Qwen2_5_VLProcessor`` wants torchvision, but only for its video half; joined from an image
  processor and a tokenizer it works without, and it loads hub repositories as published.
- Scores need the raw logits, before the repetition penalty. Custom logits processors run after
  the one that ``generate`` builds itself, so the penalty is switched off there and applied by a
  processor that stands behind the recorder.
- Steps of a small model are too short to share: on two busy cores a second torch thread made the
  embedded checkpoint 16 times slower, and on idle ones no faster.
- Keeping batch x steps x vocabulary floats would take gigabytes at 152,000 entries; the recorder
  keeps three numbers a token.
"""

import codecs
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

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
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.utils.logging import disable_progress_bar

from labeling_pipeline.annotations import FinishReason, Generation
from labeling_pipeline.errors import MissingDependencyError, ModelError
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.cards import ModelCard, ModelSettings
from labeling_pipeline.tasks import Request

_SMALL_MODEL_PARAMETERS = 50_000_000


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
    """

    def __init__(self, card: ModelCard, settings: ModelSettings) -> None:
        # Its bar would break into ours, for weights that load in milliseconds.
        disable_progress_bar()
        self.card = card
        self.device = choose_device(settings.device)
        source = {
            "revision": settings.revision or card.revision,
            "cache_dir": settings.cache_dir,
        }
        if card.revision == "folder":
            source = {}
        try:
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
            self.model = _load_weights(card, settings, self.device, source)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{card.name} could not be loaded from {card.checkpoint}: {error}. Check the name, "
                "the network, and `cache_dir`; a folder with the checkpoint works offline."
            ) from error
        self._is_small = (
            self.device.type == "cpu" and self.model.num_parameters() < _SMALL_MODEL_PARAMETERS
        )
        self.processor = ImageTextProcessor(
            image_processor=self.image_processor,
            tokenizer=self.tokenizer,
            chat_template=self.tokenizer.chat_template,
        )
        self._token_bytes = _TokenBytes(self.tokenizer)
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
        self._use_few_threads()
        frame = self._frame(request.image)
        prompt = _prompt(request, frame)
        pixels = self.image_processor(images=[Image.fromarray(frame)], return_tensors="pt")
        merged = self.image_processor.merge_size**2
        count = int(pixels["image_grid_thw"].prod()) // merged
        image_token = self.processor.image_token
        text = self._chat(prompt).replace(image_token, image_token * count, 1)
        return PreparedRequest(
            prompt=prompt,
            input_ids=self.tokenizer(text).input_ids,
            pixel_values=pixels["pixel_values"],
            image_grid_thw=pixels["image_grid_thw"],
            frame_size_px=(frame.shape[1], frame.shape[0]),
        )

    @torch.inference_mode()
    def forward(self, prepared: Sequence["PreparedRequest"]) -> list[Generation]:
        """Answer a batch greedily."""
        self._use_few_threads()
        started = time.perf_counter()
        inputs = self.tokenizer.pad(
            {"input_ids": [p.input_ids for p in prepared]}, return_tensors="pt"
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
        sequences = self.model.generate(
            **inputs,
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=self.card.max_new_tokens,
            eos_token_id=self._ends,
            pad_token_id=self._ends[-1],
            logits_processor=LogitsProcessorList(processors),
        )
        answers = sequences[:, inputs["input_ids"].shape[1] :]
        records = recorder.finish(answers)
        latency_s = (time.perf_counter() - started) / len(prepared)
        return [
            self._generation(one, ids, record, latency_s)
            for one, ids, record in zip(prepared, answers.tolist(), records, strict=True)
        ]

    def free_memory(self) -> None:
        """Give back what the allocator keeps for itself."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _use_few_threads(self) -> None:
        # OpenMP keeps this number for each calling thread, so it is said in every one.
        if self._is_small:
            torch.set_num_threads(1)

    def _frame(self, image: np.ndarray) -> np.ndarray:
        """The pixels as the card wants them: odd aspects padded to a square, right and below."""
        height, width = image.shape[:2]
        limit = self.card.max_aspect
        if limit is None or max(width, height) <= limit * min(width, height):
            return image
        side = max(width, height)
        return np.pad(image, ((0, side - height), (0, side - width), (0, 0)), mode="edge")

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
        latency_s: float,
    ) -> Generation:
        end = next((i for i, token in enumerate(ids) if token in self._ends), None)
        kept = ids[:end]
        box_starts = [i for i, token in enumerate(kept) if token == self._box_start]
        return Generation(
            prompt=prepared.prompt,
            tokens=self._token_bytes.texts(kept),
            token_logprobs=tuple(record.logprobs[: len(kept)].tolist()),
            token_window_mass=tuple(record.window_mass[: len(kept)].tolist()),
            none_probs=tuple(
                float(record.none_probs[i + 1]) for i in box_starts if i + 1 < len(ids)
            ),
            finish_reason=FinishReason.LENGTH if end is None else FinishReason.STOP,
            frame_size_px=prepared.frame_size_px,
            latency_s=latency_s,
        )


@dataclass(frozen=True)
class PreparedRequest:
    """A request ready for the forward pass.

    input_ids: the whole chat, with one image token for every merged patch.
    pixel_values: (patches, 1176) float32. image_grid_thw: (1, 3) int, patches along time, height
        and width.
    frame_size_px: (width, height) that coordinates refer to.
    """

    prompt: str
    input_ids: list[int]
    pixel_values: torch.Tensor
    image_grid_thw: torch.Tensor
    frame_size_px: tuple[int, int]


class TokenRecord:
    """What was measured for one sequence; each array has shape (steps,), float32.

    logprobs: log-probability of the chosen token. window_mass: probability of the coordinate
    tokens within the window around a chosen one, NaN for other tokens. none_probs: P(None).
    """

    def __init__(
        self, logprobs: np.ndarray, window_mass: np.ndarray, none_probs: np.ndarray
    ) -> None:
        self.logprobs = logprobs
        self.window_mass = window_mass
        self.none_probs = none_probs


class TokenRecorder(LogitsProcessor):
    """Measures the chosen tokens of every step from raw logits, and changes nothing.

    A step's choice is known only when the next step begins, so one step's logits are held back.
    """

    def __init__(self, first_bin: int, none: int) -> None:
        self._first_bin = first_bin
        self._none = none
        self._held: torch.Tensor | None = None
        self._logprobs: list[torch.Tensor] = []
        self._masses: list[torch.Tensor] = []
        self._none_probs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._held is not None:
            self._settle(input_ids[:, -1])
        self._held = scores
        return scores

    def finish(self, answers: torch.Tensor) -> list[TokenRecord]:
        """answers: (batch, steps) token ids as generated."""
        self._settle(answers[:, -1])
        self._held = None
        columns = [
            torch.stack(values, 1).float().cpu().numpy()
            for values in (self._logprobs, self._masses, self._none_probs)
        ]
        return [TokenRecord(*rows) for rows in zip(*columns, strict=True)]

    def _settle(self, chosen: torch.Tensor) -> None:
        assert self._held is not None
        logits = self._held
        norm = logits.logsumexp(-1)
        self._logprobs.append(logits.gather(1, chosen[:, None])[:, 0] - norm)
        self._none_probs.append((logits[:, self._none] - norm).exp())
        bins = logits[:, self._first_bin : self._first_bin + protocol.BINS]
        cumulative = torch.nn.functional.pad((bins - norm[:, None]).exp().cumsum(-1), (1, 0))
        index = chosen - self._first_bin
        is_bin = (index >= 0) & (index < protocol.BINS)
        low = (index - protocol.WINDOW_BINS).clamp(0, protocol.BINS)
        high = (index + protocol.WINDOW_BINS + 1).clamp(0, protocol.BINS)
        mass = cumulative.gather(1, high[:, None]) - cumulative.gather(1, low[:, None])
        # Differences of a cumulative sum leave the unit interval by rounding.
        mass = mass[:, 0].clamp(0.0, 1.0)
        self._masses.append(torch.where(is_bin, mass, torch.full_like(mass, float("nan"))))


class _TokenBytes:
    """Token ids -> the exact piece of text each contributed; joined they are the whole text."""

    def __init__(self, tokenizer) -> None:  # type: ignore[no-untyped-def]
        self._tokenizer = tokenizer
        self._added = {
            index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()
        }
        self._byte_of = {char: byte for byte, char in bytes_to_unicode().items()}

    def texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        # A character may span tokens: it belongs to the token that completes it.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        texts = [decoder.decode(self._bytes(index)) for index in ids]
        if texts:
            texts[-1] += decoder.decode(b"", final=True)
        return tuple(texts)

    def _bytes(self, index: int) -> bytes:
        added = self._added.get(index)
        if added is not None:
            return added
        piece = self._tokenizer.convert_ids_to_tokens(index) or ""
        return bytes(self._byte_of[char] for char in piece)


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


def choose_device(wanted: str) -> torch.device:
    """The device of a setting; auto is a GPU if torch sees one.

    Raises:
        ModelError: a GPU was asked for and there is none.
    """
    if wanted != "auto":
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise ModelError(
                f"device {wanted!r} was asked for, but torch sees no CUDA GPU here: install a CUDA "
                "build of torch, or set device to auto or cpu"
            )
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _load_weights(
    card: ModelCard, settings: ModelSettings, device: torch.device, source: dict
) -> Qwen2_5_VLForConditionalGeneration:
    dtype = getattr(torch, settings.dtype or card.dtype)
    placement = {}
    if device.type != "cpu":
        # Straight onto the device: gigabytes of weights never stand in main memory as a whole.
        if find_spec("accelerate") is None:
            raise MissingDependencyError(
                f"{card.name} on {device} needs accelerate, which is not installed: "
                "pip install 'labeling-pipeline[rex-omni]'"
            )
        placement = {"device_map": {"": device}}
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        card.checkpoint, dtype=dtype, **placement, **source
    )
    return model.eval()
