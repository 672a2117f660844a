import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from labeling_pipeline.__main__ import app
from labeling_pipeline.annotations import Generation, LabelAnswer, ParsedAnswer, State
from labeling_pipeline.asks import class_names, model_keys
from labeling_pipeline.cleaning import clean
from labeling_pipeline.errors import StoreError
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.models.florence2 import Florence2
from labeling_pipeline.models.registry import _load, find_card
from labeling_pipeline.models.rex_omni import RexOmni
from labeling_pipeline.models.scripted import ScriptedModel
from labeling_pipeline.plan import Plan, Tiling, parse_plan
from labeling_pipeline.rederivation import (
    NO_ORDER,
    NOT_IN_PLAN,
    NOTHING_LEFT,
    OTHER_PROMPT,
    RederivationSummary,
    _cut,
    rederive,
    stale_readings,
)
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore, Transaction
from labeling_pipeline.store.corrections import SHAPE, Correction, Kind
from labeling_pipeline.store.ledger import View, current_annotations, current_outcomes
from labeling_pipeline.store.readings import answers_read_before, stored_answers
from labeling_pipeline.tasks import Task

REPOSITORY = Path(__file__).parent.parent
OLD = ScriptedModel.parser_version
NEW = 1000
"""A parser version that no parser has reached."""

SIZES = ((96, 72), (720, 400))
BOXES = {"cat": [[100, 200, 300, 400], [500, 500, 899, 899]], "dog": [[400, 100, 600, 450]]}
SEEN_ON_CROPS = {
    "cat": [[180, 180, 820, 820], [20, 20, 170, 170]],
    "dog": [[180, 180, 820, 820]],
}
"""The first box stands in a crop about where the thing does that the crop was made around."""
WORD = "<|object_ref_start|>{}<|object_ref_end|><|box_start|><1><2><300><400><|box_end|>"


class Dataset:
    """An image root with the classes cat and dog, a plan over scripted models, and a store."""

    def __init__(self, folder: Path, plan: Plan, per_class: int = 2) -> None:
        self.folder = folder
        self.root = folder / "images"
        self.source = open_source(self.root)
        self.plan = plan
        self.store = AnnotationStore(folder / "annotations.duckdb")
        for number in range(2 * per_class):
            path = self.root / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            scene = draw_scene(np.random.default_rng(number), 120, 90).image
            Image.fromarray(scene).resize(SIZES[number % 3 == 0]).save(path)
        update_inventory(self.store, self.source, plan.class_names)
        clean(self.store, self.source, CleaningRules(only_flag=("near_duplicate",)))

    def label(self, run_id: str = "asked", **options: Any) -> None:
        for entry in self.plan.entries:
            for slug in class_names(self.store):
                label_class(self.store, self.plan, entry, slug, self.source, run_id, **options)

    def rederive(self, run_id: str = "read again", **options: Any) -> RederivationSummary:
        return rederive(self.store, self.plan, run_id, **options)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        return self.store.query(sql).to_pylist()

    def read_by(self, parser_version: int) -> tuple[list[dict], list[dict]]:
        """Outcomes and annotations of one parser version, but for times and runs."""
        outcomes = self.rows(
            "SELECT * EXCLUDE (created_at, run_id) FROM outcomes "
            f"WHERE parser_version = {parser_version} ORDER BY generation_id, class, attempt"
        )
        annotations = self.rows(
            f"SELECT * FROM annotations WHERE parser_version = {parser_version} "
            "ORDER BY generation_id, position"
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
        {"boxes": SEEN_ON_CROPS},
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


def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing can be read out of any answer."""

    def parse(
        self: ScriptedModel, generation: Generation, task: Task, labels: Sequence[str], *_: Any
    ) -> ParsedAnswer:
        return ParsedAnswer({label: LabelAnswer(State.UNPARSED) for label in labels})

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

SEVERAL_GENERATIONS = {
    "a loop and its second round",
    "an answer that was cut",
    "tiles",
    "tiles with loops",
    "points in tiles",
    "keypoints top-down",
    "keypoints of regions",
    "descriptions of regions",
    "names from another",
}
"""Kinds with answers whose generations have an order to be found again."""


FEW = {"detection", "a loop and its second round", "keypoints top-down", "names from another"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in FEW else pytest.mark.soak) for kind in KINDS]
)
def test_what_is_read_again_is_what_a_fresh_run_would_have_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    old = dataset(tmp_path / "old", kind)
    old.label()
    asked = old.asked()
    shutil.rmtree(old.root)
    before = old.read_by(OLD)
    (follow_ups,) = old.rows("SELECT count(follows) > 0 AS some FROM generations")
    assert follow_ups["some"] == (kind in SEVERAL_GENERATIONS)

    new_parser(monkeypatch)
    summary = old.rederive()
    assert_same(as_read_by(NEW, before), old.read_by(NEW))
    answers = old.rows("SELECT count(DISTINCT generation_id) AS n FROM outcomes")[0]["n"]
    assert summary.read == answers
    assert sum(one.annotations_before for one in summary.rereads) == len(before[1])
    assert sum(one.annotations for one in summary.rereads) == len(before[1])
    assert not any(one.changed or one.left_alone for one in summary.rereads)

    new_parser(monkeypatch, NEW + 1)
    half_as_sure(monkeypatch)
    fresh = dataset(tmp_path / "fresh", kind)
    fresh.label()
    old.rederive()
    outcomes, annotations = fresh.read_by(NEW + 1)
    assert {row["entry"] for row in annotations} == {entry.name for entry in old.plan.entries}
    assert_same(old.read_by(NEW + 1), (outcomes, annotations))
    # The earlier readings stay, and nothing was asked.
    assert old.read_by(OLD) == before
    assert old.asked() == asked == fresh.asked()


def as_read_by(version: int, read: tuple[list[dict], list[dict]]) -> tuple[list[dict], list[dict]]:
    """What another parser would have recorded that reads the same."""
    outcomes, annotations = read
    return (
        [row | ({"parser_version": version} if row["generation_id"] else {}) for row in outcomes],
        [
            row
            | {
                "parser_version": version,
                "annotation_id": f"{row['generation_id']}-{version}-{row['position']}",
            }
            for row in annotations
        ],
    )


# What it does to the view


def test_what_is_read_out_of_an_answer_no_more_is_shown_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataset(tmp_path, "detection")
    data.label()
    keys = model_keys(data.plan)
    assert len(current_annotations(data.store, View(keys))) == 12
    new_parser(monkeypatch)
    blind(monkeypatch)
    assert stale_readings(data.store, data.plan) == {"a": {"cat": 2, "dog": 2}}
    summary = data.rederive()
    assert stale_readings(data.store, data.plan) == {}
    (one,) = summary.rereads
    assert (one.read, one.annotations_before, one.annotations) == (4, 12, 0)
    assert one.changed == Counter({("found", "unparsed"): 8})
    assert one.row()["states_changed"] == "found -> unparsed: 8"
    outcomes = current_outcomes(data.store, keys)
    assert set(outcomes["state"]) == {"unparsed"}
    assert set(outcomes["run_id"]) == {"read again"}
    assert current_annotations(data.store, View(keys)).empty
    # It is an answer all the same: nothing is due.
    data.label("later")
    assert data.asked() == 4


def test_an_outcome_keeps_its_time_and_attempt_and_says_who_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataset(tmp_path, "detection")
    data.label()
    data.label("forced", force=True)
    new_parser(monkeypatch)
    assert data.rederive().read == 8
    kept = "image_id, class, attempt, label, request_hash, generation_id, created_at"
    read = "SELECT {} FROM outcomes WHERE parser_version = {} ORDER BY ALL"
    assert data.rows(read.format(kept, OLD)) == data.rows(read.format(kept, NEW)) != []
    assert data.rows("SELECT DISTINCT run_id, parser_version FROM outcomes ORDER BY ALL") == [
        {"run_id": "asked", "parser_version": OLD},
        {"run_id": "forced", "parser_version": OLD},
        {"run_id": "read again", "parser_version": NEW},
    ]


def test_a_second_time_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = dataset(tmp_path, "keypoints of regions")
    data.label()
    assert (data.rederive().read, data.read_by(NEW)) == (0, ([], []))
    new_parser(monkeypatch)
    seen: list[tuple[int, int]] = []
    assert data.rederive(batch=1, progress=lambda *at: seen.append(at)).read == 8
    assert seen == [(done, 8) for done in range(9)]
    before = data.store.path.read_bytes()
    again = data.rederive()
    assert (again.read, again.worth_telling) == (0, [])
    assert data.store.path.read_bytes() == before


def test_a_changed_threshold_changes_the_view_and_writes_nothing(tmp_path: Path):
    data = dataset(tmp_path, "detection")
    data.label()
    before = data.store.path.read_bytes()
    entry = data.plan.entry("a").model_copy(update={"threshold": 0.95})
    data.plan = data.plan.model_copy(update={"entries": (entry,)})
    assert data.rederive().worth_telling == []
    data.label("later")
    assert data.store.path.read_bytes() == before
    keys = model_keys(data.plan)
    assert len(current_annotations(data.store, View(keys, {"a": 0.0}))) == 12
    assert current_annotations(data.store, View(keys, {"a": entry.threshold})).empty


def test_what_people_corrected_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = dataset(tmp_path, "detection")
    data.label()
    keys = model_keys(data.plan)
    first = current_annotations(data.store, View(keys), "cat").iloc[0]
    correct(data, first, {"x0_px": 1.0, "y0_px": 2.0, "x1_px": 30.0, "y1_px": 40.0})
    corrections = data.rows("SELECT * FROM corrections")
    corrected = current_annotations(data.store, View(keys), "cat").dropna(subset="corrected_by")
    assert len(corrected) == 1
    new_parser(monkeypatch)
    data.rederive()
    assert data.rows("SELECT * FROM corrections") == corrections
    after = current_annotations(data.store, View(keys), "cat")
    assert len(after) == 8, "what was corrected stands there twice"
    assert set(after["parser_version"]) == {0, NEW}
    by_hand = after.dropna(subset="corrected_by")
    assert by_hand[["annotation_id", "x0_px"]].equals(corrected[["annotation_id", "x0_px"]])


def correct(data: Dataset, found: pd.Series, box: dict[str, float]) -> None:
    """A person says that something is elsewhere."""
    shape = dict.fromkeys(SHAPE) | {"label": found["label"]}
    target = {name: found[name] for name in ("x0_px", "y0_px", "x1_px", "y1_px")}
    source = {"generation_id": found["generation_id"], "parser_version": OLD}
    correction = Correction(
        "by-hand",
        found["image_id"],
        "a",
        found["label"],
        Kind.CHANGE,
        found["annotation_id"],
        shape | target | source,
        shape | box,
        "Ann",
        datetime(2026, 1, 1),
    )
    with data.store.transaction() as tx:
        tx.insert("corrections", [correction.row()])


def test_answers_about_boxes_that_people_gave_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataset(tmp_path, "keypoints of regions")
    first, second = data.plan.entries
    data.plan = data.plan.model_copy(update={"entries": (first,)})
    data.label()
    found = current_annotations(data.store, View(model_keys(data.plan)), "cat").iloc[0]
    correct(data, found, {"x0_px": 0.1, "y0_px": 0.7, "x1_px": 33.3, "y1_px": 40.0})
    data.plan = data.plan.model_copy(update={"entries": (first, second)})
    data.label()
    about = data.rows("SELECT count(*) AS n FROM generations WHERE region = 'by-hand'")
    assert about == [{"n": 1}]
    new_parser(monkeypatch)
    assert data.rederive().read == 8
    assert data.rederive().worth_telling == []


# What is read and what is left alone


def test_every_model_that_ever_answered_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = dataset(tmp_path, "detection")
    data.label()
    other = model(tmp_path, boxes={"cat": BOXES["dog"]})
    data.plan = data.plan.with_model(other)
    data.label()
    new_parser(monkeypatch)
    summary = data.rederive()
    assert sorted(one.read for one in summary.rereads) == [4, 4]
    assert data.rows("SELECT DISTINCT model_key, parser_version FROM outcomes ORDER BY ALL") == [
        {"model_key": key, "parser_version": version}
        for key in sorted(one.model_key for one in summary.rereads)
        for version in (OLD, NEW)
    ]


def test_an_answer_that_holds_again_is_read_once_and_stands_in_each_of_its_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataset(tmp_path, "detection")
    data.label()
    plan = data.plan
    entry = plan.entry("a").model_copy(update={"distractors": ("cow",)})
    data.plan = plan.model_copy(update={"entries": (entry,)})
    data.label("changed")
    data.plan = plan
    data.label("changed back")
    assert data.asked() == 8
    new_parser(monkeypatch)
    (one,) = data.rederive().rereads
    assert (one.read, one.left_alone) == (4, Counter({OTHER_PROMPT: 4}))
    attempts = data.rows(
        f"SELECT attempt, count(*) AS n FROM outcomes WHERE parser_version = {NEW} "
        "GROUP BY ALL ORDER BY ALL"
    )
    assert [row["attempt"] for row in attempts] == [1, 3]
    assert one.annotations == len(data.read_by(NEW)[1]) == 12
    keys = model_keys(data.plan)
    current = current_annotations(data.store, View(keys))
    # What the other prompt said of the images of other classes is asked by nobody today.
    assert set(current.loc[current["belongs"], "parser_version"]) == {NEW}
    assert stale_readings(data.store, data.plan) == {}


def test_answers_that_nobody_asks_for_today_are_left_alone_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataset(tmp_path, "keypoints of regions")
    data.label()
    new_parser(monkeypatch)
    tiled = data.plan.entry("a").model_copy(update={"tiles": Tiling(size_px=400)})
    data.plan = data.plan.model_copy(update={"entries": (tiled,)})
    summary = data.rederive()
    assert {one.entry: one.left_alone for one in summary.rereads} == {
        "a": Counter({OTHER_PROMPT: 4}),
        "b": Counter({NOT_IN_PLAN: 4}),
    }
    assert (summary.read, summary.left_alone, data.read_by(NEW)) == (0, 8, ([], []))


def test_answers_of_a_model_that_is_gone_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataset(tmp_path, "detection")
    data.label()
    script = Path(data.plan.model.removeprefix("scripted:"))
    data.plan = data.plan.with_model(model(tmp_path, boxes={}))
    script.unlink()
    find_card.cache_clear()
    _load.cache_clear()
    new_parser(monkeypatch)
    (one,) = data.rederive().rereads
    ((why, answers),) = one.left_alone.items()
    assert (one.read, answers) == (0, 4)
    assert why.startswith("the model is not there any more")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        pytest.param(
            "UPDATE generations SET attempt = 9 WHERE entry = 'b'",
            NO_ORDER,
            id="of another attempt",
        ),
        pytest.param(
            "UPDATE annotations SET x0_px = x0_px + 1 WHERE entry = 'a'",
            OTHER_PROMPT,
            id="about other boxes",
        ),
    ],
)
def test_answers_that_do_not_fit_their_questions_are_left_alone(
    damage: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataset(tmp_path, "keypoints of regions")
    data.label()
    with data.store.transaction() as tx:
        tx.execute(damage)
    new_parser(monkeypatch)
    by_entry = {one.entry: one for one in data.rederive().rereads}
    assert (by_entry["a"].read, by_entry["b"].read) == (4, 0)
    assert by_entry["b"].left_alone == Counter({why: 4})


def test_what_a_newer_package_read_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    new_parser(monkeypatch)
    data = dataset(tmp_path, "detection")
    data.label()
    new_parser(monkeypatch, OLD)
    assert data.rederive().worth_telling == []
    assert data.read_by(OLD) == ([], [])


# Interruptions


@pytest.mark.parametrize("at", [5, *(pytest.param(at, marks=pytest.mark.soak) for at in (1, 2, 8))])
def test_interrupted_anywhere_it_goes_on_and_ends_the_same(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataset(tmp_path, "keypoints of regions")
    data.label()
    copy = AnnotationStore(tmp_path / "copy.duckdb")
    shutil.copy(data.store.path, copy.path)
    new_parser(monkeypatch)
    half_as_sure(monkeypatch)
    rederive(copy, data.plan, "read again")
    expected = copy.query(EVERYTHING).to_pylist()
    # The transactions below hold what was fetched at several times.
    monkeypatch.setattr("labeling_pipeline.rederivation._AT_ONCE", 1)
    inserts = 0
    insert = Transaction.insert

    def interrupted(self: Transaction, *args: Any, **named: Any) -> None:
        nonlocal inserts
        inserts += 1
        insert(self, *args, **named)
        if inserts == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Transaction, "insert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.rederive(batch=2)
    rest = data.rederive(batch=3)
    assert rest.read < 8 or at < 3
    assert data.rows(EVERYTHING) == expected


EVERYTHING = """
SELECT 'outcome' AS what, image_id, entry, class AS name, attempt, parser_version, state,
    presence AS score, dropped AS position FROM outcomes
UNION ALL
SELECT 'annotation', image_id, entry, annotation_id, 0, parser_version, label, score, position
FROM annotations
ORDER BY ALL
"""


@pytest.mark.parametrize(
    ("sizes", "slices"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([1, 1, 1, 1], [3, 1], id="one generation each"),
        pytest.param([2, 2, 1, 3, 3], [1, 2, 1, 1], id="no answer is cut"),
        pytest.param([1, 9, 1, 1], [1, 1, 2], id="a larger one stands alone"),
    ],
)
def test_answers_are_cut_into_batches_by_their_generations(sizes: list[int], slices: list[int]):
    rows = [[0] * size for size in sizes]
    answers = pa.table({"generation_rows": pa.array(rows, pa.list_(pa.int64()))})
    cut = list(_cut(answers, 3))
    assert [few.num_rows for few in cut] == slices
    assert [row for few in cut for row in few["generation_rows"].to_pylist()] == rows


def test_a_file_that_is_rewritten_meanwhile_is_an_error_that_says_so(tmp_path: Path):
    data = dataset(tmp_path, "detection")
    data.label()
    (key,) = model_keys(data.plan).values()
    answers = answers_read_before(data.store, "a", key, NEW)
    assert answers.num_rows == 4
    with data.store.transaction() as tx:
        tx.execute("CREATE TABLE other AS FROM generations ORDER BY rowid DESC")
        tx.execute("DELETE FROM generations")
        tx.execute("INSERT INTO generations FROM other")
    with pytest.raises(StoreError, match=r"rewritten.*start anew"):
        stored_answers(data.store, answers.slice(0, 1))


# No model


def test_neither_torch_nor_a_model_library_is_loaded(tmp_path: Path):
    data = dataset(tmp_path, "keypoints of regions")
    data.label()
    code = f"""
import sys
from pathlib import Path
from labeling_pipeline.models.scripted import ScriptedModel
from labeling_pipeline.plan import load_plan
from labeling_pipeline.rederivation import rederive
from labeling_pipeline.store.annotation_store import AnnotationStore
ScriptedModel.parser_version = {NEW}
store = AnnotationStore(Path({str(data.store.path)!r}))
summary = rederive(store, load_plan(Path({str(tmp_path / "plan.yaml")!r})), "elsewhere")
print(summary.read, [m for m in ("torch", "transformers", "cv2") if m in sys.modules])
"""
    script, entries = data.plan.model, KINDS["keypoints of regions"][1]
    lines = "".join(f"  - {{{entry}}}\n" for entry in entries)
    (tmp_path / "plan.yaml").write_text(f"model: {json.dumps(script)}\nentries:\n{lines}")
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ran.stdout.strip() == "8 []", ran.stderr


@pytest.mark.checkpoint
@pytest.mark.parametrize(
    ("name", "adapter", "entries"),
    [
        pytest.param(
            "tiny-rex-omni",
            RexOmni,
            (
                "name: a, task: detection, distractors: [square, triangle], tiles: {size_px: 256}",
                "name: b, task: keypoint, top_down: true, ask: {'*': person}",
                "name: c, task: detection, regions: a",
            ),
            id="rex-omni",
        ),
        pytest.param(
            "tiny-florence-2",
            Florence2,
            (
                "name: a, task: object_detection",
                "name: b, task: region_to_description, regions: a",
                "name: c, task: grounded_caption",
                "name: d, task: referring_segmentation, ask: {'*': a star}",
            ),
            id="florence-2",
        ),
    ],
)
@pytest.mark.soak
def test_answers_of_real_models_read_the_same_again(
    name: str, adapter: Any, entries: tuple[str, ...], tmp_path: Path, monkeypatch
):
    root = tmp_path / "images" / "star"
    root.mkdir(parents=True)
    for number in range(3):
        scene = draw_scene(np.random.default_rng([9, number]), 320, 240, ["star", "person"])
        Image.fromarray(scene.image).save(root / f"{number}.png")
    data = Dataset(tmp_path, plan_of(name, *entries), per_class=0)
    data.label()
    old = adapter.parser_version
    before = data.read_by(old)
    monkeypatch.setattr(adapter, "parser_version", NEW)
    summary = data.rederive()
    assert {one.entry: one.read for one in summary.rereads} == dict.fromkeys(
        "abcd"[: len(entries)], 3
    )
    assert summary.left_alone == 0
    assert len(before[1]) > 6
    assert_same(as_read_by(NEW, before), data.read_by(NEW))


# From the command line, and as an asset


def test_the_verb_says_what_was_read_and_then_that_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataset(tmp_path, "detection")
    data.label()
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"model: {json.dumps(data.plan.model)}\nentries: [{{name: a, task: detection}}]\n"
    )
    monkeypatch.setenv("LABELING_PLAN", str(plan))
    monkeypatch.setattr("labeling_pipeline.__main__.console", Console(width=250))
    run = partial(CliRunner().invoke, app, ["rederive", "--home", str(tmp_path)])
    new_parser(monkeypatch)
    blind(monkeypatch)
    first = run()
    assert first.exit_code == 0, first.output
    assert "found -> unparsed: 8" in first.output
    assert "4 answers read in" in first.output
    second = run()
    assert (second.exit_code, NOTHING_LEFT in second.output) == (0, True)
    monkeypatch.setenv("LABELING_HOME", str(tmp_path / "none"))
    lost = CliRunner().invoke(app, ["rederive"])
    assert (lost.exit_code, "there is no store at" in lost.output) == (1, True)
