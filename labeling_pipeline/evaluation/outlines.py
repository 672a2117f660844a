"""Outlines against ground truth: how well those follow the object whose box they found.

Right or wrong is decided by the boxes around them, as for any other task
(`labeling_pipeline.evaluation.detection`); of the right ones the overlap of the areas is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.matching import match_rows
from labeling_pipeline.evaluation.tables import pairs_of, rows_of


@dataclass(frozen=True)
class OutlineEvaluation:
    """How well outlines fit.

    mask_iou: mean intersection over union of the areas; ``None`` if nothing could be compared.
    compared: outlines that found an object whose outline is known.
    """

    mask_iou: float | None
    compared: int


def evaluate_outlines(
    predictions: pd.DataFrame,
    truths: pd.DataFrame,
    asked: pd.DataFrame,
    iou_threshold: float = 0.5,
) -> OutlineEvaluation:
    """Compare outlines with those of the objects that they found.

    Args:
        predictions: as `evaluate_detection` takes them, and ``polygon``, a sequence of mappings
            with ``x_px, y_px``, or missing.
        truths: likewise, and ``segmentation`` as in `GroundTruth.boxes`.
        asked: ``image_id, label``.
        iou_threshold: least IoU of the boxes of a matched pair, above 0 and at most 1.
    """
    pairs = pairs_of(asked)
    found, found_pairs = rows_of(predictions, pairs)
    true, true_pairs = rows_of(truths, pairs)
    taken = match_rows(found, found_pairs, true, true_pairs, [iou_threshold]).at(0).taken
    row = np.flatnonzero(taken >= 0)
    both = zip(
        found["polygon"].to_numpy(dtype=object)[row],
        true["segmentation"].to_numpy(dtype=object)[taken[row]],
        strict=True,
    )
    overlaps = [
        mask_iou([[v for corner in polygon for v in (corner["x_px"], corner["y_px"])]], known)
        for polygon, known in both
        if isinstance(known, list | Mapping) and isinstance(polygon, Sequence | np.ndarray)
    ]
    return OutlineEvaluation(float(np.mean(overlaps)) if overlaps else None, len(overlaps))


def mask_iou(one: Any, other: Any) -> float:
    """Intersection over union of two areas, 0..1.

    one, other: COCO's ``segmentation``: outlines ``[[x, y, x, y, ...], ...]`` in pixels, or a
    run-length encoding.
    """
    from faster_coco_eval.core import mask

    size = _canvas(one, other)
    return float(mask.iou([_encoded(one, *size)], [_encoded(other, *size)], [0])[0][0])


def _canvas(*areas: Any) -> tuple[int, int]:
    """(height, width) that hold all of them; that of an encoding is given."""
    encoded = [area["size"] for area in areas if isinstance(area, Mapping)]
    if encoded:
        return int(encoded[0][0]), int(encoded[0][1])
    outlines = [outline for area in areas for outline in area]
    return (
        int(max(max(outline[1::2]) for outline in outlines)) + 1,
        int(max(max(outline[0::2]) for outline in outlines)) + 1,
    )


def _encoded(area: Any, height: int, width: int) -> Any:
    from faster_coco_eval.core import mask

    if not isinstance(area, Mapping):
        return mask.merge(mask.frPyObjects(area, height, width))
    if isinstance(area["counts"], list):
        return mask.frPyObjects(dict(area), height, width)
    return dict(area)
