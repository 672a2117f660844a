"""What of a store is learned from."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from labeling_pipeline.asks import current_view, model_keys
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.reporting.calibration import calibrate, thresholds_of, write_calibration
from labeling_pipeline.store.annotation_store import AnnotationStore

NOON = datetime(2024, 5, 1, 12)
IMAGES = 150
ENTRIES = (
    "  - {name: object, task: detection}\n",
    "  - {name: again, task: detection}\n",
    "  - {name: pose, task: keypoint}\n",
)


class Dataset:
    """Images of a cat each, which every entry found: well if its score is high."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = AnnotationStore(folder / "home" / "annotations.duckdb")
        self.source = open_source(folder / "images")
        self.plan = parse_plan(
            f"model: tiny-rex-omni\nground_truth: ../truth.json\nentries:\n{''.join(ENTRIES)}",
            str(folder / "plan.yaml"),
        )
        numbers = range(IMAGES)
        names = [f"cat/{number}.jpg" for number in numbers]
        truth = {
            "images": [{"id": number, "file_name": names[number]} for number in numbers],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [
                {"image_id": number, "category_id": 1, "bbox": [10, 10, 40, 40]}
                for number in numbers
            ],
        }
        (folder / "images").mkdir()
        (folder / "truth.json").write_text(json.dumps(truth))
        with self.store.transaction() as tx:
            tx.insert("classes", [{"class": "cat", "display_name": "cat"}])
            size = {"width_px": 100, "height_px": 80, "status": "accepted"}
            tx.insert("images", [{"image_id": name, "cluster": None} | size for name in names])
            file = {"class": "cat", "size_bytes": 1, "mtime_ns": 1}
            tx.insert("dataset_files", [{"path": n, "image_id": n} | file for n in names])
        self.names = names
        for number, (entry, key) in enumerate(model_keys(self.plan).items()):
            self.answer(entry, key, names, seed=number)

    def answer(self, entry: str, model_key: str, names: list[str], seed: int) -> None:
        """One scored box on each image."""
        rng = np.random.default_rng(seed)
        outcomes, annotations = [], []
        for number, name in enumerate(names):
            score = rng.uniform(0.4, 0.7)
            is_right = rng.random() < (score - 0.4) / 0.3
            left = 10.0 if is_right else 55.0
            generation = f"{entry}-{model_key}-{number}"
            outcomes.append(
                {
                    "image_id": name,
                    "entry": entry,
                    "class": "cat",
                    "model_key": model_key,
                    "attempt": 1,
                    "parser_version": 1,
                    "label": "cat",
                    "request_hash": "r",
                    "state": "found",
                    "generation_id": generation,
                    "run_id": "run",
                    "created_at": NOON + timedelta(seconds=seed),
                }
            )
            annotations.append(
                {
                    "annotation_id": f"{generation}-1-0",
                    "generation_id": generation,
                    "image_id": name,
                    "entry": entry,
                    "label": "cat",
                    "parser_version": 1,
                    "position": 0,
                    **{"x0_px": left, "y0_px": 10.0, "x1_px": left + 40, "y1_px": 50.0},
                    "score": score,
                }
            )
        with self.store.transaction() as tx:
            tx.insert("outcomes", outcomes)
            tx.insert("annotations", annotations)

    def execute(self, sql: str) -> None:
        with self.store.transaction() as tx:
            tx.execute(sql)

    def learned(self):
        return calibrate(self.store, self.plan, self.source)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


def test_entries_of_one_model_and_task_are_learned_from_together(data: Dataset):
    learned = data.learned()
    assert [(one.task, one.scores.boxes, one.scores.groups) for one in learned.models] == [
        ("detection", 2 * IMAGES, IMAGES),
        ("keypoint", IMAGES, IMAGES),
    ]
    assert all(one.scores.after.ece < one.scores.before.ece for one in learned.models)
    assert learned.thresholds["entry"].tolist() == ["again", "object", "pose"]
    assert learned.thresholds["true"].tolist() == [IMAGES] * 3


def test_answers_of_another_model_teach_nothing(data: Dataset):
    before = data.learned()
    data.answer("object", "another", data.names, seed=9)
    assert data.learned().table.equals(before.table)
    # Where only another model has answered, there is nothing to judge the plan's by either.
    key = model_keys(data.plan)["pose"]
    data.execute(f"UPDATE outcomes SET model_key = 'another' WHERE model_key = '{key}'")
    after = data.learned()
    assert after.table["boxes"].tolist() == [0, 0]
    assert after.thresholds["reason"].str.contains("too few boxes").sum() == len(after.thresholds)


def test_corrections_and_thresholds_of_the_plan_teach_nothing(data: Dataset):
    before = data.learned()
    row = {
        "correction_id": "c",
        "image_id": data.names[0],
        "entry": "object",
        "label": "cat",
        "kind": "add",
        "annotation_id": None,
        "target": None,
        "values": json.dumps(
            {
                **{"label": "cat", "x0_px": 10, "y0_px": 10, "x1_px": 50, "y1_px": 50},
                **dict.fromkeys(("point", "polygon", "text", "keypoints")),
            }
        ),
        "author": "Ann",
        "created_at": NOON,
    }
    with data.store.transaction() as tx:
        tx.insert("corrections", [row])
    entries = tuple(entry.model_copy(update={"threshold": 0.6}) for entry in data.plan.entries)
    data.plan = data.plan.model_copy(update={"entries": entries})
    assert data.learned().table.equals(before.table)
    assert data.learned().thresholds.equals(before.thresholds)


def test_near_duplicates_are_one_image(data: Dataset):
    data.execute(f"UPDATE images SET cluster = '{data.names[0]}' WHERE image_id LIKE 'cat/1%.jpg'")
    alike = sum(name.startswith("cat/1") for name in data.names)
    assert data.learned().models[0].scores.groups == IMAGES - alike


def test_what_is_written_is_what_a_plan_that_names_it_shows(data: Dataset):
    learned, home = data.learned(), Home(data.folder / "home")
    path = write_calibration(home, data.plan, learned)
    named = data.plan.model_copy(update={"thresholds": str(path.relative_to(data.folder))})
    view = current_view(named)
    keys = model_keys(data.plan)
    assert view.score_maps == {
        (entry, keys[entry]): one.scores.score_map
        for one in learned.models
        for entry in keys
        if data.plan.entry(entry).task == one.task
    }
    chosen = learned.thresholds.dropna(subset="threshold")
    assert view.label_thresholds == {
        (row.entry, row.model_key, row.label): row.threshold for row in chosen.itertuples()
    }
    before = path.stat().st_mtime_ns
    assert write_calibration(home, data.plan, data.learned()) == path
    assert path.stat().st_mtime_ns == before
    assert thresholds_of(named, data.learned()) == thresholds_of(data.plan, learned)


def test_a_probability_that_rounding_put_above_1_is_none_the_worse(data: Dataset):
    data.execute("UPDATE annotations SET score = 1.0000001 WHERE annotation_id LIKE '%-7-1-0'")
    assert data.learned().models[0].scores.before.count == 2 * IMAGES
