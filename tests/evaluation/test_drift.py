import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp, kstwobign

from labeling_pipeline.annotations import State, box_iou
from labeling_pipeline.evaluation.agreement import ANSWERED
from labeling_pipeline.evaluation.drift import (
    ASKED_COLUMNS,
    PAIR,
    compare_answers,
    distance_by_chance,
    in_words,
    score_distance,
)
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS

SQUARE, FAR, FARTHER = (0, 0, 10, 10), (100, 100, 110, 110), (200, 200, 210, 210)


def upper(share):
    """A box inside SQUARE with that IoU."""
    return (0, 0, 10, 10 * share)


def asked(*rows):
    """(class, image_id, label, state_before, state_now)"""
    return pd.DataFrame(
        [(f"{c}/{i}.png", c, "object", i, label, a, b) for c, i, label, a, b in rows],
        columns=ASKED_COLUMNS,
    )


def found(*rows, **values):
    """(image_id, label, box or None) and what else there is of each annotation."""
    table = pd.DataFrame(
        [("object", i, label, *(box or [math.nan] * 4)) for i, label, box in rows],
        columns=[*PAIR, *BOX_COLUMNS],
    )
    nothing = dict.fromkeys(("score", "text", "point", "keypoints"))
    ids = [f"{i}-{n}" for n, (i, *_) in enumerate(rows)]
    return table.assign(annotation_id=ids, **nothing | values)


def drift_of(before, now, **keys):
    """What changed on one image with one label."""
    return compare_answers(
        asked(("cat", "i", "cat", "found", "found")),
        found(*(("i", "cat", box) for box in before)),
        found(*(("i", "cat", box) for box in now)),
        **keys,
    )


@pytest.mark.parametrize(
    ("before", "now", "changes", "number"),
    [
        pytest.param([], [], [], 0, id="nothing on either side"),
        pytest.param([SQUARE], [SQUARE], ["matched"], 0, id="the same box"),
        pytest.param([SQUARE], [upper(0.9)], ["matched"], 0, id="an overlap of just enough"),
        pytest.param([SQUARE], [upper(0.89)], ["moved"], 0, id="of a little less"),
        pytest.param([SQUARE], [upper(0.5)], ["moved"], 0, id="of just one thing"),
        pytest.param([SQUARE], [upper(0.49)], ["lost", "new"], 2, id="of two things"),
        pytest.param([SQUARE], [], ["lost"], 1, id="a box lost"),
        pytest.param([], [SQUARE], ["new"], 1, id="a new box"),
        pytest.param([SQUARE], [SQUARE, SQUARE], ["matched", "new"], 1, id="one thing seen twice"),
        pytest.param(
            [SQUARE, FAR], [FARTHER, upper(0.7)], ["moved", "lost", "new"], 2, id="one of each"
        ),
    ],
)
def test_a_box_is_matched_moved_lost_or_new(before, now, changes, number):
    drift = drift_of(before, now)
    assert drift.boxes["change"].tolist() == changes
    (image,) = drift.per_image.to_dict("records")
    assert image["changes"] == number
    assert (image["before"], image["now"]) == (len(before), len(now))
    assert {c: image[c] for c in ("matched", "moved", "lost", "new")} == {
        c: changes.count(c) for c in ("matched", "moved", "lost", "new")
    }
    assert len(drift.changed) == (number > 0 or "moved" in changes)


def test_the_limits_of_one_thing_and_of_the_same_place_can_be_set():
    assert drift_of([SQUARE], [upper(0.8)], moved_iou=0.8).boxes["change"].tolist() == ["matched"]
    assert drift_of([SQUARE], [upper(0.4)], iou_threshold=0.4).boxes["change"].tolist() == ["moved"]


@pytest.mark.parametrize("before", [*State, None])
@pytest.mark.parametrize("now", ["found", "truncated"])
def test_only_what_both_answered_soundly_is_compared_but_every_turn_is_counted(before, now):
    drift = compare_answers(
        asked(("cat", "i", "cat", before, now)),
        found(("i", "cat", SQUARE)),
        found(("i", "cat", FAR)),
    )
    (entry,) = drift.per_entry.to_dict("records")
    compared = before in ANSWERED and now in ANSWERED
    assert (entry["images"], entry["not_compared"]) == (compared, not compared)
    assert (entry["lost"], entry["new"]) == (compared, compared)
    assert len(drift.boxes) == 2 * compared
    assert drift.transitions[["before", "now", "pairs"]].to_numpy().tolist() == (
        [] if before is None else [[before, now, 1]]
    )
    reasons = [
        f"{side}: {state or 'not asked yet'}"
        for side, state in (("before", before), ("now", now))
        if state not in ANSWERED
    ]
    assert drift.not_compared["reason"].tolist() == (["; ".join(reasons)] if reasons else [])
    if before is None:
        assert drift.per_image.empty
        return
    (image,) = drift.per_image.to_dict("records")
    one_is_unsound = (before in ANSWERED) != (now in ANSWERED)
    assert image["changes"] == 2 * compared + one_is_unsound
    said = f"cat: {before.replace('_', ' ')} to {now}"
    assert image["states"] == ("" if before == now else said)


def test_labels_classes_and_entries_are_summed_up_apart():
    rows = pd.concat(
        [
            asked(
                ("cat", "1", "cat", "found", "found"),
                ("dog", "1", "dog", "absent", "found"),
                # Two classes of one image that ask the same: one pair, counted in both.
                ("wolf", "1", "dog", "absent", "found"),
                ("cat", "2", "cat", "found", "not_mentioned"),
                ("cat", "3", "cat", "failed", "found"),
            ),
            asked(("cat", "1", "cat", "found", "found")).assign(entry="other"),
        ],
        ignore_index=True,
    )
    before = found(("1", "cat", SQUARE), ("2", "cat", SQUARE), ("3", "cat", SQUARE))
    now = found(("1", "cat", SQUARE), ("1", "dog", FAR), ("3", "cat", SQUARE))
    drift = compare_answers(rows, before, now)
    columns = ["images", "before", "now", "matched", "lost", "new", "changed_images"]
    entries = drift.per_entry.set_index("entry")
    assert entries.loc["object", columns].tolist() == [2, 2, 2, 1, 1, 1, 3]
    assert entries.loc["object", "not_compared"] == 1
    assert entries.loc["other", columns].tolist() == [1, 0, 0, 0, 0, 0, 0]
    classes = drift.per_class.set_index(["entry", "class"])
    assert classes.loc[("object", "cat"), columns].tolist() == [2, 2, 1, 1, 1, 0, 2]
    for name in ("dog", "wolf"):
        assert classes.loc[("object", name), columns].tolist() == [1, 0, 1, 0, 0, 1, 1]
    assert drift.share_as_before == pytest.approx(1 / 3)
    assert list(classes.index.get_level_values(0)) == [*["object"] * 3, "other"]


def test_the_most_changed_images_come_first_and_their_boxes_with_them():
    images = "abcde"
    drift = compare_answers(
        asked(*(("cat", i, "cat", "found", "found") for i in images)),
        found(*((i, "cat", SQUARE) for i in images)),
        found(
            ("a", "cat", SQUARE),
            ("b", "cat", upper(0.7)),
            *(("c", "cat", SQUARE), ("c", "cat", FAR)),
            ("d", "cat", FAR),
            ("e", "cat", upper(0.6)),
        ),
    )
    assert drift.per_image["image_id"].tolist() == ["d", "c", "b", "e", "a"]
    assert drift.changed["image_id"].tolist() == ["d", "c", "b", "e"]
    assert drift.boxes["image_id"].tolist() == ["d", "d", "c", "c", "b", "e", "a"]
    lost, new = drift.boxes.head(2).to_dict("records")
    assert (lost["change"], lost["before_annotation_id"], lost["before_x0_px"]) == (
        "lost",
        "d-3",
        0,
    )
    assert math.isnan(lost["now_x0_px"])
    assert pd.isna(lost["now_annotation_id"])
    assert (new["change"], new["now_annotation_id"], new["now_x0_px"]) == ("new", "d-4", 100)


def test_texts_of_boxes_that_are_one_and_of_whole_images_are_compared():
    rows = asked(
        *(("page", i, "line", "found", "found") for i in "ab"),
        *(("page", i, "caption", "found", "found") for i in "ab"),
    )
    before = found(
        *(("a", "line", SQUARE), ("a", "line", FAR), ("b", "line", SQUARE)),
        *(("a", "caption", None), ("b", "caption", None)),
        text=["Gate 7", "Gate 8", "Gate 9", "a dog", "a cat"],
    )
    now = found(
        *(("a", "line", SQUARE), ("a", "line", FAR), ("b", "line", FARTHER)),
        *(("a", "caption", None), ("b", "caption", None)),
        text=["Gate 7", "Gate B", "Gate 9", "a dog", "a cow"],
    )
    drift = compare_answers(rows, before, now)
    (entry,) = drift.per_entry.to_dict("records")
    assert (entry["texts"], entry["texts_changed"]) == (4, 2)
    per_image = drift.per_image.set_index("image_id")["changes"]
    # On b: a line lost, one new, and another caption.
    assert per_image.to_dict() == {"a": 1, "b": 3}
    changed = drift.boxes.set_index(["image_id", "change"])["text_changed"]
    assert changed["a", "matched"].tolist() == [False, True]
    assert changed["b", "lost"] is None


def test_points_are_counted_and_not_paired():
    point = {"x_px": 1.0, "y_px": 1.0}
    drift = compare_answers(
        asked(("cat", "i", "cat", "found", "found")),
        found(("i", "cat", None), ("i", "cat", None), point=[point, point]),
        found(("i", "cat", None), point=[point]),
    )
    (entry,) = drift.per_entry.to_dict("records")
    assert (entry["before"], entry["now"]) == (2, 1)
    assert (entry["lost"], entry["new"], entry["texts"]) == (0, 0, 0)
    assert math.isnan(drift.share_as_before)


def test_keypoints_move_by_more_than_a_tenth_of_the_box_or_in_and_out_of_sight():
    def person(nose, left_eye, neck=None):
        points = {"nose": nose, "left eye": left_eye, "neck": neck}
        return [
            {"name": name, "x_px": p and float(p[0]), "y_px": p and float(p[1])}
            for name, p in points.items()
        ]

    rows = asked(("cat", "i", "cat", "found", "found"))
    box = (0, 0, 20, 10)
    drift = compare_answers(
        rows,
        found(("i", "cat", box), keypoints=[person((5, 5), (10, 5))]),
        # The nose by exactly the tolerance of 2 px, the eye by more, and a neck that was not there.
        found(("i", "cat", box), keypoints=[person((5, 7), (10, 7.1), (3, 3))]),
    )
    (image,) = drift.per_image.to_dict("records")
    assert (image["keypoints"], image["keypoints_moved"], image["changes"]) == (3, 2, 0)
    assert len(drift.changed) == 1


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param([0.5], [0.5], id="one value each"),
        pytest.param([0.1, 0.2], [0.8], id="apart"),
        pytest.param([0.5, 0.5, 0.7], [0.5, 0.6], id="ties"),
        pytest.param(list(np.linspace(0, 1, 40)), list(np.linspace(0, 1, 40) ** 2), id="many"),
    ],
)
def test_the_distance_of_scores_is_that_of_kolmogorov_and_smirnov(one, two):
    drift = compare_answers(
        asked(("cat", "i", "cat", "found", "found")),
        found(*[("i", "cat", None)] * len(one), score=one),
        found(*[("i", "cat", None)] * len(two), score=two),
    )
    expected = ks_2samp(one, two).statistic
    assert score_distance(np.array(one), np.array(two)) == pytest.approx(expected)
    for table in (drift.per_entry, drift.per_class):
        (row,) = table.to_dict("records")
        assert row["score_distance"] == pytest.approx(expected)
        assert (row["score_before"], row["score_now"]) == (np.median(one), np.median(two))


def test_what_chance_gives_is_the_quantile_of_the_limit():
    n, m = 400, 700
    limit = kstwobign.isf(0.01) / math.sqrt(n * m / (n + m))
    assert distance_by_chance(n, m) == pytest.approx(limit, rel=1e-3)
    assert math.isnan(score_distance(np.array([]), np.array([0.5])))


def test_random_answers_are_counted_as_by_hand():
    random = np.random.default_rng(4)
    images = [f"i{n}" for n in range(40)]

    def answers():
        rows = []
        for image in images:
            for label in ("cat", "dog"):
                for _ in range(random.integers(0, 3)):
                    x, y = random.integers(0, 6, 2)
                    rows.append((image, label, (x, y, x + 6, y + 6)))
        return rows

    before, now = answers(), answers()
    drift = compare_answers(
        asked(*((label, i, label, "found", "found") for i in images for label in ("cat", "dog"))),
        found(*before),
        found(*now),
        iou_threshold=0.6,
    )
    boxes = drift.boxes
    assert (boxes["change"] != "new").sum() == len(before)
    assert (boxes["change"] != "lost").sum() == len(now)
    for row in boxes.to_dict("records"):
        one, two = (
            tuple(row[f"{side}_{column}"] for column in BOX_COLUMNS) for side in ("before", "now")
        )
        if row["change"] in ("matched", "moved"):
            assert row["iou"] == pytest.approx(box_iou(one, two))
            assert (row["change"] == "matched") == (row["iou"] >= 0.9)
            assert (row["image_id"], row["label"], one) in before
            assert (row["image_id"], row["label"], two) in now
    counts = boxes["change"].value_counts()
    for change in ("matched", "moved", "lost", "new"):
        assert drift.per_entry[change].sum() == drift.per_class[change].sum() == counts[change]
        assert drift.per_image[change].sum() == counts[change]


def test_words_say_what_changed():
    rows = asked(*(("cat", f"i{n}", "cat", "found", "found") for n in range(60)))
    boxes = [(f"i{n}", "cat", SQUARE) for n in range(60)]
    before = found(*boxes, score=0.9)
    now = found(*boxes[:50], ("i59", "cat", FAR), score=0.5)
    words = in_words(compare_answers(rows, before, now).per_entry.to_dict("records")[0])
    assert "Images compared: 60, of which 10 differ. Annotations: 60 before, 51 now." in words
    assert "Boxes: 50 matched, 0 moved, 10 lost, 1 new." in words
    assert "have shifted: median 0.50 after 0.90, distance 1.00" in words
    same = in_words(compare_answers(rows, before, before).per_entry.to_dict("records")[0])
    assert "Scores are much as they were" in same


def test_nothing_asked_gives_empty_tables():
    drift = compare_answers(asked(), found(), found())
    tables = (drift.per_entry, drift.per_class, drift.per_image, drift.boxes, drift.transitions)
    assert [len(table) for table in (*tables, drift.not_compared, drift.changed)] == [0] * 7
    assert math.isnan(drift.share_as_before)


def test_where_nothing_can_be_compared_the_words_say_so():
    drift = compare_answers(asked(("cat", "i", "cat", None, "found")), found(), found())
    assert in_words(drift.per_entry.to_dict("records")[0]) == "No image can be compared."
