from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.cleaning import clean
from labeling_pipeline.errors import ImageError
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.results import draw_class
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

PLAN = parse_plan("model: tiny-rex-omni\nentries: [{name: object, task: detection}]")


def test_boxes_are_not_drawn_over_another_image_than_was_labeled(tmp_path: Path):
    path = tmp_path / "pets/cats/0.png"
    path.parent.mkdir(parents=True)
    store, source = AnnotationStore(tmp_path / "a.duckdb"), open_source(tmp_path / "pets")
    for seed in (0, 1):
        scene = draw_scene(np.random.default_rng(seed), 120, 90)
        Image.fromarray(scene.image).save(path)
        if seed == 0:
            update_inventory(store, source)
            clean(store, source, CleaningRules())
    with pytest.raises(ImageError, match="another image") as caught:
        draw_class(store, PLAN, "cats", source, tmp_path)
    assert caught.value.reason == "changed"
    update_inventory(store, source)
    clean(store, source, CleaningRules())
    assert draw_class(store, PLAN, "cats", source, tmp_path).drawn == 1
