"""Small things in a large picture, through the labeling loop and the embedded checkpoint."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.annotations import Box, box_iou
from labeling_pipeline.cleaning import clean
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.sample.scenes import SHAPES, draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

pytestmark = pytest.mark.checkpoint

PLAN = """
entries:
  - {name: whole, task: detection, classes: [circle, square, triangle, star]}
  - name: tiled
    task: detection
    classes: [circle, square, triangle, star]
    tiles: {size_px: 160, overlap: 0.4}
"""


@pytest.mark.soak
def test_tiles_find_what_is_small_in_a_large_image_and_count_nothing_twice(tmp_path: Path):
    # Things of some 40 px in a picture of 4,000.
    scene = draw_scene(np.random.default_rng([12, 1]), 4000, 400, [*SHAPES] * 4, scale_px=130)
    root = tmp_path / "images"
    root.mkdir()
    Image.fromarray(scene.image).save(root / "large.png")
    plan = parse_plan(PLAN)
    store = AnnotationStore(tmp_path / "annotations.duckdb")
    source = open_source(root)
    update_inventory(store, source, plan.class_names)
    clean(store, source, CleaningRules(max_aspect=20))
    found: dict[str, int] = {}
    for entry in plan.entries:
        label_class(store, plan, entry, "circle", source, "run")
        rows = store.query(
            "SELECT label, x0_px, y0_px, x1_px, y1_px FROM annotations WHERE entry = $1",
            (entry.name,),
        ).to_pylist()
        boxes: list[tuple[str, Box]] = [
            (row["label"], (row["x0_px"], row["y0_px"], row["x1_px"], row["y1_px"])) for row in rows
        ]
        times = [
            sum(
                label == thing.label and box_iou(box, tuple(thing.bbox_px)) >= 0.5
                for label, box in boxes
            )
            for thing in scene.objects
        ]
        assert max(times) <= 1, "something was counted twice"
        found[entry.name] = sum(times)
    assert len(scene.objects) == 16
    assert found["tiled"] >= 12
    assert found["tiled"] >= 3 * found["whole"]
