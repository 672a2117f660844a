"""Calibration: what a measured score says of how likely a box is right, and from which score on
enough of them are.

**Calibrated scores** come from isotonic regression, the best fit that never falls (Zadrozny and
Elkan, "Transforming classifier scores into accurate multiclass probability estimates", 2002). Right
boxes count as (R + 1) / (R + 2) and wrong ones as 1 / (W + 2), R and W being how many there are of
each (Platt, "Probabilistic outputs for support vector machines", 1999), so that no score becomes a
certainty.

**A threshold** is the lowest score from which on the boxes have the target precision. Precision is
estimated as (right + 1) / (kept + 2), the rule of succession (Laplace, "Essai philosophique sur les
probabilités", 1814): a few right boxes at the top prove nothing. Matching gives the better scored
box the first choice, so boxes that a threshold takes away never change which of the others are
right.

**Judged apart.** Images are dealt to folds, near duplicates to the same one. What is said of a box
was learned from the other folds; the map and the thresholds that are handed out are learned from
all of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.intervals import Interval, clustered_interval
from labeling_pipeline.evaluation.plots.frame import png_bytes
from labeling_pipeline.evaluation.plots.shapes import reliability_diagram
from labeling_pipeline.evaluation.reliability import (
    Reliability,
    calibration_error_interval,
    measure_reliability,
)
from labeling_pipeline.scores import ScoreMap
from labeling_pipeline.tasks import Task

LEAST_BOXES = 100
"""A share of so many boxes is known to 0.05, one standard error: what calibration is to reach."""

LEAST_OF_A_KIND = 10
"""Right boxes, and wrong ones. The rarer kind decides how well a map is known: a share that rests
on ten of them is known to about a third of itself (one standard error, 1 / sqrt(10))."""

BOX_COLUMNS = ["entry", "label", "score", "correct", "group"]
THRESHOLD_COLUMNS = [
    *("entry", "label", "threshold", "precision", "precision_low", "precision_high"),
    *("recall", "recall_of_all", "kept", "boxes", "true", "reason"),
]
_DIGITS = 4
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class ScoreCalibration:
    """How scores compare with what was right, before and after calibration.

    boxes: those with a score. wrong: how many of them are. groups: images, near duplicates as one.
    before, after: as measured; and calibrated by the boxes of other folds. ``after`` is ``None`` if
        nothing was fitted.
    before_interval, after_interval: of the calibration errors.
    score_map: learned from all boxes; ``None``: none is worth to be applied, and ``reason`` says
        why.
    """

    boxes: int
    wrong: int
    groups: int
    before: Reliability
    before_interval: Interval | None
    after: Reliability | None = None
    after_interval: Interval | None = None
    score_map: ScoreMap | None = None
    reason: str = ""


@dataclass(frozen=True)
class ModelCalibration:
    """What the scores of one model mean in one task. model: its name."""

    model_key: str
    model: str
    task: Task
    scores: ScoreCalibration


@dataclass(frozen=True)
class Calibration:
    """What was learned of the plan's models.

    thresholds: as `choose_thresholds` returns them, with ``model_key``.
    """

    models: tuple[ModelCalibration, ...]
    thresholds: pd.DataFrame

    @cached_property
    def figures(self) -> dict[str, bytes]:
        """Scores against what was right, before and after, of each model and task: name -> PNG."""
        return {
            f"{one.task}_{one.model_key}": png_bytes(
                reliability_diagram(
                    one.scores.before, f"{one.model}, {one.task}", "boxes", one.scores.after
                )
            )
            for one in self.models
            if one.scores.boxes
        }

    @property
    def table(self) -> pd.DataFrame:
        """One row a model and task."""
        return pd.DataFrame(
            [
                {
                    "model": one.model,
                    "task": one.task.value,
                    "boxes": one.scores.boxes,
                    "wrong": one.scores.wrong,
                    "error_before": one.scores.before.ece,
                    "error_after": one.scores.after.ece if one.scores.after else None,
                    "calibrated": "no" if one.scores.score_map is None else "yes",
                    "reason": one.scores.reason,
                    "model_key": one.model_key,
                }
                for one in self.models
            ]
        )


def calibrate_scores(boxes: pd.DataFrame, folds: int = 5) -> ScoreCalibration:
    """Learn what scores mean, and judge it on boxes kept apart.

    Args:
        boxes: one row a judged box: ``score`` (0..1; NaN: left out), ``correct``, ``group``.
        folds: how many the groups are dealt to.
    """
    boxes = boxes[boxes["score"].notna()]
    scores, right, groups = _columns(boxes)
    before = measure_reliability(scores, right)
    wrong = int((~right).sum())
    calibration = ScoreCalibration(
        boxes=len(boxes),
        wrong=wrong,
        groups=len(np.unique(groups)),
        before=before,
        before_interval=calibration_error_interval(scores, right, groups),
    )
    reason = _too_few(len(boxes), wrong, calibration.groups, folds)
    if reason:
        return replace(calibration, reason=reason)
    fold_of = deal(groups, right, folds)
    calibrated = np.empty(len(boxes))
    for fold in range(folds):
        held = fold_of == fold
        calibrated[held] = fit_score_map(scores[~held], right[~held]).apply(scores[held])
    after = measure_reliability(calibrated, right)
    calibration = replace(
        calibration,
        after=after,
        after_interval=calibration_error_interval(calibrated, right, groups),
    )
    if after.ece >= before.ece:  # type: ignore[operator]
        return replace(
            calibration,
            reason="calibration would not lower the error: scores mean what they say as measured",
        )
    return replace(calibration, score_map=fit_score_map(scores, right))


def fit_score_map(scores: np.ndarray, right: np.ndarray) -> ScoreMap:
    """Isotonic regression on Platt's targets.

    Args:
        scores: (n,) float in 0..1, at least one.
        right: (n,) bool.
    """
    from sklearn.isotonic import IsotonicRegression

    wins = int(right.sum())
    losses = len(right) - wins
    targets = np.where(right, (wins + 1) / (wins + 2), 1 / (losses + 2))
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(np.asarray(scores, float), targets)
    return ScoreMap.through(zip(fitted.X_thresholds_, fitted.y_thresholds_, strict=True))


def choose_thresholds(
    boxes: pd.DataFrame,
    true_boxes: Mapping[tuple[str, str], int],
    target_precision: float = 0.95,
    folds: int = 5,
) -> pd.DataFrame:
    """The threshold of each entry and label, and what it is worth on boxes kept apart.

    Args:
        boxes: one row a judged box, ``BOX_COLUMNS``; without a score it is left out.
        true_boxes: (entry, label) -> how many there are to find. Every pair gets a row.
        target_precision: in 0..1, both excluded.
        folds: how many the groups are dealt to.

    Returns:
        ``THRESHOLD_COLUMNS``, sorted. threshold: rounded down to four digits; NaN where there is
        none, and ``reason`` says why. precision with its interval, recall: on boxes kept apart,
        unless the threshold takes nothing away. recall_of_all: without a threshold. kept: boxes
        from the threshold on, of ``boxes``. true: boxes to find.
    """
    boxes = boxes[boxes["score"].notna()]
    _, right, groups = _columns(boxes)
    boxes = boxes.assign(fold=deal(groups, right, folds))
    of_label = dict(list(boxes.groupby(["entry", "label"])))
    rows = []
    for pair, support in sorted(true_boxes.items()):
        of_pair = of_label.get(pair, boxes.iloc[:0])
        found = _threshold_of(of_pair, support, target_precision)
        rows.append(dict(zip(("entry", "label"), pair, strict=True)) | found)
    return pd.DataFrame(rows, columns=THRESHOLD_COLUMNS)


def lowest_threshold(scores: np.ndarray, right: np.ndarray, target: float) -> float | None:
    """The lowest score, rounded down to four digits, from which on the estimated precision reaches
    the target: 0 if that of all does, ``None`` if it never does.

    Args:
        scores: (n,) float in 0..1.
        right: (n,) bool.
        target: in 0..1.
    """
    candidates, estimates = _precisions(scores, right)
    reaching = candidates[estimates >= target - _TOLERANCE]
    return float(reaching.min()) if len(reaching) else None


def deal(groups: np.ndarray, right: np.ndarray, folds: int) -> np.ndarray:
    """(n,) int: the fold of each box. A group stays together; wrong boxes are spread evenly.

    Args:
        groups: (n,) what stays together.
        right: (n,) bool.
        folds: how many.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    wrong = np.bincount(group_of, weights=~right, minlength=len(names))
    shuffled = np.random.default_rng(0).permutation(len(names))
    fold_of_group = np.empty(len(names), dtype=int)
    fold_of_group[np.lexsort((shuffled, -wrong))] = np.arange(len(names)) % folds
    return fold_of_group[group_of]


def _threshold_of(boxes: pd.DataFrame, support: int, target: float) -> dict[str, object]:
    """One row of the thresholds, but for entry and label."""
    scores, right, groups = _columns(boxes)
    row: dict[str, object] = dict.fromkeys(THRESHOLD_COLUMNS[2:], math.nan) | {
        "recall_of_all": right.sum() / support if support else math.nan,
        "kept": 0,
        "boxes": len(boxes),
        "true": support,
        "reason": "",
    }

    def none_for(reason: str) -> dict[str, object]:
        return row | {"reason": reason}

    # With fewer boxes not even a flawless label could show it.
    least = max(1, math.ceil((2 * target - 1) / (1 - target) - _TOLERANCE))
    if len(boxes) < least:
        return none_for(
            f"too few boxes: {len(boxes)}, and {least} right ones are needed to show {target:.1%}"
        )
    threshold = lowest_threshold(scores, right, target)
    if threshold is None:
        candidates, estimates = _precisions(scores, right)
        best = int(estimates.argmax())
        return none_for(
            f"no score reaches {target:.1%}: the best is {estimates[best]:.1%}, from "
            f"{candidates[best]:.3f} on"
        )
    # Where nothing is taken away nothing was chosen that could flatter.
    kept = np.full(len(boxes), not threshold)
    for fold in np.unique(boxes["fold"]) if threshold else ():
        held = (boxes["fold"] == fold).to_numpy()
        apart = lowest_threshold(scores[~held], right[~held], target)
        if apart is None:
            return none_for(
                f"too few boxes: {len(boxes)}, and without those of one fold no score reaches "
                f"{target:.1%}"
            )
        kept[held] = scores[held] >= apart
    interval = clustered_interval(right[kept], groups[kept])
    if interval is None:
        return none_for("no box of the images kept apart has such a score")
    if interval.high < target:
        return none_for(
            f"it does not hold: {right[kept].mean():.1%} are right on images kept apart"
        )
    return row | {
        "threshold": threshold,
        "precision": right[kept].mean(),
        "precision_low": interval.low,
        "precision_high": interval.high,
        "recall": right[kept].sum() / support if support else math.nan,
        "kept": int((scores >= threshold).sum()),
    }


def _precisions(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds, rising from 0, and the estimated precision from each on."""
    scale = 10**_DIGITS
    candidates = np.unique(np.floor(scores * scale)) / scale
    # It takes nothing away, and nor does 0.
    candidates[:1] = 0.0
    order = np.argsort(scores)
    below = np.searchsorted(scores[order], candidates)
    kept = len(scores) - below
    right_kept = right.sum() - np.concatenate([[0], np.cumsum(right[order])])[below]
    return candidates, (right_kept + 1) / (kept + 2)


def _columns(boxes: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        boxes["score"].to_numpy(dtype=float),
        boxes["correct"].to_numpy(dtype=bool),
        boxes["group"].to_numpy(dtype=str),
    )


def _too_few(boxes: int, wrong: int, groups: int, folds: int) -> str:
    """Why nothing can be learned; empty if it can."""
    if not boxes:
        return "no box has a score"
    if boxes < LEAST_BOXES:
        return f"too few boxes: {boxes}, and at least {LEAST_BOXES} are needed"
    rarer, kind = min((wrong, "wrong"), (boxes - wrong, "right"))
    if rarer < LEAST_OF_A_KIND:
        return f"too few {kind} boxes: {rarer}, and at least {LEAST_OF_A_KIND} are needed"
    if groups < folds:
        return f"too few images: {groups} for {folds} folds"
    return ""
