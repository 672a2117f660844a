import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_recall_fscore_support

from labeling_pipeline.evaluation.detection import (
    IOU_THRESHOLDS,
    Counts,
    evaluate_detection,
)
from labeling_pipeline.evaluation.detection_errors import worst_first
from labeling_pipeline.evaluation.intervals import wilson_interval

BOX = ["x0_px", "y0_px", "x1_px", "y1_px"]
SQUARE = (0, 0, 10, 10)
FAR = (100, 100, 110, 110)


def predictions(*rows):
    """(image_id, label, score, box)"""
    return pd.DataFrame(
        [(i, label, s, *box) for i, label, s, box in rows],
        columns=["image_id", "label", "score", *BOX],
    )


def truths(*rows, crowd=()):
    """(image_id, label, box)"""
    table = pd.DataFrame(
        [(i, label, *box) for i, label, box in rows], columns=["image_id", "label", *BOX]
    )
    table["iscrowd"] = [n in crowd for n in range(len(table))]
    return table


def asked(*rows):
    return pd.DataFrame(list(rows), columns=["image_id", "label"])


def upper(share):
    """A box inside SQUARE with that IoU."""
    return (0, 0, 10, 10 * share)


@pytest.mark.parametrize(
    ("found", "true", "pairs", "expected"),
    [
        pytest.param(
            [("a", "cat", 0.9, SQUARE)], [("a", "cat", SQUARE)], [("a", "cat")], (1, 0, 0), id="hit"
        ),
        pytest.param(
            [("a", "dog", 0.9, SQUARE)],
            [("a", "cat", SQUARE)],
            [("a", "cat"), ("a", "dog")],
            (0, 1, 1),
            id="the right place under the wrong label is a false box and a miss",
        ),
        pytest.param(
            [("a", "cat", 0.9, SQUARE), ("a", "cat", 0.8, upper(0.9))],
            [("a", "cat", SQUARE)],
            [("a", "cat")],
            (1, 1, 0),
            id="a duplicate is a false box",
        ),
        pytest.param(
            [("b", "cat", 0.9, SQUARE)],
            [("a", "cat", SQUARE)],
            [("a", "cat"), ("b", "cat")],
            (0, 1, 1),
            id="the same place on another image",
        ),
        pytest.param(
            [("a", "cat", 0.9, upper(0.5))],
            [("a", "cat", SQUARE)],
            [("a", "cat")],
            (1, 0, 0),
            id="an IoU of exactly the threshold counts",
        ),
        pytest.param(
            [("a", "cat", 0.9, upper(0.499))],
            [("a", "cat", SQUARE)],
            [("a", "cat")],
            (0, 1, 1),
            id="an IoU just below it does not",
        ),
        pytest.param(
            [("a", "cat", 0.9, SQUARE), ("a", "dog", 0.9, SQUARE)],
            [("a", "cat", SQUARE), ("a", "dog", FAR), ("b", "cat", SQUARE)],
            [("a", "cat")],
            (1, 0, 0),
            id="what was not asked counts on neither side",
        ),
        pytest.param(
            [], [("a", "cat", SQUARE)], [("a", "cat"), ("a", "cat")], (0, 0, 1), id="asked twice"
        ),
        pytest.param(
            [("a", "cat", None, FAR), ("a", "cat", None, SQUARE)],
            [("a", "cat", SQUARE)],
            [("a", "cat")],
            (1, 1, 0),
            id="without scores",
        ),
    ],
)
def test_boxes_are_matched_by_image_label_and_overlap(found, true, pairs, expected):
    evaluation = evaluate_detection(predictions(*found), truths(*true), asked(*pairs))
    assert evaluation.overall == Counts(*expected)


def test_the_higher_score_takes_the_object_and_the_lower_one_is_wrong():
    evaluation = evaluate_detection(
        predictions(("a", "cat", 0.2, SQUARE), ("a", "cat", 0.9, upper(0.6))),
        truths(("a", "cat", SQUARE)),
        asked(("a", "cat")),
    )
    correct = evaluation.matches.set_index("score")["correct"]
    assert correct.to_dict() == {0.9: True, 0.2: False}
    assert evaluation.matches.set_index("score")["iou"].to_dict() == pytest.approx(
        {0.9: 0.6, 0.2: 1.0}
    )


def test_every_threshold_is_counted_on_its_own_and_the_mean_is_over_all_ten():
    evaluation = evaluate_detection(
        predictions(("a", "cat", 0.9, upper(0.8)), ("b", "cat", 0.9, SQUARE)),
        truths(("a", "cat", SQUARE), ("b", "cat", SQUARE)),
        asked(("a", "cat"), ("b", "cat")),
    )
    f1 = {t: counts.f1 for t, counts in evaluation.by_threshold.items()}
    assert f1 == {t: 1.0 if t <= 0.8 else 0.5 for t in IOU_THRESHOLDS}
    assert evaluation.mean_f1 == pytest.approx((7 * 1.0 + 3 * 0.5) / 10)
    assert evaluation.per_label.loc[0, ["f1", "f1_75", "f1_95"]].tolist() == [1, 1, 0.5]


@pytest.mark.parametrize("threshold", IOU_THRESHOLDS)
def test_an_overlap_of_exactly_the_threshold_counts_at_every_threshold(threshold):
    evaluation = evaluate_detection(
        predictions(("a", "cat", 1.0, (0, 0, 100, round(100 * threshold)))),
        truths(("a", "cat", (0, 0, 100, 100))),
        asked(("a", "cat")),
    )
    assert evaluation.by_threshold[threshold].tp == 1


def test_ratios_that_do_not_exist_are_missing_not_zero_or_one():
    evaluation = evaluate_detection(predictions(), truths(), asked(("a", "cat")))
    row = evaluation.per_label.iloc[0]
    assert all(math.isnan(row[column]) for column in ("precision", "recall", "f1", "mean_f1"))
    assert evaluation.overall.f1 is None
    assert evaluation.mean_f1 is None
    assert evaluation.judged_images == ("a",)


def test_finding_nothing_of_something_is_a_recall_of_zero_without_a_precision():
    evaluation = evaluate_detection(
        predictions(), truths(("a", "cat", SQUARE)), asked(("a", "cat"))
    )
    assert (evaluation.overall.precision, evaluation.overall.recall) == (None, 0.0)
    assert evaluation.overall.f1 == 0.0


def test_nothing_asked_yields_an_empty_table():
    evaluation = evaluate_detection(
        predictions(("a", "cat", 0.9, SQUARE)), truths(("a", "cat", SQUARE)), asked()
    )
    assert evaluation.per_label.empty
    assert evaluation.matches.empty
    assert evaluation.overall == Counts()
    assert evaluation.not_asked == 0


def test_true_boxes_of_judged_images_that_nobody_asked_for_are_counted():
    evaluation = evaluate_detection(
        predictions(),
        truths(("a", "cat", SQUARE), ("a", "dog", FAR), ("b", "cat", SQUARE)),
        asked(("a", "cat")),
    )
    assert evaluation.not_asked == 1


def test_boxes_on_labels_that_are_asked_but_absent_are_counted():
    evaluation = evaluate_detection(
        predictions(("a", "dog", 0.9, SQUARE), ("a", "dog", 0.8, FAR)),
        truths(("a", "cat", SQUARE)),
        asked(("a", "cat"), ("a", "dog"), ("b", "dog")),
    )
    dog = evaluation.per_label.set_index("label").loc["dog"]
    assert (dog["absent"], dog["absent_with_boxes"], dog["boxes_on_absent"]) == (2, 1, 2)
    assert (evaluation.absent, evaluation.absent_with_boxes, evaluation.boxes_on_absent) == (
        *(2, 1, 2),
    )


def test_a_box_inside_a_crowd_counts_neither_way_unless_it_found_an_object():
    evaluation = evaluate_detection(
        predictions(
            ("a", "cat", 0.9, (20, 20, 30, 30)),
            ("a", "cat", 0.8, SQUARE),
            ("a", "cat", 0.7, FAR),
        ),
        truths(("a", "cat", SQUARE), ("a", "cat", (0, 0, 50, 50)), crowd=(1,)),
        asked(("a", "cat")),
    )
    assert evaluation.overall == Counts(tp=1, fp=1, fn=0)
    assert evaluation.ignored == 1
    assert len(evaluation.matches) == 2


def random_case(seed):
    rng = np.random.default_rng(seed)
    labels, images = ["cat", "dog", "owl"], ["a", "b", "c", "d"]
    found, true = [], []
    for image in images:
        for label in labels:
            for _ in range(rng.integers(0, 4)):
                x, y = rng.integers(0, 40, 2)
                true.append((image, label, (x, y, x + 12, y + 12)))
                if rng.random() < 0.8:
                    dx, dy = rng.integers(-4, 5, 2)
                    box = (x + dx, y + dy, x + dx + 12, y + dy + 12)
                    score = None if rng.random() < 0.3 else float(rng.integers(1, 4)) / 4
                    found.append((image, label, score, box))
    return found, true, [(image, label) for image in images for label in labels]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_rows_changes_nothing(seed):
    found, true, pairs = random_case(seed)
    first = evaluate_detection(predictions(*found), truths(*true), asked(*pairs))
    again = evaluate_detection(
        predictions(*found).sample(frac=1, random_state=seed),
        truths(*true).sample(frac=1, random_state=seed),
        asked(*pairs).sample(frac=1, random_state=seed),
    )
    pd.testing.assert_frame_equal(first.per_label, again.per_label)
    assert first.by_threshold == again.by_threshold


@pytest.mark.parametrize("seed", range(5))
def test_precision_recall_and_f1_are_those_of_scikit_learn(seed):
    found, true, pairs = random_case(seed)
    evaluation = evaluate_detection(predictions(*found), truths(*true), asked(*pairs))
    y_true, y_pred = [], []
    for row in evaluation.per_label.itertuples():
        y_true += [row.label] * row.tp + ["nothing"] * row.fp + [row.label] * row.fn
        y_pred += [row.label] * row.tp + [row.label] * row.fp + ["nothing"] * row.fn
    precision, recall, f1, support = precision_recall_fscore_support(
        y_true, y_pred, labels=list(evaluation.per_label["label"]), zero_division=np.nan
    )
    table = evaluation.per_label
    np.testing.assert_allclose(table["precision"], precision)
    np.testing.assert_allclose(table["recall"], recall)
    np.testing.assert_allclose(table["f1"], f1)
    assert table["support"].tolist() == support.tolist()
    assert evaluation.overall.support == len(true)


def test_every_false_box_and_every_missed_object_is_an_error_of_one_kind():
    evaluation = evaluate_detection(
        predictions(
            ("a", "cat", 0.9, SQUARE),
            ("a", "cat", 0.8, upper(0.9)),
            ("a", "cat", 0.7, (8, 0, 18, 10)),
            ("a", "cat", 0.6, (200, 200, 210, 210)),
            ("a", "dog", 0.5, SQUARE),
            ("b", "cat", None, FAR),
        ),
        truths(("a", "cat", SQUARE), ("b", "cat", (106, 100, 116, 110)), ("b", "owl", FAR)),
        asked(("a", "cat"), ("a", "dog"), ("b", "cat")),
    )
    columns = ["image_id", "label", "kind", "score", "iou", "true_label"]
    rows = (
        evaluation.errors[columns]
        .fillna({"score": -1, "true_label": "–"})
        .round(3)
        .to_numpy()
        .tolist()
    )
    assert rows == [
        ["a", "cat", "duplicate", 0.8, 0.9, "–"],
        ["a", "cat", "misplaced", 0.7, 0.111, "–"],
        ["a", "cat", "wrong", 0.6, 0, "–"],
        ["a", "dog", "false_on_absent", 0.5, 0, "cat"],
        ["b", "cat", "misplaced", -1, 0.25, "owl"],
        ["b", "cat", "missed", -1, 0.25, "–"],
    ]
    boxes = evaluation.errors[BOX].to_numpy().tolist()
    assert (boxes[0], boxes[5]) == ([*upper(0.9)], [106, 100, 116, 110])
    assert evaluation.duplicates == 1
    assert evaluation.per_label["duplicates"].tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_there_are_as_many_errors_as_false_boxes_and_missed_objects(seed):
    found, true, pairs = random_case(seed)
    evaluation = evaluate_detection(predictions(*found), truths(*true, crowd=(0, 3)), asked(*pairs))
    kinds = evaluation.errors["kind"].value_counts()
    assert kinds.get("missed", 0) == evaluation.overall.fn
    assert kinds.drop("missed", errors="ignore").sum() == evaluation.overall.fp
    assert kinds.get("false_on_absent", 0) == evaluation.boxes_on_absent


def test_the_images_with_most_errors_come_first():
    errors = pd.DataFrame({"path": ["b", "c", "a", "c"], "kind": ["wrong", "missed"] * 2})
    ordered = worst_first(errors)
    assert ordered["path"].tolist() == ["c", "c", "a", "b"]
    assert ordered["kind"].tolist() == ["missed", "missed", "wrong", "wrong"]


def test_sizes_are_those_of_the_true_objects_and_of_false_boxes_their_own():
    """32² and 96² px: a square of 32 px is medium."""
    squares = {"small": 31, "medium": 32, "large": 96}
    boxes = {name: (0, 0, side, side) for name, side in squares.items()}
    evaluation = evaluate_detection(
        predictions(
            ("a", "cat", 0.9, (0, 0, 32.5, 31)),
            ("a", "dog", 0.9, boxes["medium"]),
            ("a", "dog", 0.8, (300, 300, 400, 400)),
        ),
        truths(
            ("a", "cat", boxes["small"]),
            ("a", "dog", boxes["medium"]),
            ("a", "owl", boxes["large"]),
        ),
        asked(("a", "cat"), ("a", "dog"), ("a", "owl")),
    )
    rows = evaluation.per_size.set_index("size")[["support", "tp", "fp", "fn"]]
    assert rows.T.to_dict("list") == {
        "small": [1, 1, 0, 0],
        "medium": [1, 1, 0, 0],
        "large": [1, 0, 1, 1],
    }


@pytest.mark.parametrize("seed", range(3))
def test_counts_by_size_add_up_to_all(seed):
    found, true, pairs = random_case(seed)
    evaluation = evaluate_detection(predictions(*found), truths(*true, crowd=(1,)), asked(*pairs))
    overall = evaluation.overall
    sums = evaluation.per_size[["tp", "fp", "fn"]].sum()
    assert sums.tolist() == [overall.tp, overall.fp, overall.fn]
    labels = evaluation.per_label[["tp", "fp", "fn"]].sum()
    assert labels.tolist() == [overall.tp, overall.fp, overall.fn]


def test_an_area_that_the_truth_has_beats_that_of_the_box():
    true = truths(("a", "cat", (0, 0, 100, 100)), ("a", "cat", (200, 0, 300, 100)))
    evaluation = evaluate_detection(
        predictions(), true.assign(area=[900.0, math.nan]), asked(("a", "cat"))
    )
    assert evaluation.per_size["support"].tolist() == [1, 0, 1]


def many_images(images, seed):
    """One cat an image; a third is missed and a fifth gets a false box beside."""
    rng = np.random.default_rng(seed)
    names = [f"{i:03}" for i in range(images)]
    found = [(name, "cat", 0.9, SQUARE) for name in names if rng.random() < 2 / 3]
    found += [(name, "cat", 0.8, FAR) for name in names if rng.random() < 1 / 5]
    return (
        predictions(*found),
        truths(*((name, "cat", SQUARE) for name in names)),
        asked(*((name, "cat") for name in names)),
    )


def test_the_interval_of_f1_is_a_bootstrap_over_images():
    found, true, pairs = many_images(40, seed=1)
    hits = pairs["image_id"].isin(found.loc[found["score"] == 0.9, "image_id"]).to_numpy()
    alarms = pairs["image_id"].isin(found.loc[found["score"] == 0.8, "image_id"]).to_numpy()
    drawn = np.random.default_rng(7).integers(40, size=(4000, 40))
    tp, fp = hits[drawn].sum(axis=1), alarms[drawn].sum(axis=1)
    low, high = np.quantile(2 * tp / (2 * tp + fp + 40 - tp), [0.025, 0.975])
    evaluation = evaluate_detection(found, true, pairs)
    assert evaluation.f1_interval.low == pytest.approx(low, abs=0.02)
    assert evaluation.f1_interval.high == pytest.approx(high, abs=0.02)
    # All overlaps are 1 or 0, so no threshold differs from another.
    assert evaluation.mean_f1_interval.low == pytest.approx(evaluation.f1_interval.low)
    assert evaluation.mean_f1_interval.high == pytest.approx(evaluation.f1_interval.high)
    row = evaluation.per_label.iloc[0]
    assert (row["f1_low"], row["f1_high"]) == (
        evaluation.f1_interval.low,
        evaluation.f1_interval.high,
    )


def test_what_is_right_everywhere_is_as_sure_as_there_are_images_that_show_something():
    names = [str(i) for i in range(9)]
    evaluation = evaluate_detection(
        predictions(*((name, "cat", 0.9, SQUARE) for name in names)),
        truths(*((name, "cat", SQUARE) for name in names)),
        asked(*((name, label) for name in (*names, "empty") for label in ("cat", "dog"))),
    )
    assert evaluation.f1_interval == wilson_interval(9, 9)
    assert evaluation.absent_interval == wilson_interval(0, 11)
    assert evaluation.per_label["f1_low"].isna().tolist() == [False, True]


def test_one_image_says_nothing_of_chance():
    evaluation = evaluate_detection(
        predictions(("a", "cat", 0.9, SQUARE)), truths(("a", "cat", SQUARE)), asked(("a", "cat"))
    )
    assert (evaluation.overall.f1, evaluation.f1_interval) == (1, None)


def test_matches_keep_what_they_are_answers_of():
    found = predictions(("a", "cat", 0.9, SQUARE), ("a", "cat", 0.3, FAR)).assign(
        annotation_id=["one", "two"], model_key="key"
    )
    matches = evaluate_detection(found, truths(("a", "cat", SQUARE)), asked(("a", "cat"))).matches
    assert matches.set_index("annotation_id")["correct"].to_dict() == {"one": True, "two": False}
    assert matches["model_key"].tolist() == ["key", "key"]
