"""Which box of one answer is which box of another, where neither side is the reference.

Matching is one to one: as many pairs of boxes as possible whose intersection over union (IoU)
reaches the threshold, and among those the assignment that overlaps most. Greedy matching by score,
as against ground truth, would depend on which of the two is first.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.matching import BoxSet, overlaps
from labeling_pipeline.evaluation.tables import boxes_of


def match_boxes(
    one: np.ndarray, two: np.ndarray, iou_threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pair boxes one to one: as many pairs as possible, and of those the ones that overlap most.

    Args:
        one: (n, 4) float, xyxy in pixels.
        two: (m, 4), likewise.
        iou_threshold: least IoU of a pair, in 0..1.

    Returns:
        (k,) int rows of ``one``, (k,) int rows of ``two``, (k,) float their IoU.
    """
    from scipy.optimize import linear_sum_assignment

    iou = np.zeros((len(one), len(two)))
    of_one, of_two, shared = overlaps(_one_group(one), _one_group(two))
    iou[of_one, of_two] = shared
    near = iou >= iou_threshold
    # One pair more outweighs any overlap: divided so, all overlaps together stay below 1.
    gain = near * (1 + iou / (1 + min(iou.shape)))
    rows, columns = linear_sum_assignment(gain, maximize=True)
    kept = near[rows, columns]
    rows, columns = rows[kept], columns[kept]
    return rows, columns, iou[rows, columns]


def pair_up(one: pd.DataFrame, two: pd.DataFrame, iou_threshold: float = 0.5) -> pd.DataFrame:
    """Match boxes within each group as `match_boxes` does, over all groups at once.

    Args:
        one: ``group`` (an int, as the number of an image), ``x0_px, y0_px, x1_px, y1_px``; rows
            numbered from 0. two: likewise.
        iou_threshold: least IoU of a pair, in 0..1, above 0.

    Returns:
        One row a pair or a box without a partner: ``group, a, b`` (rows of ``one`` and ``two``; -1
        where there is none), ``iou`` (NaN for a box alone). Sorted by group, in it first the pairs,
        then what only ``one`` has, then what only ``two`` has.
    """
    near = overlapping(one, two, iou_threshold)
    # Most boxes overlap one other at most: only where one has a choice is there anything to solve.
    has_choice = near.duplicated("a", keep=False) | near.duplicated("b", keep=False)
    disputed = near["group"].isin(near.loc[has_choice, "group"])
    solved = [near[~disputed], *_solved(one, two, near.loc[disputed, "group"], iou_threshold)]
    pairs = pd.concat(solved).sort_values("a", kind="stable")
    alone = [
        pd.DataFrame({"group": side["group"], name: side.index})[~side.index.isin(pairs[name])]
        for side, name in ((one, "a"), (two, "b"))
    ]
    pieces = pd.concat([pairs, *alone], ignore_index=True).fillna({"a": -1, "b": -1})
    pieces = pieces.astype({"group": int, "a": int, "b": int, "iou": float})
    return pieces.sort_values("group", kind="stable", ignore_index=True)


def _solved(
    one: pd.DataFrame, two: pd.DataFrame, groups: pd.Series, iou_threshold: float
) -> Iterator[pd.DataFrame]:
    """The pairs of some groups, one by one."""
    sides = [side[side["group"].isin(groups)] for side in (one, two)]
    members = [dict(tuple(side.groupby("group"))) for side in sides]
    for group, a in members[0].items():
        b = members[1][group]
        in_a, in_b, iou = match_boxes(boxes_of(a), boxes_of(b), iou_threshold)
        yield pd.DataFrame({"group": group, "a": a.index[in_a], "b": b.index[in_b], "iou": iou})


def overlapping(one: pd.DataFrame, two: pd.DataFrame, iou_threshold: float) -> pd.DataFrame:
    """All pairs of boxes of one group that overlap so much, whether or not another box overlaps
    more: ``group, a, b, iou``; arguments as for `pair_up`."""
    a, b, iou = overlaps(*(BoxSet(side["group"].to_numpy(), boxes_of(side)) for side in (one, two)))
    pairs = pd.DataFrame({"group": one["group"].to_numpy()[a], "a": a, "b": b, "iou": iou})
    return pairs[iou >= iou_threshold].sort_values(["a", "b"], ignore_index=True)


def _one_group(boxes: np.ndarray) -> BoxSet:
    return BoxSet(np.zeros(len(boxes), dtype=int), boxes)
