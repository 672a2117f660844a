"""What is known of a model without loading it, and the settings it is loaded with."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from labeling_pipeline.tasks import Task

CARD_FILE = "card.json"
"""What a checkpoint folder says of itself: the fields in which it differs from its family."""

Dtype = Literal["float32", "bfloat16", "float16"]


class ModelCard(BaseModel):
    """A model as the registry knows it.

    ``vocabulary`` is ``None`` for an open vocabulary; otherwise nothing outside it is ever asked.
    ``max_aspect`` is the longest side over the shortest up to which frames are taken as they are;
    longer ones are padded to a square with their edge pixels. ``None``: any frame is taken.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    adapter: str = Field(description="module:class that speaks this model's protocol")
    checkpoint: str = Field(description="hub repository or folder")
    revision: str
    licence: str
    tasks: tuple[Task, ...]
    about: str = ""
    vocabulary: tuple[str, ...] | None = None
    min_pixels: int
    max_pixels: int
    max_aspect: float | None = None
    dtype: Dtype = "bfloat16"
    repetition_penalty: float = 1.0
    max_new_tokens: int = 2048

    def why_not_in_vocabulary(self, label: str) -> str | None:
        """Why this label must not be asked, with the fix; ``None`` if it may."""
        if self.vocabulary is None or label in self.vocabulary:
            return None
        return (
            f"the label {label!r} is outside the vocabulary of {self.name} "
            f"({', '.join(self.vocabulary)}): map the class to one of these with `ask` in the "
            "plan, or name a model with an open vocabulary (LABELING_MODEL=rex-omni)"
        )


class ModelSettings(BaseModel):
    """How models are loaded. ``None`` means what the model card says.

    Only ``revision`` and ``dtype`` can change an answer and enter the model key; ``device``,
    ``cache_dir`` and ``batch_size`` cannot and do not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: Dtype | None = None
    cache_dir: str | None = Field(None, description="where hub downloads are kept")
    revision: str | None = Field(None, description="branch, tag or commit of a hub repository")
    batch_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="upper bound; without it the model finds its own"
    )


def model_parameters(card: ModelCard, settings: ModelSettings, protocol_version: int) -> dict:
    """Everything that can change an answer, as JSON-able values."""
    folder = Path(card.checkpoint)
    is_folder = folder.is_dir()
    return {
        "checkpoint": folder.name if is_folder else card.checkpoint,
        "revision": fingerprint(folder) if is_folder else settings.revision or card.revision,
        "dtype": settings.dtype or card.dtype,
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
