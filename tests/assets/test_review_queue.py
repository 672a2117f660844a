"""What changed since the other model, and what to look at first, as Dagster shows it."""

import json
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from definitions import build_definitions
from labeling_pipeline.home import Environment
from labeling_pipeline.plan import parse_plan

LEFT, ALMOST_LEFT, RIGHT = [100, 100, 300, 400], [130, 100, 330, 400], [600, 100, 800, 400]


@pytest.fixture
def evaluated(tmp_path, image_root):
    """Label the class cat with a model, evaluate, and return the metadata of both assets."""
    home = tmp_path / "home"
    with dg.DagsterInstance.ephemeral() as instance:

        def run(model):
            entry = {"name": "object", "task": "detection", "model": model, "classes": ["cat"]}
            plan = parse_plan(json.dumps({"entries": [entry], "review": {"pictures": 2}}))
            definitions = build_definitions(plan, Environment(home, Path("unused"), image_root))
            for selection, partition in (
                (["raw_images", "clean_images"], None),
                (["object_annotations"], "cat"),
                (["model_drift", "review_queue"], None),
            ):
                assert dg.materialize(
                    list(definitions.assets),
                    selection=selection,
                    partition_key=partition,
                    instance=instance,
                    resources=definitions.resources,
                ).success
            events = (
                instance.get_latest_materialization_event(dg.AssetKey(name))
                for name in ("model_drift", "review_queue")
            )
            return [event.asset_materialization.metadata for event in events]

        yield run, home / "reports"


def test_drift_and_queue_stand_in_dagster_within_its_budgets(evaluated, script):
    run, reports = evaluated
    drift, queue = run(script(boxes={"cat": [LEFT]}))
    assert drift["note"].value == "no other model has answered it yet (object)."
    assert queue["images"].value == 4
    drift, queue = run(script(boxes={"cat": [LEFT, ALMOST_LEFT, RIGHT]}))
    assert "Boxes: 4 matched, 0 moved, 0 lost, 8 new." in drift["what_changed"].value
    assert drift["boxes_as_before"].value == pytest.approx(4 / 12, abs=1e-4)
    assert drift["changed_images"].value == 4
    (row,) = (dict(record.data) for record in drift["classes"].records)
    assert (row["class"], row["images"], row["matched"], row["new"]) == ("cat", 4, 4, 8)
    assert len(drift["most_changed"].records) == 4
    assert queue["worth_a_look"].value == 4
    (first, *_) = (dict(record.data) for record in queue["look_at_first"].records)
    assert first["rank"] == 1
    assert first["reasons"].startswith("twice: cat; new: cat, cat")
    assert queue["drawn"].value == 2
    for metadata in (drift, queue):
        assert metadata["pictures"].value.startswith("![](data:image/jpeg;base64,")
        tables = [v.records for v in metadata.values() if isinstance(v, dg.TableMetadataValue)]
        assert tables
        for records in tables:
            assert len(records) <= 20
            # A row of text is what makes a table long.
            assert all(len("".join(map(str, r.data.values()))) <= 200 for r in records)
    assert len(pd.read_csv(reports / "review" / "queue.csv")) == 4
    assert len(pd.read_csv(reports / "drift" / "images.csv")) == 4
    assert {path.name for path in (reports / "review").rglob("*.jpg")} == {"1.jpg", "2.jpg"}
