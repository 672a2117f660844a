"""The part of Rex-Omni that needs torch: loading, preparing pixels, generating, measuring tokens.

Facts this module stands on:

- ``Qwen2_5_VLProcessor`` wants torchvision, but only for its video half; joined from an image
  processor and a tokenizer it works without, and it loads hub repositories as published.
- Scores need the raw logits, before the repetition penalty. Custom logits processors run after
  the one that ``generate`` builds itself, so the penalty is switched off there and applied by a
  processor that stands behind the recorder.
- Steps of a small model are too short to share: on two busy cores a second torch thread made the
  embedded checkpoint 16 times slower, and on idle ones no faster.
- Sequences of a batch end each for itself: ``generate`` fills those that have ended with the
  padding token until the last one ends.
- A static cache is compiled for its length, so prompts are padded to few different lengths.
- Keeping batch x steps x vocabulary floats would take gigabytes at 152,000 entries; the recorder
  keeps three numbers a token.
"""

import codecs
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

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
    StoppingCriteria,
    StoppingCriteriaList,
    TorchAoConfig,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_flash_attn_2_available
from transformers.utils.logging import disable_progress_bar

from labeling_pipeline.annotations import FinishReason, Generation
from labeling_pipeline.errors import ConfigurationError, MissingDependencyError, ModelError
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.cards import FOLDER, Attention, ModelCard, ModelSettings
from labeling_pipeline.tasks import Request, Task

_SMALL_MODEL_PARAMETERS = 50_000_000

LOOK_EVERY = 16
"""Steps between two looks at whether an answer goes in circles: a look waits for the GPU."""

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
        options = _load_options(card, settings, self.device)
        source = {
            "revision": card.revision,
            "cache_dir": settings.cache_dir,
        }
        if card.revision == FOLDER:
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
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                card.checkpoint, **options, **source
            ).eval()
        except ImportError as error:
            raise MissingDependencyError(f"{card.name} needs another package: {error}") from error
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
            task=request.task,
            input_ids=self.tokenizer(text).input_ids,
            pixel_values=pixels["pixel_values"].to(self.model.dtype),
            image_grid_thw=pixels["image_grid_thw"],
            frame_size_px=(frame.shape[1], frame.shape[0]),
        )

    @torch.inference_mode()
    def forward(self, prepared: Sequence["PreparedRequest"]) -> list[Generation]:
        """Answer a batch greedily."""
        self._use_few_threads()
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


class LoopStopper(StoppingCriteria):
    """Ends every answer that goes in circles, and none of the others in its batch.

    stopped_at: row -> length in tokens at which it was ended.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        prompt_length: int,
        ends: Sequence[int],
        token_bytes: "_TokenBytes",
    ) -> None:
        self.stopped_at: dict[int, int] = {}
        self._prompt_length = prompt_length
        self._ends = set(ends)
        self._token_bytes = token_bytes
        self._unfinished = {
            row: (protocol.LoopWatch(task), _utf8_decoder()) for row, task in enumerate(tasks)
        }

    def __call__(
        self, input_ids: torch.Tensor, scores: tuple[torch.Tensor, ...] | None, **kwargs: Any
    ) -> torch.Tensor:
        """input_ids: (batch, length), prompts included. Returns (batch,) bool: end these."""
        stop = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        length = input_ids.shape[1] - self._prompt_length
        if length % LOOK_EVERY == 0:
            fresh = input_ids[:, -LOOK_EVERY:].tolist()
            for row, (watch, decoder) in list(self._unfinished.items()):
                if not self._ends.isdisjoint(fresh[row]):
                    del self._unfinished[row]
                    continue
                watch.add(self._token_bytes.pieces(fresh[row], decoder))
                if watch.looping:
                    stop[row] = True
                    self.stopped_at[row] = length
                    del self._unfinished[row]
        return stop


def _utf8_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


class _TokenBytes:
    """Token ids -> the exact piece of text each contributed; joined they are the whole text."""

    def __init__(self, tokenizer) -> None:  # type: ignore[no-untyped-def]
        self._tokenizer = tokenizer
        self._added = {
            index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()
        }
        self._byte_of = {char: byte for byte, char in bytes_to_unicode().items()}

    def texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        decoder = _utf8_decoder()
        texts = self.pieces(ids, decoder)
        if texts:
            texts[-1] += decoder.decode(b"", final=True)
        return tuple(texts)

    def pieces(self, ids: Sequence[int], decoder: codecs.IncrementalDecoder) -> list[str]:
        """The same for ids that follow on those the decoder has seen."""
        # A character may span tokens: it belongs to the token that completes it.
        return [decoder.decode(self._bytes(index)) for index in ids]

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


def choose_attention(
    wanted: Attention, device: torch.device, dtype: torch.dtype, *, static_cache: bool = False
) -> str:
    """The attention implementation of a setting, as transformers calls it.

    Raises:
        ConfigurationError: FlashAttention was asked for where it cannot run.
        MissingDependencyError: it was asked for and is not installed.
    """
    can_run = device.type == "cuda" and dtype != torch.float32 and not static_cache
    if wanted == "auto":
        return "flash_attention_2" if can_run and is_flash_attn_2_available() else "sdpa"
    if wanted == "flash_attention_2":
        if not can_run:
            raise ConfigurationError(
                "attention flash_attention_2 runs on a CUDA GPU, in bfloat16 or float16 and "
                f"without static_cache; here are {device}, {str(dtype).removeprefix('torch.')} and "
                f"static_cache {static_cache}: change these, or set attention to auto"
            )
        if not is_flash_attn_2_available():
            raise MissingDependencyError(
                "attention flash_attention_2 needs the package flash-attn 2.3.3 or newer: "
                "pip install flash-attn --no-build-isolation, or set attention to auto"
            )
    return wanted


def _load_options(card: ModelCard, settings: ModelSettings, device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` is told beside where the weights are.

    Raises:
        ConfigurationError, MissingDependencyError: see ``RexOmniRuntime``.
    """
    dtype = getattr(torch, card.dtype)
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": choose_attention(
            settings.attention, device, dtype, static_cache=settings.static_cache
        ),
    }
    if card.quantization == "awq":
        _require(card.name, "awq", "AWQ weights", "gptqmodel", "accelerate")
    if device.type != "cpu":
        # Straight onto the device: gigabytes of weights never stand in main memory as a whole.
        _require(card.name, "rex-omni", str(device), "accelerate")
        options["device_map"] = {"": device}
    if settings.quantization == "int8":
        _require(card.name, "quantization", "quantization int8", "torchao")
        from torchao.quantization import Int8WeightOnlyConfig

        options["quantization_config"] = TorchAoConfig(Int8WeightOnlyConfig())
    return options


def _require(model: str, extra: str, purpose: str, *packages: str) -> None:
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        raise MissingDependencyError(
            f"{model} with {purpose} needs {' and '.join(absent)}, which is not installed: "
            f"pip install 'labeling-pipeline[{extra}]'"
        )
