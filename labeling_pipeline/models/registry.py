"""Model names -> cards -> adapters. Strings only: nothing here imports a model library.

A model is named by a registered name (``tiny-rex-omni``), by a hub repository that a registered
card stands for (``IDEA-Research/Rex-Omni``), by a folder that holds a checkpoint, or, for tests,
by ``scripted:FILE``. A folder may carry a ``card.json`` with the fields in which it differs from
the card of its family: its vocabulary, say, or its pixel limits.

A model that a running service has is named ``remote:http://host:6996``, or
``remote:http://host:6996#tiny-rex-omni`` where there are several. Nothing is asked of the service
to find such a name: its card says where to ask, not what is there.

Installed packages add models of their own by an entry point of the group
``labeling_pipeline.models`` that loads to a ``ModelCard``.
"""

import json
import shutil
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

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
_SCRIPTED_ADAPTER = "labeling_pipeline.models.scripted:ScriptedModel"
_REMOTE = "remote:"

_REX_OMNI = ModelCard(
    name="rex-omni",
    adapter="labeling_pipeline.models.rex_omni:RexOmni",
    checkpoint="IDEA-Research/Rex-Omni",
    revision="main",
    licence="IDEA License 1.0 (non-commercial); base model under the Qwen Research licence",
    tasks=rex_omni_protocol.TASKS,
    about="Rex-Omni 3B, the real weights; wants a GPU",
    extra="rex-omni",
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
        "about": "Rex-Omni 3B in 4-bit weights, for small GPUs",
        "extra": "awq",
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
    engine="onnxruntime",
    extra="ocr",
    about="PP-OCR on ONNX Runtime, for the CPU: Chinese, Japanese and languages in Latin script",
    vocabulary=("word", "text line"),
    min_pixels=1,
    max_pixels=2000 * 2000,
    dtype="float32",
)

_CARDS = (_REX_OMNI, _REX_OMNI_AWQ, *_FLORENCE_2_CARDS, _RAPIDOCR)

ENTRY_POINTS = "labeling_pipeline.models"
"""The group of entry points by which an installed package adds a model card."""

Hardware = Literal["cpu", "gpu"]

# What does a task where nobody names a model that can, by hardware. Nothing stands here for a CPU
# that would need hours on one.
_DEFAULTS: dict[Task, dict[Hardware, str]] = {
    **{task: {"cpu": "florence-2-base", "gpu": "florence-2-large"} for task in _FLORENCE_2.tasks},
    **{task: {"gpu": _REX_OMNI.name} for task in _REX_OMNI.tasks},
    Task.OCR_BOX: {"cpu": _RAPIDOCR.name, "gpu": _REX_OMNI.name},
    Task.OCR_POLYGON: {"cpu": _RAPIDOCR.name, "gpu": _REX_OMNI.name},
}

# What config.json calls the architecture -> the card whose protocol a folder of it speaks.
_FAMILIES = {"qwen2_5_vl": _REX_OMNI, "florence2": _FLORENCE_2}


def registered_names() -> tuple[str, ...]:
    """The names that can be used without a path.

    Raises:
        ConfigurationError: an installed package adds something that is no model card.
    """
    return (*_PACKAGED, *_registered())


@cache
def _registered() -> dict[str, ModelCard]:
    cards = {card.name: card for card in _CARDS}
    for entry_point in entry_points(group=ENTRY_POINTS):
        card = _load_card(entry_point)
        if card.name in (*_PACKAGED, *cards):
            raise ConfigurationError(
                f"{_origin(entry_point)} adds a model called {card.name!r}, but there is one "
                "already: rename it, or uninstall the package"
            )
        cards[card.name] = card
    return cards


def _load_card(entry_point: EntryPoint) -> ModelCard:
    try:
        card = entry_point.load()
    except Exception as error:  # whatever a foreign package does when it is imported
        raise ConfigurationError(
            f"{_origin(entry_point)} could not be loaded: {type(error).__name__}: {error}; mend or "
            "uninstall the package"
        ) from error
    if not isinstance(card, ModelCard):
        raise ConfigurationError(
            f"{_origin(entry_point)}: expected a ModelCard, got {type(card).__name__}; mend or "
            "uninstall the package"
        )
    return card


def _origin(entry_point: EntryPoint) -> str:
    package = entry_point.dist.name if entry_point.dist else "an unknown package"
    return f"the entry point {entry_point.name!r} ({entry_point.value}) of {package}"


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
        described = _read_mapping(script)
        return ModelCard(
            name=name,
            adapter=_SCRIPTED_ADAPTER,
            checkpoint=str(script.resolve()),
            revision=described.get("revision", "script"),
            licence="none",
            tasks=tuple(Task),
            vocabulary=described.get("vocabulary"),
            min_pixels=1,
            max_pixels=1 << 30,
            dtype="float32",
        )
    if name.startswith(_REMOTE):
        return _remote_card(name)
    if name in _PACKAGED:
        return _folder_card(_CHECKPOINTS / name, name)
    for card in _registered().values():
        if name in (card.name, card.checkpoint):
            return card
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _folder_card(folder.resolve(), name)
    hub = [card.checkpoint for card in _CARDS if card is not _RAPIDOCR]
    raise UnknownModelError(
        f"no model is called {name!r}: expected one of {', '.join(registered_names())}, a hub "
        f"repository ({', '.join(hub)}), a folder with a checkpoint, or remote:URL of a service"
    )


def models_for(task: Task) -> tuple[str, ...]:
    """Names of the registered models that can do a task."""
    return tuple(name for name in registered_names() if task in find_card(name).tasks)


def capabilities() -> dict[str, list[tuple[str, ...]]]:
    """Two tables, title -> rows with the header first: what does each task, and what each model is.

    A default stands for where neither the plan nor an entry names a model that can.
    """
    defaults: tuple[Hardware, Hardware] = ("cpu", "gpu")
    by_task = [
        (
            str(task),
            ", ".join(models_for(task)),
            *(_default_name(task, hardware) for hardware in defaults),
        )
        for task in Task
    ]
    cards = [find_card(name) for name in registered_names()]
    by_model = [
        (
            card.name,
            card.about,
            card.extra or "–",
            card.licence,
        )
        for card in cards
    ]
    return {
        "Tasks": [("task", "models that can", "default on a CPU", "on a GPU"), *by_task],
        "Models": [("model", "what it is", "extra", "licence"), *by_model],
    }


def _default_name(task: Task, hardware: Hardware) -> str:
    if task in find_card(EMBEDDED).tasks:
        return EMBEDDED
    return default_model(task, hardware) or "–"


def hardware_of(device: str) -> Hardware:
    """What a device setting comes to on this machine; told without importing torch.

    device: auto, cpu, cuda, cuda:1, ...
    """
    if device == "auto":
        return "gpu" if Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") else "cpu"
    return "cpu" if device == "cpu" else "gpu"


def default_model(task: Task, hardware: Hardware) -> str | None:
    """Name of the model that does a task where nobody names one, if there is one."""
    return _DEFAULTS.get(task, {}).get(hardware)


def model_for(task: Task, preferred: str, device: str) -> str:
    """Name of the model that does a task where an entry names none: the preferred one if it can,
    else the task's default on this hardware, if there is one.

    Raises:
        UnknownModelError, ConfigurationError: as ``find_card``, of the preferred one.
    """
    if task in find_card(preferred).tasks:
        return preferred
    return default_model(task, hardware_of(device)) or preferred


def load_model(name: str, settings: ModelSettings) -> Model:
    """The adapter of a model; its weights load when it is first asked, once per process."""
    return _load(name, settings)


@cache
def _load(name: str, settings: ModelSettings) -> Model:
    card = find_card(name)
    return _import_adapter(card.adapter)(card, settings)


def registered_adapter(card: ModelCard) -> type[Model]:
    """The adapter of a card that came from elsewhere; only what models here have is imported.

    Raises:
        ConfigurationError: no model here has this adapter.
    """
    known = {find_card(name).adapter for name in registered_names()} | {_SCRIPTED_ADAPTER}
    if card.adapter not in known:
        raise ConfigurationError(
            f"{card.name} speaks through {card.adapter}, which no model here does: install the "
            f"package that adds it; known are {', '.join(sorted(known))}"
        )
    return _import_adapter(card.adapter)


def _import_adapter(adapter: str) -> type[Model]:
    module, _, attribute = adapter.partition(":")
    return getattr(import_module(module), attribute)


def require_task(card: ModelCard, task: Task) -> None:
    """Raise if the model cannot do the task, naming those that can."""
    if task in card.tasks:
        return
    raise ConfigurationError(
        f"{card.name} cannot do {task}; models that can: "
        f"{', '.join(models_for(task)) or 'none registered'}"
    )


def _remote_card(name: str) -> ModelCard:
    address = name.removeprefix(_REMOTE)
    # Names are logged, stored and shown: no password may be part of one, nor of an error.
    if "@" in address.partition("#")[0]:
        raise ConfigurationError(
            "remote:…@…: expected the address of a service without user and password; its key is "
            "given in LABELING_API_KEY"
        )
    if not _is_service(address):
        raise UnknownModelError(
            f"{name}: expected the address of a service, remote:http://host:6996, and where it has "
            "several models remote:http://host:6996#model-name"
        )
    return ModelCard(
        name=name,
        adapter="labeling_pipeline.models.remote:RemoteModel",
        checkpoint=address,
        revision="served",
        licence="that of the model there",
        tasks=tuple(Task),
        engine="http",
        extra="service",
        min_pixels=1,
        max_pixels=1 << 30,
    )


def _is_service(address: str) -> bool:
    try:
        url = urlsplit(address)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number, an IPv6 address that is none
        return False


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
    fields |= {"extra": None}
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
