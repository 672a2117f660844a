"""Which true box each predicted box found: COCO's matching, over all images at once.

Within one group (an image and a label), predictions in descending order of score each take the free
true box they overlap most, if the intersection over union (IoU) reaches the threshold (Lin et al.,
"Microsoft COCO: common objects in context", 2014; ``COCOeval.evaluateImg`` in pycocotools). An
optimal assignment would at times find a pair more in a crowd, but the numbers would no longer
compare with published ones. Generative detectors may give no score; then, and wherever scores are
equal, the better overlap goes first, so the result never depends on the order of the rows.

A true region marked as a crowd is no object to find: a prediction that found no object and lies in
the region (intersection over its own area reaches the threshold) counts neither as right nor as
wrong.

A data set has many more groups than boxes in any of them, so the groups advance together: first the
best prediction of every group, then the second of every group that has one, and so on.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.tables import boxes_of, crowd_of, scores_of

# Pairs of boxes that are looked at together; bounds the memory where many boxes share a group.
_PAIRS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Matching:
    """Of p predictions with true boxes, at each of t thresholds. Rows are counted from 0.

    taken: (t, p) int64, row of the true box that the prediction took, -1 for none.
    taken_iou: (t, p) float64 with that box; NaN for none.
    ignored: (t, p) bool, it took none and lies in a crowd.
    nearest: (p,) int64, row of the object that it overlaps most, taken or not, -1 for none.
    nearest_iou: (p,) float64 with that object, 0 for none.
    true_iou: (true boxes,) float64, the largest IoU of the object with a prediction of its group.
    """

    taken: np.ndarray
    taken_iou: np.ndarray
    ignored: np.ndarray
    nearest: np.ndarray
    nearest_iou: np.ndarray
    true_iou: np.ndarray

    def at(self, threshold: int) -> "MatchingAt":
        """At one of the thresholds, by its position."""
        taken, iou = self.taken[threshold], self.taken_iou[threshold]
        return MatchingAt(
            taken=taken,
            iou=np.where(taken >= 0, iou, self.nearest_iou),
            ignored=self.ignored[threshold],
            nearest=self.nearest,
            true_iou=self.true_iou,
        )


@dataclass(frozen=True)
class MatchingAt:
    """A `Matching` at one threshold: its fields without the first axis.

    iou: (p,) float64 with the taken box, else with the nearest object.
    """

    taken: np.ndarray
    iou: np.ndarray
    ignored: np.ndarray
    nearest: np.ndarray
    true_iou: np.ndarray


@dataclass(frozen=True)
class BoxSet:
    """Boxes of many groups. groups: (n,) int, the group of each. boxes: (n, 4) float64 xyxy, px."""

    groups: np.ndarray
    boxes: np.ndarray


def match_greedily(
    predicted: BoxSet,
    scores: np.ndarray,
    true: BoxSet,
    crowd: np.ndarray,
    thresholds: Sequence[float],
) -> Matching:
    """Match the boxes of every group.

    Args:
        predicted: p boxes.
        scores: (p,) float; NaN where there is none, which goes last.
        true: the true boxes.
        crowd: (true boxes,) bool, marks crowd regions.
        thresholds: t least IoUs of a match, above 0.
    """
    count, least = len(predicted.boxes), np.asarray(thresholds, dtype=float)[:, None]
    row, other, iou = overlaps(predicted, BoxSet(true.groups[~crowd], true.boxes[~crowd]))
    other = np.flatnonzero(~crowd)[other]
    nearest, best, true_iou = np.full(count, -1), np.zeros(count), np.zeros(len(true.boxes))
    # Ascending, so that the best of each row is what remains.
    rising = np.argsort(iou, kind="stable")
    nearest[row[rising]], best[row[rising]] = other[rising], iou[rising]
    true_iou[other[rising]] = iou[rising]

    rank = _ranks(predicted.groups, scores, best)
    # By turn; the pairs of one prediction by overlap, of equal ones the last, as COCO's code does.
    order = np.lexsort((-other, -iou, row, rank[row]))
    row, other, iou = row[order], other[order], iou[order]
    turns = np.searchsorted(rank[row], np.arange(rank.max(initial=-1) + 2))
    taken = np.full((len(least), count), -1)
    taken_iou = np.full((len(least), count), np.nan)
    free = np.ones((len(least), len(true.boxes)), dtype=bool)
    for start, end in itertools.pairwise(turns):
        if start == end:
            continue
        possible = free[:, other[start:end]] & (iou[start:end] >= least)
        firsts = np.flatnonzero(np.diff(row[start:end], prepend=-1))
        place = np.where(possible, np.arange(end - start), end - start)
        chosen = np.minimum.reduceat(place, firsts, axis=1)
        at, which = np.nonzero(chosen < end - start)
        pair = start + chosen[at, which]
        taken[at, row[pair]] = other[pair]
        taken_iou[at, row[pair]] = iou[pair]
        free[at, other[pair]] = False
    inside = _share_in_crowds(predicted, BoxSet(true.groups[crowd], true.boxes[crowd]))
    ignored = (taken < 0) & (inside >= least)
    return Matching(taken, taken_iou, ignored, nearest, best, true_iou)


def match_rows(
    found: pd.DataFrame,
    found_groups: np.ndarray,
    true: pd.DataFrame,
    true_groups: np.ndarray,
    thresholds: Sequence[float],
) -> Matching:
    """As `match_greedily`, for tables with box columns, ``score`` and, optionally, ``iscrowd``."""
    return match_greedily(
        BoxSet(found_groups, boxes_of(found)),
        scores_of(found),
        BoxSet(true_groups, boxes_of(true)),
        crowd_of(true),
        thresholds,
    )


def overlaps(one: BoxSet, two: BoxSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The boxes of the same group that overlap.

    Returns:
        (k,) int64 rows of ``one``, (k,) int64 rows of ``two``, (k,) float64 their IoU, above 0.
    """
    area, other_area = box_areas(one.boxes), box_areas(two.boxes)
    found = []
    for row, other in _pairs(one.groups, two.groups):
        shared = _shared_areas(one.boxes[row], two.boxes[other])
        row, other, shared = row[shared > 0], other[shared > 0], shared[shared > 0]
        found.append((row, other, shared / (area[row] + other_area[other] - shared)))
    if not found:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0)
    rows, others, ious = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(others), np.concatenate(ious)


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """(n,) float64 areas of (n, 4) boxes, xyxy in pixels; square pixels."""
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)


@functools.cache
def box_ious() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return what computes overlaps: (n, 4) and (m, 4) xyxy in pixels -> (n, m) float32 IoU."""
    with warnings.catch_warnings():
        # It warns on import where OpenCV is missing; the overlap does not need it.
        warnings.simplefilter("ignore", UserWarning)
        from supervision import box_iou_batch
    return box_iou_batch


def _pairs(one: np.ndarray, two: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of both that share a group, in portions."""
    by_group = np.argsort(two, kind="stable")
    starts = np.searchsorted(two[by_group], one, side="left")
    counts = np.searchsorted(two[by_group], one, side="right") - starts
    portions = np.cumsum(counts) // _PAIRS_AT_ONCE
    for portion in np.unique(portions):
        rows = np.flatnonzero((portions == portion) & (counts > 0))
        if not len(rows):
            continue
        many = counts[rows]
        within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        yield np.repeat(rows, many), by_group[np.repeat(starts[rows], many) + within]


def _shared_areas(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(n,) areas of the intersections of boxes, row by row."""
    left_top = np.maximum(one[:, :2], two[:, :2])
    right_bottom = np.minimum(one[:, 2:], two[:, 2:])
    return np.clip(right_bottom - left_top, 0, None).prod(axis=1)


def _share_in_crowds(predicted: BoxSet, crowds: BoxSet) -> np.ndarray:
    """(p,) the largest share of each prediction that lies in one crowd region of its group."""
    inside = np.zeros(len(predicted.boxes))
    areas = box_areas(predicted.boxes)
    for row, other in _pairs(predicted.groups, crowds.groups):
        shared = _shared_areas(predicted.boxes[row], crowds.boxes[other])
        shares = np.divide(shared, areas[row], out=np.zeros_like(shared), where=areas[row] > 0)
        np.maximum.at(inside, row, shares)
    return inside


def _ranks(groups: np.ndarray, scores: np.ndarray, best: np.ndarray) -> np.ndarray:
    """(p,) int, whose turn it is within the group: descending score, missing ones last; equal
    scores by better overlap."""
    order = np.lexsort((-best, -np.nan_to_num(scores, nan=-np.inf), groups))
    sorted_groups = groups[order]
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.searchsorted(sorted_groups, sorted_groups)
    return ranks
