"""Whether scores mean what they say: of the things scored 0.8, eight in ten should be right."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.intervals import Interval, bootstrap_intervals

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """How scores compare with how often they were right.

    ece: expected calibration error, the mean distance between score and share of right ones over
        the bins, weighted by how many fall into each (Naeini et al., "Obtaining well calibrated
        probabilities using Bayesian binning", 2015, with bins of equal width). ``None`` if nothing
        has a score.
    count: how many have one.
    bins: one row a bin that holds any: ``low, high, count, mean_score, right`` (share).
    """

    ece: float | None
    count: int
    bins: pd.DataFrame


def measure_reliability(scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """Compare scores with what was right.

    Args:
        scores: (n,) float in 0..1; NaN where there is none, which is left out.
        right: (n,) bool.
        bins: of equal width over 0..1; a score on an edge falls into the upper one, 1 into the
            last.

    Raises:
        ValueError: a score lies outside 0..1.
    """
    scores = np.asarray(scores, dtype=float)
    known = ~np.isnan(scores)
    scores, right = scores[known], np.asarray(right, dtype=bool)[known]
    if len(scores) and (scores.min() < 0 or scores.max() > 1):
        raise ValueError(f"expected scores in 0..1, got {scores.min()}..{scores.max()}")
    edges = np.arange(bins + 1) / bins
    place = _bin_of(scores, bins)
    rows = [
        (edges[i], edges[i + 1], int(here.sum()), scores[here].mean(), right[here].mean())
        for i in range(bins)
        if (here := place == i).any()
    ]
    table = pd.DataFrame(rows, columns=["low", "high", "count", "mean_score", "right"])
    gaps = (table["mean_score"] - table["right"]).abs()
    ece = float((gaps * table["count"]).sum() / len(scores)) if len(scores) else None
    return Reliability(ece, len(scores), table)


def calibration_error_interval(
    scores: np.ndarray, right: np.ndarray, groups: np.ndarray, bins: int = BINS
) -> Interval | None:
    """Where the calibration error lies, by a bootstrap over groups; ``None`` without two groups.

    The upper end is the percentile of the resamples. Chance only ever adds to an error, and in a
    resample it does so twice: the lower percentile would lie above the truth. So the lower end is
    the upper one, reflected at the measured error (Davison and Hinkley, "Bootstrap methods and
    their application", 1997, the basic bootstrap).

    Args:
        scores: (n,) float in 0..1, none missing.
        right: (n,) bool.
        groups: (n,) what is right or wrong together, as the boxes of an image.
        bins: as for `measure_reliability`.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return None
    gaps = np.zeros((len(names), bins))
    np.add.at(gaps, (group_of, _bin_of(scores, bins)), scores - right)
    counts = np.bincount(group_of)

    def error(drawn: np.ndarray) -> float:
        return float(np.abs(drawn @ gaps).sum() / (drawn @ counts))

    measured = error(np.ones(len(names)))
    (found,) = bootstrap_intervals(lambda drawn: [error(drawn)], len(names))
    if found is None:
        return None
    return Interval(max(0.0, 2 * measured - found.high), max(measured, found.high))


def _bin_of(scores: np.ndarray, bins: int) -> np.ndarray:
    """(n,) int: which bin of equal width a score falls into."""
    edges = np.arange(bins + 1) / bins
    return np.minimum(np.searchsorted(edges, scores, side="right") - 1, bins - 1)
