"""Model names -> cards -> adapters. Strings only: nothing here imports a model library.

A model is named by a registered name (``tiny-rex-omni``), by a hub repository that a registered
card stands for (``IDEA-Research/Rex-Omni``), by a folder that holds a checkpoint, or, for tests,
by ``scripted:FILE``. A folder may carry a ``card.json`` with the fields in which it differs from
the card of its family: its vocabulary, say, or its pixel limits.
"""

import json
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from labeling_pipeline.errors import ConfigurationError, UnknownModelError
from labeling_pipeline.models import florence2_protocol, rex_omni_protocol
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.cards import CARD_FILE, FOLDER, ModelCard, ModelSettings
from labeling_pipeline.tasks import Task

EMBEDDED = "tiny-rex-omni"
"""The model that is used where nobody names another."""

_PACKAGED = (EMBEDDED, "tiny-florence-2")
"""The checkpoints that ship in the package."""

_CHECKPOINTS = Path(__file__).parent / "checkpoints"
_SCRIPTED = "scripted:"

_REX_OMNI = ModelCard(
    name="rex-omni",
    adapter="labeling_pipeline.models.rex_omni:RexOmni",
    checkpoint="IDEA-Research/Rex-Omni",
    revision="main",
    licence="IDEA License 1.0 (non-commercial); base model under the Qwen Research licence",
    tasks=rex_omni_protocol.TASKS,
    about="Rex-Omni 3B, the real weights; wants a GPU",
    min_pixels=16 * 28 * 28,
    max_pixels=2560 * 28 * 28,
    dtype="bfloat16",
    repetition_penalty=1.05,
    max_new_tokens=4096,
)

_REX_OMNI_AWQ = _REX_OMNI.model_copy(
    update={
        "name": "rex-omni-awq",
        "checkpoint": "IDEA-Research/Rex-Omni-AWQ",
        "about": "Rex-Omni 3B in 4-bit weights, for small GPUs; needs the extra `awq`",
        "quantization": "awq",
        # Kernels for these weights compute in half precision only.
        "dtype": "float16",
    }
)

_FLORENCE_2 = ModelCard(
    name="florence-2-base",
    adapter="labeling_pipeline.models.florence2:Florence2",
    checkpoint="florence-community/Florence-2-base",
    revision="main",
    licence="MIT",
    tasks=florence2_protocol.TASKS,
    about="Florence-2, 0.23B parameters",
    min_pixels=768 * 768,
    max_pixels=768 * 768,
    dtype="bfloat16",
    max_new_tokens=1024,
)

# "ft": fine-tuned by the authors on captioning, detection, grounding and segmentation together.
_FLORENCE_2_SIZES = {
    "base": "0.23B parameters",
    "large": "0.77B parameters",
    "base-ft": "0.23B parameters, fine-tuned on many tasks",
    "large-ft": "0.77B parameters, fine-tuned on many tasks",
}
_FLORENCE_2_CARDS = [
    _FLORENCE_2.model_copy(
        update={
            "name": f"florence-2-{size}",
            "checkpoint": f"florence-community/Florence-2-{size}",
            "about": f"Florence-2, {about}",
        }
    )
    for size, about in _FLORENCE_2_SIZES.items()
]

_RAPIDOCR = ModelCard(
    name="rapidocr",
    adapter="labeling_pipeline.models.rapidocr:RapidOcr",
    checkpoint="rapidocr",
    revision="installed",
    licence="Apache-2.0",
    tasks=(Task.OCR_BOX, Task.OCR_POLYGON),
    about="PP-OCR on ONNX Runtime, for the CPU: Chinese, Japanese and languages in Latin script",
    vocabulary=("word", "text line"),
    min_pixels=1,
    max_pixels=2000 * 2000,
    dtype="float32",
)

_CARDS = {card.name: card for card in (_REX_OMNI, _REX_OMNI_AWQ, *_FLORENCE_2_CARDS, _RAPIDOCR)}

# Where the plan's model cannot do a task and the entry names none: what does it on any machine.
_DEFAULTS = {Task.OCR_BOX: _RAPIDOCR.name, Task.OCR_POLYGON: _RAPIDOCR.name}

# What config.json calls the architecture -> the card whose protocol a folder of it speaks.
_FAMILIES = {"qwen2_5_vl": _REX_OMNI, "florence2": _FLORENCE_2}


def registered_names() -> tuple[str, ...]:
    """The names that can be used without a path."""
    return (*_PACKAGED, *_CARDS)


@cache
def find_card(name: str) -> ModelCard:
    """The card of a model.

    Raises:
        UnknownModelError: the name is nothing we know; the message lists what is.
        ConfigurationError: a file that describes the model is not valid; names it.
    """
    if name.startswith(_SCRIPTED):
        script = Path(name.removeprefix(_SCRIPTED))
        if not script.is_file():
            raise UnknownModelError(f"{name}: expected a JSON file at {script}, found none")
        return ModelCard(
            name=name,
            adapter="labeling_pipeline.models.scripted:ScriptedModel",
            checkpoint=str(script.resolve()),
            revision="script",
            licence="none",
            tasks=tuple(Task),
            vocabulary=_read_mapping(script).get("vocabulary"),
            min_pixels=1,
            max_pixels=1 << 30,
            dtype="float32",
        )
    if name in _PACKAGED:
        return _folder_card(_CHECKPOINTS / name, name)
    for card in _CARDS.values():
        if name in (card.name, card.checkpoint):
            return card
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _folder_card(folder.resolve(), name)
    raise UnknownModelError(
        f"no model is called {name!r}: expected one of {', '.join(registered_names())}, a hub "
        f"repository ({', '.join(c.checkpoint for c in (_REX_OMNI, _REX_OMNI_AWQ))}), or a folder "
        "with a checkpoint"
    )


def model_for(task: Task, preferred: str) -> str:
    """Name of the model that does a task where an entry names none: the preferred one if it can,
    else the task's default if there is one. What hardware there is plays no part: the same plan
    means the same model everywhere.

    Raises:
        UnknownModelError, ConfigurationError: as ``find_card``, of the preferred one.
    """
    default = _DEFAULTS.get(task)
    if default is None or task in find_card(preferred).tasks:
        return preferred
    return default


def load_model(name: str, settings: ModelSettings) -> Model:
    """The adapter of a model; its weights load when it is first asked, once per process."""
    return _load(name, settings)


@cache
def _load(name: str, settings: ModelSettings) -> Model:
    card = find_card(name)
    module, _, attribute = card.adapter.partition(":")
    return getattr(import_module(module), attribute)(card, settings)


def require_task(card: ModelCard, task: Task) -> None:
    """Raise if the model cannot do the task, naming those that can."""
    if task in card.tasks:
        return
    able = [name for name in registered_names() if task in find_card(name).tasks]
    raise ConfigurationError(
        f"{card.name} cannot do {task}; models that can: {', '.join(able) or 'none registered'}"
    )


def _folder_card(folder: Path, name: str) -> ModelCard:
    config = folder / "config.json"
    if not config.is_file():
        raise UnknownModelError(f"{folder}: expected a checkpoint, but it holds no config.json")
    described = _read_mapping(config)
    model_type = described.get("model_type")
    family = _FAMILIES.get(str(model_type))
    if family is None:
        raise UnknownModelError(
            f"{folder}: config.json says model_type {model_type!r}; "
            f"known are {', '.join(_FAMILIES)}"
        )
    fields = family.model_dump() | {"name": name, "checkpoint": str(folder), "revision": FOLDER}
    if method := (described.get("quantization_config") or {}).get("quant_method"):
        fields |= {"quantization": method}
        if method == _REX_OMNI_AWQ.quantization:
            fields |= {"dtype": _REX_OMNI_AWQ.dtype}
    own = folder / CARD_FILE
    if own.is_file():
        fields |= _read_mapping(own)
    try:
        return ModelCard.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise ConfigurationError(
            f"{own}: expected the fields of a model card: {problems}"
        ) from None


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path}: expected valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: expected a JSON mapping, got {type(data).__name__}")
    return data
