"""What is learned of scores reaches people, once the plan names the file: from truth to exports."""

import json
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest
import yaml

from assets.partitions import range_tags
from definitions import build_definitions
from labeling_pipeline.asks import due_work
from labeling_pipeline.errors import ThresholdsError
from labeling_pipeline.home import Environment, Home
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.plan import load_plan
from labeling_pipeline.reporting.calibration import calibration_report
from labeling_pipeline.store.annotation_store import AnnotationStore

CLASSES = {"cat": 120, "dog": 130, "Über Kühe": 140}
"""Width of the images, all of which are 100 px high."""

BINS = [[100 * i, 100, 100 * i + 80, 500] for i in range(10)]
WRONG = 2
"""So many of the ten boxes that the model finds on every image are nothing."""


@pytest.fixture
def project(tmp_path, image_root):
    """Labels of three classes; on every image eight cats and two errors, all scored 0.9."""

    class Project:
        def __init__(self):
            self.home = tmp_path / "home"
            self.plan_file = tmp_path / "plans" / "plan.yaml"
            self.store = AnnotationStore(self.home / "annotations.duckdb")
            self.instance = dg.DagsterInstance.ephemeral()
            self.plan_file.parent.mkdir()
            images = [
                {"id": f"{name}/{number}.png", "file_name": f"{name}/{number}.png", "width": width}
                for name, width in CLASSES.items()
                for number in range(4)
            ]
            annotations = [
                {
                    "image_id": image["id"],
                    "category_id": 1,
                    "bbox": [
                        *(x0 / 999 * image["width"], y0 / 999 * 100),
                        *((x1 - x0) / 999 * image["width"], (y1 - y0) / 999 * 100),
                    ],
                }
                for image in images
                for x0, y0, x1, y1 in BINS[WRONG:]
            ]
            categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
            truth = {"images": images, "categories": categories, "annotations": annotations}
            (tmp_path / "truth.json").write_text(json.dumps(truth))

        def run(self, model: str, *selection: str, classes: Sequence[str] = (), **keys):
            """Materialize assets of a plan with these keys; returns the metadata of the last."""
            entries = [{"name": "object", "task": "detection"}]
            given = {"model": model, "ground_truth": "../truth.json", "entries": entries} | keys
            self.plan_file.write_text(json.dumps({k: v for k, v in given.items() if v}))
            self.plan = load_plan(self.plan_file)
            environment = Environment(self.home, self.plan_file, image_root)
            definitions = build_definitions(self.plan, environment)
            assert dg.materialize(
                list(definitions.assets),
                selection=list(selection),
                tags=range_tags(classes) if classes else None,
                instance=self.instance,
                resources=definitions.resources,
            ).success
            event = self.instance.get_latest_materialization_event(dg.AssetKey(selection[-1]))
            return event.asset_materialization.metadata

        def label(self, model: str, **keys):
            self.run(model, "raw_images", "clean_images", **keys)
            classes = self.instance.get_dynamic_partitions("class")
            return self.run(model, "object_annotations", classes=classes, **keys)

        def rows(self) -> list[int]:
            tables = ("generations", "outcomes", "annotations")
            return [
                self.store.query(f"SELECT count(*) AS n FROM {table}")["n"][0].as_py()
                for table in tables
            ]

        def exported(self) -> list[dict]:
            path = self.home / "auto_labeling_results" / "cat" / "cat.json"
            return json.loads(path.read_text())["annotations"]

    return Project()


@pytest.fixture
def model(script):
    return script(boxes={"cat": BINS})


def test_what_was_learned_holds_once_the_plan_names_the_file(project, model):
    project.label(model)
    settings = {"calibration": {"target_precision": 0.75}}
    metadata = project.run(model, "calibration", **settings)
    (scores,) = [dict(record.data) for record in metadata["scores"].records]
    assert (scores["task"], scores["boxes"], scores["wrong"]) == ("detection", 120, 24)
    assert scores["error_before"] == pytest.approx(0.1, abs=1e-4)
    assert scores["error_after"] < 0.01
    file = Path(metadata["file"].value)
    written = yaml.safe_load(file.read_text())
    # Platt's targets: (96 + 1) / (96 + 2) for 96 of 120, 1 / (24 + 2) for the others.
    expected = (96 * 97 / 98 + 24 / 26) / 120
    assert written["calibrations"][0]["knots"] == [[0.9, pytest.approx(expected, abs=1e-6)]]
    cat, dog = written["thresholds"]
    assert (cat["label"], cat["threshold"], cat["precision"]) == ("cat", 0.0, 0.8)
    assert cat["interval"][0] < 0.8 < cat["interval"][1]
    assert (dog["label"], dog["threshold"]) == ("dog", None)
    assert "too few boxes: 0" in dog["reason"]
    folder = project.home / "reports" / "calibration"
    assert {path.suffix for path in folder.iterdir()} == {".csv", ".png"}

    project.run(model, "class_exports", classes=["cat"], **settings)
    assert {(one["confidence"], "calibrated" in one) for one in project.exported()} == {
        (0.9, False)
    }
    before = project.rows()
    relative = "../home/reports/thresholds.yaml"
    project.run(model, "class_exports", classes=["cat"], thresholds=relative, **settings)
    assert {
        (one["confidence"], one["calibrated"], one["measured"]) for one in project.exported()
    } == {(round(expected, 4), True, 0.9)}
    assert project.rows() == before
    assert ("object", "cat") not in due_work(project.store, project.plan).due

    # Applied or not, what is learned is learned from what was measured.
    again = project.run(model, "calibration", thresholds=relative, **settings)
    assert again["scores"] == metadata["scores"]
    assert yaml.safe_load(file.read_text()) == written


def test_a_threshold_of_the_file_takes_boxes_away_and_gives_them_back(project, model):
    project.label(model)
    key = project.run(model, "calibration")["scores"].records[0].data["model_key"]
    item = {"entry": "object", "label": "cat", "model_key": key, "threshold": 0.95}
    file = project.plan_file.parent / "by_hand.yaml"
    for threshold, boxes in ((0.95, 0), (0.85, 40)):
        file.write_text(json.dumps({"version": 1, "thresholds": [item | {"threshold": threshold}]}))
        project.run(model, "class_exports", classes=["cat"], thresholds=file.name)
        assert len(project.exported()) == boxes


def test_another_models_thresholds_are_not_applied_and_a_note_says_so(
    project, model, script, image_root
):
    project.label(model)
    path = str(project.run(model, "calibration")["file"].value)
    other = script(boxes={"cat": BINS[:5]})
    metadata = project.label(other, thresholds=path)
    assert "knows object of model key" in metadata["notes"].value
    project.run(other, "class_exports", classes=["cat"], thresholds=path)
    assert {(one["confidence"], "calibrated" in one) for one in project.exported()} == {
        (0.9, False)
    }
    source = open_source(image_root)
    told = calibration_report(project.store, project.plan, source, Home(project.home)).applied
    assert "says other things than were found now" in told[0]
    assert "not applied" in told[1]


def test_without_ground_truth_nothing_is_learned_and_no_file_touched(project, model):
    project.label(model, ground_truth=None)
    metadata = project.run(model, "calibration", ground_truth=None)
    assert "names no ground_truth" in metadata["note"].value
    assert not (project.home / "reports").exists()


def test_a_plan_that_names_no_such_file_is_refused_before_anything_runs(project, model):
    with pytest.raises(ThresholdsError, match="expected the thresholds that the plan names"):
        project.run(model, "raw_images", thresholds="none.yaml")
