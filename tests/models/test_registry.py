import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from labeling_pipeline.errors import ConfigurationError, ModelError, UnknownModelError
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import (
    EMBEDDED,
    capabilities,
    default_model,
    find_card,
    load_model,
    model_for,
    models_for,
    registered_names,
    require_task,
)
from labeling_pipeline.models.rex_omni import RexOmni
from labeling_pipeline.models.scripted import ScriptedModel
from labeling_pipeline.tasks import Request, Task

REPOSITORY = Path(__file__).parents[2]


def checkpoint(folder: Path, model_type: str = "qwen2_5_vl", card: str | None = None) -> Path:
    """A folder in the shape of a checkpoint, without weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if card is not None:
        (folder / "card.json").write_text(card)
    return folder


# Names


@pytest.mark.parametrize("name", registered_names())
def test_every_registered_name_has_a_card_of_that_name(name: str):
    card = find_card(name)
    assert card.name == name
    assert card.tasks
    assert card.licence


def test_the_embedded_model_is_registered_and_needs_no_download():
    assert EMBEDDED in registered_names()
    card = find_card(EMBEDDED)
    assert (Path(card.checkpoint) / "model.safetensors").is_file()
    assert card.vocabulary is not None
    assert "person" in card.vocabulary


def test_the_hub_repository_is_another_name_of_its_card():
    assert find_card("IDEA-Research/Rex-Omni") is find_card("rex-omni")
    assert find_card("rex-omni").vocabulary is None


def test_the_quantized_weights_are_a_model_of_their_own():
    card = find_card("IDEA-Research/Rex-Omni-AWQ")
    assert (card.name, card.quantization, card.dtype) == ("rex-omni-awq", "awq", "float16")
    plain = find_card("rex-omni")
    assert (card.tasks, card.max_pixels, plain.quantization) == (
        plain.tasks,
        plain.max_pixels,
        None,
    )


def test_a_folder_with_quantized_weights_says_so(tmp_path: Path):
    folder = checkpoint(tmp_path / "mine")
    config = {"model_type": "qwen2_5_vl", "quantization_config": {"quant_method": "awq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    card = find_card(str(folder))
    assert (card.quantization, card.dtype) == ("awq", "float16")


def test_a_folder_is_a_model_of_its_family(tmp_path: Path):
    folder = checkpoint(tmp_path / "mine")
    card = find_card(str(folder))
    published = find_card("rex-omni")
    assert card.checkpoint == str(folder)
    assert card.revision == "folder"
    assert (card.max_pixels, card.repetition_penalty) == (
        published.max_pixels,
        published.repetition_penalty,
    )


def test_a_card_in_the_folder_says_how_it_differs_from_its_family(tmp_path: Path):
    own = {"vocabulary": ["cat"], "max_pixels": 28 * 28 * 4, "licence": "MIT"}
    card = find_card(str(checkpoint(tmp_path / "mine", card=json.dumps(own))))
    assert (card.vocabulary, card.max_pixels, card.licence) == (("cat",), 3136, "MIT")
    assert card.tasks == find_card("rex-omni").tasks


def test_a_script_is_a_model_with_every_task(tmp_path: Path):
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"vocabulary": ["cat"]}))
    model = load_model(f"scripted:{script}", ModelSettings())
    assert isinstance(model, ScriptedModel)
    assert model.card.tasks == tuple(Task)
    assert model.card.vocabulary == ("cat",)


# Mistakes


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UnknownModelError) as caught:
        find_card("yolo")
    for part in ("'yolo'", *registered_names(), "IDEA-Research/Rex-Omni", "folder"):
        assert part in str(caught.value)


def test_an_empty_folder_is_no_model(tmp_path: Path):
    with pytest.raises(UnknownModelError, match=r"config\.json"):
        find_card(str(tmp_path))


def test_another_architecture_is_refused_naming_the_known_ones(tmp_path: Path):
    with pytest.raises(UnknownModelError, match=r"'llama'.*qwen2_5_vl"):
        find_card(str(checkpoint(tmp_path / "mine", model_type="llama")))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        pytest.param("{", "JSON", id="no JSON"),
        pytest.param("[]", "mapping", id="no mapping"),
        pytest.param('{"max_pixles": 1}', "max_pixles", id="an unknown key"),
        pytest.param('{"max_pixels": "many"}', "max_pixels", id="a wrong type"),
    ],
)
def test_a_card_that_is_not_valid_is_refused_naming_the_file(
    tmp_path: Path, card: str, expected: str
):
    folder = checkpoint(tmp_path / "mine", card=card)
    with pytest.raises(ConfigurationError) as caught:
        find_card(str(folder))
    assert str(folder / "card.json") in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_configuration_that_is_not_valid_is_refused_naming_the_file(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        find_card(str(tmp_path))


@pytest.mark.parametrize("text", [None, "{"])
def test_a_script_that_cannot_be_read_is_refused_naming_the_file(tmp_path: Path, text: str | None):
    script = tmp_path / "script.json"
    if text is not None:
        script.write_text(text)
    with pytest.raises(ConfigurationError, match=str(script)):
        find_card(f"scripted:{script}")


# Tasks and loading


def test_a_task_the_model_cannot_do_names_the_models_that_can():
    card = find_card("rex-omni").model_copy(update={"name": "boxes", "tasks": (Task.DETECTION,)})
    require_task(card, Task.DETECTION)
    with pytest.raises(ConfigurationError, match=r"boxes cannot do keypoint.*rex-omni"):
        require_task(card, Task.KEYPOINT)


@pytest.mark.parametrize(
    ("task", "preferred", "device", "expected"),
    [
        pytest.param(Task.DETECTION, EMBEDDED, "cuda", EMBEDDED, id="it can, whatever the device"),
        pytest.param(Task.OCR_BOX, "rex-omni", "cpu", "rex-omni", id="it can, though slowly"),
        pytest.param(Task.OCR_BOX, EMBEDDED, "cpu", "rapidocr", id="text on a CPU"),
        pytest.param(Task.OCR_POLYGON, EMBEDDED, "cuda:1", "rex-omni", id="text on a GPU"),
        pytest.param(Task.POINTING, EMBEDDED, "cuda", "rex-omni", id="points on a GPU"),
        pytest.param(Task.POINTING, EMBEDDED, "cpu", EMBEDDED, id="nothing else on a CPU"),
    ],
)
def test_a_preferred_model_that_cannot_makes_way_for_the_default_of_the_hardware(
    task: Task, preferred: str, device: str, expected: str
):
    assert model_for(task, preferred, device) == expected


def test_the_defaults_of_tasks_are_registered_models_that_can():
    for task in Task:
        for hardware in ("cpu", "gpu"):
            name = default_model(task, hardware)
            assert name is None or name in models_for(task)


def test_the_capability_table_in_the_docs_is_the_one_that_is_printed():
    docs = (REPOSITORY / "docs/models.md").read_text(encoding="utf-8")
    for header, *rows in capabilities().values():
        rule = ("---",) * len(header)
        table = "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
        assert table in docs, f"put this into docs/models.md:\n{table}"


# Models of installed packages


def package(folder: Path, value: str, source: str) -> dict[str, str]:
    """Environment in which a package with this entry point is installed."""
    info = folder / "acme_models-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[labeling_pipeline.models]\nacme = {value}\n")
    (folder / "acme_models.py").write_text(source)
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}


ACME = """
from labeling_pipeline.models.cards import ModelCard
from labeling_pipeline.models.scripted import ScriptedModel
from labeling_pipeline.tasks import Task

CARD = ModelCard(
    name="{name}", adapter="acme_models:Acme", checkpoint={script!r}, revision="1",
    licence="MIT", tasks=(Task.DETECTION,), min_pixels=1, max_pixels=1 << 20,
)

class Acme(ScriptedModel):
    pass
"""


@pytest.mark.soak
def test_an_installed_package_adds_a_model_that_plans_can_name(tmp_path: Path, image_root: Path):
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"boxes": {"cat": [[100, 100, 500, 500]]}}))
    source = ACME.format(name="acme", script=str(script))
    environment = package(tmp_path / "site", "acme_models:CARD", source)
    plan = tmp_path / "plan.yaml"
    plan.write_text("model: acme\nentries: [{name: thing, task: detection, classes: [cat]}]\n")
    listed = subprocess.run(
        [sys.executable, "-m", "labeling_pipeline", "tasks"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "acme" in listed.stdout
    home = tmp_path / "home"
    subprocess.run(
        [sys.executable, "run.py", str(image_root), "--plan", str(plan), "--class", "cat"],
        cwd=REPOSITORY,
        env=environment | {"LABELING_HOME": str(home)},
        check=True,
        capture_output=True,
    )
    found = json.loads((home / "auto_labeling_results/cat/cat.json").read_text())
    assert len(found["annotations"]) == 4


@pytest.mark.parametrize(
    ("value", "source", "message"),
    [
        pytest.param(
            "acme_models:CARD",
            "import nothing_of_that_name",
            "could not be loaded: Mod",
            id="does not import",
        ),
        pytest.param("acme_models:MISSING", "", "could not be loaded: Attr", id="not there"),
        pytest.param(
            "acme_models:CARD", "CARD = {}", "expected a ModelCard, got dict", id="no card"
        ),
        pytest.param(
            "acme_models:CARD",
            ACME.format(name="rex-omni", script="x"),
            "adds a model called 'rex-omni', but there is one already",
            id="taken",
        ),
    ],
)
def test_a_package_that_adds_no_model_is_named_with_the_fix(
    tmp_path: Path, value: str, source: str, message: str
):
    code = "from labeling_pipeline.models.registry import find_card; find_card('rex-omni')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=package(tmp_path, value, source),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"the entry point 'acme' ({value}) of acme-models" in done.stderr
    assert message in done.stderr
    assert "uninstall the package" in done.stderr


def test_a_model_is_made_once_for_each_name_and_settings():
    model = load_model(EMBEDDED, ModelSettings())
    assert isinstance(model, RexOmni)
    assert load_model(EMBEDDED, ModelSettings()) is model
    assert load_model(EMBEDDED, ModelSettings(batch_size=2)) is not model


def test_naming_and_keying_a_model_imports_no_model_library():
    code = (
        "import sys\n"
        "from labeling_pipeline.models.cards import ModelSettings\n"
        "from labeling_pipeline.models.registry import EMBEDDED, load_model, registered_names\n"
        "assert all(load_model(n, ModelSettings()).model_key for n in registered_names())\n"
        "heavy = {'torch', 'transformers', 'rapidocr', 'onnxruntime', 'cv2'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.checkpoint
def test_weights_that_cannot_be_loaded_are_not_reached_for_again_at_once(tmp_path):
    # A folder that is a checkpoint by its configuration and has no weights.
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    model = load_model(str(tmp_path), ModelSettings())
    request = Request(np.zeros((8, 8, 3), np.uint8), Task.DETECTION, ("cat",))
    with pytest.raises(ModelError, match="could not be loaded from") as first:
        model.generate([request])
    with pytest.raises(ModelError, match="could not be loaded from") as second:
        model.generate([request])
    assert second.value.__cause__ is first.value
