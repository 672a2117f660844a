import numpy as np
import pytest

from labeling_pipeline.evaluation import matching
from labeling_pipeline.evaluation.detection import IOU_THRESHOLDS, evaluate_detection
from labeling_pipeline.evaluation.matching import BoxSet, box_ious, match_greedily, overlaps
from labeling_pipeline.evaluation.tables import rows_of
from tests.evaluation.reference import coco_evaluation, random_boxes


def counts_of_coco(evaluation, images, labels):
    """Threshold -> (tp, fp, fn) summed over all images and labels, all areas."""
    each = [
        one
        for one in evaluation.evalImgs
        if one is not None and one["aRng"] == evaluation.params.areaRng[0]
    ]
    counts = []
    for t in range(10):
        tp = fp = fn = 0
        for one in each:
            matched, ignored = one["dtMatches"][t] > 0, one["dtIgnore"][t] > 0
            tp += int((matched & ~ignored).sum())
            fp += int((~matched & ~ignored).sum())
            is_object = np.asarray(one["gtIgnore"]) == 0
            fn += int((one["gtMatches"][t][is_object] == 0).sum())
        counts.append((tp, fp, fn))
    return counts


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [False, True], ids=["scores differ", "scores tie"])
def test_what_is_right_wrong_and_missed_is_what_coco_says(seed, ties):
    found, true, asked = random_boxes(seed, ties=ties)
    # Of equal scores COCO takes the first row, we the better overlap: give it rows in that order.
    pairs = asked.sort_values(["image_id", "label"], ignore_index=True)
    ordered, _ = rows_of(found, pairs)
    best = [best_iou(row, true) for row in ordered.to_dict("records")]
    ordered = ordered.assign(best=best).sort_values("best", ascending=False, kind="stable")
    expected = counts_of_coco(coco_evaluation(ordered, rows_of(true, pairs)[0], asked), 6, 3)
    measured = evaluate_detection(found, true, asked).by_threshold
    assert [(c.tp, c.fp, c.fn) for c in measured.values()] == expected
    assert list(measured) == list(IOU_THRESHOLDS)


def best_iou(row, true):
    same = true[
        (true["image_id"] == row["image_id"]) & (true["label"] == row["label"]) & ~true["iscrowd"]
    ]
    if same.empty:
        return 0.0
    box = np.array([[row[name] for name in ("x0_px", "y0_px", "x1_px", "y1_px")]])
    boxes = same[["x0_px", "y0_px", "x1_px", "y1_px"]].to_numpy()
    groups = np.zeros(1, dtype=int), np.zeros(len(boxes), dtype=int)
    return max(overlaps(BoxSet(groups[0], box), BoxSet(groups[1], boxes))[2], default=0.0)


def test_overlaps_are_those_of_supervision():
    rng = np.random.default_rng(0)
    one, two = (np.sort(rng.uniform(0, 50, (n, 2, 2)), axis=1).reshape(n, 4) for n in (30, 40))
    row, other, iou = overlaps(
        BoxSet(np.zeros(30, dtype=int), one), BoxSet(np.zeros(40, dtype=int), two)
    )
    expected = box_ious()(one, two)
    assert len(row) == (expected > 0).sum()
    np.testing.assert_allclose(iou, expected[row, other], rtol=1e-5)


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_how_many_pairs_are_looked_at_together_changes_nothing(monkeypatch, at_once):
    found, true, asked = random_boxes(3)
    whole = evaluate_detection(found, true, asked)
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", at_once)
    parts = evaluate_detection(found, true, asked)
    assert whole.by_threshold == parts.by_threshold
    assert whole.errors.equals(parts.errors)


def test_boxes_without_an_area_overlap_nothing():
    flat, groups = np.array([[5.0, 5, 5, 9]]), np.zeros(1, dtype=int)
    matched = match_greedily(
        BoxSet(groups, flat), np.ones(1), BoxSet(groups, flat), np.zeros(1, dtype=bool), [0.5]
    )
    assert matched.taken.tolist() == [[-1]]
    assert matched.nearest_iou.tolist() == [0.0]


def test_without_any_box_nothing_is_matched():
    nothing = BoxSet(np.empty(0, dtype=int), np.empty((0, 4)))
    matched = match_greedily(nothing, np.empty(0), nothing, np.empty(0, dtype=bool), [0.5, 0.9])
    assert matched.taken.shape == matched.ignored.shape == (2, 0)
