"""What the runtimes of all models share: devices and loading, and answers being generated: tokens
measured from raw logits, text cut into tokens, loops stopped.

Facts this module stands on:

- Scores need the raw logits, before any penalty. Custom logits processors run after those that
  ``generate`` builds itself, so penalties are switched off there and applied by processors that
  stand behind the recorder.
- Steps of a small model are too short to share: on two busy cores a second torch thread made the
  embedded checkpoint 16 times slower, and on idle ones no faster.
- Sequences of a batch end each for itself: ``generate`` fills those that have ended with the
  padding token until the last one ends.
- Keeping batch x steps x vocabulary floats would take gigabytes at 152,000 entries; the recorder
  keeps three numbers a token.
"""

import codecs
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedModel, StoppingCriteria, TorchAoConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import is_flash_attn_2_available

from labeling_pipeline.errors import ConfigurationError, MissingDependencyError, ModelError
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.cards import FOLDER, Attention, ModelCard, ModelSettings
from labeling_pipeline.tasks import Task

_SMALL_MODEL_PARAMETERS = 50_000_000

LOOK_EVERY = 16
"""Steps between two looks at whether an answer goes in circles: a look waits for the GPU."""


def use_few_threads(model: PreTrainedModel) -> None:
    """Let a small model on a CPU have one thread. OpenMP keeps this number for each calling
    thread, so it is said in every one."""
    if model.device.type == "cpu" and model.num_parameters() < _SMALL_MODEL_PARAMETERS:
        torch.set_num_threads(1)


def free_memory(device: torch.device) -> None:
    """Give back what nobody uses any more and what the allocator keeps for itself."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def padded_frame(image: np.ndarray, card: ModelCard) -> np.ndarray:
    """The pixels (height, width, 3) as the card wants them: odd aspects padded to a square with
    their edge, right and below."""
    height, width = image.shape[:2]
    limit = card.max_aspect
    if limit is None or max(width, height) <= limit * min(width, height):
        return image
    side = max(width, height)
    return np.pad(image, ((0, side - height), (0, side - width), (0, 0)), mode="edge")


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
        token_bytes: "TokenBytes",
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


class TokenBytes:
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


def source_of(card: ModelCard, settings: ModelSettings) -> dict[str, Any]:
    """Where ``from_pretrained`` finds a checkpoint beside its name; a folder needs no more."""
    if card.revision == FOLDER:
        return {}
    return {"revision": card.revision, "cache_dir": settings.cache_dir}


@contextmanager
def told_what_failed(card: ModelCard) -> Iterator[None]:
    """Loading, with errors that say from where and why.

    Raises:
        ModelError: the checkpoint could not be loaded.
        MissingDependencyError: a package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(f"{card.name} needs another package: {error}") from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{card.name} could not be loaded from {card.checkpoint}: {error}. Check the name, "
            "the network, and `cache_dir`; a folder with the checkpoint works offline."
        ) from error


def load_options(
    card: ModelCard, settings: ModelSettings, device: torch.device, *, in_place: bool
) -> dict[str, Any]:
    """What ``from_pretrained`` is told beside where the weights are.

    in_place: let gigabytes of weights go straight onto the device, so that they never stand in main
        memory as a whole.

    Raises:
        ConfigurationError: the settings do not go with each other.
        MissingDependencyError: they need a package that is not installed.
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
    if in_place and device.type != "cpu":
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
