"""What a change of the plan, the model or the folder costs: exactly what it changes."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from labeling_pipeline.asks import current_view, due_work
from labeling_pipeline.cleaning import clean
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import Plan, parse_plan
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_annotations

Asked = Counter[tuple[str, tuple[str, ...]]]
"""(entry, labels of the prompt) -> images."""

BOXES = {"ant": [[100, 100, 400, 400]], "bee": [[200, 300, 700, 800]], "cow": [[0, 0, 900, 900]]}
ENTRIES = [
    {"name": "object", "task": "detection", "group_size": 2, "model": "A"},
    {"name": "pose", "task": "keypoint", "ask": {"*": "person"}, "model": "B"},
]
IMAGES = 2


class Dataset:
    """Classes ant, bee and cow of two images each, and two models that log what they are asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "images"
        self.source = open_source(self.root)
        self.store = AnnotationStore(folder / "annotations.duckdb")
        for number, name in enumerate(BOXES):
            self.add(name, 10 * number)

    def add(self, name: str, seed: int) -> None:
        """A class of two images."""
        (self.root / name).mkdir(parents=True)
        for i in range(IMAGES):
            picture = draw_scene(np.random.default_rng(seed + i), 120, 90).image
            Image.fromarray(picture).save(self.root / name / f"{i}.png")

    def plan(self, entries: list[dict] | None = None, **scripts: dict) -> Plan:
        """scripts: model -> what of its script differs."""
        described = [dict(entry) for entry in entries or ENTRIES]
        for entry in described:
            model = entry["model"]
            script = {"boxes": BOXES, "log": str(self.folder / f"{entry['name']}.jsonl")}
            script |= scripts.get(model, {})
            digest = abs(hash(json.dumps(script)))
            path = self.folder / f"{model}-{digest}.json"
            path.write_text(json.dumps(script))
            entry["model"] = f"scripted:{path}"
        return parse_plan(yaml.safe_dump({"entries": described}))

    def label(self, plan: Plan) -> Asked:
        """Label every entry and class; what that asked."""
        update_inventory(self.store, self.source, plan.class_names)
        clean(self.store, self.source, CleaningRules(only_flag=("near_duplicate",)))
        before = self.asked(plan)
        classes = self.store.query("SELECT class FROM classes WHERE NOT retired ORDER BY 1")
        for entry in plan.entries:
            for class_slug in classes["class"].to_pylist():
                label_class(self.store, plan, entry, class_slug, self.source, "run")
        assert not due_work(self.store, plan).due
        return self.asked(plan) - before

    def asked(self, plan: Plan) -> Asked:
        asked: Asked = Counter()
        for entry in plan.entries:
            log = self.folder / f"{entry.name}.jsonl"
            for line in log.read_text().splitlines() if log.exists() else ():
                asked[entry.name, tuple(json.loads(line)["labels"])] += 1
        return asked

    def size(self) -> tuple[int, ...]:
        """Rows of the tables that grow."""
        return tuple(
            self.store.query(f"SELECT count(*) AS n FROM {table}")["n"][0].as_py()
            for table in ("generations", "outcomes", "annotations")
        )

    def shown(self, plan: Plan) -> list[tuple]:
        """The annotations that hold for the classes of each image, without their ids."""
        frame = current_annotations(self.store, current_view(plan))
        frame = frame[frame["belongs"]]
        columns = ["path", "entry", "class", "label", "x0_px", "y0_px", "x1_px", "y1_px"]
        return [tuple(row) for row in frame[columns].itertuples(index=False)]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = Dataset(tmp_path)
    assert dataset.label(dataset.plan()) == {
        ("object", ("ant", "bee")): 2 * IMAGES,
        ("object", ("cow",)): IMAGES,
        ("pose", ("person",)): 3 * IMAGES,
    }
    return dataset


def entries(**changes: object) -> list[dict]:
    """The entries, with changes of the first one."""
    return [ENTRIES[0] | changes, ENTRIES[1]]


def test_a_second_run_asks_and_writes_nothing(dataset: Dataset):
    before = dataset.size()
    assert dataset.label(dataset.plan()) == {}
    assert dataset.size() == before


def test_a_changed_threshold_changes_the_view_and_writes_nothing(dataset: Dataset):
    before = dataset.size()
    strict = dataset.plan(entries(threshold=1.0))
    assert dataset.label(strict) == {}
    assert dataset.size() == before
    assert {row[1] for row in dataset.shown(dataset.plan())} == {"object"}
    assert dataset.shown(strict) == []


def test_a_label_that_is_appended_asks_only_its_group_again(dataset: Dataset):
    dataset.add("dog", 40)
    assert dataset.label(dataset.plan()) == {
        # It joins the last group, which had room.
        ("object", ("cow", "dog")): 2 * IMAGES,
        ("pose", ("person",)): IMAGES,
    }
    dataset.add("eel", 50)
    assert dataset.label(dataset.plan()) == {
        ("object", ("eel",)): IMAGES,
        ("pose", ("person",)): IMAGES,
    }


@pytest.mark.soak
def test_another_model_asks_exactly_the_entries_that_use_it(dataset: Dataset):
    first = dataset.shown(dataset.plan())
    newer = dataset.plan(A={"boxes": {"ant": [[0, 0, 999, 999]]}})
    assert dataset.label(newer) == {
        ("object", ("ant", "bee")): 2 * IMAGES,
        ("object", ("cow",)): IMAGES,
    }
    assert dataset.shown(newer) != first
    # Gone back to: the earlier answers are there, and hold at once.
    assert dataset.shown(dataset.plan()) == first
    assert dataset.label(dataset.plan()) == {}
    assert dataset.shown(dataset.plan()) == first


def test_a_changed_revision_asks_exactly_its_entries_whatever_it_answers(dataset: Dataset):
    first = dataset.shown(dataset.plan())
    newer = dataset.plan(A={"revision": "v2"})
    assert dataset.label(newer) == {
        ("object", ("ant", "bee")): 2 * IMAGES,
        ("object", ("cow",)): IMAGES,
    }
    assert dataset.shown(newer) == first
    revisions = dataset.store.query("SELECT revision FROM models ORDER BY ALL")["revision"]
    assert revisions.to_pylist() == ["script", "v2"]
    assert dataset.label(dataset.plan()) == {}


@pytest.mark.soak
def test_a_changed_prompt_asks_its_entry_and_can_be_taken_back(dataset: Dataset):
    first = dataset.shown(dataset.plan())
    other = dataset.plan(entries(ask={"cow": "bee"}))
    # Classes that the plan spells out come first, and two of the three ask for the same now.
    assert dataset.label(other) == {("object", ("bee", "ant")): 3 * IMAGES}
    assert dataset.shown(other) != first
    assert dataset.label(dataset.plan()) == {}
    assert dataset.shown(dataset.plan()) == first
    assert dataset.label(other) == {}
    assert dataset.shown(other) != first


def test_a_class_that_is_gone_asks_nobody_anything(dataset: Dataset):
    for file in (dataset.root / "ant").iterdir():
        file.unlink()
    (dataset.root / "ant").rmdir()
    assert dataset.label(dataset.plan()) == {}
    assert {row[2] for row in dataset.shown(dataset.plan())} == {"bee", "cow"}
