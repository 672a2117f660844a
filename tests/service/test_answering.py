"""What the service answers is what the pipeline stores of the same image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.cleaning import clean
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

LABELS = ("circle", "person", "square", "standing person", "star", "triangle")
"""In the order in which folders are registered; one more than fit into a prompt."""

PLAN = """
entries:
  - {name: object, task: detection}
  - {name: posture, task: keypoint, ask: {"*": person}}
"""


@pytest.fixture
def images(tmp_path: Path) -> dict[str, bytes]:
    """Class -> the file of its one image."""
    files = {}
    for number, label in enumerate(LABELS):
        path = tmp_path / "images" / label / "0.png"
        path.parent.mkdir(parents=True)
        rng = np.random.default_rng([9, 8, number])
        scene = draw_scene(rng, 320, 240, kinds=["star", "standing", "circle"])
        Image.fromarray(scene.image).save(path)
        files[label] = path.read_bytes()
    return files


def labeled_by_pipeline(folder: Path) -> list[dict]:
    """Every annotation, best first within its image, entry and label."""
    plan = parse_plan(PLAN)
    store = AnnotationStore(folder / "annotations.duckdb")
    source = open_source(folder / "images")
    update_inventory(store, source, plan.class_names)
    clean(store, source, CleaningRules(only_flag=("near_duplicate",)))
    classes = store.query("SELECT class, display_name FROM classes ORDER BY class_number")
    assert tuple(classes["display_name"].to_pylist()) == LABELS
    for entry in plan.entries:
        for slug in classes["class"].to_pylist():
            label_class(store, plan, entry, slug, source, "run-1")
    return store.query(
        "SELECT f.path, a.* FROM annotations a JOIN dataset_files f USING (image_id) "
        "ORDER BY a.position"
    ).to_pylist()


@pytest.mark.checkpoint
@pytest.mark.soak
def test_the_same_boxes_scores_and_keypoints_come_over_http(serve, images, tmp_path):
    stored = labeled_by_pipeline(tmp_path)
    client = serve("tiny-rex-omni")
    compared = 0
    for path, data in (
        ("/detection", {"categories": ",".join(LABELS)}),
        ("/keypoint", {"categories": "person"}),
    ):
        entry = path.replace("/detection", "object").replace("/keypoint", "posture")
        for name, image in images.items():
            told = client.post(
                path, files={"file": image}, data=data, headers={"accept": "application/json"}
            ).json()["labels"]
            mine = [r for r in stored if (r["path"], r["entry"]) == (f"{name}/0.png", entry)]
            for label in {row["label"] for row in mine}:
                rows = [row for row in mine if row["label"] == label]
                found = told[label]["annotations"]
                assert [one["bbox"] for one in found] == [box_of(row) for row in rows]
                np.testing.assert_allclose(
                    [one["score"] for one in found], [row["score"] for row in rows], rtol=1e-3
                )
                for one, row in zip(found, rows, strict=True):
                    assert [
                        (k["name"], k.get("x_px"), k.get("y_px")) for k in one.get("keypoints", [])
                    ] == [(k["name"], k["x_px"], k["y_px"]) for k in row["keypoints"] or []]
                compared += len(rows)
    assert compared == len(stored)
    assert {row["entry"] for row in stored} == {"object", "posture"}


def box_of(row: dict) -> list[float]:
    return [row[column] for column in ("x0_px", "y0_px", "x1_px", "y1_px")]
