import json
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from assets.checks import ALL_CHECKS
from definitions import build_definitions
from labeling_pipeline.home import Environment
from labeling_pipeline.plan import class_slug, parse_plan
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

BOXES = {"cat": [[100, 100, 500, 500]], "dog": [[200, 200, 800, 900]]}
COWS = class_slug("Über Kühe")
LABELS = "object_annotations"
ENTRY_CHECKS = {
    "no_failed_outcomes",
    "annotations_are_sound",
    "empty_label_rate",
    "score_drift",
    "readings_are_current",
    "no_failed_partitions",
}


class Pipeline:
    """The assets and checks of a one-entry plan in one home, on an instance that lives as long."""

    def __init__(self, home: Path, root: Path, instance: dg.DagsterInstance) -> None:
        self.home = home
        self.root = root
        self.instance = instance
        self.definitions = dg.Definitions()

    def plan(self, model: str, more: str = "") -> None:
        """From now on with this model. more: lines of the plan."""
        entry = "{name: object, task: detection}"
        text = f"model: {json.dumps(model)}\nentries:\n  - {entry}\n{more}"
        environment = Environment(self.home, Path("unused"), self.root)
        self.definitions = build_definitions(parse_plan(text), environment)

    def run(
        self,
        *names: str,
        classes: list[str] | None = None,
        selection: dg.AssetSelection = ALL_CHECKS,
    ) -> dg.ExecuteInProcessResult:
        """Materialize assets with their checks; without names, a selection, by default the checks
        alone."""
        tags = {}
        if classes:
            tags["dagster/asset_partition_range_start"] = classes[0]
            tags["dagster/asset_partition_range_end"] = classes[-1]
        return dg.materialize(
            [*(self.definitions.assets or ()), *(self.definitions.asset_checks or ())],
            selection=list(names) or selection,
            instance=self.instance,
            resources=self.definitions.resources,
            tags=tags,
            raise_on_error=False,
        )

    def ingest(self) -> list[str]:
        assert self.run("raw_images", "clean_images").success
        return list(self.instance.get_dynamic_partitions("class"))

    @property
    def store(self) -> AnnotationStore:
        return AnnotationStore(self.home / "annotations.duckdb")


@pytest.fixture
def pipeline(tmp_path, image_root):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Pipeline(tmp_path / "home", image_root, instance)


def evaluations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {one.check_name: one for one in result.get_asset_check_evaluations()}


def failing(result: dg.ExecuteInProcessResult) -> set[str]:
    return {name for name, one in evaluations(result).items() if not one.passed}


def test_a_sound_run_over_all_classes_passes_every_check_once(pipeline, script):
    pipeline.plan(script(boxes=BOXES))
    classes = pipeline.ingest()
    result = pipeline.run(LABELS, "class_exports", classes=classes)
    assert result.success
    assert len(result.get_asset_check_evaluations()) == len(ENTRY_CHECKS)
    assert set(evaluations(result)) == ENTRY_CHECKS
    assert failing(result) == set()


def test_an_image_that_failed_is_warned_of_and_holds_up_nothing(pipeline, script, image_root):
    picture = draw_scene(np.random.default_rng(5), 200, 150).image
    Image.fromarray(picture).save(image_root / "dog" / "poison.png")
    pipeline.plan(script(boxes=BOXES, fail_size_px=[200, 150]))
    pipeline.ingest()
    result = pipeline.run(LABELS, "class_exports", classes=["dog"])
    assert result.success
    assert failing(result) == {"no_failed_outcomes"}
    warning = evaluations(result)["no_failed_outcomes"]
    assert warning.severity is dg.AssetCheckSeverity.WARN
    assert "1 images have no answer: 1 will be asked again" in warning.description
    (row,) = warning.metadata["rows"].records
    assert row.data["image"] == "dog/poison.png"
    assert "Materialize the classes again" in warning.metadata["next"].value


def test_unsound_annotations_keep_what_would_be_made_of_them_from_being_made(pipeline, script):
    pipeline.plan(script(boxes=BOXES))
    classes = pipeline.ingest()
    assert pipeline.run(LABELS, classes=classes).success
    with pipeline.store.transaction() as tx:
        tx.execute("UPDATE annotations SET x1_px = 1e6 WHERE label = 'dog'")
    result = pipeline.run(LABELS, "class_exports", classes=classes)
    assert failing(result) == {"annotations_are_sound"}
    error = evaluations(result)["annotations_are_sound"]
    assert error.severity is dg.AssetCheckSeverity.ERROR
    assert "a box outside the image" in error.description
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert made == {LABELS}


def test_without_any_accepted_image_nothing_is_labeled(pipeline, script):
    pipeline.plan(script(boxes=BOXES), "cleaning: {min_side_px: 5000}\n")
    assert pipeline.run("raw_images").success
    result = pipeline.run("clean_images", LABELS, classes=["cat"])
    assert failing(result) == {"rejected_share"}
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert made == {"clean_images"}


def test_a_partition_left_failed_is_told_until_it_is_mended(pipeline, script):
    pipeline.plan(script(boxes=BOXES, fail_size_px=[140, 100]))  # every image of the cows
    classes = pipeline.ingest()
    assert not pipeline.run(LABELS, classes=classes).success
    result = pipeline.run()
    assert result.success
    assert failing(result) == {"no_failed_outcomes", "no_failed_partitions"}
    warning = evaluations(result)["no_failed_partitions"]
    assert "Über Kühe" in warning.description
    (row,) = warning.metadata["rows"].records
    assert row.data == {"class": "Über Kühe", "partition": COWS}

    pipeline.plan(script(boxes=BOXES))
    assert pipeline.run(LABELS, classes=[COWS]).success
    assert failing(pipeline.run()) == set()


def test_a_single_check_can_be_run(pipeline, script):
    pipeline.plan(script(boxes=BOXES))
    pipeline.run("raw_images", "clean_images")
    key = dg.AssetCheckKey(dg.AssetKey(LABELS), "no_failed_partitions")
    result = pipeline.run(selection=dg.AssetSelection.checks(key))
    assert set(evaluations(result)) == {"no_failed_partitions"}
