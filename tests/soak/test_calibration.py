"""Scores of the real tiny checkpoint, calibrated on some scenes and judged on others."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from labeling_pipeline.cleaning import clean
from labeling_pipeline.evaluation.intervals import wilson_interval
from labeling_pipeline.evaluation.reliability import measure_reliability
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import Plan, load_plan
from labeling_pipeline.reporting.calibration import calibrate, write_calibration
from labeling_pipeline.reporting.detection import evaluate_answers
from labeling_pipeline.sample.scenes import SHAPES, draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

pytestmark = [pytest.mark.soak, pytest.mark.checkpoint]

LABELS = (*SHAPES, "person")
SCENES = 400
TARGET = 0.95
FITTED_ON, FRESH = 4101, 4102
"""Seeds: training and its held-out scenes have others."""


class Scenes:
    """Crowded, blurred and noisy scenes, labeled by the embedded checkpoint.

    Trained on up to three objects, it gets a few percent of the boxes wrong here.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.home = Home(folder / "home")
        self.source = open_source(folder / "images")
        self.store = AnnotationStore(self.home.store_path)
        images, annotations = [], []
        for number in range(SCENES):
            rng = np.random.default_rng([seed, number])
            kinds = [str(kind) for kind in rng.choice(LABELS, size=rng.integers(4, 7))]
            scene = draw_scene(rng, 320, 320, kinds)
            blurred = Image.fromarray(scene.image).filter(
                ImageFilter.GaussianBlur(rng.uniform(0, 2))
            )
            noisy = np.asarray(blurred) + rng.normal(0, rng.uniform(0, 25), scene.image.shape)
            name = f"{LABELS[number % len(LABELS)]}/{number:04}.png"
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
            images.append({"id": number, "file_name": name})
            for thing in scene.objects:
                x0, y0, x1, y1 = thing.bbox_px.tolist()
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": number,
                        "category_id": LABELS.index(thing.label),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                    }
                )
        categories = [{"id": number, "name": label} for number, label in enumerate(LABELS)]
        truth = {"images": images, "categories": categories, "annotations": annotations}
        (folder / "truth.json").write_text(json.dumps(truth))

    def plan(self, thresholds: Path | None = None) -> Plan:
        path = self.folder / "plan.yaml"
        named = f"thresholds: {thresholds}\n" if thresholds else ""
        path.write_text(
            f"model: tiny-rex-omni\nground_truth: ../truth.json\n{named}"
            "entries:\n  - {name: object, task: detection}\n"
        )
        return load_plan(path)

    def label(self) -> None:
        plan = self.plan()
        update_inventory(self.store, self.source, plan.class_names)
        clean(self.store, self.source, plan.cleaning)
        for label in LABELS:
            label_class(self.store, plan, plan.entry("object"), label, self.source, "run")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenes, Scenes]:
    """What is learned from, and fresh ones."""
    both = tuple(Scenes(tmp_path_factory.mktemp("scenes"), seed) for seed in (FITTED_ON, FRESH))
    for one in both:
        one.label()
    return both
