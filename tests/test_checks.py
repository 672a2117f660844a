import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from labeling_pipeline.asks import EntryAsks
from labeling_pipeline.checks import (
    MAX_ROWS,
    CheckOutcome,
    annotations_are_sound,
    empty_label_rate,
    no_failed_outcomes,
    no_failed_partitions,
    readings_are_current,
    rejected_share,
    score_drift,
)
from labeling_pipeline.plan import Plan, parse_plan
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import MAX_ATTEMPTS

NOON = datetime(2024, 5, 1, 12)
PLAN = parse_plan(
    "model: tiny-rex-omni\n"
    "entries:\n"
    "  - {name: object, task: detection, ask: {Big Cats: cat, Dogs: dog}}\n"
    "checks: {max_rejected_share: 0.4, max_duplicate_share: 0.3}\n"
)
BOX = {"x0_px": 10.0, "y0_px": 10.0, "x1_px": 60.0, "y1_px": 50.0}
NAMES = {"cats": "Big Cats", "dogs": "Dogs"}


class Dataset:
    """A store with the classes Big Cats and Dogs, whose images are 100 x 80 px."""

    def __init__(self, store: AnnotationStore) -> None:
        self.store = store
        self.plan = PLAN
        self._answers = 0

    def fill(self) -> None:
        with self.store.transaction() as tx:
            rows = [{"class": slug, "display_name": name} for slug, name in NAMES.items()]
            tx.insert("classes", rows)

    @property
    def asks(self) -> EntryAsks:
        return EntryAsks(self.store, self.plan, self.plan.entries[0])

    def images(self, *image_ids: str, slug: str = "cats", **values: Any) -> None:
        """One accepted image in one file each."""
        sized = {"width_px": 100, "height_px": 80, "status": "accepted"} | values
        file = {"class": slug, "size_bytes": 1, "mtime_ns": 1}
        with self.store.transaction() as tx:
            tx.insert("images", [{"image_id": one} | sized for one in image_ids])
            tx.insert(
                "dataset_files",
                [{"path": f"{slug}/{one}.jpg", "image_id": one} | file for one in image_ids],
            )

    def answer(
        self,
        image_ids: Iterable[str],
        annotations: Sequence[dict[str, Any]] = (BOX | {"score": 0.5},),
        *,
        slug: str = "cats",
        labels: Sequence[str] = ("cat", "dog"),
        run: str = "first",
        generations: bool = True,
        **values: Any,
    ) -> None:
        """What came of asking images for a class, and the annotations behind it; each image gets
        an answer of its own."""
        asks = self.asks
        request_hash = asks.of(slug).ask.request_hash
        rows = []
        for image_id in image_ids:
            self._answers += 1
            rows.append(
                {
                    "image_id": image_id,
                    "entry": "object",
                    "class": slug,
                    "model_key": asks.model.model_key,
                    "attempt": 1,
                    "parser_version": asks.model.parser_version,
                    "label": {"cats": "cat", "dogs": "dog"}[slug],
                    "request_hash": request_hash,
                    "state": "found" if annotations else "absent",
                    "generation_id": f"g{self._answers}",
                    "run_id": run,
                    "created_at": NOON + timedelta(minutes=self._answers),
                }
                | values
            )
        found = [
            self._annotation(row, position, values)
            for row in rows
            for position, values in enumerate(annotations)
        ]
        with self.store.transaction() as tx:
            tx.insert("outcomes", rows)
            if generations:
                tx.insert("generations", [self._generation(row, labels) for row in rows])
            tx.insert("annotations", found)

    def fails(self, *image_ids: str, times: int = 1, slug: str = "cats", **values: Any) -> None:
        nothing = {"generation_id": None, "parser_version": 0, "state": "failed", "error": "broken"}
        for attempt in range(1, times + 1):
            row = nothing | {"attempt": attempt} | values
            self.answer(image_ids, (), slug=slug, generations=False, **row)

    def execute(self, sql: str) -> None:
        with self.store.transaction() as tx:
            tx.execute(sql)

    def check(self, check: Callable[..., CheckOutcome]) -> CheckOutcome:
        return check(self.store, self.plan, self.plan.entries[0])

    def _annotation(
        self, outcome: dict[str, Any], position: int, values: dict[str, Any]
    ) -> dict[str, Any]:
        generation, version = outcome["generation_id"], outcome["parser_version"]
        nothing = dict.fromkeys([*BOX, "point", "polygon", "keypoints", "text", "score"])
        return (
            nothing
            | {
                "annotation_id": f"{generation}-{version}-{position}",
                "generation_id": generation,
                "answered_in": generation,
                "image_id": outcome["image_id"],
                "entry": outcome["entry"],
                "label": outcome["label"],
                "parser_version": version,
                "position": position,
            }
            | values
        )

    def _generation(self, outcome: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        same = ("generation_id", "image_id", "entry", "request_hash", "model_key", "attempt")
        lists = ("tokens", "token_logprobs", "token_window_mass", "none_probs")
        return (
            {key: outcome[key] for key in (*same, "run_id", "created_at")}
            | {key: [] for key in lists}
            | {"task": "detection", "labels": list(labels), "prompt": "?", "raw_text": "!"}
            | {"finish_reason": "stop", "frame_width_px": 100, "frame_height_px": 80}
            | {"latency_s": 0.0}
        )


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store file that every test takes a copy of."""
    path = tmp_path_factory.mktemp("checks") / "annotations.duckdb"
    Dataset(AnnotationStore(path)).fill()
    return path


@pytest.fixture
def data(filled: Path, tmp_path: Path) -> Dataset:
    return Dataset(AnnotationStore(Path(shutil.copy(filled, tmp_path))))


def some(number: int, prefix: str = "i") -> list[str]:
    return [f"{prefix}{n:03}" for n in range(number)]


# Images


@pytest.mark.parametrize(
    ("accepted", "rejected", "passed", "said"),
    [
        pytest.param(10, {}, True, "10 of 10", id="all are accepted"),
        pytest.param(6, {"blank": 4}, True, "6 of 10", id="as many are rejected as may be"),
        pytest.param(5, {"blank": 4, "too_small": 1}, False, "50% were rejected", id="more"),
        pytest.param(7, {"near_duplicate": 3}, True, "3 are duplicates", id="some duplicates"),
        pytest.param(6, {"near_duplicate": 4}, False, "40% are duplicates", id="many duplicates"),
    ],
)
def test_a_large_share_of_rejected_images_is_warned_of_and_duplicates_count_apart(
    data: Dataset, accepted: int, rejected: dict[str, int], passed: bool, said: str
):
    data.images(*some(accepted))
    for reason, images in rejected.items():
        data.images(*some(images, reason), status="rejected", reason=reason)
    outcome = rejected_share(data.store, data.plan)
    assert (outcome.passed, outcome.spreads) == (passed, False)
    assert said in outcome.summary
    assert {row["reason"]: row["files"] for row in outcome.rows} == rejected
    assert ("`cleaning`" in outcome.fix) is not passed


@pytest.mark.parametrize("rejected", [3, 0])
def test_without_any_accepted_image_nothing_may_go_on(data: Dataset, rejected: int):
    data.images(*some(rejected), status="rejected", reason="blank")
    outcome = rejected_share(data.store, data.plan)
    assert (outcome.passed, outcome.spreads) == (False, True)
    assert "no image was accepted" in outcome.summary


# Failures


def test_failed_images_are_counted_by_whether_they_are_asked_again(data: Dataset):
    data.images("once", "held", "good")
    data.images("dog", slug="dogs")
    data.fails("once")
    data.fails("held", times=MAX_ATTEMPTS)
    data.fails("dog", slug="dogs")
    data.answer(["good"])
    outcome = data.check(no_failed_outcomes)
    assert not outcome.passed
    assert "3 images have no answer: 2 will be asked again, 1 are held" in outcome.summary
    assert "(Big Cats, Dogs)" in outcome.summary
    assert {row["image"] for row in outcome.rows} == {
        "cats/once.jpg",
        "cats/held.jpg",
        "dogs/dog.jpg",
    }
    assert {row["error"] for row in outcome.rows} == {"broken"}
    assert "`force: true`" in outcome.fix
    assert not outcome.spreads


def test_failures_of_an_earlier_prompt_are_asked_again_whatever_their_number(data: Dataset):
    data.images("a")
    data.fails("a", times=MAX_ATTEMPTS, request_hash="earlier")
    outcome = data.check(no_failed_outcomes)
    assert "1 will be asked again, 0 are held" in outcome.summary
    assert "force" not in outcome.fix


def test_failures_that_hold_no_more_are_not_counted(data: Dataset):
    data.images("mended", "other_class", "gone", "retired")
    data.fails("mended")
    data.answer(["mended"], attempt=2)
    data.fails("other_class", slug="dogs")
    data.images("dog", slug="dogs")
    data.fails("dog", slug="dogs")
    data.fails("gone")
    data.execute("UPDATE images SET status = 'rejected' WHERE image_id = 'gone'")
    data.execute("UPDATE classes SET retired = true WHERE class = 'dogs'")
    assert data.check(no_failed_outcomes).passed


def test_at_most_twenty_of_many_failures_are_listed(data: Dataset):
    data.images(*some(30))
    data.fails(*some(30))
    outcome = data.check(no_failed_outcomes)
    assert "30 images" in outcome.summary
    assert len(outcome.rows) == MAX_ROWS


# Soundness

CORNERS = [{"x_px": 0.0, "y_px": 0.0}, {"x_px": 9.0, "y_px": 0.0}, {"x_px": 9.0, "y_px": 9.0}]
NOSE = {"name": "nose", "x_px": 5.0, "y_px": 5.0, "score": 0.5}

SOUND = {
    "a box": BOX,
    "a box without extent": BOX | {"x1_px": 10.0},
    "a box that reaches a pixel beyond": {"x0_px": -1, "y0_px": -1, "x1_px": 101, "y1_px": 81},
    "a point": {"point": {"x_px": 100.0, "y_px": 0.0}},
    "a polygon": {"polygon": CORNERS},
    "keypoints": BOX | {"keypoints": [NOSE]},
    "an invisible keypoint": BOX
    | {"keypoints": [NOSE, {"name": "neck", "x_px": None, "y_px": None, "score": None}]},
    "a text": {"text": "a picture of a cat"},
    "a certain score": BOX | {"score": 1.0},
    "no score": BOX | {"score": None},
}
UNSOUND = {
    "a box that is cut": (BOX | {"x1_px": None}, "half a box"),
    "a box of NaN": (BOX | {"x1_px": math.nan}, "not finite"),
    "a box without end": (BOX | {"y1_px": math.inf}, "not finite"),
    "a box from right to left": (BOX | {"x0_px": 70.0}, "out of order"),
    "a box from bottom to top": (BOX | {"y0_px": 51.0}, "out of order"),
    "a box that begins too early": (BOX | {"x0_px": -1.5}, "box outside"),
    "a box that ends too low": (BOX | {"y1_px": 81.5}, "box outside"),
    "a point elsewhere": ({"point": {"x_px": 102.0, "y_px": 3.0}}, "point outside"),
    "a point of NaN": ({"point": {"x_px": math.nan, "y_px": 3.0}}, "point outside"),
    "two corners": ({"polygon": CORNERS[:2]}, "fewer than three corners"),
    "a corner elsewhere": (
        {"polygon": [*CORNERS, {"x_px": 0.0, "y_px": 90.0}]},
        "polygon outside",
    ),
    "a keypoint elsewhere": (BOX | {"keypoints": [NOSE | {"y_px": -3.0}]}, "a keypoint"),
    "a keypoint of nothing": (BOX | {"keypoints": [NOSE | {"name": "antler"}]}, "a keypoint"),
    "a keypoint's score": (BOX | {"keypoints": [NOSE | {"score": 1.5}]}, "a keypoint"),
    "a score over 1": (BOX | {"score": 1.01}, "score outside"),
    "a score under 0": (BOX | {"score": -0.01}, "score outside"),
    "a score of NaN": (BOX | {"score": math.nan}, "score outside"),
    "nothing": ({"score": 0.5}, "neither a place nor a text"),
    "a label that nobody asked for": (BOX | {"label": "fox"}, "label was not asked"),
    "an answer that is not there": (BOX | {"answered_in": "lost"}, "its answer is missing"),
}


@pytest.mark.parametrize("annotation", SOUND.values(), ids=list(SOUND))
def test_what_models_may_answer_is_sound(data: Dataset, annotation: dict[str, Any]):
    data.images("a")
    data.answer(["a"], [annotation])
    assert data.check(annotations_are_sound).passed


@pytest.mark.parametrize(("annotation", "problem"), UNSOUND.values(), ids=list(UNSOUND))
def test_an_unsound_annotation_lets_nothing_go_on(
    data: Dataset, annotation: dict[str, Any], problem: str
):
    data.images("a", "b")
    data.answer(["b"])
    data.answer(["a"], [BOX, annotation])
    outcome = data.check(annotations_are_sound)
    assert (outcome.passed, outcome.spreads) == (False, True)
    assert problem in outcome.summary
    (row,) = outcome.rows
    assert (row["class"], row["image"]) == ("Big Cats", "cats/a.jpg")
    assert problem in str(row["problem"])
    assert "rederive" in outcome.fix


@pytest.mark.parametrize(
    ("values", "annotations", "problem"),
    [
        pytest.param({"state": "found"}, [], "nothing is annotated", id="found nothing"),
        pytest.param({"state": "absent"}, [BOX], "something is annotated", id="absent but there"),
        pytest.param({"generations": False}, [], "its answer is missing", id="no answer"),
        pytest.param(
            {"state": "found", "generation_id": None, "parser_version": 0, "generations": False},
            [],
            "nothing is annotated",
            id="found without an answer",
        ),
    ],
)
def test_a_state_that_its_annotations_belie_is_unsound(
    data: Dataset, values: dict[str, Any], annotations: list[dict[str, Any]], problem: str
):
    data.images("a")
    data.answer(["a"], annotations, **values)
    outcome = data.check(annotations_are_sound)
    assert not outcome.passed
    assert problem in outcome.summary


@pytest.mark.parametrize(
    ("annotations", "values"),
    [
        pytest.param([], {"state": "not_mentioned"}, id="not mentioned"),
        pytest.param([BOX], {"state": "truncated"}, id="cut, with what was whole"),
        pytest.param([], {"state": "unparsed"}, id="not understood"),
        pytest.param(
            [],
            {"state": "absent", "generation_id": None, "generations": False},
            id="absent because there was nothing to ask about",
        ),
    ],
)
def test_states_that_promise_nothing_are_sound(
    data: Dataset, annotations: list[dict[str, Any]], values: dict[str, Any]
):
    data.images("a")
    data.answer(["a"], annotations, **values)
    assert data.check(annotations_are_sound).passed


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param({"attempt": 0}, id="an earlier attempt"),
        pytest.param({"model_key": "other"}, id="another model"),
        pytest.param({"slug": "dogs", "label": "dog"}, id="a retired class"),
        pytest.param({"entry": "posture"}, id="another entry"),
    ],
)
def test_what_is_out_of_view_is_not_judged(data: Dataset, behind: dict[str, Any]):
    data.images("a")
    data.answer(["a"], [BOX | {"score": 7.0}], **behind)
    data.execute("UPDATE classes SET retired = true WHERE class = 'dogs'")
    data.answer(["a"])
    assert data.check(annotations_are_sound).passed


def test_an_unsound_reading_is_mended_by_a_later_one(data: Dataset):
    data.images("a")
    version = data.asks.model.parser_version
    answer: dict[str, Any] = {"generation_id": "g", "created_at": NOON}
    data.answer(["a"], [BOX | {"score": 7.0}], parser_version=version - 1, **answer)
    assert not data.check(annotations_are_sound).passed
    data.answer(["a"], [BOX], parser_version=version, generations=False, **answer)
    assert data.check(annotations_are_sound).passed


def test_of_many_unsound_annotations_every_class_is_among_those_listed(data: Dataset):
    data.images(*some(30))
    data.images("dog", slug="dogs")
    data.answer(some(30), [BOX | {"score": 7.0}])
    data.answer(["dog"], [BOX | {"score": 7.0}], slug="dogs")
    outcome = data.check(annotations_are_sound)
    assert "31 annotations" in outcome.summary
    assert "(Big Cats, Dogs)" in outcome.summary
    assert len(outcome.rows) == MAX_ROWS


# Empty labels


def runs(data: Dataset, before: tuple[int, int], now: tuple[int, int], **values: Any) -> None:
    """Two runs over images of their own. before, now: (images, those without the label)."""
    for run, (images, empty) in {"before": before, "now": now}.items():
        names = some(images, run)
        data.images(*names)
        of_run = values if run == "before" else {}
        data.answer(names[:empty], (), run=run, **of_run)
        data.answer(names[empty:], run=run, **of_run)


@pytest.mark.parametrize(
    ("before", "now", "passed"),
    [
        pytest.param((40, 10), (40, 10), True, id="as before"),
        pytest.param((40, 10), (40, 17), True, id="a little more"),
        pytest.param((40, 4), (40, 20), False, id="many more"),
        pytest.param((40, 36), (40, 20), False, id="many fewer"),
        pytest.param((40, 0), (2, 1), True, id="a few new images say little"),
        pytest.param((4, 0), (4, 4), True, id="few on both sides say little"),
        pytest.param((8, 0), (8, 8), False, id="few, but all changed"),
    ],
)
def test_the_share_of_empty_labels_is_compared_with_earlier_runs(
    data: Dataset, before: tuple[int, int], now: tuple[int, int], passed: bool
):
    runs(data, before, now)
    outcome = data.check(empty_label_rate)
    assert (outcome.passed, outcome.spreads) == (passed, False)
    (row,) = outcome.rows
    assert row == {
        "class": "Big Cats",
        "empty_now": pytest.approx(now[1] / now[0], abs=1e-4),
        "images_now": now[0],
        "empty_before": pytest.approx(before[1] / before[0], abs=1e-4),
        "images_before": before[0],
    }
    assert ("Big Cats" in outcome.summary) is not passed


def test_an_earlier_model_counts_among_the_earlier_runs(data: Dataset):
    runs(data, (40, 4), (40, 30), model_key="old")
    assert not data.check(empty_label_rate).passed


def test_the_first_run_has_nothing_to_be_compared_with(data: Dataset):
    data.images(*some(5))
    data.answer(some(5), ())
    outcome = data.check(empty_label_rate)
    assert outcome.passed
    assert "no class has an earlier run" in outcome.summary


def test_an_answer_that_was_read_again_counts_once_and_for_the_run_that_asked(data: Dataset):
    runs(data, (40, 40), (40, 30))
    version = data.asks.model.parser_version + 1
    data.execute(
        f"INSERT INTO outcomes SELECT * REPLACE ({version} AS parser_version, 'reader' AS run_id) "
        "FROM outcomes WHERE run_id = 'before'"
    )
    data.execute(
        "INSERT INTO annotations BY NAME SELECT generation_id AS annotation_id, generation_id, "
        f"image_id, entry, label, {version} AS parser_version, 0 AS position "
        "FROM outcomes WHERE run_id = 'reader'"
    )
    (row,) = data.check(empty_label_rate).rows
    assert (row["images_before"], row["empty_before"]) == (40, 0.0)
    assert (row["images_now"], row["empty_now"]) == (40, 0.75)


def test_only_the_images_of_a_class_count_and_only_those_with_an_answer(data: Dataset):
    runs(data, (10, 0), (10, 0))
    data.images(*some(20, "dog"), slug="dogs")
    data.answer(some(20, "dog"), (), run="now")
    data.images("broken")
    data.fails("broken", run="now")
    (row,) = data.check(empty_label_rate).rows
    assert (row["images_now"], row["empty_now"]) == (10, 0.0)


# Scores


def scored(
    data: Dataset, scores: Sequence[Sequence[float | None]], model: str | None = None
) -> None:
    """An answer to each image, with annotations of these scores."""
    key = {"model_key": model} if model else {}
    by_scores: dict[tuple[float | None, ...], list[str]] = {}
    for image_id, found in zip(some(len(scores)), scores, strict=True):
        by_scores.setdefault(tuple(found), []).append(image_id)
    for found, image_ids in by_scores.items():
        data.answer(image_ids, [BOX | {"score": score} for score in found], **key)


@pytest.mark.parametrize(
    ("before", "now", "passed"),
    [
        pytest.param([0.8] * 30, [0.8] * 30, True, id="the same"),
        pytest.param([0.8] * 30, [0.5] * 30, False, id="all lower"),
        pytest.param([0.5, 0.6] * 15, [0.5, 0.6, 0.6, 0.6, 0.6] * 6, True, id="within the limit"),
        pytest.param([0.8] * 3, [0.5] * 3, True, id="too few to tell"),
    ],
)
def test_scores_are_compared_with_the_model_before(
    data: Dataset, before: list[float], now: list[float], passed: bool
):
    data.images(*some(len(now)))
    scored(data, [[score] for score in before], model="old")
    scored(data, [[score] for score in now])
    outcome = data.check(score_drift)
    assert (outcome.passed, outcome.spreads) == (passed, False)
    (row,) = outcome.rows
    assert row["images"] == len(now)
    assert row["distance"] == pytest.approx(ks_2samp(before, now).statistic, abs=1e-4)
    assert row["score_now"] == pytest.approx(np.mean(now), abs=1e-4)
    assert row["score_before"] == pytest.approx(np.mean(before), abs=1e-4)
    assert ("Big Cats" in outcome.summary) is not passed


def test_the_distance_of_scores_is_that_of_kolmogorov_and_smirnov(data: Dataset):
    generator = np.random.default_rng(7)
    before, now = (
        np.round(generator.beta(*shape, size=size), 1).tolist()
        for shape, size in (((4, 2), 50), ((2, 3), 30))
    )
    data.images(*some(2))
    scored(data, [before, []], model="old")
    scored(data, [now, []])
    (row,) = data.check(score_drift).rows
    assert row["distance"] == pytest.approx(ks_2samp(before, now).statistic, abs=1e-4)
    assert row["annotations_per_image_before"] == 25
    assert row["annotations_per_image_now"] == 15


def test_only_images_that_both_models_answered_are_compared(data: Dataset):
    data.images(*some(30))
    scored(data, [[0.9]] * 30, model="old")
    scored(data, [[0.9]] * 20)
    data.images(*some(5, "new"))
    data.answer(some(5, "new"), [BOX | {"score": 0.1}])
    (row,) = data.check(score_drift).rows
    assert (row["images"], row["score_now"], row["distance"]) == (20, 0.9, 0.0)


def test_without_the_same_images_from_a_model_before_there_is_nothing_to_compare(data: Dataset):
    data.images(*some(3), "only_old")
    scored(data, [[0.9]] * 3)
    outcome = data.check(score_drift)
    assert outcome.passed
    assert "no earlier model" in outcome.summary
    data.answer(["only_old"], model_key="old")
    outcome = data.check(score_drift)
    assert outcome.passed
    assert "no image has been labeled both now and by" in outcome.summary


def test_captions_have_no_scores_to_drift(data: Dataset):
    data.images(*some(30))
    for model in ("old", None):
        scored(data, [[None]] * 30, model=model)
    outcome = data.check(score_drift)
    assert outcome.passed
    (row,) = outcome.rows
    assert (row["distance"], row["score_now"], row["annotations_per_image_now"]) == ("–", "–", 1.0)


# Readings


def test_answers_that_an_older_parser_read_are_counted(data: Dataset):
    version = data.asks.model.parser_version
    data.images("old", "read_again", "new", "failed")
    for image_id in ("old", "read_again"):
        data.answer([image_id], generation_id=image_id, parser_version=version - 1)
    assert "2 outcomes" in data.check(readings_are_current).summary
    data.answer(["read_again"], generation_id="read_again", generations=False)
    data.answer(["new"])
    data.fails("failed")
    outcome = data.check(readings_are_current)
    assert (outcome.passed, outcome.spreads) == (False, False)
    assert "1 outcomes" in outcome.summary
    assert outcome.rows == ({"class": "Big Cats", "outcomes": 1},)
    assert "rederived_annotations" in outcome.fix
    data.answer(["old"], generation_id="old", generations=False)
    assert data.check(readings_are_current).passed


# Partitions


def test_partitions_left_failed_are_listed_but_for_those_of_retired_classes(data: Dataset):
    assert no_failed_partitions(data.store, []).passed
    outcome = no_failed_partitions(data.store, ["dogs", "cats", "unheard-of"])
    assert not outcome.passed
    assert "2 classes failed (Big Cats, Dogs)" in outcome.summary
    assert [row["partition"] for row in outcome.rows] == ["cats", "dogs"]
    assert "re-run" in outcome.fix
    data.execute("UPDATE classes SET retired = true")
    assert no_failed_partitions(data.store, ["dogs", "cats"]).passed


def test_at_most_twenty_failed_partitions_are_listed(data: Dataset):
    slugs = some(25, "c")
    with data.store.transaction() as tx:
        tx.insert("classes", [{"class": slug, "display_name": slug.upper()} for slug in slugs])
    outcome = no_failed_partitions(data.store, slugs)
    assert "25 classes" in outcome.summary
    assert "C000, C001, C002, C003, C004 and 20 more" in outcome.summary
    assert len(outcome.rows) == MAX_ROWS


def test_the_limits_are_the_plans(data: Dataset):
    runs(data, (40, 4), (40, 20))
    assert not data.check(empty_label_rate).passed
    lenient: Plan = PLAN.model_copy(
        update={"checks": PLAN.checks.model_copy(update={"empty_rate_change": 0.5})}
    )
    assert empty_label_rate(data.store, lenient, lenient.entries[0]).passed
