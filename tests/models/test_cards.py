import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.models.cards import (
    ModelCard,
    ModelSettings,
    fingerprint,
    key_of,
    model_parameters,
)
from labeling_pipeline.models.registry import find_card, load_model

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in the shape of a checkpoint, its weights a little over what is read in full."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4096 * 5)
    return folder


def key(
    card: ModelCard | None = None,
    settings: ModelSettings | None = None,
    protocol_version: int = 1,
    **changes: Any,
) -> str:
    card = (card or find_card("rex-omni")).model_copy(update=changes)
    return key_of(model_parameters(card, settings or ModelSettings(), protocol_version))


# The model key


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"settings": ModelSettings(revision="v2")}, id="revision"),
        pytest.param({"settings": ModelSettings(dtype="float32")}, id="dtype"),
        pytest.param({"settings": ModelSettings(quantization="int8")}, id="quantization"),
        pytest.param({"settings": ModelSettings(min_pixels=28 * 28)}, id="least pixels wanted"),
        pytest.param({"settings": ModelSettings(max_pixels=10**6)}, id="most pixels wanted"),
        pytest.param({"settings": ModelSettings(max_new_tokens=64)}, id="token limit wanted"),
        pytest.param({"settings": ModelSettings(repetition_penalty=1.2)}, id="penalty wanted"),
        pytest.param({"quantization": "awq"}, id="quantized weights"),
        pytest.param({"checkpoint": "IDEA-Research/Rex-Omni-AWQ"}, id="checkpoint"),
        pytest.param({"min_pixels": 28 * 28}, id="least pixels"),
        pytest.param({"max_pixels": 1280 * 28 * 28}, id="most pixels"),
        pytest.param({"max_aspect": 2.0}, id="padding"),
        pytest.param({"repetition_penalty": 1.0}, id="repetition penalty"),
        pytest.param({"max_new_tokens": 64}, id="token limit"),
        pytest.param({"protocol_version": 2}, id="protocol"),
    ],
)
def test_what_can_change_an_answer_changes_the_model_key(changed: dict[str, Any]):
    assert key(**changed) != key()


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"settings": ModelSettings(device="cuda:1")}, id="device"),
        pytest.param({"settings": ModelSettings(batch_size=1)}, id="batch size"),
        pytest.param({"settings": ModelSettings(cache_dir="/elsewhere")}, id="cache folder"),
        pytest.param({"settings": ModelSettings(attention="eager")}, id="attention"),
        pytest.param({"settings": ModelSettings(static_cache=True)}, id="static cache"),
        pytest.param({"settings": ModelSettings(max_new_tokens=4096)}, id="the card's own limit"),
        pytest.param({"settings": ModelSettings(revision="main")}, id="the card's own revision"),
        pytest.param({"settings": ModelSettings(dtype="bfloat16")}, id="the card's own dtype"),
        pytest.param({"about": "other words"}, id="description"),
        pytest.param({"licence": "MIT"}, id="licence"),
    ],
)
def test_what_cannot_change_an_answer_leaves_the_model_key(changed: dict[str, Any]):
    assert key(**changed) == key()


def test_settings_overrule_the_card_only_in_what_they_say():
    card = find_card("rex-omni")
    settings = ModelSettings(max_pixels=10**6, dtype="float16", revision="v2", batch_size=2)
    changed = {"max_pixels": 10**6, "dtype": "float16", "revision": "v2"}
    assert card.with_settings(settings) == card.model_copy(update=changed)
    assert card.with_settings(ModelSettings()) == card


def test_a_folder_has_no_other_revision(folder: Path):
    card = find_card(str(folder))
    assert card.with_settings(ModelSettings(revision="v2")) == card


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        pytest.param(
            *("rex-omni", {"min_pixels": 2000, "max_pixels": 1000}),
            "min_pixels to be at most max_pixels, got 2000 and 1000",
            id="limits that cross",
        ),
        pytest.param(
            *("rex-omni", {"max_pixels": 784}),
            "got 12544 and 784; what the settings leave out is 12544 to 2007040",
            id="a limit that crosses the card's",
        ),
        pytest.param(
            *("rex-omni-awq", {"quantization": "int8"}),
            r"quantized already \(awq\)",
            id="quantized twice",
        ),
    ],
)
def test_settings_that_do_not_go_with_a_model_are_refused_naming_it_and_the_fix(
    model: str, settings: dict[str, Any], expected: str
):
    with pytest.raises(ConfigurationError, match=f"{model}.*{expected}"):
        load_model(model, ModelSettings(**settings))


def test_the_key_of_a_folder_follows_its_weights_and_not_its_place(folder: Path):
    before = key(find_card(str(folder)))
    moved = folder.rename(folder.parent.parent / "checkpoint")
    assert key(find_card(str(moved))) == before
    with (moved / "model.safetensors").open("r+b") as file:
        file.write(b"x")
    assert key(find_card(str(moved))) != before


def test_a_key_does_not_depend_on_the_order_of_the_parameters():
    parameters = {"b": 1, "a": [1.5, None], "c": "ü"}
    assert key_of(parameters) == key_of(dict(reversed(parameters.items())))
    assert len(key_of(parameters)) == 12


# Fingerprints


def one_byte(name: str, at: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return change


def add_file(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{}")


def remove_file(folder: Path) -> None:
    (folder / "config.json").unlink()


def rename_file(folder: Path) -> None:
    (folder / "config.json").rename(folder / "config2.json")


def append(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")


def shrink_and_change(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(3 * MIB + 5))


def test_a_fingerprint_says_nothing_of_the_card(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    bare = fingerprint(tmp_path)
    (tmp_path / "card.json").write_text('{"about": "what it is"}')
    assert fingerprint(tmp_path) == bare


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(one_byte("config.json", 3), id="a byte of the configuration"),
        pytest.param(one_byte("model.safetensors", 0), id="the first byte of large weights"),
        pytest.param(one_byte("model.safetensors", 5 * MIB // 2), id="the middle byte"),
        pytest.param(one_byte("model.safetensors", 5 * MIB - 1), id="the last byte"),
        pytest.param(add_file, id="a file more"),
        pytest.param(remove_file, id="a file less"),
        pytest.param(rename_file, id="another name"),
        pytest.param(append, id="a byte more"),
        pytest.param(shrink_and_change, id="other weights"),
    ],
)
def test_a_fingerprint_changes_with_what_the_folder_holds(
    folder: Path, change: Callable[[Path], None]
):
    before = fingerprint(folder)
    change(folder)
    assert fingerprint(folder) != before


@pytest.mark.parametrize("at", [0, 1, MIB, 2 * MIB + 17, 4 * MIB - 1])
def test_any_byte_of_weights_up_to_4_mib_counts(tmp_path: Path, at: int):
    (tmp_path / "model.safetensors").write_bytes(bytes(4 * MIB))
    before = fingerprint(tmp_path)
    one_byte("model.safetensors", at)(tmp_path)
    assert fingerprint(tmp_path) != before


def test_hidden_files_and_sub_folders_do_not_count(folder: Path):
    before = fingerprint(folder)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "figures").mkdir()
    assert fingerprint(folder) == before


# Vocabulary and validation


def test_an_open_vocabulary_takes_any_label():
    assert find_card("rex-omni").why_not_in_vocabulary("Straßenbahn") is None


def test_a_label_outside_the_vocabulary_is_explained_with_the_fix():
    card = find_card("rex-omni").model_copy(update={"vocabulary": ("cat", "dog")})
    assert card.why_not_in_vocabulary("cat") is None
    reason = card.why_not_in_vocabulary("bird")
    assert reason is not None
    for part in ("'bird'", "rex-omni", "cat, dog", "`ask`", "LABELING_MODEL=rex-omni"):
        assert part in reason


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"batch_size": 0}, id="a batch of nothing"),
        pytest.param({"dtype": "int3"}, id="an unknown dtype"),
        pytest.param({"gpu": 1}, id="an unknown setting"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValidationError):
        ModelSettings.model_validate(fields)


def test_parameters_can_be_stored_as_json():
    parameters = model_parameters(find_card("rex-omni"), ModelSettings(), 1)
    assert json.loads(json.dumps(parameters)) == parameters
