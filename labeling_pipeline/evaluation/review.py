"""Which images a person should look at first: those where the most errors are to be expected.

An error is a box (or text, point, outline) that is wrong, or a thing that has none. Every *item*
of an image, which is an annotation, a thing that only another model found, or the answer about a
label, is doubted for *reasons*. Each reason alone gives a probability that the item is wrong:

=================  ===================================================================
low score          1 - p, where p is the calibrated score. What an uncalibrated score s is
                   worth is not known, only which annotations the model was surer of:
                   then it is min(1 - s, (1 - r) ** 9), where r is the share of the
                   entry's annotations that score lower (ties count half). The second
                   assumes that one in ten is wrong, the lowest most likely; the first
                   takes no score for less than it says
presence           the probability of the opposite: the presence of a label that was not
                   found, 1 - presence of one that was
not mentioned      0.2: the answer passed over the label
no sound answer    1: failed, cut, garbled or in circles
twice              0.5: it overlaps another box of the label by half or more, and is not
                   the surer of the two; one of them is one too many
one model only     0.5, where two entries ask the same label and only one found the box:
                   it is wrong, or the other missed it, so each answer is doubted by half
new, lost          0.5, where another model answered before and only one of the two
                   found the box: either may be right
=================  ===================================================================

An item that is doubted for several reasons is wrong with probability ``1 - prod(1 - doubt)``, as if
they were independent. The expected errors of an image are the sum over its items. The order is what
counts; the amounts are as good as the scores are calibrated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

import numpy as np
import pandas as pd

from labeling_pipeline.annotations import State
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.pairing import overlapping

SAME_THING_IOU = 0.5
"""Boxes of one label that overlap so much are one thing twice."""

EITHER = 0.5
"""How likely each of two is wrong of which one must be."""

PASSED_OVER = 0.2
"""How likely a label that the answer does not mention is there all the same: on crowded scenes the
tiny Rex-Omni passed over 25 labels of 1,000, of which 5 were there."""

WORTH_A_LOOK = 0.5
"""Images with so many expected errors or more count as to be reviewed."""

NAMED_FROM = 0.05
"""Doubts that are at least so large are named."""

NOTHING_STANDS_OUT = "nothing stands out"

# The mean of (1 - r) ** 9 over r in 0..1 is one in ten.
_EXPONENT = 9
_MOST_NAMED = 3
_UNSOUND = (State.TRUNCATED, State.UNPARSED, State.DEGENERATE, State.FAILED)


class Reason(StrEnum):
    """Why an item is doubted."""

    LOW_SCORE = "low score"
    PRESENCE = "unsure whether it is there"
    NOT_MENTIONED = "not mentioned"
    UNSOUND = "no sound answer"
    TWICE = "twice"
    ONE_MODEL = "one model only"
    NEW = "new"
    LOST = "lost"


PAIR = ["image_id", "entry", "label"]
DOUBT_COLUMNS = [*PAIR, "item", "reason", "doubt", "detail", *BOX_COLUMNS]
"""One row an item and reason. item: an annotation id, or what tells items of a pair apart that are
no annotation. detail: what is said of it. The box is NaN where there is none."""


@dataclass(frozen=True)
class ReviewQueue:
    """Images in the order in which they should be looked at.

    images: one row an image with any doubt that nobody has settled: ``rank`` (from 1), ``image_id,
        expected_errors, reasons`` (in words, the weightiest first), ``entries``, ``labels`` (those
        that are named).
    doubts: what the expected errors are made of: ``DOUBT_COLUMNS``, in the order of images.
    total: images that were looked through.
    settled: images of those whose doubts people have settled, all of them.
    """

    images: pd.DataFrame
    doubts: pd.DataFrame
    total: int
    settled: int

    @property
    def worth_a_look(self) -> int:
        """Images with at least ``WORTH_A_LOOK`` expected errors."""
        return int((self.images["expected_errors"] >= WORTH_A_LOOK).sum())

    @property
    def expected_errors(self) -> float:
        """Of all images in the queue."""
        return float(self.images["expected_errors"].sum())


def doubts_of_scores(annotations: pd.DataFrame) -> pd.DataFrame:
    """Doubts in annotations by their scores; those without a score are not doubted.

    annotations: ``image_id, entry, label, annotation_id, score, is_calibrated`` and the box.
    """
    scored = annotations[annotations["score"].notna()]
    score = scored["score"].astype(float)
    calibrated = scored["is_calibrated"].astype(bool)
    by_entry = score.where(~calibrated).groupby(scored["entry"])
    below = (by_entry.rank() - 0.5) / by_entry.transform("count")
    doubt = np.minimum((1 - below) ** _EXPONENT, 1 - score)
    return _doubts(
        scored,
        item=scored["annotation_id"],
        reason=Reason.LOW_SCORE,
        doubt=doubt.where(~calibrated, 1 - score),
        detail=scored["label"] + score.map(" {:.2f}".format).astype(str),
    )


def doubts_of_answers(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Doubts in the answers about labels.

    outcomes: ``image_id, entry, label, state, presence`` (NaN where it is not known).
    """
    state = outcomes["state"]
    presence = outcomes["presence"].astype(float)
    found = state == State.FOUND
    unsure = outcomes[(found | (state == State.ABSENT)) & presence.notna()]
    is_found, there = found.loc[unsure.index], presence.loc[unsure.index]
    passed_over = outcomes[state == State.NOT_MENTIONED]
    unsound = outcomes[state.isin(_UNSOUND)]
    said = is_found.map({True: " (found", False: " (not found"}).astype(str)
    parts = [
        (
            unsure,
            Reason.PRESENCE,
            (1 - there).where(is_found, there),
            said + there.map(", presence {:.2f})".format).astype(str),
        ),
        (passed_over, Reason.NOT_MENTIONED, PASSED_OVER, ""),
        (unsound, Reason.UNSOUND, 1.0, " (" + unsound["state"].astype(str) + ")"),
    ]
    return pd.concat(
        [
            _doubts(rows, item="", reason=reason, doubt=doubt, detail=rows["label"] + detail)
            for rows, reason, doubt, detail in parts
        ],
        ignore_index=True,
    )


def doubts_of_twins(annotations: pd.DataFrame) -> pd.DataFrame:
    """Doubts in boxes that overlap a surer one of their label.

    annotations: as for `doubts_of_scores`; equal scores: the first one counts as surer.
    """
    boxes = annotations.dropna(subset=BOX_COLUMNS).reset_index(drop=True)
    boxes = boxes.assign(group=boxes.groupby(PAIR).ngroup())
    crowded = boxes[boxes["group"].duplicated(keep=False)].reset_index(drop=True)
    twins = overlapping(crowded, crowded, SAME_THING_IOU)
    score = crowded["score"].astype(float).fillna(-1.0).to_numpy()
    a, b = twins["a"].to_numpy(), twins["b"].to_numpy()
    is_second = (score[b] < score[a]) | ((score[b] == score[a]) & (a < b))
    seconds = crowded.loc[np.unique(b[is_second])]
    return _doubts(
        seconds,
        item=seconds["annotation_id"],
        reason=Reason.TWICE,
        doubt=EITHER,
        detail=seconds["label"],
    )


def doubts_of_boxes(boxes: pd.DataFrame, reason: Reason) -> pd.DataFrame:
    """Doubts in boxes that only one of two answers has.

    boxes: ``image_id, entry`` (whose answer is doubted), ``label, item, detail`` and the box.
    """
    return _doubts(boxes, item=boxes["item"], reason=reason, doubt=EITHER, detail=boxes["detail"])


def _doubts(
    rows: pd.DataFrame,
    *,
    item: pd.Series | str,
    reason: Reason,
    doubt: pd.Series | float,
    detail: pd.Series | str,
) -> pd.DataFrame:
    table = rows[PAIR].assign(item=item, reason=reason.value, doubt=doubt, detail=detail)
    table[BOX_COLUMNS] = rows[BOX_COLUMNS] if set(BOX_COLUMNS) <= set(rows) else np.nan
    return table[DOUBT_COLUMNS]


def rank_images(doubts: pd.DataFrame, is_settled: np.ndarray, paths: pd.Series) -> ReviewQueue:
    """Put the images in order: the most expected errors first, equal ones by path.

    Args:
        doubts: ``DOUBT_COLUMNS``, of all images.
        is_settled: (n,) bool, which of them a person has settled.
        paths: image id -> path, of all images that were looked through.
    """
    left = doubts[~is_settled & (doubts["doubt"].to_numpy() > 0)]
    wrong = 1 - (1 - left["doubt"]).groupby([left[c] for c in (*PAIR, "item")]).prod()
    expected = wrong.groupby(level="image_id").sum().rename("expected_errors").reset_index()
    order = (
        expected.assign(path=expected["image_id"].map(paths))
        .sort_values(["expected_errors", "path"], ascending=[False, True], ignore_index=True)
        .drop(columns="path")
    )
    position = pd.Series(order.index, index=order["image_id"])
    left = (
        left.assign(place=left["image_id"].map(position))
        .sort_values(["place", "doubt"], ascending=[True, False], kind="stable")
        .drop(columns="place")
        .reset_index(drop=True)
    )
    told = pd.DataFrame(_told(left), columns=["reasons", "entries", "labels"])
    images = pd.concat([order, told], axis=1)
    images.insert(0, "rank", images.index + 1)
    settled = set(doubts.loc[is_settled, "image_id"]) - set(images["image_id"])
    return ReviewQueue(images, left, len(paths), len(settled))


def _told(doubts: pd.DataFrame) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Of every image: the reasons in words, and the entries and labels that they are about.

    doubts: in the order of images, the weightiest first.
    """
    columns = ["image_id", "entry", "label", "reason", "doubt", "detail"]
    rows = zip(*(doubts[column].tolist() for column in columns), strict=True)
    told = []
    for _, of_image in groupby(rows, key=lambda row: row[0]):
        every = list(of_image)
        named = [row for row in every if row[4] >= NAMED_FROM]
        by_reason: dict[str, list[str]] = {}
        for _, _, _, reason, _, detail in named:
            by_reason.setdefault(reason, []).append(detail)
        words = "; ".join(f"{reason}: {_listed(all_)}" for reason, all_ in by_reason.items())
        entries, labels = (tuple(dict.fromkeys(row[i] for row in named)) for i in (1, 2))
        told.append((words or NOTHING_STANDS_OUT, entries, labels))
    return told


def _listed(details: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(details) - _MOST_NAMED} more" if len(details) > _MOST_NAMED else ""
    return ", ".join(details[:_MOST_NAMED]) + more
