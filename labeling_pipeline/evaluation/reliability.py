"""Whether scores mean what they say: of the things scored 0.8, eight in ten should be right."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

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
    place = np.minimum(np.searchsorted(edges, scores, side="right") - 1, bins - 1)
    rows = [
        (edges[i], edges[i + 1], int(here.sum()), scores[here].mean(), right[here].mean())
        for i in range(bins)
        if (here := place == i).any()
    ]
    table = pd.DataFrame(rows, columns=["low", "high", "count", "mean_score", "right"])
    gaps = (table["mean_score"] - table["right"]).abs()
    ece = float((gaps * table["count"]).sum() / len(scores)) if len(scores) else None
    return Reliability(ece, len(scores), table)
