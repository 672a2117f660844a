"""Boxes against ground truth.

**Matching** is COCO's, see `labeling_pipeline.evaluation.matching`.

**What counts** is the image-label pairs that were asked, on both sides. A true dog is no miss if
nobody asked for dogs on that image.

**F1** is ``2 TP / (2 TP + FP + FN)``, micro-averaged over the pairs, at one operating point: so
generative detectors are compared (Rex-Omni reports F1 at IoU 0.5, 0.95 and the mean over
0.5:0.05:0.95), since without a ranking there is no average precision. A ratio whose denominator is
zero does not exist: ``None`` in values, NaN in tables.

**Intervals** of F1 are bootstrapped over images, see `labeling_pipeline.evaluation.intervals`; that
of a share of pairs is Wilson's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.detection_errors import ErrorKind, find_errors
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.intervals import (
    Interval,
    bootstrap_intervals,
    share_interval,
    wilson_interval,
)
from labeling_pipeline.evaluation.matching import Matching, MatchingAt, box_areas, match_rows
from labeling_pipeline.evaluation.tables import (
    PAIR,
    areas_of,
    boxes_of,
    crowd_of,
    pairs_of,
    rows_of,
    scores_of,
)

IOU_THRESHOLDS: tuple[float, ...] = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""0.5:0.05:0.95, COCO's."""

SIZES_PX2: Mapping[str, float] = {"small": 32**2, "medium": 96**2, "large": math.inf}
"""Size of an object -> the area below which its own lies, COCO's."""

_KEPT = ("annotation_id", "model_key", *BOX_COLUMNS)


def ratio(numerator: float, denominator: float) -> float | None:
    """Divide, or return ``None`` where the quotient does not exist."""
    return numerator / denominator if denominator else None


@dataclass(frozen=True)
class Counts:
    """True positives, false positives, false negatives, and the ratios made of them."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    @property
    def support(self) -> int:
        """How many there are to find."""
        return self.tp + self.fn

    @property
    def predicted(self) -> int:
        """How many were predicted (and judged)."""
        return self.tp + self.fp

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP); ``None`` if nothing was predicted."""
        return ratio(self.tp, self.predicted)

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN); ``None`` if there was nothing to find."""
        return ratio(self.tp, self.support)

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN); ``None`` if nothing was to find and nothing was predicted."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


@dataclass(frozen=True)
class DetectionEvaluation:
    """How well boxes were found.

    iou_threshold: the one that all but ``by_threshold`` and the means are about.
    overall: micro counts over all labels.
    by_threshold: IoU threshold -> micro counts, for 0.5:0.05:0.95.
    mean_f1: mean of F1 over 0.5:0.05:0.95; ``None`` if there is no F1.
    f1_interval, mean_f1_interval: of ``overall.f1`` and ``mean_f1``.
    per_label: one row a label, sorted: ``label, asked`` (images), ``support, predicted, tp, fp, fn,
        precision, recall, f1, f1_low, f1_high`` (its interval), ``f1_75, f1_95, mean_f1,
        duplicates, absent`` (asked images that do not show it), ``absent_with_boxes`` (those of
        them that got a box all the same), ``boxes_on_absent``.
    per_size: one row a size, see ``SIZES_PX2``: ``size, support, predicted, tp, fp, fn, precision,
        recall, f1``. A true object and the prediction that found it have the true one's size
        (``area`` of the truth, else of its box), a false box its own.
    matches: one row a judged prediction: ``image_id, label, score, iou, correct``, and
        its box, and ``annotation_id, model_key`` where the predictions have them; ``iou`` with the
        true box it was matched to, else with the nearest of its label, 0 if there is none.
    errors: one row a false box or a missed object, see `find_errors`.
    judged_images: every image with an asked pair, sorted.
    not_asked: true boxes on judged images that do not count because their pair was not asked.
    ignored: predictions that lie in a crowd region and count neither way.
    """

    iou_threshold: float
    overall: Counts
    by_threshold: dict[float, Counts]
    mean_f1: float | None
    f1_interval: Interval | None
    mean_f1_interval: Interval | None
    per_label: pd.DataFrame
    per_size: pd.DataFrame
    matches: pd.DataFrame
    errors: pd.DataFrame
    judged_images: tuple[str, ...]
    not_asked: int
    ignored: int

    @property
    def absent(self) -> int:
        """Asked image-label pairs that the truth says are not there."""
        return int(self.per_label["absent"].sum())

    @property
    def absent_with_boxes(self) -> int:
        """Those of them that got a box all the same: hallucinations."""
        return int(self.per_label["absent_with_boxes"].sum())

    @property
    def absent_interval(self) -> Interval | None:
        """Of the share of absent pairs that got a box."""
        return wilson_interval(self.absent_with_boxes, self.absent)

    @property
    def boxes_on_absent(self) -> int:
        """Boxes on asked-but-absent labels."""
        return int(self.per_label["boxes_on_absent"].sum())

    @property
    def duplicates(self) -> int:
        """False boxes on an object that another box has already found."""
        return int(self.per_label["duplicates"].sum())


def evaluate_detection(
    predictions: pd.DataFrame,
    truths: pd.DataFrame,
    asked: pd.DataFrame,
    iou_threshold: float = 0.5,
) -> DetectionEvaluation:
    """Judge boxes against true boxes.

    Args:
        predictions: ``image_id, label, score`` (NaN or ``None`` where there is none), ``x0_px,
            y0_px, x1_px, y1_px``.
        truths: ``image_id, label, x0_px, y0_px, x1_px, y1_px`` and, optionally, ``iscrowd`` and
            ``area`` (square pixels, NaN: that of the box).
        asked: ``image_id, label``, every pair that was asked and that the truth covers.
        iou_threshold: least IoU of a right box, above 0 and at most 1.
    """
    pairs = pairs_of(asked)
    found, found_pairs = rows_of(predictions, pairs)
    true, true_pairs = rows_of(truths, pairs)
    crowd = crowd_of(true)
    thresholds = sorted({*IOU_THRESHOLDS, iou_threshold})
    matching = match_rows(found, found_pairs, true, true_pairs, thresholds)
    at = thresholds.index(iou_threshold)
    means = [thresholds.index(threshold) for threshold in IOU_THRESHOLDS]
    tally = _Tally.of(pairs, found_pairs, true_pairs, crowd, matching)
    f1, mean_f1, *by_label = tally.f1_intervals(at, means)
    now = matching.at(at)
    errors = find_errors(found, true, now, iou_threshold, truths)
    return DetectionEvaluation(
        iou_threshold=iou_threshold,
        overall=tally.overall[at],
        by_threshold={thresholds[row]: tally.overall[row] for row in means},
        mean_f1=_mean_f1([tally.overall[row] for row in means]),
        f1_interval=f1,
        mean_f1_interval=mean_f1,
        per_label=_per_label(tally, thresholds, at, means, by_label, errors),
        per_size=_per_size(found, true, crowd, now),
        matches=_matches(found, now),
        errors=errors,
        judged_images=tuple(tally.images),
        not_asked=int(truths["image_id"].isin(tally.images).sum()) - len(true),
        ignored=int(now.ignored.sum()),
    )


def judge_boxes(
    predictions: pd.DataFrame,
    truths: pd.DataFrame,
    asked: pd.DataFrame,
    iou_threshold: float = 0.5,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Which boxes are right, and nothing more: arguments as of `evaluate_detection`.

    Returns:
        ``DetectionEvaluation.matches``, and label -> its support, of every asked label.
    """
    pairs = pairs_of(asked)
    found, found_pairs = rows_of(predictions, pairs)
    true, true_pairs = rows_of(truths, pairs)
    matching = match_rows(found, found_pairs, true, true_pairs, [iou_threshold])
    support = true.loc[~crowd_of(true), "label"].value_counts()
    labels = sorted(set(pairs["label"]))
    return _matches(found, matching.at(0)), {one: int(support.get(one, 0)) for one in labels}


@dataclass(frozen=True)
class _Tally:
    """Counts of p asked pairs at t thresholds.

    labels: L names, sorted. images: sorted. label_of, image_of: (p,) int, positions in them.
    boxes: (p,) int, predictions. absent: (p,) bool, the truth says that it is not there.
    tp, fp, fn: (t, p) int32.
    """

    labels: list[str]
    images: list[str]
    label_of: np.ndarray
    image_of: np.ndarray
    boxes: np.ndarray
    absent: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    @classmethod
    def of(
        cls,
        pairs: pd.DataFrame,
        found: np.ndarray,
        true: np.ndarray,
        crowd: np.ndarray,
        matching: Matching,
    ) -> "_Tally":
        """found, true: the pair of each prediction and of each true box."""
        label_of, labels = pd.factorize(pairs["label"], sort=True)
        image_of, images = pd.factorize(pairs["image_id"], sort=True)

        def count(rows: np.ndarray) -> np.ndarray:
            return np.bincount(rows, minlength=len(pairs)).astype(np.int32)

        tp = np.stack([count(found[took]) for took in matching.taken >= 0])
        judged = np.stack([count(found[~inside]) for inside in matching.ignored])
        return cls(
            labels=list(labels),
            images=list(images),
            label_of=label_of,
            image_of=image_of,
            boxes=count(found),
            absent=count(true) == 0,
            tp=tp,
            fp=judged - tp,
            fn=count(true[~crowd]) - tp,
        )

    @property
    def overall(self) -> list[Counts]:
        """Over all pairs, at each threshold."""
        sums = (values.sum(axis=1).tolist() for values in (self.tp, self.fp, self.fn))
        return [Counts(*counts) for counts in zip(*sums, strict=True)]

    def by_label(self, values: np.ndarray) -> np.ndarray:
        """Sums of (p,) values of the pairs: (L,) int64."""
        sums = np.bincount(self.label_of, weights=values, minlength=len(self.labels))
        return sums.astype(np.int64)

    def f1_intervals(self, at: int, means: Sequence[int]) -> list[Interval | None]:
        """Of F1 at one threshold, of the mean over some, and of each label's F1 at the one."""
        from scipy.sparse import csr_array, vstack

        def per_image(values: np.ndarray, row_of: np.ndarray, rows: int) -> csr_array:
            which = np.flatnonzero(values)
            places = (row_of[which], self.image_of[which])
            return csr_array((values[which], places), shape=(rows, len(self.images)), dtype=float)

        def table(values: np.ndarray) -> csr_array:
            together = np.zeros(values.shape[1], dtype=np.int64)
            rows = [per_image(row, together, 1) for row in values]
            return vstack([*rows, per_image(values[at], self.label_of, len(self.labels))]).tocsr()

        hits, boxes = table(2 * self.tp), table(2 * self.tp + self.fp + self.fn)
        count = len(self.tp)

        def statistics(weights: np.ndarray) -> list[float]:
            f1 = _ratios(hits @ weights, boxes @ weights)
            chosen = f1[means]
            known = chosen[~np.isnan(chosen)]
            mean = known.mean() if len(known) else math.nan
            return [f1[at], mean, *f1[count:]]

        intervals = bootstrap_intervals(statistics, len(self.images))
        # Images that show nothing, and where nothing was found, are no trials.
        units = np.diff(boxes.indptr)[[at, at, *range(count, count + len(self.labels))]]
        return [share_interval(one, int(n)) for one, n in zip(intervals, units, strict=True)]


def _ratios(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotients; NaN where there is none."""
    nothing = np.full(np.shape(numerator), math.nan)
    return np.divide(numerator, denominator, out=nothing, where=np.asarray(denominator) > 0)


def _matches(found: pd.DataFrame, matching: MatchingAt) -> pd.DataFrame:
    kept = [name for name in _KEPT if name in found]
    judged = found[[*PAIR, *kept]].assign(
        score=scores_of(found), iou=matching.iou, correct=matching.taken >= 0
    )
    return judged[~matching.ignored].reset_index(drop=True)


def _mean_f1(counts: Sequence[Counts]) -> float | None:
    known = [f1 for one in counts if (f1 := one.f1) is not None]
    return sum(known) / len(known) if known else None


def _scores(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of a table of counts, one row each."""
    return {
        "support": tp + fn,
        "predicted": tp + fp,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "precision": _ratios(tp, tp + fp),
        "recall": _ratios(tp, tp + fn),
        "f1": _ratios(2 * tp, 2 * tp + fp + fn),
    }


def _per_label(
    tally: _Tally,
    thresholds: Sequence[float],
    at: int,
    means: Sequence[int],
    intervals: Sequence[Interval | None],
    errors: pd.DataFrame,
) -> pd.DataFrame:
    tp, fp, fn = (
        np.stack([tally.by_label(row) for row in values])
        for values in (tally.tp, tally.fp, tally.fn)
    )
    f1 = pd.DataFrame(_ratios(2 * tp, 2 * tp + fp + fn))
    duplicates = errors.loc[errors["kind"] == ErrorKind.DUPLICATE, "label"].value_counts()
    return pd.DataFrame(
        {
            "label": tally.labels,
            "asked": tally.by_label(np.ones(len(tally.boxes))),
            **_scores(tp[at], fp[at], fn[at]),
            "f1_low": [math.nan if one is None else one.low for one in intervals],
            "f1_high": [math.nan if one is None else one.high for one in intervals],
            "f1_75": f1.loc[thresholds.index(0.75)],
            "f1_95": f1.loc[thresholds.index(0.95)],
            "mean_f1": f1.loc[means].mean(),
            "duplicates": duplicates.reindex(tally.labels, fill_value=0).to_numpy(dtype=int),
            "absent": tally.by_label(tally.absent),
            "absent_with_boxes": tally.by_label(tally.absent & (tally.boxes > 0)),
            "boxes_on_absent": tally.by_label(tally.absent * tally.boxes),
        }
    )


def _per_size(
    found: pd.DataFrame, true: pd.DataFrame, crowd: np.ndarray, now: MatchingAt
) -> pd.DataFrame:
    limits = list(SIZES_PX2.values())[:-1]

    def count(areas: np.ndarray) -> np.ndarray:
        return np.bincount(np.searchsorted(limits, areas, side="right"), minlength=len(SIZES_PX2))

    areas = areas_of(true)
    hit = now.taken >= 0
    tp = count(areas[now.taken[hit]])
    fp = count(box_areas(boxes_of(found))[~hit & ~now.ignored])
    fn = count(areas[~crowd]) - tp
    return pd.DataFrame({"size": list(SIZES_PX2), **_scores(tp, fp, fn)})
