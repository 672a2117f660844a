"""How far two entries agree, without ground truth: what one model found against what another did.

**Matching** is one to one and knows no reference side, see `labeling_pipeline.evaluation.matching`.

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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labeling_pipeline.annotations import State
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.pairing import pair_up

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
        a_annotation_id, a_x0_px, a_y0_px, a_x1_px, a_y1_px, b_annotation_id, ...``; what a side
        has not is NaN.
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


def compare_entries(
    asked: pd.DataFrame, boxes: pd.DataFrame, iou_threshold: float = 0.5
) -> Agreement:
    """Compare the boxes of pairs of entries, class by class and image by image.

    Args:
        asked: one row a pair of entries, class and image that both are to label: ``path, class,
            entry_a, entry_b, image_id, state_a, state_b``; a state that is missing was not
            asked yet.
        boxes: ``entry, class, image_id, annotation_id, x0_px, y0_px, x1_px, y1_px``; those of
            images that are not compared are ignored.
        iou_threshold: least IoU of two boxes that are one, in 0..1.
    """
    reasons = why_not_compared(
        [asked[f"entry_{side}"] for side in SIDES], [asked[f"state_{side}"] for side in SIDES]
    )
    images = asked.loc[reasons.isna(), _IMAGE].reset_index(drop=True)
    found = {side: _found(images, boxes, side) for side in SIDES}
    pairs = pair_up(found["a"], found["b"], iou_threshold)
    pieces = images.loc[pairs["group"]].assign(found_by=BOTH, iou=pairs["iou"].to_numpy())
    for side, other in (SIDES, SIDES[::-1]):
        of_side = found[side].reindex(pairs[side])
        pieces[f"{side}_annotation_id"] = of_side["annotation_id"].to_numpy()
        pieces[SIDE_COLUMNS[side]] = of_side[BOX_COLUMNS].to_numpy()
        pieces["found_by"] = pieces["found_by"].mask(
            pairs[other].lt(0).to_numpy(), pieces[f"entry_{side}"]
        )

    counts = [
        np.bincount(of_which["group"], minlength=len(images))
        for of_which in (found["a"], found["b"], pairs[pairs["iou"].notna()])
    ]
    both = counts[0] + counts[1]
    per_image = images.assign(
        agreement=np.divide(2 * counts[2], both, out=np.ones(len(images)), where=both > 0),
        **dict(zip(_COUNTS, counts, strict=True)),
        mean_iou=pieces["iou"].groupby(level=0).mean().reindex(images.index),
    )
    per_image = _worst_first(per_image)
    return Agreement(
        iou_threshold=iou_threshold,
        per_class=_per_class(asked, per_image, pieces),
        per_image=per_image,
        boxes=per_image[_IMAGE].merge(pieces, on=_IMAGE, how="inner"),
        not_compared=(
            asked.assign(reason=reasons)
            .groupby(["class", *_PAIR, "reason"], sort=False)
            .size()
            .reset_index(name="images")
        ),
    )


def _found(images: pd.DataFrame, boxes: pd.DataFrame, side: str) -> pd.DataFrame:
    """The boxes of one entry of each pair, with ``group``: the row of ``images`` they belong to."""
    keys = ["entry", "class", "image_id"]
    wanted = images[[f"entry_{side}", "class", "image_id"]].set_axis(keys, axis=1)
    return wanted.assign(group=images.index).merge(
        boxes[[*keys, "annotation_id", *BOX_COLUMNS]], on=keys
    )


def why_not_compared(names: Sequence[pd.Series | str], states: Sequence[pd.Series]) -> pd.Series:
    """Why two answers are not compared, row by row; NaN where they are.

    Args:
        names: what each side is called.
        states: of each side; one that is missing was not asked.
    """
    first, second = (
        (name + ": " + state.fillna(NOT_ASKED).astype(str)).mask(state.isin(ANSWERED))
        for name, state in zip(names, states, strict=True)
    )
    return (first + "; " + second).fillna(first).fillna(second)


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
