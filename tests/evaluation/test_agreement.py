import math

import pandas as pd
import pytest

from labeling_pipeline.annotations import State
from labeling_pipeline.evaluation.agreement import (
    ANSWERED,
    ASKED_COLUMNS,
    SIDE_COLUMNS,
    compare_entries,
)

BOX = ["x0_px", "y0_px", "x1_px", "y1_px"]
SQUARE, FAR, FARTHER = (0, 0, 10, 10), (100, 100, 110, 110), (200, 200, 210, 210)


def upper(share):
    """A box inside SQUARE with that IoU."""
    return (0, 0, 10, 10 * share)


def asked(*rows):
    """(class, image_id, state_a, state_b)"""
    return pd.DataFrame(
        [(f"{c}/{i}.png", c, "one", "two", i, a, b) for c, i, a, b in rows], columns=ASKED_COLUMNS
    )


def boxes(*rows):
    """(entry, class, image_id, box)"""
    return pd.DataFrame(
        [(e, c, i, f"{e}-{n}", *box) for n, (e, c, i, box) in enumerate(rows)],
        columns=["entry", "class", "image_id", "annotation_id", *BOX],
    )


def compare(one, two):
    """Compare what two entries found on one image."""
    found = [("one", "cat", "i", box) for box in one] + [("two", "cat", "i", box) for box in two]
    return compare_entries(asked(("cat", "i", "found", "found")), boxes(*found))


@pytest.mark.parametrize(
    ("one", "two", "matched", "score", "mean_iou"),
    [
        pytest.param([], [], 0, 1.0, None, id="both found nothing"),
        pytest.param([SQUARE], [], 0, 0.0, None, id="one found nothing"),
        pytest.param([SQUARE, FAR], [FAR, SQUARE], 2, 1.0, 1.0, id="the same in another order"),
        pytest.param([SQUARE], [SQUARE, FAR], 1, 2 / 3, 1.0, id="one box more"),
        pytest.param([SQUARE, FAR], [SQUARE, FARTHER], 1, 0.5, 1.0, id="one apart on each side"),
        pytest.param(
            [SQUARE], [SQUARE, SQUARE], 1, 2 / 3, 1.0, id="one seen twice is one too many"
        ),
        pytest.param([SQUARE], [upper(0.5)], 1, 1.0, 0.5, id="an IoU of exactly the threshold"),
        pytest.param([SQUARE], [upper(0.499)], 0, 0.0, None, id="an IoU just below it"),
        pytest.param(
            [SQUARE, FAR], [upper(0.8), FAR], 2, 1.0, 0.9, id="the mean IoU is over matched boxes"
        ),
    ],
)
def test_the_score_of_an_image_is_f1_between_two_sets_of_boxes(one, two, matched, score, mean_iou):
    (image,) = compare(one, two).per_image.to_dict("records")
    assert (image["boxes_a"], image["boxes_b"], image["matched"]) == (len(one), len(two), matched)
    assert image["agreement"] == pytest.approx(score)
    assert image["mean_iou"] == pytest.approx(
        math.nan if mean_iou is None else mean_iou, nan_ok=True
    )


@pytest.mark.parametrize("state", [*State, None])
def test_only_images_that_both_answered_soundly_are_compared(state):
    agreement = compare_entries(asked(("cat", "i", "absent", state)), boxes())
    compared = state in ANSWERED
    assert len(agreement.per_image) == compared
    (row,) = agreement.per_class.to_dict("records")
    assert (row["images"], row["not_compared"]) == (compared, not compared)
    assert agreement.not_compared["reason"].tolist() == (
        [] if compared else [f"two: {state or 'not asked yet'}"]
    )


def test_each_class_is_summed_up_over_its_images():
    agreement = compare_entries(
        asked(
            ("dog", "1", "found", "found"),
            ("dog", "2", "found", "not_mentioned"),
            ("dog", "3", "absent", "absent"),
            ("dog", "4", "failed", "truncated"),
            ("cat", "1", None, "found"),
        ),
        boxes(
            *(("one", "dog", "1", SQUARE), ("one", "dog", "1", FAR), ("one", "dog", "2", FAR)),
            *(("two", "dog", "1", upper(0.8)), ("two", "dog", "1", FAR)),
            # Of images that are not compared, or of another class.
            *(("one", "dog", "4", FAR), ("two", "cat", "1", FAR)),
        ),
    )
    dog, cat = agreement.per_class.to_dict("records")
    assert dog == {
        **{"class": "dog", "entry_a": "one", "entry_b": "two", "images": 3, "not_compared": 1},
        **{"boxes_a": 3, "boxes_b": 2, "matched": 2, "mean_iou": pytest.approx(0.9)},
        **{"agreement": pytest.approx(2 / 3), "full_agreement": pytest.approx(2 / 3)},
    }
    assert (cat["class"], cat["images"], cat["not_compared"]) == ("cat", 0, 1)
    assert math.isnan(cat["agreement"])
    assert agreement.mean == pytest.approx(2 / 3)
    assert agreement.not_compared[["class", "reason", "images"]].to_numpy().tolist() == [
        ["dog", "one: failed; two: truncated", 1],
        ["cat", "one: not asked yet", 1],
    ]


def test_the_images_that_most_disagree_come_first():
    agreement = compare_entries(
        asked(*(("cat", image, "found", "found") for image in "abcde")),
        boxes(
            *(("one", "cat", "a", SQUARE), ("two", "cat", "a", SQUARE)),
            *(("one", "cat", "b", SQUARE), ("two", "cat", "b", upper(0.6))),
            ("one", "cat", "c", SQUARE),
            *(("one", "cat", "d", SQUARE), ("one", "cat", "d", FAR)),
            *(("one", "cat", "e", SQUARE), ("two", "cat", "e", SQUARE), ("two", "cat", "e", FAR)),
        ),
    )
    assert agreement.per_image["image_id"].tolist() == ["d", "c", "e", "b", "a"]
    assert agreement.disagreements["image_id"].tolist() == ["d", "c", "e"]
    assert agreement.boxes["image_id"].tolist() == ["d", "d", "c", "e", "e", "b", "a"]


def test_every_box_stands_in_the_table_once_with_its_partner_or_alone():
    agreement = compare([SQUARE, FAR], [FARTHER, upper(0.8)])
    table = agreement.boxes.set_index("found_by")
    sides = {
        by: tuple(None if row.isna().all() else tuple(row) for row in (a, b))
        for by, a, b in (
            (by, table.loc[by, SIDE_COLUMNS["a"]], table.loc[by, SIDE_COLUMNS["b"]])
            for by in table.index
        )
    }
    assert sides == {"both": (SQUARE, upper(0.8)), "one": (FAR, None), "two": (None, FARTHER)}
    assert table.loc["both", "iou"] == pytest.approx(0.8)
    ids = table[["a_annotation_id", "b_annotation_id"]]
    assert ids.loc["both"].tolist() == ["one-0", "two-3"]
    assert ids.loc["one"].fillna("none").tolist() == ["one-1", "none"]
    assert table["path"].unique().tolist() == ["cat/i.png"]


def test_the_same_image_in_two_classes_and_of_two_pairs_is_compared_apart():
    two_pairs = pd.concat(
        [
            asked(("cat", "i", "found", "found"), ("dog", "i", "found", "absent")),
            asked(("cat", "i", "found", "absent")).assign(entry_b="three"),
        ]
    )
    agreement = compare_entries(
        two_pairs,
        boxes(
            *(("one", "cat", "i", SQUARE), ("two", "cat", "i", SQUARE)), ("one", "dog", "i", FAR)
        ),
    )
    scores = agreement.per_class.set_index(["class", "entry_b"])["agreement"]
    assert scores.to_dict() == {("cat", "two"): 1.0, ("dog", "two"): 0.0, ("cat", "three"): 0.0}


def test_nothing_asked_gives_empty_tables():
    agreement = compare_entries(asked(), boxes())
    tables = (agreement.per_class, agreement.per_image, agreement.boxes, agreement.not_compared)
    assert [len(table) for table in tables] == [0, 0, 0, 0]
    assert math.isnan(agreement.mean)
