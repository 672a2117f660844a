"""Scores of the real tiny checkpoint, calibrated on some scenes and judged on others."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from labeling_pipeline.asks import current_view
from labeling_pipeline.cleaning import clean
from labeling_pipeline.evaluation.calibration import Calibration
from labeling_pipeline.evaluation.intervals import wilson_interval
from labeling_pipeline.evaluation.reliability import measure_reliability
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import Plan, load_plan
from labeling_pipeline.reporting.calibration import calibrate, write_calibration
from labeling_pipeline.reporting.detection import evaluate_entries, judge_answers
from labeling_pipeline.sample.scenes import SHAPES, draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_annotations

pytestmark = [pytest.mark.soak, pytest.mark.checkpoint]

LABELS = (*SHAPES, "person")
SCENES = 300
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

    @property
    def answers(self) -> tuple[pd.DataFrame, dict[str, int]]:
        """Which boxes of what the model answered are right, whatever the plan makes of it, and how
        many there are to find of each label."""
        return judge_answers(self.store, self.plan(), self.source)["object"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Calibration, Path]:
    """What was learned from some scenes, and the file that says so."""
    scenes = Scenes(tmp_path_factory.mktemp("learned"), FITTED_ON)
    scenes.label()
    plan = scenes.plan()
    calibration = calibrate(scenes.store, plan, scenes.source)
    return calibration, write_calibration(scenes.home, plan, calibration)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Scenes that nothing was learned from."""
    scenes = Scenes(tmp_path_factory.mktemp("fresh"), FRESH)
    scenes.label()
    return scenes


def test_calibrated_scores_mean_what_they_say_on_fresh_scenes(learned, fresh):
    (of_model,) = learned[0].models
    everything, _ = fresh.answers
    score = everything["score"].to_numpy()
    right = everything["correct"].to_numpy()
    calibrated = of_model.scores.score_map.apply(score)
    before, after = (measure_reliability(scores, right).ece for scores in (score, calibrated))
    print(
        f"\n{len(score)} fresh boxes, {(~right).sum()} wrong: calibration error {before:.3f} as "
        f"measured, {after:.3f} calibrated; promised {of_model.scores.after.ece:.3f}"
    )
    assert 0.02 < (~right).mean() < 0.2
    assert after <= 0.05 < before


def test_a_threshold_for_a_precision_holds_on_fresh_scenes(learned, fresh):
    plan = fresh.plan(learned[1])
    judged = evaluate_entries(fresh.store, plan, fresh.source)["object"].boxes
    found = {row.label: row for row in judged.per_label.itertuples()}
    everything, support = fresh.answers
    right_without = everything[everything["correct"]].groupby("label").size()
    kept = right = 0
    for row in learned[0].thresholds.itertuples():
        here = found[row.label]
        without = right_without[row.label] / support[row.label]
        interval = wilson_interval(here.tp, here.predicted)
        print(
            f"{row.label}: from {row.threshold:.4f} on; promised {row.precision:.3f} "
            f"({row.precision_low:.3f} to {row.precision_high:.3f}), fresh {here.precision:.3f} "
            f"({interval.low:.3f} to {interval.high:.3f}, {here.predicted} boxes); recall "
            f"{row.recall:.3f}, fresh {here.recall:.3f}, {without:.3f} without"
        )
        assert row.precision_low <= here.precision
        assert interval.low <= row.precision_high
        kept, right = kept + here.predicted, right + here.tp
    overall = wilson_interval(right, kept)
    print(f"all: {right / kept:.3f} ({overall.low:.3f} to {overall.high:.3f})")
    assert overall.high >= 0.95


def test_the_file_changes_what_is_shown_and_nothing_that_is_stored(learned, fresh):
    plain, named = (
        current_annotations(fresh.store, current_view(fresh.plan(path)))
        for path in (None, learned[1])
    )
    assert len(named) < len(plain)
    assert named["is_calibrated"].all()
    assert not plain["is_calibrated"].any()
    both = named.merge(plain, on=["annotation_id", "class"], suffixes=("", "_plain"))
    pd.testing.assert_series_equal(both["measured_score"], both["score_plain"], check_names=False)
    assert fresh.label() is None
    count = "SELECT count(*) AS n FROM generations"
    assert fresh.store.query(count)["n"][0].as_py() == SCENES
