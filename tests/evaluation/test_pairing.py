import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling_pipeline.annotations import box_iou
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.pairing import match_boxes, pair_up


def test_boxes_are_matched_so_that_the_most_find_a_partner():
    # The first could take either, the second only the one that the first overlaps most.
    one = np.array([[0, 0, 10, 10], [0, 3, 10, 13]], dtype=float)
    two = np.array([[0, 1, 10, 11], [0, -3, 10, 7]], dtype=float)
    rows, columns, iou = match_boxes(one, two)
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {0: 1, 1: 0}
    assert iou == pytest.approx([7 / 13, 8 / 12])


_coordinate = st.integers(0, 12)
_box = st.tuples(_coordinate, _coordinate, st.integers(1, 9), st.integers(1, 9)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.lists(_box, min_size=1, max_size=4), st.lists(_box, min_size=1, max_size=4))
def test_the_matching_is_the_best_of_all_one_to_one_matchings(one, two):
    def value(pairs):
        overlaps = [box_iou(one[i], two[j]) for i, j in pairs]
        return sum(o >= 0.5 for o in overlaps), sum(o for o in overlaps if o >= 0.5)

    few = min(len(one), len(two))
    best = max(
        value(zip(rows, columns, strict=True))
        for rows in itertools.combinations(range(len(one)), few)
        for columns in itertools.permutations(range(len(two)), few)
    )
    rows, columns, iou = match_boxes(np.array(one, float), np.array(two, float))
    assert len(set(rows)) == len(set(columns)) == len(rows) == best[0]
    assert iou.sum() == pytest.approx(best[1], abs=1e-5)
    backward = match_boxes(np.array(two, float), np.array(one, float))[2]
    assert backward.sum() == pytest.approx(iou.sum(), abs=1e-5)


_grouped = st.lists(st.tuples(st.integers(0, 3), _box), max_size=10)


def grouped(boxes):
    return pd.DataFrame([(group, *box) for group, box in boxes], columns=["group", *BOX_COLUMNS])


@settings(deadline=None, max_examples=50)
@given(_grouped, _grouped, st.sampled_from([0.3, 0.5, 0.9]))
def test_all_groups_at_once_are_matched_as_each_alone(one, two, threshold):
    a, b = grouped(one), grouped(two)
    pieces = pair_up(a, b, threshold)
    for group in range(4):
        of_a, of_b = a[a["group"] == group], b[b["group"] == group]
        expected = match_boxes(
            of_a[BOX_COLUMNS].to_numpy(float), of_b[BOX_COLUMNS].to_numpy(float), threshold
        )[2]
        found = pieces[pieces["group"] == group]
        assert found["iou"].sum() == pytest.approx(expected.sum(), abs=1e-5)
        assert found["iou"].notna().sum() == len(expected)
        # Every box stands there once, with its partner or alone.
        assert sorted(found.loc[found["a"] >= 0, "a"]) == list(of_a.index)
        assert sorted(found.loc[found["b"] >= 0, "b"]) == list(of_b.index)
    for row in pieces[pieces["iou"].notna()].itertuples():
        boxes = (tuple(side.loc[i, BOX_COLUMNS]) for side, i in ((a, row.a), (b, row.b)))
        assert row.iou == pytest.approx(box_iou(*boxes), abs=1e-6)
        assert row.iou >= np.float32(threshold)


def test_groups_come_in_order_with_pairs_first_and_then_what_either_side_has_alone():
    square, far = (0, 0, 10, 10), (50, 50, 60, 60)
    pieces = pair_up(
        grouped([(1, square), (0, far), (0, square)]), grouped([(0, square), (1, far), (1, square)])
    )
    assert pieces[["group", "a", "b"]].to_numpy().tolist() == [
        *([0, 2, 0], [0, 1, -1]),
        *([1, 0, 2], [1, -1, 1]),
    ]
    assert [math.isnan(iou) for iou in pieces["iou"]] == [False, True, False, True]
