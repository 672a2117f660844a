"""The ``dg`` commands of the README, from the repository root."""

import json
import subprocess
from pathlib import Path

import dagster as dg
import pytest

from labeling_pipeline.store.annotation_store import AnnotationStore
from tests.soak.live_server import CLASSES, Dataset, new_dataset

pytestmark = pytest.mark.soak


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return new_dataset(tmp_path)


def succeeded(ran: subprocess.CompletedProcess) -> str:
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_check_defs_accepts_the_code_location(dataset: Dataset):
    assert "loaded successfully" in succeeded(dataset.command("dg", "check", "defs"))


def test_list_defs_names_the_fixed_assets_and_one_for_each_entry_of_the_plan(dataset: Dataset):
    listed = json.loads(succeeded(dataset.command("dg", "list", "defs", "--json")))
    groups = {asset["asset_key"]: asset["group_name"] for asset in listed["assets"]}
    assert groups == {
        "raw_images": "ingestion",
        "clean_images": "ingestion",
        "object_annotations": "annotations",
        "posture_annotations": "annotations",
        "visualizations": "outputs",
        "class_exports": "outputs",
        "action_predictions": "evaluation",
        "har_evaluation": "evaluation",
        "detection_evaluation": "evaluation",
        "calibration": "evaluation",
        "model_agreement": "evaluation",
        "audit_sample": "evaluation",
        "model_drift": "evaluation",
        "review_queue": "evaluation",
        "annotation_report": "evaluation",
        "rederived_annotations": "maintenance",
    }


def test_launch_ingests_the_images_and_then_labels_one_class(dataset: Dataset):
    for asset in ("raw_images", "clean_images"):
        succeeded(dataset.command("dg", "launch", "--assets", asset))
    store = AnnotationStore(dataset.home.store_path)
    statuses = store.query("SELECT status, count(*) AS files FROM files GROUP BY 1").to_pylist()
    assert statuses == [{"status": "accepted", "files": 3 * len(CLASSES)}]
    label = ("dg", "launch", "--assets", "object_annotations", "--partition", "cats")
    succeeded(dataset.command(*label))
    assert len(dataset.asked_sizes("thing")) == 3
    with dg.DagsterInstance.from_config(str(dataset.home.dagster)) as instance:
        assert tuple(instance.get_dynamic_partitions("class")) == CLASSES
        done = instance.get_materialized_partitions(dg.AssetKey("object_annotations"))
        assert done == {"cats"}
