import json
import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from definitions import build_definitions, defs
from labeling_pipeline.errors import PlanError
from labeling_pipeline.home import Environment
from labeling_pipeline.plan import parse_plan

REPOSITORY = Path(__file__).parent.parent
HEAVY = (
    *("torch", "transformers", "sklearn", "matplotlib", "supervision", "cv2"),
    *("fsspec", "s3fs", "aiobotocore", "botocore"),
)


def test_loading_the_definitions_imports_nothing_heavy():
    code = (
        "import json, sys, definitions; definitions.defs(); "
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(output) == []


def test_the_front_door_lists_the_fixed_assets_and_one_per_entry():
    keys = {key.to_user_string() for key in defs().resolve_asset_graph().get_all_asset_keys()}
    assert keys == {
        "raw_images",
        "clean_images",
        "posture_annotations",
        "object_annotations",
        "action_annotations",
        "caption_annotations",
        "text_annotations",
        "visualizations",
        "class_exports",
        "action_predictions",
        "har_evaluation",
        "detection_evaluation",
        "calibration",
        "model_agreement",
        "audit_sample",
        "model_drift",
        "review_queue",
        "annotation_report",
        "rederived_annotations",
    }


@pytest.mark.parametrize(
    ("automation", "got"),
    [
        ("relabel: '99 3 * * *'", "relabel '99 3 * * *'"),
        ("check: '0 0 * * MOO'", "check '0 0 * * MOO'"),
        ("time_zone: Mars/Olympus", "time_zone 'Mars/Olympus'"),
    ],
)
def test_a_time_that_cannot_be_is_told_as_a_mistake_of_the_plan(tmp_path, automation, got):
    plan = parse_plan(f"entries: [{{name: object, task: detection}}]\nautomation: {{{automation}}}")
    with pytest.raises(PlanError, match=f"plan: automation: expected .*{re.escape(got)}"):
        build_definitions(plan, Environment(tmp_path, Path("unused"), tmp_path))


def test_a_second_step_waits_for_the_first(tmp_path):
    plan = parse_plan(
        "entries:\n"
        "  - {name: object, task: detection}\n"
        "  - {name: pose, task: keypoint, regions: object}\n"
    )
    definitions = build_definitions(plan, Environment(tmp_path, Path("unused"), tmp_path))
    node = definitions.resolve_asset_graph().get(dg.AssetKey("pose_annotations"))
    assert {key.to_user_string() for key in node.parent_keys} == {
        "clean_images",
        "object_annotations",
    }
