"""What is known of a model without loading it, and the settings it is loaded with."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.tasks import RULES, Asks, Task

CARD_FILE = "card.json"
"""What a checkpoint folder says of itself: the fields in which it differs from its family."""

FOLDER = "folder"
"""Revision of a checkpoint that lies in a folder."""

Count = Annotated[int, Field(ge=1)]
Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["int8"]
Attention = Literal["auto", "sdpa", "flash_attention_2", "eager"]


class ModelCard(BaseModel):
    """A model as the registry knows it.

    ``vocabulary`` is ``None`` for an open vocabulary; otherwise nothing outside it is ever asked.
    ``max_aspect`` is the longest side over the shortest up to which frames are taken as they are;
    longer ones are padded to a square with their edge pixels. ``None``: any frame is taken.
    ``quantization`` is how the weights of the checkpoint are stored, if not plainly.
    ``engine`` is what computes; PyTorch takes a GPU where there is one, the others never do.
    ``http``: a service computes, which has its own hardware.
    ``extra`` is the extra of this package that the model needs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    adapter: str = Field(description="module:class that speaks this model's protocol")
    checkpoint: str = Field(description="hub repository or folder")
    revision: str
    licence: str
    tasks: tuple[Task, ...]
    about: str = ""
    engine: Literal["pytorch", "onnxruntime", "http"] = "pytorch"
    extra: str | None = None
    vocabulary: tuple[str, ...] | None = None
    min_pixels: int
    max_pixels: int
    max_aspect: float | None = None
    dtype: Dtype = "bfloat16"
    quantization: str | None = None
    repetition_penalty: float = 1.0
    max_new_tokens: int = 2048

    def with_settings(self, settings: "ModelSettings") -> "ModelCard":
        """This card, with what the settings say otherwise.

        Raises:
            ConfigurationError: the settings do not go with this model.
        """
        given = settings.model_dump(include=OVERRIDES, exclude_none=True)
        if self.revision == FOLDER:
            given.pop("revision", None)
        card = self.model_copy(update=given)
        if card.min_pixels > card.max_pixels:
            raise ConfigurationError(
                f"{self.name}: expected min_pixels to be at most max_pixels, got "
                f"{card.min_pixels} and {card.max_pixels}; what the settings leave out is "
                f"{self.min_pixels} to {self.max_pixels} here"
            )
        if self.quantization and settings.quantization:
            raise ConfigurationError(
                f"{self.name} is quantized already ({self.quantization}): leave `quantization` "
                "out, or name a model with plain weights"
            )
        return card

    def why_not_in_vocabulary(self, label: str, task: Task = Task.DETECTION) -> str | None:
        """Why this label must not be asked, with the fix; ``None`` if it may.

        A phrase may be asked if it speaks of something in the vocabulary, and so may the unit that
        is asked by default.
        """
        asks = RULES[task].asks
        if self.vocabulary is None or label in self.vocabulary:
            return None
        if asks is Asks.UNIT and label == RULES[task].default_label:
            return None
        if asks is Asks.PHRASE and any(name in label for name in self.vocabulary):
            return None
        return (
            f"the label {label!r} is outside the vocabulary of {self.name} "
            f"({', '.join(self.vocabulary)}): map the class to one of these with `ask` in the "
            "plan, or name a model with an open vocabulary (LABELING_MODEL=rex-omni)"
        )


OVERRIDES = {
    "revision",
    "dtype",
    "min_pixels",
    "max_pixels",
    "max_new_tokens",
    "repetition_penalty",
}
"""The settings in which a card can be overruled; they bear the names of its fields."""


class ModelSettings(BaseModel):
    """How models are loaded and asked. ``None`` means what the model card says.

    What can change an answer enters the model key: ``dtype``, ``quantization``, ``revision``, the
    pixel limits and the decoding (``max_new_tokens``, ``repetition_penalty``). ``device``,
    ``cache_dir``, ``attention``, ``static_cache`` and ``batch_size`` cannot and do not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: Dtype | None = None
    quantization: Quantization | None = Field(None, description="of the weights, while loading")
    cache_dir: str | None = Field(None, description="where hub downloads are kept")
    revision: str | None = Field(None, description="branch, tag or commit of a hub repository")
    min_pixels: Count | None = Field(None, description="smaller images are scaled up to it")
    max_pixels: Count | None = Field(None, description="larger images are scaled down to it")
    max_new_tokens: Count | None = Field(None, description="where an answer is cut")
    repetition_penalty: PositiveFloat | None = None
    attention: Attention = Field(
        "auto", description="auto: FlashAttention 2 where it is installed and can run, else SDPA"
    )
    static_cache: bool = Field(
        False, description="keys and values in one place, and on a GPU compiled decoding"
    )
    batch_size: Count | None = Field(
        None, description="upper bound; without it the model finds its own"
    )


def model_parameters(card: ModelCard, settings: ModelSettings, protocol_version: int) -> dict:
    """Everything that can change an answer, as JSON-able values.

    Raises:
        ConfigurationError: the settings do not go with this model.
    """
    card = card.with_settings(settings)
    folder = Path(card.checkpoint)
    is_folder = folder.is_dir()
    return {
        "checkpoint": folder.name if is_folder else card.checkpoint,
        "revision": fingerprint(folder) if is_folder else card.revision,
        "dtype": card.dtype,
        "quantization": card.quantization or settings.quantization,
        "min_pixels": card.min_pixels,
        "max_pixels": card.max_pixels,
        "max_aspect": card.max_aspect,
        "repetition_penalty": card.repetition_penalty,
        "max_new_tokens": card.max_new_tokens,
        "protocol_version": protocol_version,
    }


def key_of(parameters: dict) -> str:
    """Short stable hash of the parameters: the model key."""
    text = json.dumps(parameters, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fingerprint(folder: Path) -> str:
    """Hash of what a checkpoint folder holds, but for the card: what of it can change an answer is
    among the parameters already.

    Weights are sampled, three blocks of 1 MiB a file, so that gigabytes cost milliseconds; all
    else is read in full.
    """
    digest = hashlib.sha256()
    block = 1 << 20
    files = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    for path in sorted(p for p in files if p.name != CARD_FILE):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            if size <= 4 * block:
                digest.update(file.read())
                continue
            for offset in (0, size // 2, size - block):
                file.seek(offset)
                digest.update(file.read(block))
    return digest.hexdigest()[:16]
