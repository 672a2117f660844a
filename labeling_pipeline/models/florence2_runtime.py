"""The part of Florence-2 that needs torch: loading, preparing pixels, generating, measuring tokens.

Facts this module stands on:

- The decoder starts with ``</s>`` and is made to say ``<s>`` first; answers begin after that.
- BART says ``</s>`` at the length limit whatever the model wanted (``forced_eos_token_id``), which
  would make a cut answer look finished: switched off.
- The published weights come with ``no_repeat_ngram_size``, and with three beams, which cost three
  times as much. The former is kept, behind the recorder, the latter are not.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from transformers import (
    Florence2ForConditionalGeneration,
    Florence2Processor,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)
from transformers.utils.logging import disable_progress_bar

from labeling_pipeline.annotations import FinishReason, Generation
from labeling_pipeline.errors import ModelError
from labeling_pipeline.models import florence2_protocol as protocol
from labeling_pipeline.models.cards import ModelCard, ModelSettings
from labeling_pipeline.models.generation_runtime import (
    LoopStopper,
    TokenBytes,
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


class Florence2Runtime:
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
        options = load_options(card, settings, self.device, in_place=False)
        source = source_of(card, settings)
        with told_what_failed(card):
            self.processor = Florence2Processor.from_pretrained(card.checkpoint, **source)
            model = Florence2ForConditionalGeneration.from_pretrained(
                card.checkpoint, **options, **source
            )
            self.model = model.to(self.device).eval()
        self.tokenizer = self.processor.tokenizer
        self._token_bytes = TokenBytes(self.tokenizer)
        self._start, self._end, self._first_bin, last_bin = self.tokenizer.convert_tokens_to_ids(
            ["<s>", protocol.END, "<loc_0>", f"<loc_{protocol.BINS - 1}>"]
        )
        if last_bin != self._first_bin + protocol.BINS - 1:
            raise ModelError(
                f"{card.checkpoint}: expected {protocol.BINS} location tokens <loc_0> .. <loc_999> "
                "in a row in the vocabulary; this is not a Florence-2 checkpoint"
            )

    def prepare(self, request: Request) -> "PreparedRequest":
        """Squeeze the frame into the model's square and write the prompts.

        Raises:
            ValueError: a task about regions came without any.
        """
        use_few_threads(self.model)
        frame = padded_frame(request.image, self.card)
        height, width = frame.shape[:2]
        pixels = self.processor.image_processor([Image.fromarray(frame)], return_tensors="pt")
        return PreparedRequest(
            task=request.task,
            prompts=protocol.prompts(
                request.task, request.labels, request.reference_boxes, (width, height)
            ),
            image_tokens=self.processor.num_image_tokens,
            pixel_values=pixels["pixel_values"].to(self.model.dtype),
            frame_size_px=(width, height),
        )

    @torch.inference_mode()
    def forward(self, prepared: Sequence["PreparedRequest"]) -> list[Generation]:
        """Answer a batch greedily, turn by turn; those with nothing more to ask drop out."""
        use_few_threads(self.model)
        answers: list[list[Generation]] = [[] for _ in prepared]
        while asked := {
            row: prompt
            for row, one in enumerate(prepared)
            if (prompt := one.next_prompt(answers[row])) is not None
        }:
            generations = self._answer([(prepared[row], asked[row]) for row in asked])
            for row, generation in zip(asked, generations, strict=True):
                answers[row].append(generation)
        return [_joined(turns) for turns in answers]

    def free_memory(self) -> None:
        """Give back what nobody uses any more and what the allocator keeps for itself."""
        free_memory(self.device)

    def _answer(self, asked: Sequence[tuple["PreparedRequest", str]]) -> list[Generation]:
        """One turn: each request with one of its prompts."""
        started = time.perf_counter()
        texts = [
            f"{self.processor.image_token * one.image_tokens}<s>{prompt}{protocol.END}"
            for one, prompt in asked
        ]
        inputs = self.tokenizer(
            texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
        )
        inputs["pixel_values"] = torch.cat([one.pixel_values for one, _ in asked])
        inputs = inputs.to(self.device)
        # What is not there is not mentioned: "nothing" is an answer that ends at once.
        recorder = TokenRecorder(self._first_bin, none=self._end)
        processors: list[LogitsProcessor] = [recorder]
        if self.card.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(self.card.repetition_penalty))
        if ngram := self.model.generation_config.no_repeat_ngram_size:
            processors.append(NoRepeatNGramLogitsProcessor(ngram))
        loops = LoopStopper([one.task for one, _ in asked], 1, [self._end], self._token_bytes)
        sequences = self.model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            early_stopping=False,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            max_new_tokens=self.card.max_new_tokens,
            forced_eos_token_id=None,
            eos_token_id=self._end,
            pad_token_id=self.tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([loops]),
            cache_implementation="static" if self.settings.static_cache else None,
        )
        ids = sequences[:, 1:]
        records = recorder.finish(ids)
        latency_s = (time.perf_counter() - started) / len(asked)
        generations = []
        for row, ((one, prompt), said, record) in enumerate(
            zip(asked, ids.tolist(), records, strict=True)
        ):
            begin = 1 if said[0] == self._start else 0
            end = said.index(self._end) if self._end in said else len(said)
            reason = FinishReason.STOP if end < len(said) else FinishReason.LENGTH
            if row in loops.stopped_at:
                end, reason = loops.stopped_at[row], FinishReason.LOOP
            generations.append(
                Generation(
                    prompt=prompt,
                    tokens=self._token_bytes.texts(said[begin:end]),
                    token_logprobs=tuple(record.logprobs[begin:end].tolist()),
                    token_window_mass=tuple(record.window_mass[begin:end].tolist()),
                    none_probs=tuple(record.none_probs[begin : begin + 1].tolist()),
                    finish_reason=reason,
                    frame_size_px=one.frame_size_px,
                    latency_s=latency_s,
                )
            )
        return generations


@dataclass(frozen=True)
class PreparedRequest:
    """A request ready for the forward pass.

    prompts: one a turn, as far as they are known beforehand.
    image_tokens: what the image takes of the input.
    pixel_values: (1, 3, side, side), in the dtype of the model.
    frame_size_px: (width, height) that locations refer to.
    """

    task: Task
    prompts: tuple[str, ...]
    image_tokens: int
    pixel_values: torch.Tensor
    frame_size_px: tuple[int, int]

    @property
    def input_length(self) -> int:
        """About how many tokens the longest turn takes."""
        return self.image_tokens + max(len(prompt.split()) for prompt in self.prompts)

    def next_prompt(self, answers: Sequence[Generation]) -> str | None:
        """What to ask after these answers; ``None``: nothing."""
        if len(answers) < len(self.prompts):
            return self.prompts[len(answers)]
        if self.task not in protocol.CAPTION_OF or len(answers) > len(self.prompts):
            return None
        # A caption that was cut is not worth grounding.
        if answers[0].finish_reason is not FinishReason.STOP:
            return None
        return protocol.prompt(Task.PHRASE_GROUNDING, [answers[0].raw_text.strip()])


def _joined(turns: Sequence[Generation]) -> Generation:
    """Turns as one answer. ``</s>`` stands between them, as certain as it was."""
    first, *rest = turns
    joined = first
    for turn in rest:
        joined = replace(
            joined,
            prompt=f"{joined.prompt}{protocol.END}{turn.prompt}",
            tokens=(*joined.tokens, protocol.END, *turn.tokens),
            token_logprobs=(*joined.token_logprobs, 0.0, *turn.token_logprobs),
            token_window_mass=(
                *joined.token_window_mass,
                float("nan"),
                *turn.token_window_mass,
            ),
            none_probs=(*joined.none_probs, *turn.none_probs),
            latency_s=joined.latency_s + turn.latency_s,
        )
        if turn.finish_reason is not FinishReason.STOP:
            joined = replace(joined, finish_reason=turn.finish_reason)
    return joined
