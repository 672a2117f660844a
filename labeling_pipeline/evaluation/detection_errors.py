"""What is wrong with boxes, one by one.

The kinds are those of Bolya et al., "TIDE: a general toolbox for identifying object detection
errors" (2020), as far as boxes of one label tell them apart; that a false box lies on an object of
another label is said beside its kind.
"""

from enum import StrEnum

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.matching import BoxSet, MatchingAt, overlaps
from labeling_pipeline.evaluation.tables import PAIR, boxes_of, crowd_of, scores_of

NEARBY_IOU = 0.1
"""A false box that overlaps an object of its label so much is a misplaced one."""


class ErrorKind(StrEnum):
    """What is wrong with a box.

    FALSE_ON_ABSENT: a box of a label that the image does not show. DUPLICATE: on an object that
    another box has found. MISPLACED: near an object, too far for the threshold. WRONG: any other
    false box. MISSED: an object that no box has found.
    """

    FALSE_ON_ABSENT = "false_on_absent"
    WRONG = "wrong"
    DUPLICATE = "duplicate"
    MISPLACED = "misplaced"
    MISSED = "missed"


ERROR_COLUMNS = ["image_id", "label", "kind", "score", "iou", *BOX_COLUMNS, "true_label"]


def find_errors(
    found: pd.DataFrame,
    true: pd.DataFrame,
    matching: MatchingAt,
    iou_threshold: float,
    known: pd.DataFrame,
) -> pd.DataFrame:
    """List the false boxes and the missed objects.

    Args:
        found: predictions, ``image_id, label, score`` and the box columns.
        true: true boxes of the same asked pairs.
        matching: of the two.
        iou_threshold: that of the matching.
        known: all true boxes, also of labels that were not asked.

    Returns:
        One row an error: ``image_id, label, kind`` (`ErrorKind`), ``score`` (NaN: none), ``iou``
        with the nearest object of the label (of a missed one: the nearest box), the false box or
        the missed object ``x0_px, y0_px, x1_px, y1_px``, and ``true_label``: of the object of
        another label on which a false box lies, missing if it lies on none.
    """
    pairs = pd.MultiIndex.from_frame(true[PAIR])
    is_false = (matching.taken < 0) & ~matching.ignored
    false = found[is_false]
    iou = matching.iou[is_false]
    is_absent = ~pd.MultiIndex.from_frame(false[PAIR]).isin(pairs)
    kinds = np.select(
        [is_absent, iou >= iou_threshold, iou >= NEARBY_IOU],
        [ErrorKind.FALSE_ON_ABSENT, ErrorKind.DUPLICATE, ErrorKind.MISPLACED],
        ErrorKind.WRONG,
    )
    missed = ~crowd_of(true)
    missed[matching.taken[matching.taken >= 0]] = False
    unfound = true[missed].assign(score=np.nan, iou=matching.true_iou[missed])
    errors = pd.concat(
        [
            false.assign(kind=kinds, iou=iou, score=scores_of(false)),
            unfound.assign(kind=ErrorKind.MISSED.value),
        ]
    )
    beneath = _other_labels(false, known, iou_threshold)
    errors["true_label"] = np.concatenate([beneath, np.full(len(unfound), None)])
    return errors[ERROR_COLUMNS].sort_values(
        ["image_id", "label", "kind", *BOX_COLUMNS], kind="stable", ignore_index=True
    )


def worst_first(errors: pd.DataFrame) -> pd.DataFrame:
    """The errors of the images with most of them first. errors: also with ``path``."""
    counts = errors.groupby("path")["path"].transform("size")
    return (
        errors.assign(count=counts)
        .sort_values(["count", "path"], ascending=[False, True], kind="stable", ignore_index=True)
        .drop(columns="count")
    )


def _other_labels(false: pd.DataFrame, known: pd.DataFrame, iou_threshold: float) -> np.ndarray:
    """(n,) object: the label of the object of another label on which each false box lies."""
    images = pd.Index(false["image_id"].unique())
    objects = known[known["image_id"].isin(images)]
    row, other, iou = overlaps(_by_image(false, images), _by_image(objects, images))
    labels, of_objects = false["label"].to_numpy(), objects["label"].to_numpy()
    lies_on = (iou >= iou_threshold) & (labels[row] != of_objects[other])
    row, other, iou = row[lies_on], other[lies_on], iou[lies_on]
    rising = np.argsort(iou, kind="stable")
    names = np.full(len(false), None, dtype=object)
    names[row[rising]] = of_objects[other[rising]]
    return names


def _by_image(rows: pd.DataFrame, images: pd.Index) -> BoxSet:
    return BoxSet(images.get_indexer(rows["image_id"]), boxes_of(rows))
