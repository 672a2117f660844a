"""What two models found of the same classes is compared, from the plan to the tables."""

import json
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from definitions import build_definitions
from labeling_pipeline.home import Environment
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.sample.scenes import draw_scene

CAT, LEFT, RIGHT, BELOW = (
    *([100, 100, 500, 500], [100, 100, 300, 400]),
    *([600, 100, 800, 400], [200, 600, 700, 900]),
)
IMAGES = {"cat/alike.png": (120, 100), "dog/disputed.png": (130, 100), "dog/broken.png": (90, 150)}


@pytest.fixture
def agreement(tmp_path):
    """Label the images as a plan's entries say; returns the asset's metadata and its tables."""
    root, home = tmp_path / "images", tmp_path / "home"
    for number, (path, size) in enumerate(IMAGES.items()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        scene = draw_scene(np.random.default_rng([7, number]), *size)
        Image.fromarray(scene.image).save(root / path)

    def run(entries, classes=("cat", "dog"), model=None):
        # YAML reads JSON.
        plan = parse_plan(json.dumps({"entries": entries}))
        definitions = build_definitions(plan, Environment(home, Path("unused"), root, model))
        with dg.DagsterInstance.ephemeral() as instance:
            for selection, partitions in (
                (["raw_images", "clean_images"], [None]),
                (["first_annotations", "second_annotations"], classes),
                (["model_agreement"], [None]),
            ):
                for partition in partitions:
                    assert dg.materialize(
                        list(definitions.assets),
                        selection=selection,
                        partition_key=partition,
                        instance=instance,
                        resources=definitions.resources,
                    ).success
            event = instance.get_latest_materialization_event(dg.AssetKey("model_agreement"))
        folder = home / "reports" / "agreement"
        tables = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}
        return event.asset_materialization.metadata, tables

    return run


def entry(name, model, task="detection", **more):
    return {"name": name, "task": task, "model": model, "group_size": 1, **more}


def rows(table):
    """A metadata table as plain records."""
    return [dict(record.data) for record in table.records]


def test_two_models_are_compared_class_by_class_and_image_by_image(agreement, script):
    one = script(boxes={"cat": [CAT], "dog": [LEFT, RIGHT]})
    two = script(boxes={"cat": [CAT], "dog": [LEFT, BELOW]}, fail_size_px=[90, 150])
    metadata, tables = agreement([entry("first", one), entry("second", two)])

    assert metadata["images"].value == 2
    assert metadata["agreement"].value == 0.75
    cat, dog = tables["classes"].to_dict("records")
    assert cat == {
        **{"class": "cat", "entry_a": "first", "entry_b": "second", "images": 1, "agreement": 1.0},
        **{"full_agreement": 1.0, "boxes_a": 1, "boxes_b": 1, "matched": 1, "mean_iou": 1.0},
        "not_compared": 0,
    }
    assert dog == {
        **{"class": "dog", "entry_a": "first", "entry_b": "second", "images": 1, "agreement": 0.5},
        **{"full_agreement": 0.0, "boxes_a": 2, "boxes_b": 2, "matched": 1, "mean_iou": 1.0},
        "not_compared": 1,
    }
    assert [row["class"] for row in rows(metadata["classes"])] == ["cat", "dog"]
    (worst,) = rows(metadata["most_disagreeing"])
    assert (worst["path"], worst["agreement"]) == ("dog/disputed.png", 0.5)
    assert [row["reason"] for row in rows(metadata["not_compared"])] == ["second: failed"]
    assert metadata["pictures"].value.startswith("![](data:image/jpeg;base64,")

    assert tables["images"]["path"].tolist() == ["dog/disputed.png", "cat/alike.png"]
    boxes = tables["boxes"]
    assert boxes[["path", "found_by"]].to_numpy().tolist() == [
        *(["dog/disputed.png", by] for by in ("both", "first", "second")),
        ["cat/alike.png", "both"],
    ]
    alone = boxes.set_index("found_by").loc["second"]
    assert alone[["b_x0_px", "b_y0_px"]].tolist() == pytest.approx(
        [200 / 999 * 130, 600 / 999 * 100], abs=0.01
    )
    assert alone[["a_x0_px", "a_y0_px"]].isna().all()


def test_keypoint_entries_are_compared_by_their_boxes(agreement, script):
    one, two = script(boxes={"cat": [CAT]}), script(boxes={"cat": [CAT, BELOW]})
    metadata, _ = agreement(
        [entry("first", one, classes=["cat"]), entry("second", two, "keypoint", classes=["cat"])],
        classes=["cat"],
    )
    assert metadata["agreement"].value == pytest.approx(2 / 3, abs=1e-4)


def test_a_class_that_one_entry_has_not_labeled_yet_is_counted_and_not_compared(agreement, script):
    one, two = script(boxes={"cat": [CAT]}), script(boxes={"cat": [CAT, BELOW]})
    _, tables = agreement([entry("first", one), entry("second", two)], classes=["cat"])
    assert tables["classes"]["images"].tolist() == [1, 0]
    (missing,) = tables["not_compared"].to_dict("records")
    assert (missing["class"], missing["images"]) == ("dog", 2)
    assert missing["reason"] == "first: not asked yet; second: not asked yet"


def test_answers_of_a_model_that_the_plan_no_longer_names_are_not_compared(agreement, script):
    one, two = script(boxes={"cat": [CAT]}), script(boxes={"cat": [BELOW]})
    agreement([entry("first", one), entry("second", one)])
    metadata, _ = agreement([entry("first", one), entry("second", two)], classes=[])
    assert metadata["images"].value == 0
    assert {row["reason"] for row in rows(metadata["not_compared"])} == {"second: not asked yet"}


@pytest.mark.parametrize(
    ("first", "second", "model"),
    [
        pytest.param({}, {}, "same", id="one model for the whole plan"),
        pytest.param({"classes": ["cat"]}, {"classes": ["dog"]}, None, id="no class in common"),
        pytest.param({}, {"ask": {"*": "animal"}}, None, id="other labels"),
        pytest.param({"task": "pointing"}, {"task": "pointing"}, None, id="points"),
        pytest.param(
            {}, {"task": "keypoint", "regions": "first"}, None, id="one looks at the other"
        ),
    ],
)
def test_without_a_pair_to_compare_the_materialization_says_why(
    first, second, model, agreement, script
):
    one, two = script(boxes={"cat": [CAT]}), script(boxes={"cat": [BELOW]})
    metadata, tables = agreement(
        [entry("first", one, **first), entry("second", two, **second)],
        classes=[],
        model=one if model else None,
    )
    assert set(metadata) == {"note"}
    assert "there is nothing to compare" in metadata["note"].value
    assert all(table.empty for table in tables.values())
