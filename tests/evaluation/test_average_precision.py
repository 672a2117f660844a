import math

import numpy as np
import pandas as pd
import pytest

from labeling_pipeline.evaluation.average_precision import rank_boxes
from tests.evaluation.reference import BOX, coco_evaluation, random_boxes

SQUARE, FAR = (0, 0, 10, 10), (100, 100, 110, 110)


def boxes(*rows):
    """(image_id, label, score, box)"""
    columns = ["image_id", "label", "score", *BOX]
    return pd.DataFrame([(i, label, s, *box) for i, label, s, box in rows], columns=columns)


def asked(*rows):
    return pd.DataFrame(list(rows), columns=["image_id", "label"])


def numbers(ranking):
    """In the order of COCO's: AP, 50, 75, small, medium, large."""
    of = ranking
    values = (of.ap, of.ap_50, of.ap_75, of.ap_small, of.ap_medium, of.ap_large)
    return [-1 if value is None else value for value in values]


def same_as_coco(found, true, pairs):
    ranking = rank_boxes(found, true, pairs)
    coco = coco_evaluation(found, true, pairs)
    np.testing.assert_allclose(numbers(ranking), coco.stats[:6], atol=1e-12)
    assert (-1 if ranking.ar is None else ranking.ar) == pytest.approx(coco.stats[8], abs=1e-12)
    precision = coco.eval["precision"][:, :, :, 0, 2]
    for number, row in enumerate(ranking.per_label.itertuples()):
        of_label = precision[:, :, number]
        known = of_label[of_label > -1]
        if len(known):
            assert row.ap == pytest.approx(known.mean(), abs=1e-12)
            np.testing.assert_allclose(ranking.curves[row.label], of_label[0], atol=1e-12)
        else:
            assert math.isnan(row.ap)
            assert row.label not in ranking.curves
    return ranking


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_pycocotools(seed):
    found, true, pairs = random_boxes(seed)
    pairs_in_order = pairs.sample(frac=1, random_state=seed)
    same_as_coco(found, true, pairs)
    shuffled = rank_boxes(found.sample(frac=1, random_state=seed), true, pairs_in_order)
    assert numbers(shuffled) == pytest.approx(numbers(rank_boxes(found, true, pairs)))


HIT, MISS = ("a", "cat", 0.9, SQUARE), ("a", "cat", 0.8, FAR)


@pytest.mark.parametrize(
    ("found", "true", "pairs"),
    [
        pytest.param([HIT], [HIT], [("a", "cat")], id="one image, one label"),
        pytest.param([MISS], [HIT], [("a", "cat")], id="nothing right"),
        pytest.param([], [HIT], [("a", "cat")], id="no predictions"),
        pytest.param([HIT], [], [("a", "cat")], id="nothing to find"),
        pytest.param(
            [HIT, ("a", "dog", 0.7, FAR)], [HIT], [("a", "cat"), ("a", "dog")], id="a missing label"
        ),
        pytest.param(
            [HIT, ("b", "cat", 0.95, FAR)], [HIT], [("a", "cat"), ("b", "cat")], id="an empty image"
        ),
        pytest.param(
            [("a", "cat", 0.5, SQUARE), ("b", "cat", 0.5, FAR), ("c", "cat", 0.5, SQUARE)],
            [("a", "cat", 1, SQUARE), ("b", "cat", 1, SQUARE), ("c", "cat", 1, SQUARE)],
            [("a", "cat"), ("b", "cat"), ("c", "cat")],
            id="ties",
        ),
    ],
)
def test_edges_are_those_of_pycocotools(found, true, pairs):
    same_as_coco(boxes(*found), boxes(*true), asked(*pairs))


def test_a_ranking_by_hand():
    """Right, wrong, right of two: precision 1 up to recall 0.5, then 2/3."""
    ranking = rank_boxes(
        boxes(("a", "cat", 0.9, SQUARE), ("a", "cat", 0.8, FAR), ("b", "cat", 0.7, SQUARE)),
        boxes(("a", "cat", None, SQUARE), ("b", "cat", None, SQUARE)),
        asked(("a", "cat"), ("b", "cat")),
    )
    # 51 of COCO's 101 recalls lie at or below 0.5.
    assert ranking.ap_50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert [ranking.ap, ranking.ap_95] == pytest.approx([ranking.ap_50] * 2)
    assert ranking.ar == 1


def test_what_was_not_asked_counts_on_neither_side():
    ranking = rank_boxes(
        boxes(HIT, ("b", "cat", 0.99, FAR), ("a", "dog", 0.99, FAR)),
        boxes(HIT, ("b", "cat", None, SQUARE)),
        asked(("a", "cat")),
    )
    assert ranking.ap == 1


def test_more_boxes_than_coco_looks_at_all_count():
    many = [("a", "cat", 0.9 - i / 1000, (20 * i, 0, 20 * i + 10, 10)) for i in range(120)]
    ranking = rank_boxes(boxes(*many), boxes(*many), asked(("a", "cat")))
    assert ranking.ap == ranking.ar == 1


def test_a_box_without_a_score_goes_last_and_without_any_there_is_no_ranking():
    true, pairs = boxes(HIT), asked(("a", "cat"))
    first = rank_boxes(boxes(HIT, ("a", "cat", None, FAR)), true, pairs)
    assert first.ap == 1
    last = rank_boxes(boxes(MISS, ("a", "cat", None, SQUARE)), true, pairs)
    assert last.ap == pytest.approx(0.5)
    assert rank_boxes(boxes(("a", "cat", None, SQUARE)), true, pairs) is None


def test_the_size_of_an_object_is_the_area_that_the_truth_has():
    found = boxes(("a", "cat", 0.9, (0, 0, 100, 100)))
    ranking = same_as_coco(found, found.assign(area=[500.0]), asked(("a", "cat")))
    assert (ranking.ap_small, ranking.ap_medium, ranking.ap_large) == (1, None, None)


@pytest.mark.parametrize("label", ["recall", "precision", "ap", "label"])
def test_a_label_may_be_called_anything(label):
    ranking = rank_boxes(
        boxes(("a", label, 0.9, SQUARE)), boxes(("a", label, None, SQUARE)), asked(("a", label))
    )
    assert ranking.per_label["ap"].tolist() == [1]
    assert list(ranking.curves.columns) == [label]
