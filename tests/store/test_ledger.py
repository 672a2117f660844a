import math
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from labeling_pipeline.scores import ScoreMap
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import (
    MAX_ATTEMPTS,
    Ask,
    View,
    answered_annotations,
    class_standing,
    count_due,
    current_annotations,
    current_outcomes,
    current_regions,
    due_images,
    restore_earlier_answers,
)

NOON = datetime(2024, 5, 1, 12)


class Dataset:
    """A store with accepted images a.jpg and b.jpg of class cats, and c.jpg of class dogs."""

    def __init__(self, store: AnnotationStore) -> None:
        self.store = store
        self._minutes = 0

    def fill(self) -> None:
        with self.store.transaction() as tx:
            tx.insert(
                "classes",
                [{"class": c, "display_name": c.title()} for c in ("cats", "dogs")],
            )
        for path, slug in (("a.jpg", "cats"), ("b.jpg", "cats"), ("c.jpg", "dogs")):
            self.add_image(path, slug)

    def add_image(
        self, path: str, slug: str | None, status: str = "accepted", size: tuple[int, int] = (4, 3)
    ) -> None:
        image_id = path.partition(".")[0]
        with self.store.transaction() as tx:
            tx.insert(
                "images",
                [
                    {
                        "image_id": image_id,
                        "width_px": size[0],
                        "height_px": size[1],
                        "status": status,
                    }
                ],
                replace=True,
            )
            tx.insert(
                "dataset_files",
                [
                    {
                        "path": path,
                        "class": slug,
                        "image_id": image_id,
                        "size_bytes": 1,
                        "mtime_ns": 1,
                    }
                ],
            )

    def record(self, image_id: str = "a", state: str = "found", **values: Any) -> None:
        """One outcome, a minute later than the one before."""
        self._minutes += 1
        row = {
            "image_id": image_id,
            "entry": "object",
            "class": "cats",
            "model_key": "new",
            "attempt": 1,
            "parser_version": 1,
            "label": "cat",
            "request_hash": "r1",
            "state": state,
            "generation_id": None,
            "run_id": "run",
            "created_at": NOON + timedelta(minutes=self._minutes),
        }
        with self.store.transaction() as tx:
            tx.insert("outcomes", [row | values])

    def annotate(
        self, generation: str, *scores: float | None, label: str = "cat", version: int = 1
    ) -> None:
        with self.store.transaction() as tx:
            tx.insert(
                "annotations",
                [
                    {
                        "annotation_id": f"{generation}-{version}-{label}-{position}",
                        "generation_id": generation,
                        "image_id": generation,
                        "entry": "object",
                        "label": label,
                        "parser_version": version,
                        "position": position,
                        "score": score,
                    }
                    for position, score in enumerate(scores)
                ],
            )

    def ask(self, slug: str = "cats", **question: Any) -> Ask:
        asked = {"entry": "object", "model_key": "new", "request_hash": "r1"} | question
        return Ask(class_slug=slug, **asked)

    def due(self, slug: str = "cats", force: bool = False, **question: Any) -> dict[str, int]:
        """Image -> number of the attempt to come."""
        rows = due_images(self.store, self.ask(slug, **question), force=force).to_pylist()
        return {row["image_id"]: row["attempt"] for row in rows}

    def holds(self, **keys: str) -> dict[str, tuple[str, str]]:
        """Image -> (model key, state) of the current view of class cats."""
        table = current_outcomes(self.store, keys or {"object": "new"})
        table = table[table["class"] == "cats"]
        return {row.image_id: (row.model_key, row.state) for row in table.itertuples(index=False)}

    def scores(self, threshold: float = 0.0, slug: str | None = None) -> list[float]:
        table = current_annotations(
            self.store, View({"object": "new"}, {"object": threshold}), class_slug=slug
        )
        return [float(score) for score in table["score"]]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store file that every test takes a copy of."""
    path = tmp_path_factory.mktemp("ledger") / "annotations.duckdb"
    Dataset(AnnotationStore(path)).fill()
    return path


@pytest.fixture
def data(filled: Path, tmp_path: Path) -> Dataset:
    return Dataset(AnnotationStore(Path(shutil.copy(filled, tmp_path))))


# What is due


def test_without_outcomes_every_accepted_image_of_the_class_is_due(data: Dataset):
    data.add_image("d.jpg", "cats", status="rejected")
    assert data.due("cats") == {"a": 1, "b": 1}
    assert data.due("dogs") == {"c": 1}
    assert data.due("mice") == {}


@pytest.mark.parametrize(
    "state",
    ["found", "absent", "not_mentioned", "truncated", "unparsed", "degenerate", "unsupported"],
)
def test_an_image_with_an_outcome_is_done(data: Dataset, state: str):
    data.record("a", state)
    assert data.due() == {"b": 1}


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        pytest.param(1, {"a": 2, "b": 1}, id="once"),
        pytest.param(MAX_ATTEMPTS - 1, {"a": MAX_ATTEMPTS, "b": 1}, id="one attempt left"),
        pytest.param(MAX_ATTEMPTS, {"b": 1}, id="held"),
        pytest.param(MAX_ATTEMPTS + 1, {"b": 1}, id="held after it was forced"),
    ],
)
def test_what_failed_is_due_until_three_attempts_failed(
    data: Dataset, failures: int, expected: dict[str, int]
):
    for attempt in range(1, failures + 1):
        data.record("a", "failed", attempt=attempt)
    assert data.due() == expected


def test_what_failed_and_then_succeeded_is_done(data: Dataset):
    data.record("a", "failed", attempt=1)
    data.record("a", "absent", attempt=2)
    assert data.due() == {"b": 1}


def test_a_forced_attempt_that_failed_leaves_what_was_settled_done(data: Dataset):
    data.record("a", "found", attempt=1)
    data.record("a", "failed", attempt=2)
    assert data.due() == {"b": 1}


def test_force_makes_everything_due_with_a_further_attempt(data: Dataset):
    data.record("a", "found")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        data.record("b", "failed", attempt=attempt)
    assert data.due(force=True) == {"a": 2, "b": MAX_ATTEMPTS + 1}


@pytest.mark.parametrize(
    ("changed", "attempt"),
    [
        pytest.param({"model_key": "newer"}, 1, id="another model key"),
        pytest.param({"entry": "posture"}, 1, id="another entry"),
        pytest.param({"request_hash": "r2"}, 2, id="another prompt"),
    ],
)
def test_another_question_is_due_again(data: Dataset, changed: dict[str, str], attempt: int):
    data.record("a", "found")
    assert data.due(**changed) == {"a": attempt, "b": 1}


def test_failures_of_an_earlier_prompt_do_not_hold_the_next(data: Dataset):
    for attempt in range(1, MAX_ATTEMPTS + 1):
        data.record("a", "failed", attempt=attempt)
    assert data.due(request_hash="r2") == {"a": MAX_ATTEMPTS + 1, "b": 1}


def test_an_attempt_is_numbered_over_all_classes_of_the_image(data: Dataset):
    # One generation answers several classes: its number must be free in each of them.
    data.record("a", "found", **{"class": "dogs"}, attempt=4)
    assert data.due("cats") == {"a": 5, "b": 1}


def test_an_image_of_no_folder_is_due_for_every_class_until_each_has_its_outcome(data: Dataset):
    data.add_image("loose.jpg", None)
    assert "loose" in data.due("cats")
    data.record("loose", "found")
    assert "loose" not in data.due("cats")
    assert data.due("dogs") == {"c": 1, "loose": 2}


def test_copies_of_one_content_are_due_once(data: Dataset):
    data.add_image("a.copy.jpg", "cats")
    assert data.due() == {"a": 1, "b": 1}


def test_a_retired_class_has_nothing_due(data: Dataset):
    with data.store.transaction() as tx:
        tx.execute("UPDATE classes SET retired = true WHERE class = 'cats'")
    assert data.due() == {}


def test_neighbours_in_the_list_have_like_shapes(data: Dataset):
    for name, size in (("w1", (40, 10)), ("t1", (10, 40)), ("w2", (80, 20)), ("t2", (10, 39))):
        data.add_image(f"{name}.jpg", "cats", size=size)
    assert list(data.due()) == ["t1", "t2", "a", "b", "w1", "w2"]


# What holds now


def test_the_plans_model_key_holds_even_if_another_is_newer(data: Dataset):
    data.record("a", "found", model_key="new")
    data.record("a", "absent", model_key="other")
    assert data.holds() == {"a": ("new", "found")}


def test_without_an_outcome_of_the_plans_key_the_newest_holds(data: Dataset):
    data.record("a", "found", model_key="old")
    data.record("a", "absent", model_key="other")
    data.record("b", "found", model_key="new")
    assert data.holds() == {"a": ("other", "absent"), "b": ("new", "found")}
    assert data.holds(object="old") == {"a": ("old", "found"), "b": ("new", "found")}


def test_the_newest_attempt_of_a_key_holds(data: Dataset):
    data.record("a", "found", attempt=1)
    data.record("a", "absent", attempt=2)
    assert data.holds() == {"a": ("new", "absent")}


@pytest.mark.parametrize("key", ["new", "old"])
def test_a_failed_attempt_never_hides_an_answer_of_the_same_model(data: Dataset, key: str):
    data.record("a", "found", attempt=1, model_key=key)
    data.record("a", "failed", attempt=2, model_key=key)
    assert data.holds() == {"a": (key, "found")}


def test_among_models_the_plan_no_longer_names_a_failure_does_not_hide_an_answer(data: Dataset):
    data.record("a", "found", model_key="old")
    data.record("a", "failed", model_key="other")
    assert data.holds() == {"a": ("old", "found")}


def test_nothing_but_failures_is_a_failure(data: Dataset):
    data.record("a", "failed", attempt=1)
    data.record("a", "failed", attempt=2)
    assert data.holds() == {"a": ("new", "failed")}


def test_rejected_images_retired_classes_and_other_entries_do_not_hold(data: Dataset):
    data.add_image("d.jpg", "cats", status="rejected")
    data.record("d", "found")
    data.record("a", "found", entry="posture")
    data.record("c", "found", **{"class": "dogs"})
    with data.store.transaction() as tx:
        tx.execute("UPDATE classes SET retired = true WHERE class = 'dogs'")
    assert current_outcomes(data.store, {"object": "new"}).empty
    assert len(current_outcomes(data.store, {"posture": "new"})) == 1


def test_an_outcome_says_whether_the_image_is_one_of_the_class(data: Dataset):
    data.record("a", "found")
    data.record("c", "absent")
    table = current_outcomes(data.store, {"object": "new"})
    assert dict(zip(table["path"], table["belongs"], strict=True)) == {
        "a.jpg": True,
        "c.jpg": False,
    }
    assert set(table["display_name"]) == {"Cats"}


# Annotations behind it


def test_thresholds_filter_on_reading_and_delete_nothing(data: Dataset):
    data.record("a", "found", generation_id="a")
    data.annotate("a", 0.9, 0.5, 0.2)
    assert data.scores() == [0.9, 0.5, 0.2]
    assert data.scores(0.5) == [0.9, 0.5]
    assert data.scores(0.95) == []
    assert data.scores() == [0.9, 0.5, 0.2]


def test_an_annotation_without_a_score_passes_every_threshold(data: Dataset):
    data.record("a", "found", generation_id="a")
    data.annotate("a", None)
    assert len(data.scores(1.0)) == 1


def shown(data: Dataset, view: View) -> list[float]:
    """Measured scores of what counts, by each way there is to ask."""
    answered = answered_annotations(data.store, view)["score"].to_pylist()
    current = current_annotations(data.store, view)["measured_score"].tolist()
    regions = current_regions(data.store, view, "object", "cat")
    standing = class_standing(
        data.store, view, entry="object", class_slug="cats", model_key="new"
    ).to_pylist()
    assert current == answered
    assert regions["annotation_id"].drop_null().to_pylist() == [
        f"a-1-cat-{position}" for position in range(len(answered))
    ]
    assert sum(row["annotations"] for row in standing) == len(answered)
    return answered


@pytest.mark.parametrize(
    ("by_label", "expected"),
    [
        pytest.param({}, [0.9, 0.5], id="none: the entry's"),
        pytest.param({("object", "new", "cat"): 0.6}, [0.9], id="a higher one"),
        pytest.param({("object", "new", "cat"): 0.2}, [0.9, 0.5, 0.2], id="a lower one"),
        pytest.param({("object", "new", "cat"): 0.0}, [0.9, 0.5, 0.2], id="nothing taken away"),
        pytest.param({("object", "new", "cat"): 0.95}, [], id="all taken away"),
        pytest.param({("object", "new", "dog"): 0.6}, [0.9, 0.5], id="of another label"),
        pytest.param({("object", "other", "cat"): 0.6}, [0.9, 0.5], id="of another model"),
        pytest.param({("posture", "new", "cat"): 0.6}, [0.9, 0.5], id="of another entry"),
    ],
)
def test_the_threshold_of_a_label_and_model_stands_in_for_the_entrys(
    data: Dataset, by_label: dict, expected: list[float]
):
    data.record("a", "found", generation_id="a")
    data.annotate("a", 0.9, 0.5, 0.2)
    with data.store.transaction() as tx:
        tx.execute("UPDATE annotations SET x0_px = 0, y0_px = 0, x1_px = 1, y1_px = 1")
    assert shown(data, View({"object": "new"}, {"object": 0.5}, by_label)) == expected


def test_a_label_with_quotes_in_its_name_has_its_threshold(data: Dataset):
    label = 'it\'s a "cat"'
    data.record("a", "found", generation_id="a", label=label)
    data.annotate("a", 0.9, 0.5, label=label)
    view = View({"object": "new"}, {}, {("object", "new", label): 0.6})
    assert answered_annotations(data.store, view)["score"].to_pylist() == [0.9]


def test_each_model_in_view_has_the_thresholds_and_the_map_of_its_own(data: Dataset):
    data.record("a", "found", generation_id="a")
    data.annotate("a", 0.8, 0.4)
    data.record("b", "found", generation_id="b", model_key="old")
    data.annotate("b", 0.8, 0.4)
    view = View(
        {"object": "new"},
        {"object": 0.5},
        {("object", "old", "cat"): 0.3},
        {("object", "new"): ScoreMap((0.0, 1.0), (0.5, 1.0))},
    )
    table = current_annotations(data.store, view)
    columns = ["path", "score", "measured_score", "is_calibrated"]
    assert table[columns].to_numpy().tolist() == [
        ["a.jpg", 0.9, 0.8, True],
        ["b.jpg", 0.8, 0.8, False],
        ["b.jpg", 0.4, 0.4, False],
    ]
    measured = current_annotations(data.store, view.measured)
    assert measured["score"].tolist() == table["measured_score"].tolist()
    assert not measured["is_calibrated"].any()


def test_thresholds_are_about_what_was_measured_not_what_it_means(data: Dataset):
    data.record("a", "found", generation_id="a")
    data.annotate("a", 0.4)
    view = View({"object": "new"}, {"object": 0.5}, {}, {("object", "new"): ScoreMap((0.1,), (1,))})
    assert current_annotations(data.store, view).empty


def test_what_has_no_score_is_not_calibrated(data: Dataset):
    data.record("a", "found", generation_id="a")
    data.annotate("a", None)
    view = View({"object": "new"}, score_maps={("object", "new"): ScoreMap((0.1,), (0.9,))})
    (row,) = current_annotations(data.store, view).itertuples()
    assert math.isnan(row.score)
    assert not row.is_calibrated


def test_nothing_found_has_the_columns_of_scores_all_the_same(data: Dataset):
    view = View({"object": "new"}, score_maps={("object", "new"): ScoreMap((0.1,), (0.9,))})
    table = current_annotations(data.store, view)
    assert table.empty
    assert {"score", "measured_score", "is_calibrated"} <= set(table.columns)


def test_only_the_answer_that_holds_has_its_annotations_shown(data: Dataset):
    data.record("a", "found", generation_id="first", attempt=1)
    data.annotate("first", 0.1)
    data.record("a", "found", generation_id="second", attempt=2)
    data.annotate("second", 0.2)
    data.record("a", "found", generation_id="third", model_key="other")
    data.annotate("third", 0.3)
    assert data.scores() == [0.2]


def test_only_the_newest_reading_of_an_answer_is_shown(data: Dataset):
    for image in "ab":
        data.record(image, "found", generation_id=image)
        data.annotate(image, 0.9, 0.8, version=1)
    data.record("a", "found", generation_id="a", parser_version=2)
    data.annotate("a", 0.7, version=2)
    assert data.scores() == [0.7, 0.9, 0.8]


def test_an_answer_that_is_read_as_nothing_now_shows_nothing(data: Dataset):
    data.record("a", "found", generation_id="a")
    data.annotate("a", 0.9)
    data.record("a", "unparsed", generation_id="a", parser_version=2)
    assert data.scores() == []
    assert data.holds() == {"a": ("new", "unparsed")}


def test_an_old_attempt_that_was_read_again_does_not_hide_a_later_one(data: Dataset):
    data.record("a", "found", created_at=NOON, generation_id="first")
    data.record("a", "absent", attempt=2, generation_id="second")
    data.record("a", "found", created_at=NOON, generation_id="first", parser_version=2)
    assert data.holds() == {"a": ("new", "absent")}


# Changing a plan, and changing it back


def restored(data: Dataset, **question: Any) -> int:
    return restore_earlier_answers(data.store, data.ask(**question), "later")


def test_going_back_to_an_earlier_prompt_lets_its_answer_hold_again(data: Dataset):
    data.record("a", "found", generation_id="first")
    data.record("a", "found", generation_id="first", parser_version=2)
    data.record("a", "absent", request_hash="r2", attempt=2, generation_id="second")
    data.annotate("first", 0.3, version=1)
    data.annotate("first", 0.9, version=2)
    assert data.scores() == []
    assert restored(data) == 1
    assert data.scores() == [0.9]
    assert data.due() == {"b": 1}
    rows = data.store.query("SELECT * FROM outcomes ORDER BY attempt DESC").to_pylist()
    expected = rows[-1] | {"attempt": 3, "run_id": "later", "parser_version": 2}
    assert {k: v for k, v in rows[0].items() if k != "created_at"} == {
        k: v for k, v in expected.items() if k != "created_at"
    }
    assert restored(data) == 0
    assert restored(data, request_hash="r2") == 1
    assert data.holds()["a"] == ("new", "absent")


@pytest.mark.parametrize(
    "later",
    [
        pytest.param({"state": "failed", "attempt": 2, "request_hash": "r2"}, id="a failure"),
        pytest.param({"attempt": 2, "model_key": "other", "request_hash": "r2"}, id="other model"),
        pytest.param({"attempt": 2, "entry": "posture", "request_hash": "r2"}, id="other entry"),
        pytest.param({"attempt": 2, "class": "dogs", "request_hash": "r2"}, id="other class"),
        pytest.param({"attempt": 2}, id="the same prompt"),
    ],
)
def test_what_does_not_hide_an_answer_restores_nothing(data: Dataset, later: dict[str, Any]):
    data.record("a", "found")
    data.record("a", **later)
    assert restored(data) == 0


# All of a plan at once


def test_what_is_due_of_all_classes_is_counted_in_one_query(data: Dataset):
    data.add_image("loose.jpg", None)
    data.add_image("b.z.jpg", "dogs")
    data.record("a", "found")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        data.record("b", "failed", attempt=attempt)
    asks = [data.ask("cats"), data.ask("dogs"), data.ask("dogs", entry="posture")]
    asks.append(data.ask("cats", entry="crops", request_hash={"a": "x", "c": "y"}))
    assert [tuple(row.values()) for row in count_due(data.store, asks).to_pylist()] == [
        ("crops", "cats", 1, 0),
        ("object", "cats", 1, 1),
        ("object", "dogs", 2, 0),
        ("posture", "dogs", 2, 0),
    ]
    for ask in asks[:3]:
        due = due_images(data.store, ask).num_rows
        (counted,) = count_due(data.store, [ask]).to_pylist()
        assert counted["due"] == due


def test_nothing_asked_is_nothing_due(data: Dataset):
    assert count_due(data.store, []).num_rows == 0
    assert count_due(data.store, [data.ask(request_hash={})]).num_rows == 0


def test_of_copies_in_two_classes_the_first_path_says_whose_image_it_is(data: Dataset):
    data.add_image("0.jpg", None)
    with data.store.transaction() as tx:
        tx.execute("UPDATE dataset_files SET image_id = 'a' WHERE path = '0.jpg'")
    assert "a" in data.due("dogs"), "the first copy lies in no folder and counts for every class"


def test_an_annotation_is_shown_for_every_class_its_label_answers(data: Dataset):
    data.record("a", "found", generation_id="a", label="animal")
    data.record("a", "found", generation_id="a", label="animal", **{"class": "dogs"})
    data.annotate("a", 0.9, label="animal")
    data.annotate("a", 0.4, label="distractor")
    table = current_annotations(data.store, View({"object": "new"}))
    assert list(zip(table["class"], table["score"], table["belongs"], strict=True)) == [
        ("cats", 0.9, True),
        ("dogs", 0.9, False),
    ]
    assert data.scores(slug="dogs") == [0.9]
