import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.annotations import ParsedAnswer, State
from labeling_pipeline.asks import class_names, models_of
from labeling_pipeline.images.cleaning import CleaningRules
from labeling_pipeline.inventory import clean, update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.models.registry import find_card
from labeling_pipeline.models.scripted import ScriptedModel
from labeling_pipeline.plan import Plan, parse_plan
from labeling_pipeline.rederivation import (
    NO_ORDER,
    NOT_IN_PLAN,
    OTHER_PROMPT,
    RederivationSummary,
    rederive,
    stale_readings,
)
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore, Transaction
from labeling_pipeline.store.ledger import current_annotations, current_outcomes

REPOSITORY = Path(__file__).parent.parent
NEW = 1000
"""A parser version that no parser has reached."""

SIZES = ((96, 72), (720, 400))
BOXES = {"cat": [[100, 200, 300, 400], [500, 500, 899, 899]], "dog": [[400, 100, 600, 450]]}
WORD = "<|object_ref_start|>{}<|object_ref_end|><|box_start|><1><2><300><400><|box_end|>"


class Dataset:
    """An image root with the classes cat and dog, a plan over scripted models, and a store."""

    def __init__(self, folder: Path, plan: Plan, per_class: int = 2) -> None:
        self.folder = folder
        self.root = folder / "images"
        self.plan = plan
        self.store = AnnotationStore(folder / "annotations.duckdb")
        for number in range(2 * per_class):
            path = self.root / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            scene = draw_scene(np.random.default_rng(number), 120, 90).image
            Image.fromarray(scene).resize(SIZES[number % 3 == 0]).save(path)
        update_inventory(self.store, self.root, plan.class_names)
        clean(self.store, self.root, CleaningRules(reject_near_duplicates=False))

    def label(self, run_id: str = "asked", **options: Any) -> None:
        for entry in self.plan.entries:
            for slug in class_names(self.store):
                label_class(self.store, self.plan, entry, slug, self.root, run_id, **options)

    def rederive(self, run_id: str = "read again", **options: Any) -> RederivationSummary:
        return rederive(self.store, self.plan, run_id, **options)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        return self.store.query(sql).to_pylist()

    def read_by(self, parser_version: int) -> tuple[list[dict], list[dict]]:
        """Outcomes and annotations of one parser version, but for times and runs."""
        outcomes = self.rows(
            "SELECT * EXCLUDE (created_at, run_id) FROM outcomes "
            f"WHERE parser_version = {parser_version} ORDER BY ALL"
        )
        annotations = self.rows(
            f"SELECT * FROM annotations WHERE parser_version = {parser_version} ORDER BY ALL"
        )
        return outcomes, annotations

    def asked(self) -> int:
        """Requests that scripted models answered, ever."""
        logs = self.folder.glob("*.log")
        return sum(len(log.read_text().splitlines()) for log in logs)


def model(folder: Path, **script: Any) -> str:
    """A scripted model with a log."""
    folder.mkdir(exist_ok=True)
    number = len(list(folder.glob("*.json")))
    path = folder / f"script_{number}.json"
    path.write_text(json.dumps(script | {"log": str(folder / f"{number}.log")}))
    return f"scripted:{path}"


def plan_of(name: str, *entries: str) -> Plan:
    lines = "".join(f"  - {{{entry}}}\n" for entry in entries)
    return parse_plan(f"model: {json.dumps(name)}\nentries:\n{lines}")


KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "detection": ({"boxes": BOXES}, ("name: a, task: detection",)),
    "a loop and its second round": (
        {"boxes": BOXES, "loops": {"cat": 2}},
        ("name: a, task: detection, classes: [dog, cat], distractors: [cow]",),
    ),
    "an answer that was cut": (
        {"raw_text": WORD.format("cat") + WORD.format("dog")[:60], "finish_reason": "length"},
        ("name: a, task: detection",),
    ),
    "tiles": ({"boxes": BOXES}, ("name: a, task: detection, tiles: {size_px: 400}",)),
    "tiles with loops": (
        {"boxes": BOXES, "loops": {"cat": 2}},
        ("name: a, task: detection, tiles: {size_px: 400}",),
    ),
    "points in tiles": (
        {"raw_text": "<|object_ref_start|>cat<|object_ref_end|><|box_start|><499><400><|box_end|>"},
        ("name: a, task: pointing, tiles: {size_px: 400}",),
    ),
    "keypoints": ({"boxes": BOXES}, ("name: a, task: keypoint",)),
    "keypoints top-down": ({"boxes": BOXES}, ("name: a, task: keypoint, top_down: true",)),
    "keypoints of regions": (
        {"boxes": BOXES},
        ("name: a, task: detection", "name: b, task: keypoint, regions: a"),
    ),
    "descriptions of regions": (
        {"boxes": BOXES},
        (
            "name: a, task: detection",
            "name: b, task: region_to_description, regions: a, model: 'MODEL'",
        ),
    ),
    "names from another": (
        {"boxes": BOXES | {"cow": [[1, 2, 3, 4]]}},
        (
            "name: a, task: ocr_box, model: 'MODEL'",
            "name: b, task: detection, labels_from: a, group_size: 2, distractors: [cow, pig]",
        ),
    ),
    "words": ({"raw_text": WORD.format("read me")}, ("name: a, task: ocr_box",)),
    "caption": ({"raw_text": "a cat on a mat"}, ("name: a, task: caption",)),
    "caption with boxes": (
        {"raw_text": "a cat</s>a cat<loc_100><loc_100><loc_500><loc_600>"},
        ("name: a, task: grounded_caption",),
    ),
    "outlines": (
        {"raw_text": "<loc_100><loc_100><loc_500><loc_120><loc_480><loc_600><loc_90><loc_580>"},
        ("name: a, task: referring_segmentation",),
    ),
    "reference boxes": (
        {"raw_text": WORD.format("object_1")},
        ("name: a, task: visual_prompting, references: {cat/0.png: [[1, 2, 30, 40]]}",),
    ),
}
SECOND_MODEL = {
    "descriptions of regions": {"raw_text": "un chat"},
    "names from another": {
        "raw_text": ", ".join(WORD.format(word) for word in ("cat", "pig", "dog"))
    },
}


def dataset(folder: Path, kind: str) -> Dataset:
    script, entries = KINDS[kind]
    name = model(folder, **script)
    if kind in SECOND_MODEL:
        second = model(folder, **SECOND_MODEL[kind])
        entries = tuple(entry.replace("MODEL", second) for entry in entries)
    return Dataset(folder, plan_of(name, *entries))


def half_as_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every score is read as half of what it was."""
    before = ScriptedModel.parse

    def parse(self: ScriptedModel, *args: Any, **named: Any) -> ParsedAnswer:
        answer = before(self, *args, **named)
        labels = {
            label: replace(
                said,
                annotations=tuple(
                    replace(a, score=a.score / 2 if a.score else None) for a in said.annotations
                ),
            )
            for label, said in answer.labels.items()
        }
        return replace(answer, labels=labels, dropped=(*answer.dropped, "half of it"))

    monkeypatch.setattr(ScriptedModel, "parse", parse)


def new_parser(monkeypatch: pytest.MonkeyPatch, version: int = NEW) -> None:
    monkeypatch.setattr(ScriptedModel, "parser_version", version)


def assert_same(one: Any, other: Any) -> None:
    """Equal but for rounding: log-probabilities are stored in single precision."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == (pytest.approx(other, abs=1e-6) if isinstance(one, float) else other)


# Every kind of entry


@pytest.mark.parametrize("reads_otherwise", [False, True], ids=["same parse", "other parse"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_again_is_what_a_fresh_run_would_have_read(
    kind: str, reads_otherwise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    old = dataset(tmp_path / "old", kind)
    old.label()
    asked = old.asked()
    before = old.read_by(ScriptedModel.parser_version)
    new_parser(monkeypatch)
    if reads_otherwise:
        half_as_sure(monkeypatch)
    fresh = dataset(tmp_path / "fresh", kind)
    fresh.label()
    summary = old.rederive()
    outcomes, annotations = fresh.read_by(NEW)
    assert outcomes != []
    assert annotations != []
    assert_same(old.read_by(NEW), (outcomes, annotations))
    # The earlier reading stays, and nothing was asked.
    assert old.read_by(models_of_old := before[0][0]["parser_version"]) == before
    assert models_of_old != NEW
    assert old.asked() == asked == fresh.asked()
    answers = old.rows("SELECT count(DISTINCT generation_id) AS n FROM outcomes")[0]["n"]
    assert summary.read == answers
    assert sum(one.annotations for one in summary.rereads) == len(annotations)
    assert sum(one.annotations_before for one in summary.rereads) == len(before[1])
    assert not any(one.changed or one.left_alone for one in summary.rereads)
