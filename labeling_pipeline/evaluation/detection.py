"""Boxes and keypoints against ground truth.

**Matching** is COCO's (Lin et al. 2014, ``COCOeval.evaluateImg`` in pycocotools): within one image
and one label, predictions in descending order of score each take the free true box they overlap
most, if the intersection over union (IoU) reaches the threshold. An optimal assignment would at
times find a pair more in a crowd, but the numbers would no longer compare with published ones.
Generative detectors may give no score; then, and wherever scores are equal, the better overlap goes
first, so the result never depends on the order of the rows. A true region marked ``iscrowd`` is no
object to find: a prediction that found no object and lies in the region (intersection over its own
area reaches the threshold) counts neither as right nor as wrong.

**What counts** is the image-label pairs that were asked, on both sides. A true dog is no miss if
nobody asked for dogs on that image.

**F1** is ``2 TP / (2 TP + FP + FN)``, micro-averaged over the pairs, at one operating point: so
generative detectors are compared (Rex-Omni reports F1 at IoU 0.5, 0.95 and the mean over
0.5:0.05:0.95), since without a ranking there is no average precision. A ratio whose denominator is
zero does not exist: ``None`` in values, NaN in tables.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labeling_pipeline.annotations import Keypoint
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS

IOU_THRESHOLDS: tuple[float, ...] = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""0.5:0.05:0.95, COCO's."""


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

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


@dataclass(frozen=True)
class DetectionEvaluation:
    """How well boxes were found.

    iou_threshold: the one that ``overall``, ``per_label`` and ``matches`` are about.
    overall: micro counts over all labels.
    by_threshold: IoU threshold -> micro counts, for 0.5:0.05:0.95.
    mean_f1: mean of F1 over 0.5:0.05:0.95; ``None`` if there is no F1.
    per_label: one row a label, sorted: ``label, asked`` (images), ``support, predicted, tp, fp, fn,
        precision, recall, f1, f1_75, f1_95, mean_f1, absent`` (asked images that do not show it),
        ``absent_with_boxes`` (those of them that got a box all the same), ``boxes_on_absent``.
    matches: one row a judged prediction: ``image_id, label, score, iou, correct``; ``iou`` with the
        true box it was matched to, else with the nearest of its label, 0 if there is none.
    judged_images: every image with an asked pair, sorted.
    not_asked: true boxes that do not count because their pair was not asked.
    ignored: predictions that lie in a crowd region and count neither way.
    """

    iou_threshold: float
    overall: Counts
    by_threshold: dict[float, Counts]
    mean_f1: float | None
    per_label: pd.DataFrame
    matches: pd.DataFrame
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
    def boxes_on_absent(self) -> int:
        """Boxes on asked-but-absent labels."""
        return int(self.per_label["boxes_on_absent"].sum())


@dataclass(frozen=True)
class KeypointEvaluation:
    """How well keypoints were placed: PCK, the percentage of correct keypoints.

    A keypoint is correct if it lies within ``alpha`` times the larger side of the true person's box
    (Yang and Ramanan, "Articulated human detection with flexible mixtures of parts", 2013, who use
    ``alpha * max(height, width)``). The larger side rather than the diagonal: it is the published
    definition, so numbers compare, and the stricter of the two.

    pck: over the labelled keypoints of matched persons; a keypoint the model called invisible is
        wrong. ``None`` if there is none to judge.
    persons, matched: true persons with keypoints on asked images, and those of them that a
        predicted person was matched to.
    labelled, correct: keypoints of the matched persons.
    per_keypoint: one row a keypoint: ``name, labelled, placed, correct, pck``; ``placed``: the
        model gave a point at all.
    judged_images: every asked image, sorted.
    """

    alpha: float
    iou_threshold: float
    pck: float | None
    persons: int
    matched: int
    labelled: int
    correct: int
    per_keypoint: pd.DataFrame
    judged_images: tuple[str, ...]


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
        truths: ``image_id, label, x0_px, y0_px, x1_px, y1_px`` and, optionally, ``iscrowd``.
        asked: ``image_id, label``, every pair that was asked and that the truth covers.
        iou_threshold: least IoU of a right box, in 0..1.
    """
    pairs = asked[["image_id", "label"]].drop_duplicates()
    predictions = _only(predictions, pairs)
    counted_truths = _only(truths, pairs)
    # Plain arrays: a data set has many more pairs than boxes, and slicing tables would dominate.
    crowd = _crowd(counted_truths)
    found_boxes, scores = _boxes(predictions), _scores(predictions)
    true_boxes = _boxes(counted_truths)
    predicted_groups = _groups(predictions)
    true_groups = _groups(counted_truths)

    thresholds = sorted({*IOU_THRESHOLDS, iou_threshold})
    counts: dict[str, dict[float, Counts]] = {
        label: dict.fromkeys(thresholds, Counts()) for label in sorted(pairs["label"].unique())
    }
    absent: dict[str, list[int]] = {label: [] for label in counts}
    iou = np.zeros(len(predictions))
    correct = np.zeros(len(predictions), dtype=bool)
    ignored = np.zeros(len(predictions), dtype=bool)
    nothing = np.empty(0, dtype=int)
    for pair in pairs.itertuples(index=False, name=None):
        label = pair[1]
        found = predicted_groups.get(pair, nothing)
        true = true_groups.get(pair, nothing)
        if not true.size:
            absent[label].append(found.size)
        if not true.size and not found.size:
            continue
        is_crowd = crowd[true]
        objects = true[~is_crowd]
        overlaps = _Overlaps.of(found_boxes[found], true_boxes[objects], true_boxes[true[is_crowd]])
        order = _order(scores[found], overlaps)
        for threshold in thresholds:
            matched, in_crowd = overlaps.match(order, threshold)
            tp = int((matched >= 0).sum())
            counts[label][threshold] += Counts(
                tp=tp,
                fp=found.size - tp - int(in_crowd.sum()),
                fn=objects.size - tp,
            )
            if threshold == iou_threshold:
                iou[found] = overlaps.iou_of(matched)
                correct[found] = matched >= 0
                ignored[found] = in_crowd

    by_threshold = {
        threshold: sum((by[threshold] for by in counts.values()), Counts())
        for threshold in thresholds
    }
    return DetectionEvaluation(
        iou_threshold=iou_threshold,
        overall=by_threshold[iou_threshold],
        by_threshold={threshold: by_threshold[threshold] for threshold in IOU_THRESHOLDS},
        mean_f1=_mean_f1(by_threshold),
        per_label=_per_label(counts, absent, pairs, iou_threshold),
        matches=predictions[["image_id", "label"]]
        .assign(score=scores, iou=iou, correct=correct)[~ignored]
        .reset_index(drop=True),
        judged_images=tuple(sorted(pairs["image_id"].unique())),
        not_asked=len(truths) - len(counted_truths),
        ignored=int(ignored.sum()),
    )


def evaluate_keypoints(
    predictions: pd.DataFrame,
    truths: pd.DataFrame,
    asked: pd.DataFrame,
    *,
    iou_threshold: float = 0.5,
    alpha: float = 0.1,
) -> KeypointEvaluation:
    """Judge keypoints on the persons that were found.

    Persons are matched by box alone: what a person was called when asked for ("standing person")
    is the business of `evaluate_detection`.

    Args:
        predictions: ``image_id, score, x0_px, y0_px, x1_px, y1_px, keypoints``, the last a
            sequence of `Keypoint` or of mappings with ``name, x_px, y_px``.
        truths: as `GroundTruth.keypoints`, with ``image_id``.
        asked: ``image_id``, every image that was asked for keypoints and that the truth covers.
        iou_threshold: least IoU of the boxes of a matched pair, in 0..1.
        alpha: tolerance as a share of the larger side of the true box.
    """
    images = asked[["image_id"]].drop_duplicates()
    predictions = _only(predictions, images)
    truths = _only(truths, images)
    true_persons = {
        image_id: list(of_image.groupby("instance", sort=True))
        for image_id, of_image in truths.groupby("image_id")
    }
    predicted = dict(list(predictions.groupby("image_id")))

    persons = sum(len(of_image) for of_image in true_persons.values())
    matched_persons = 0
    judged: list[tuple[str, bool, bool]] = []
    for image_id, of_image in true_persons.items():
        found = predicted.get(image_id)
        if found is None:
            continue
        true_boxes = np.concatenate([_boxes(points.iloc[:1]) for _, points in of_image])
        overlaps = _Overlaps.of(_boxes(found), true_boxes, np.empty((0, 4)))
        matched, _ = overlaps.match(_order(_scores(found), overlaps), iou_threshold)
        for row, person in enumerate(matched):
            if person < 0:
                continue
            matched_persons += 1
            x0, y0, x1, y1 = true_boxes[person]
            tolerance_px = alpha * max(x1 - x0, y1 - y0)
            given = visible_points(found["keypoints"].iloc[row])
            points = of_image[person][1]
            for name, x_px, y_px, visibility in points[
                ["name", "x_px", "y_px", "visibility"]
            ].itertuples(index=False):
                if not visibility:
                    continue
                point = given.get(name)
                correct = point is not None and (
                    math.dist(point, (x_px, y_px)) <= tolerance_px + 1e-9
                )
                judged.append((name, point is not None, correct))

    table = pd.DataFrame(judged, columns=["name", "placed", "correct"])
    per_keypoint = (
        table.groupby("name", sort=False)
        .agg(labelled=("placed", "size"), placed=("placed", "sum"), correct=("correct", "sum"))
        .reset_index()
    )
    per_keypoint["pck"] = per_keypoint["correct"] / per_keypoint["labelled"]
    correct_points = int(table["correct"].sum())
    return KeypointEvaluation(
        alpha=alpha,
        iou_threshold=iou_threshold,
        pck=ratio(correct_points, len(table)),
        persons=persons,
        matched=matched_persons,
        labelled=len(table),
        correct=correct_points,
        per_keypoint=per_keypoint,
        judged_images=tuple(sorted(images["image_id"])),
    )


def visible_points(
    keypoints: Iterable[Keypoint | Mapping[str, Any]],
) -> dict[str, tuple[float, float]]:
    """Return name -> (x_px, y_px) of the keypoints that have a place, from either spelling."""
    points: dict[str, tuple[float, float]] = {}
    for keypoint in keypoints:
        if isinstance(keypoint, Keypoint):
            name, x_px, y_px = keypoint.name, keypoint.x_px, keypoint.y_px
        else:
            name, x_px, y_px = keypoint["name"], keypoint["x_px"], keypoint["y_px"]
        if x_px is not None and y_px is not None and math.isfinite(x_px) and math.isfinite(y_px):
            points[name] = (float(x_px), float(y_px))
    return points


@dataclass(frozen=True)
class _Overlaps:
    """Overlaps of the p predictions of one image-label pair.

    iou: (p, t) with its true boxes, float32.
    crowd: (p,) the largest share of the prediction that lies in one crowd region, float32.
    """

    iou: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, predicted: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> "_Overlaps":
        in_crowd = np.zeros(len(predicted), dtype=np.float32)
        if len(crowd) and len(predicted):
            left_top = np.maximum(predicted[:, None, :2], crowd[None, :, :2])
            right_bottom = np.minimum(predicted[:, None, 2:], crowd[None, :, 2:])
            inside = np.clip(right_bottom - left_top, 0, None).prod(axis=2)
            area = (predicted[:, 2:] - predicted[:, :2]).prod(axis=1)[:, None]
            shares = np.divide(inside, area, out=np.zeros_like(inside), where=area > 0)
            in_crowd = shares.max(axis=1).astype(np.float32)
        return cls(box_ious()(true, predicted).T, in_crowd)

    @property
    def best(self) -> np.ndarray:
        """(p,) the IoU with the nearest true box, 0 if there is none."""
        return self.iou.max(axis=1, initial=0.0)

    def match(self, order: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Match greedily, in the given order.

        Returns:
            (p,) int, the true box each prediction took, -1 for none, and (p,) bool, whether it is
            to be ignored.
        """
        # The overlaps are float32: 0.95 as float64 would lie above an IoU of exactly 0.95.
        least = np.float32(threshold)
        matched = np.full(len(self.iou), -1)
        free = np.ones(self.iou.shape[1], dtype=bool)
        for row in order if free.size else ():
            candidates = np.where(free, self.iou[row], -1.0)
            nearest = int(candidates.argmax())
            if candidates[nearest] >= least:
                matched[row] = nearest
                free[nearest] = False
        return matched, (matched < 0) & (self.crowd >= least)

    def iou_of(self, matched: np.ndarray) -> np.ndarray:
        """(p,) float: IoU with the matched true box, else with the nearest one."""
        values = self.best.astype(float)
        hit = matched >= 0
        values[hit] = self.iou[hit, matched[hit]]
        return values


@functools.cache
def box_ious() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return what computes overlaps: (n, 4) and (m, 4) xyxy in pixels -> (n, m) float32 IoU."""
    with warnings.catch_warnings():
        # It warns on import where OpenCV is missing; the overlap does not need it.
        warnings.simplefilter("ignore", UserWarning)
        from supervision import box_iou_batch
    return box_iou_batch


def _scores(rows: pd.DataFrame) -> np.ndarray:
    """(n,) float64; a missing score is NaN."""
    return pd.to_numeric(rows["score"]).to_numpy(dtype=float, na_value=np.nan)


def _order(scores: np.ndarray, overlaps: _Overlaps) -> np.ndarray:
    """(p,) int: descending score, missing scores last; equal scores by better overlap."""
    return np.lexsort((-overlaps.best, -np.nan_to_num(scores, nan=-np.inf)))


def _only(rows: pd.DataFrame, keys: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose key columns occur in ``keys``, in an order of their own content."""
    columns = list(keys.columns)
    if rows.empty or keys.empty:
        return rows.iloc[:0]
    wanted = pd.MultiIndex.from_frame(keys)
    kept = rows[pd.MultiIndex.from_frame(rows[columns]).isin(wanted)]
    return kept.sort_values([*columns, *BOX_COLUMNS], kind="stable", ignore_index=True)


def _groups(rows: pd.DataFrame) -> dict[tuple[str, str], np.ndarray]:
    """(image_id, label) -> row positions."""
    if rows.empty:
        return {}
    return dict(rows.groupby(["image_id", "label"]).indices)  # type: ignore[arg-type]


def _crowd(truths: pd.DataFrame) -> np.ndarray:
    if "iscrowd" not in truths:
        return np.zeros(len(truths), dtype=bool)
    return truths["iscrowd"].to_numpy(dtype=bool)


def _boxes(rows: pd.DataFrame) -> np.ndarray:
    """(n, 4) float64, xyxy in pixels."""
    return rows[BOX_COLUMNS].to_numpy(dtype=float).reshape(-1, 4)


def _mean_f1(by_threshold: Mapping[float, Counts]) -> float | None:
    values = [by_threshold[threshold].f1 for threshold in IOU_THRESHOLDS]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _per_label(
    counts: Mapping[str, Mapping[float, Counts]],
    absent: Mapping[str, Sequence[int]],
    pairs: pd.DataFrame,
    iou_threshold: float,
) -> pd.DataFrame:
    asked = pairs["label"].value_counts()
    rows = []
    for label, by_threshold in counts.items():
        here = by_threshold[iou_threshold]
        rows.append(
            {
                "label": label,
                "asked": int(asked[label]),
                "support": here.support,
                "predicted": here.predicted,
                "tp": here.tp,
                "fp": here.fp,
                "fn": here.fn,
                "precision": _nan(here.precision),
                "recall": _nan(here.recall),
                "f1": _nan(here.f1),
                "f1_75": _nan(by_threshold[0.75].f1),
                "f1_95": _nan(by_threshold[0.95].f1),
                "mean_f1": _nan(_mean_f1(by_threshold)),
                "absent": len(absent[label]),
                "absent_with_boxes": sum(boxes > 0 for boxes in absent[label]),
                "boxes_on_absent": sum(absent[label]),
            }
        )
    columns = [
        *("label", "asked", "support", "predicted", "tp", "fp", "fn", "precision", "recall", "f1"),
        *("f1_75", "f1_95", "mean_f1", "absent", "absent_with_boxes", "boxes_on_absent"),
    ]
    return pd.DataFrame(rows, columns=columns)
