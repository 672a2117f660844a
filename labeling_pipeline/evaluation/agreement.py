"""How far two entries agree, without ground truth: what one model found against what another did.

**Matching** is one to one and knows no reference side: as many pairs of boxes as possible whose
intersection over union (IoU) reaches the threshold, and among those the assignment that overlaps
most. Greedy matching by score, as against ground truth, would depend on which of the two is first.

**The score of an image** is F1 between the two sets of boxes, ``2 matched / (n_a + n_b)``: the same
from either side, and 1 where both found nothing. It is what Cohen's kappa tends to where, as with
boxes, nobody can count what both rightly left out (Hripcsak and Rothschild, "Agreement, the
F-measure, and reliability in information retrieval", 2005). Kappa of mere presence is not
computed: nearly every image of a class shows the class, and with such a prevalence kappa is low
however well two agree (Feinstein and Cicchetti, "High agreement but low kappa", 1990).

**What counts** is images that both answered soundly. A failed, cut or garbled answer says nothing
of what the model sees; it is counted with its reason and not compared.

Points are left out: how near is near enough depends on the size of the thing, which a point does
not tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labeling_pipeline.annotations import State
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.matching import box_ious

ANSWERED = (State.FOUND, State.ABSENT, State.NOT_MENTIONED)
"""States of a sound answer; in any other the boxes may be missing or only a part of them."""

NOT_ASKED = "not asked yet"
NO_PAIR = (
    "no two entries that yield boxes ask the same label of a class with different models: there is "
    "nothing to compare. Give an entry of the plan another `model`, or add an entry with one; "
    "LABELING_MODEL puts all entries on the same"
)
BOTH = "both"

SIDES = ("a", "b")
SIDE_COLUMNS = {side: [f"{side}_{column}" for column in BOX_COLUMNS] for side in SIDES}
"""Side -> its four box columns in ``Agreement.boxes``."""

_PAIR = ["entry_a", "entry_b"]
_IMAGE = ["path", "class", *_PAIR, "image_id"]
ASKED_COLUMNS = [*_IMAGE, "state_a", "state_b"]
"""What `compare_entries` reads of the table of what was asked."""

_COUNTS = ["boxes_a", "boxes_b", "matched"]


@dataclass(frozen=True)
class Agreement:
    """How far pairs of entries agree. A ratio that does not exist is NaN.

    iou_threshold: least IoU of two boxes that are one.
    per_class: one row a pair of entries and class, in the order asked: ``class, entry_a, entry_b,
        images`` (compared), ``agreement`` (mean score of the images), ``full_agreement`` (share of
        images with score 1), ``boxes_a, boxes_b, matched, mean_iou`` (of matched boxes),
        ``not_compared`` (images).
    per_image: one row a pair, class and image that was compared, those that most disagree first:
        ``path, class, entry_a, entry_b, image_id, agreement, boxes_a, boxes_b, matched,
        mean_iou``. Equal scores: the one with more unmatched boxes first.
    boxes: one row a matched pair of boxes or an unmatched box, in the same order: ``path,
        class, entry_a, entry_b, image_id, found_by`` (``both`` or the entry that is alone), ``iou,
        a_x0_px, a_y0_px, a_x1_px, a_y1_px, b_x0_px, ...``; the box of a side that has none is NaN.
    not_compared: one row a pair, class and reason: ``class, entry_a, entry_b, reason, images``.
    """

    iou_threshold: float
    per_class: pd.DataFrame
    per_image: pd.DataFrame
    boxes: pd.DataFrame
    not_compared: pd.DataFrame

    @property
    def disagreements(self) -> pd.DataFrame:
        """The rows of ``per_image`` that are not in full agreement, the worst first."""
        return self.per_image[self.per_image["agreement"] < 1]

    @property
    def mean(self) -> float:
        """Mean score of all compared images; NaN if there is none."""
        return float(self.per_image["agreement"].mean())


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

    iou = box_ious()(one, two)
    # The overlaps are float32: 0.95 as float64 would lie above an IoU of exactly 0.95.
    near = iou >= np.float32(iou_threshold)
    # One pair more outweighs any overlap: divided so, all overlaps together stay below 1.
    gain = near * (1 + iou / (1 + min(iou.shape)))
    rows, columns = linear_sum_assignment(gain, maximize=True)
    kept = near[rows, columns]
    rows, columns = rows[kept], columns[kept]
    return rows, columns, iou[rows, columns].astype(float)


def compare_entries(
    asked: pd.DataFrame, boxes: pd.DataFrame, iou_threshold: float = 0.5
) -> Agreement:
    """Compare the boxes of pairs of entries, class by class and image by image.

    Args:
        asked: one row a pair of entries, class and image that both are to label: ``path, class,
            entry_a, entry_b, image_id, state_a, state_b``; a state that is missing was not
            asked yet.
        boxes: ``entry, class, image_id, x0_px, y0_px, x1_px, y1_px``; those of images that are not
            compared are ignored.
        iou_threshold: least IoU of two boxes that are one, in 0..1.
    """
    reasons = _reasons(asked)
    coordinates = boxes[BOX_COLUMNS].to_numpy(dtype=float).reshape(-1, 4)
    rows_of = boxes.groupby(["entry", "class", "image_id"]).indices if len(boxes) else {}

    def found(entry: str, image: Mapping[str, Any]) -> np.ndarray:
        return coordinates[rows_of.get((entry, image["class"], image["image_id"]), [])]

    images: list[dict[str, Any]] = []
    pieces: list[dict[str, Any]] = []
    for image in asked.loc[reasons.isna(), _IMAGE].to_dict("records"):
        a, b = found(image["entry_a"], image), found(image["entry_b"], image)
        in_a, in_b, iou = match_boxes(a, b, iou_threshold)
        count = len(a) + len(b)
        images.append(
            {
                **image,
                "agreement": 2 * len(iou) / count if count else 1.0,
                **dict(zip(_COUNTS, (len(a), len(b), len(iou)), strict=True)),
                "mean_iou": iou.mean() if len(iou) else np.nan,
            }
        )
        alone_a, alone_b = np.delete(a, in_a, axis=0), np.delete(b, in_b, axis=0)
        pieces += [
            _piece(image, BOTH, iou=overlap, a=box_a, b=box_b)
            for box_a, box_b, overlap in zip(a[in_a], b[in_b], iou, strict=True)
        ]
        pieces += [_piece(image, image["entry_a"], a=box) for box in alone_a]
        pieces += [_piece(image, image["entry_b"], b=box) for box in alone_b]

    per_image = _worst_first(
        pd.DataFrame(images, columns=[*_IMAGE, "agreement", *_COUNTS, "mean_iou"])
    )
    columns = [*_IMAGE, "found_by", "iou", *SIDE_COLUMNS["a"], *SIDE_COLUMNS["b"]]
    table = pd.DataFrame(pieces, columns=columns)
    return Agreement(
        iou_threshold=iou_threshold,
        per_class=_per_class(asked, per_image, table),
        per_image=per_image,
        boxes=per_image[_IMAGE].merge(table, on=_IMAGE, how="inner"),
        not_compared=(
            asked.assign(reason=reasons)
            .groupby(["class", *_PAIR, "reason"], sort=False)
            .size()
            .reset_index(name="images")
        ),
    )


def _reasons(asked: pd.DataFrame) -> pd.Series:
    """Why an image is not compared, on either side; NaN where it is."""
    sides = []
    for side in SIDES:
        state = asked[f"state_{side}"]
        reason = asked[f"entry_{side}"] + ": " + state.fillna(NOT_ASKED).astype(str)
        sides.append(reason.mask(state.isin(ANSWERED)))
    first, second = sides
    return (first + "; " + second).fillna(first).fillna(second)


def _piece(
    image: Mapping[str, Any],
    found_by: str,
    *,
    iou: float = np.nan,
    a: np.ndarray | None = None,
    b: np.ndarray | None = None,
) -> dict[str, Any]:
    nothing = np.full(4, np.nan)
    return {
        **image,
        "found_by": found_by,
        "iou": iou,
        **dict(zip(SIDE_COLUMNS["a"], nothing if a is None else a, strict=True)),
        **dict(zip(SIDE_COLUMNS["b"], nothing if b is None else b, strict=True)),
    }


def _worst_first(per_image: pd.DataFrame) -> pd.DataFrame:
    unmatched = per_image["boxes_a"] + per_image["boxes_b"] - 2 * per_image["matched"]
    return (
        per_image.assign(unmatched=unmatched)
        .sort_values(
            ["agreement", "unmatched", "mean_iou", "path", "class", *_PAIR],
            ascending=[True, False, True, True, True, True, True],
            ignore_index=True,
        )
        .drop(columns="unmatched")
    )


def _per_class(asked: pd.DataFrame, per_image: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    by = ["class", *_PAIR]
    compared = (
        per_image.assign(full=per_image["agreement"] == 1)
        .groupby(by)
        .agg(
            images=("image_id", "size"),
            agreement=("agreement", "mean"),
            full_agreement=("full", "mean"),
            **{column: (column, "sum") for column in _COUNTS},
        )
    )
    overlap = boxes.groupby(by)["iou"].mean().rename("mean_iou")
    table = asked.groupby(by, sort=False).size().to_frame("all").join(compared).join(overlap)
    counts = ["images", *_COUNTS]
    table[counts] = table[counts].fillna(0).astype(int)
    table["not_compared"] = table.pop("all") - table["images"]
    return table.reset_index()
