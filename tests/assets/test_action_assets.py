"""The assets of action recognition, from folders to figures, with a scripted model."""

import base64
import io
import json
from pathlib import Path

import dagster as dg
import pytest
from PIL import Image

from definitions import build_definitions
from labeling_pipeline.home import Environment
from labeling_pipeline.plan import parse_plan


def test_both_methods_reach_dagster_with_numbers_and_figures(tmp_path, image_root, script):
    """A person is seen everywhere, and in it always a cat: half of the images are right."""
    (image_root / "test").mkdir()
    for name in ("cat", "dog"):
        (image_root / "test" / name).mkdir()
        (image_root / name / "3.png").rename(image_root / "test" / name / "3.png")
    model = script(boxes={"person": [[100, 100, 500, 500]], "cat": [[100, 100, 500, 500]]})
    plan = parse_plan(
        f"model: {json.dumps(model)}\nentries:\n"
        "  - {name: posture, task: keypoint, classes: [cat, dog], ask: {'*': person}}\n"
        "  - {name: action, task: detection, classes: [cat, dog]}\n"
        "actions: {zero_shot: action, test_folder: test, folds: 2}\n"
    )
    definitions = build_definitions(plan, Environment(tmp_path / "home", Path("none"), image_root))
    graph = definitions.resolve_asset_graph()
    parents = graph.get(dg.AssetKey("action_predictions")).parent_keys
    assert {key.to_user_string() for key in parents} == {
        *("posture_annotations", "action_annotations")
    }
    with dg.DagsterInstance.ephemeral() as instance:

        def run(*names, partitions=(None,)):
            for partition in partitions:
                assert dg.materialize(
                    list(definitions.assets),
                    selection=list(names),
                    partition_key=partition,
                    instance=instance,
                    resources=definitions.resources,
                ).success

        def metadata(name):
            event = instance.get_latest_materialization_event(dg.AssetKey(name))
            return event.asset_materialization.metadata

        run("raw_images", "clean_images")
        run("posture_annotations", "action_annotations", partitions=("cat", "dog"))
        run("action_predictions", "har_evaluation")
        made = [row.data for row in metadata("action_predictions")["predicted"].records]
        shown = metadata("har_evaluation")
    assert made == [{"method": m, "images": 8} for m in ("keypoints", "zero_shot")]
    rows = {row.data["method"]: row.data for row in shown["comparison"].records}
    for method, images in (("zero-shot", 6), ("zero-shot, test folder", 2)):
        assert (rows[method]["images"], rows[method]["accuracy"]) == (images, 0.5)
        assert rows[method]["accuracy_low"] < 0.5 < rows[method]["accuracy_high"]
    assert shown["zero_shot_accuracy"].value == shown["zero_shot_test_accuracy"].value == 0.5
    assert shown["zero_shot_kappa"].value == pytest.approx(0)
    figures = {name for name, value in shown.items() if str(value.value).startswith("![](data:")}
    kinds = ("confusion_matrix", "class_scores")
    more = ("true_versus_predicted", "top_probabilities", "risk_coverage", "reliability")
    assert figures == {
        *(f"{method}_{kind}" for method in ("keypoints", "zero_shot") for kind in (*kinds, *more)),
        *(f"{method}_test_{kind}" for method in ("keypoints", "zero_shot") for kind in kinds),
    }
    for name in figures:
        data = base64.b64decode(shown[name].value.partition(",")[2].removesuffix(")"))
        assert Image.open(io.BytesIO(data)).format == "PNG"
        assert (tmp_path / "home/reports/har" / f"{name}.png").read_bytes() == data
    assert sum(len(json.dumps(str(v.value))) for v in shown.values()) < 500_000
