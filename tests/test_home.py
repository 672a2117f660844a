from collections.abc import Callable
from pathlib import Path

import pytest

from labeling_pipeline.errors import ConfigurationError, HomeError
from labeling_pipeline.home import SAMPLE_HOME, Environment, Home, home_for
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.plan import parse_plan
from resources.vision_model import VisionModelResource

SETTINGS = {
    "device": ("cuda:1", "cuda:1"),
    "dtype": ("float16", "float16"),
    "quantization": ("int8", "int8"),
    "cache_dir": ("/data/models", "/data/models"),
    "revision": ("v2", "v2"),
    "min_pixels": ("784", 784),
    "max_pixels": ("1000000", 1_000_000),
    "max_new_tokens": ("512", 512),
    "repetition_penalty": ("1.1", 1.1),
    "attention": ("eager", "eager"),
    "static_cache": ("true", True),
    "batch_size": ("32", 32),
}
"""Model setting -> (text in the environment, value)."""

VARIABLES = ("HOME", "PLAN", "IMAGES", "MODEL", *(name.upper() for name in SETTINGS))


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"LABELING_{name}", raising=False)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    (tmp_path / "pets").mkdir()
    return tmp_path / "pets"


# Claims


def the_same(root: Path) -> Path:
    return root


def through_a_parent(root: Path) -> Path:
    return root / ".." / root.name


def through_a_link(root: Path) -> Path:
    link = root.parent / "link"
    link.symlink_to(root)
    return link


@pytest.mark.parametrize("again", [the_same, through_a_parent, through_a_link])
def test_a_home_serves_its_own_image_root_again(
    tmp_path: Path, pets: Path, again: Callable[[Path], Path]
):
    home = Home(tmp_path / "home")
    home.claim(open_source(pets))
    before = (home.path / "home.json").read_bytes()
    home.claim(open_source(again(pets)))
    assert (home.path / "home.json").read_bytes() == before
    assert [path.name for path in home.path.iterdir()] == ["home.json"]


def test_another_image_root_is_refused_naming_both_and_the_fix(tmp_path: Path, pets: Path):
    home = Home(tmp_path / "home")
    home.claim(open_source(pets))
    (tmp_path / "cars").mkdir()
    with pytest.raises(HomeError) as caught:
        home.claim(open_source(tmp_path / "cars"))
    message = str(caught.value)
    for part in (home.path, pets, tmp_path / "cars", home.path / "home.json", "LABELING_HOME"):
        assert str(part) in message


def test_the_fix_that_is_named_for_a_moved_folder_works(tmp_path: Path, pets: Path):
    home = Home(tmp_path / "home")
    home.claim(open_source(pets))
    moved = pets.rename(tmp_path / "animals")
    with pytest.raises(HomeError):
        home.claim(open_source(moved))
    (home.path / "home.json").unlink()
    home.claim(open_source(moved))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        pytest.param(lambda path: None, "nothing", id="missing"),
        pytest.param(lambda path: path.write_text("x"), "a file", id="a file"),
    ],
)
def test_an_image_root_that_is_no_folder_is_refused_and_claims_nothing(
    tmp_path: Path, make: Callable[[Path], None], found: str
):
    root = tmp_path / "images"
    make(root)
    home = Home(tmp_path / "home")
    with pytest.raises(ConfigurationError, match=f"found {found}.*LABELING_IMAGES"):
        home.claim(open_source(root))
    assert not home.path.exists()


# Names


def test_the_default_home_of_a_folder_is_the_same_however_it_is_named(
    tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    expected = home_for(open_source(pets))
    assert expected.path.parent == Path(".labeling")
    assert expected.path.name.startswith("pets-")
    assert home_for(open_source(Path("pets"))) == expected
    assert home_for(open_source(pets / "." / ".." / "pets")) == expected


def test_folders_of_one_name_in_different_places_have_different_homes(tmp_path: Path):
    first, second = (
        home_for(open_source(tmp_path / "a" / "images")),
        home_for(open_source(tmp_path / "b" / "images")),
    )
    assert first.path.name.split("-")[0] == second.path.name.split("-")[0] == "images"
    assert first != second


def test_the_root_of_the_file_system_has_a_home_with_a_name():
    assert home_for(open_source(Path("/"))).path.name.startswith("root-")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/2024/pets/", "pets"),
        ("s3://bucket", "bucket"),
        ("zip::s3://bucket/v1.2/pets.zip", "pets"),
        ("zip://cats::s3://bucket/pets.zip", "cats"),
    ],
)
def test_a_url_has_a_home_of_its_own(tmp_path: Path, url: str, name: str):
    assert home_for(open_source(url)).path.name.startswith(f"{name}-")
    assert home_for(open_source(url)) != home_for(open_source(f"{url}x"))
    home = Home(tmp_path / "home")
    home.claim(open_source(url, {"anon": True}))
    home.claim(open_source(url))
    with pytest.raises(HomeError):
        home.claim(open_source("s3://other/pets"))


# The Dagster instance


def test_the_instance_configuration_is_copied_and_kept_current(tmp_path: Path):
    config = tmp_path / "dagster.yaml"
    config.write_text("telemetry: {enabled: false}\n")
    home = Home(tmp_path / "home")
    folder = home.prepare_dagster(config)
    assert folder.is_absolute()
    assert (folder / "dagster.yaml").read_text() == config.read_text()
    config.write_text("telemetry: {enabled: true}\n")
    home.prepare_dagster(config)
    assert (folder / "dagster.yaml").read_text() == config.read_text()


# The environment


def test_without_variables_the_sample_dataset_is_meant(tmp_path: Path):
    assert Environment.read(tmp_path) == Environment(
        home=tmp_path / SAMPLE_HOME,
        plan=tmp_path / "plans/sample.yaml",
        images=None,
        model=None,
        settings={},
    )


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("HOME", "/data/home", "home", Path("/data/home")),
        ("PLAN", "/data/plan.yaml", "plan", Path("/data/plan.yaml")),
        ("IMAGES", "s3://photos/pets", "images", "s3://photos/pets"),
        ("MODEL", "rex-omni", "model", "rex-omni"),
        *((name.upper(), text, "settings", {name: v}) for name, (text, v) in SETTINGS.items()),
    ],
)
def test_a_variable_beats_the_default_and_only_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    field: str,
    expected: object,
):
    default = vars(Environment.read(tmp_path))
    monkeypatch.setenv(f"LABELING_{variable}", value)
    assert vars(Environment.read(tmp_path)) == default | {field: expected}


@pytest.mark.parametrize("variable", VARIABLES)
def test_an_empty_variable_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
):
    default = Environment.read(tmp_path)
    monkeypatch.setenv(f"LABELING_{variable}", "")
    assert Environment.read(tmp_path) == default


def test_every_model_setting_has_a_variable_and_a_field_of_the_dagster_resource():
    assert set(SETTINGS) == set(ModelSettings.model_fields)
    assert set(VisionModelResource.model_fields) >= {"model", *SETTINGS}


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("DTYPE", "int4", "'float32', 'bfloat16' or 'float16'"),
        ("QUANTIZATION", "int3", "'int8'"),
        ("MIN_PIXELS", "many", "valid integer"),
        ("MAX_NEW_TOKENS", "0", "greater than or equal to 1"),
        ("REPETITION_PENALTY", "-1", "greater than 0"),
        ("ATTENTION", "fast", "'auto', 'sdpa', 'flash_attention_2' or 'eager'"),
        ("STATIC_CACHE", "perhaps", "valid boolean"),
        ("BATCH_SIZE", "1.5", "valid integer"),
    ],
)
def test_a_variable_that_cannot_be_is_refused_naming_it_what_came_and_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str
):
    monkeypatch.setenv(f"LABELING_{variable}", value)
    with pytest.raises(ConfigurationError) as caught:
        Environment.read(tmp_path)
    for part in (f"LABELING_{variable}", expected, repr(value)):
        assert part in str(caught.value)


def test_the_environment_beats_the_plan_in_model_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = parse_plan(
        "model: rex-omni\n"
        "runtime: {device: cuda, batch_size: 3}\n"
        "entries: [{name: object, task: detection, model: rex-omni}]\n"
    )
    environment = Environment.read(tmp_path)
    same = plan.with_model(environment.model, **environment.settings)
    assert same == plan

    monkeypatch.setenv("LABELING_MODEL", "tiny-rex-omni")
    monkeypatch.setenv("LABELING_DEVICE", "cpu")
    monkeypatch.setenv("LABELING_MAX_PIXELS", "500000")
    environment = Environment.read(tmp_path)
    changed = plan.with_model(environment.model, **environment.settings)
    resource = VisionModelResource(model=environment.model, **environment.settings)
    assert resource.applied_to(plan) == changed
    assert changed.model_of(changed.entry("object")) == "tiny-rex-omni"
    assert changed.runtime == ModelSettings(device="cpu", batch_size=3, max_pixels=500_000)
