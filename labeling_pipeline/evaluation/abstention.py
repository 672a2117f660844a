"""When to abstain: what is gained by leaving the least sure predictions to a person.

Selective classification (El-Yaniv and Wiener, "On the foundations of noise-free selective
classification", 2010): predictions from a confidence on are kept, the others withheld. Coverage is
the share that is kept, risk the share of these that is wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.intervals import Interval, wilson_interval


@dataclass(frozen=True)
class RiskCoverage:
    """What each threshold keeps, and how much of that is wrong.

    curve: one row for every confidence that occurs, falling: ``threshold, kept, coverage, risk``.
        Coverage is over all that was to be predicted, also what got no prediction.
    aurc: area under the curve: the mean, over all predictions, of the risk at a threshold that just
        keeps them (Geifman, Uziel and El-Yaniv, "Bias-reduced uncertainty estimation for deep
        neural classifiers", 2019). ``None`` without predictions.
    """

    curve: pd.DataFrame
    aurc: float | None


@dataclass(frozen=True)
class AbstainThreshold:
    """The lowest confidence from which on predictions reach a target accuracy.

    target: the accuracy that what is kept should have.
    value: chosen on all predictions; ``None`` if no threshold reaches the target.
    kept, right: of ``judged`` predictions, judged by thresholds that were chosen on others. A share
        of the same predictions that chose the threshold would flatter it.
    """

    target: float
    value: float | None
    judged: int
    kept: int
    right: int

    @property
    def coverage(self) -> float | None:
        """Share of the judged predictions that was kept."""
        return self.kept / self.judged if self.judged else None

    @property
    def accuracy(self) -> float | None:
        """Share of the kept ones that was right."""
        return self.right / self.kept if self.kept else None

    @property
    def interval(self) -> Interval | None:
        """Of the accuracy."""
        return wilson_interval(self.right, self.kept)


def measure_risk_coverage(
    confidences: np.ndarray, right: np.ndarray, total: int | None = None
) -> RiskCoverage:
    """What each threshold on the confidence would keep.

    Args:
        confidences: (n,) float.
        right: (n,) bool.
        total: how many were to be predicted; default: n.
    """
    thresholds, kept, wrong = _cumulated(confidences, right)
    risk = wrong / kept
    curve = pd.DataFrame(
        {
            "threshold": thresholds,
            "kept": kept,
            "coverage": kept / (len(right) if total is None else total),
            "risk": risk,
        }
    )
    # Equal confidences are kept together or not at all.
    each = np.diff(kept, prepend=0)
    return RiskCoverage(curve, float(risk @ each / kept[-1]) if len(kept) else None)


def choose_threshold(
    confidences: np.ndarray,
    right: np.ndarray,
    groups: np.ndarray,
    target: float,
    *,
    folds: int = 5,
    seed: int = 0,
) -> AbstainThreshold:
    """Choose the threshold on all predictions, and judge the choice on parts that had none in it.

    Args:
        confidences: (n,) float.
        right: (n,) bool.
        groups: (n,) codes; predictions of one group, as of near duplicates, are never on both
            sides.
        target: least share of right ones among what is kept.
        folds: into how many parts the groups are cut, at most.
        seed: of the cutting.
    """
    judged = kept = right_ones = 0
    for chosen_on, judged_on in _parts(groups, folds, seed):
        threshold = _lowest_threshold(confidences[chosen_on], right[chosen_on], target)
        judged += int(judged_on.sum())
        if threshold is not None:
            keeps = judged_on & (confidences >= threshold)
            kept += int(keeps.sum())
            right_ones += int(right[keeps].sum())
    return AbstainThreshold(
        target, _lowest_threshold(confidences, right, target), judged, kept, right_ones
    )


def _parts(groups: np.ndarray, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each part of the groups in turn, with all others before it; none of less than two groups."""
    names, codes = np.unique(groups, return_inverse=True)
    parts = min(folds, len(names))
    if parts < 2:
        return
    part_of = np.random.default_rng(seed).permutation(len(names)) % parts
    for part in range(parts):
        judged_on = part_of[codes] == part
        yield ~judged_on, judged_on


def _lowest_threshold(confidences: np.ndarray, right: np.ndarray, target: float) -> float | None:
    thresholds, kept, wrong = _cumulated(confidences, right)
    reached = np.flatnonzero(kept - wrong >= target * kept - 1e-9)
    return float(thresholds[reached[-1]]) if len(reached) else None


def _cumulated(
    confidences: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct confidences, falling, and of each how many are kept and how many are wrong."""
    order = np.argsort(-confidences, kind="stable")
    falling = confidences[order]
    last = np.flatnonzero(np.diff(falling, append=-np.inf) != 0)
    wrong = np.cumsum(~right[order].astype(bool))
    return falling[last], last + 1, wrong[last]
