"""How sure a measured number is: 95 % confidence intervals.

Shares of independent trials get Wilson's interval ("Probable inference, the law of succession, and
statistical inference", 1927), which stays within 0..1 and is right also for few trials and for
shares near 0 or 1. Where trials come in clusters that are right or wrong together, as near
duplicates are, their number is divided by the design effect first (Korn and Graubard, "Confidence
intervals for proportions with small expected number of positive counts estimated from survey data",
1998). Counts of rare events get the exact interval of a Poisson mean. Everything else gets a
bootstrap over images (Efron, "Bootstrap methods: another look at the jackknife", 1979; percentile
method): images, not boxes, because the boxes of one image are right or wrong together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
REPLICATES = 1000


@dataclass(frozen=True)
class Interval:
    """Where a number lies with the confidence of ``CONFIDENCE``."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies in it."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Measure:
    """A number, and its interval where it has one. ``None``: it does not exist."""

    value: float | None
    interval: Interval | None = None


def wilson_interval(successes: float, trials: float) -> Interval | None:
    """Of a share of independent trials; ``None`` without trials.

    Effective counts, which need not be whole, are allowed.

    Raises:
        ValueError: there are fewer trials than successes, or a count is negative.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    if not trials:
        return None
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = successes / trials
    center = share + z**2 / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    # Rounding must not push the ends past a share of exactly 0 or 1.
    low, high = (center - spread) / scale, (center + spread) / scale
    return Interval(min(max(low, 0.0), share), max(min(high, 1.0), share))


def clustered_interval(successes: np.ndarray, clusters: np.ndarray) -> Interval | None:
    """Of a share of trials that come in clusters, as the boxes of an image: Wilson's interval on
    the effective number of trials (Korn and Graubard, "Confidence intervals for proportions with
    small expected number of positive counts estimated from survey data", 1998).

    That is the number of independent trials with the variance that the clusters show. Where all
    trials end alike nothing can be seen of it, and a cluster counts as one trial.

    Args:
        successes: (n,) bool, how each trial ended.
        clusters: (n,) which cluster it belongs to.
    """
    trials = len(successes)
    if not trials:
        return None
    _, cluster_of = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(cluster_of)
    share = float(np.mean(successes))
    effective = float(len(sizes))
    if 0 < share < 1 and len(sizes) > 1:
        ended = np.bincount(cluster_of, weights=np.asarray(successes, dtype=float))
        variance = ((ended - share * sizes) ** 2).sum() * len(sizes) / (len(sizes) - 1) / trials**2
        effective = float(min(share * (1 - share) / variance, trials) if variance else trials)
    return wilson_interval(share * effective, effective)


def poisson_interval(events: float, exposure: float) -> Interval | None:
    """Of how many independent events there are per unit of exposure; ``None`` without exposure.

    The exact interval (Garwood, "Fiducial limits for the Poisson distribution", 1936), which is
    right also where there are hardly any. Effective numbers, which need not be whole, are allowed.

    Raises:
        ValueError: a number is negative.
    """
    if events < 0 or exposure < 0:
        raise ValueError(f"expected numbers from 0 on, got {events} in {exposure}")
    if not exposure:
        return None
    from scipy.special import gammaincinv

    tail = (1 - CONFIDENCE) / 2
    low = float(gammaincinv(events, tail)) if events else 0.0
    return Interval(low / exposure, float(gammaincinv(events + 1, 1 - tail)) / exposure)


def bootstrap_intervals(
    statistics: Callable[[np.ndarray], Sequence[float | None]],
    units: int,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> list[Interval | None]:
    """Of several statistics at once, from the same resamples.

    Args:
        statistics: takes how often each unit was drawn, (units,) int64, and returns the
            statistics of that resample; one that does not exist there is ``None`` or NaN.
        units: how many independent units there are, as images.
        replicates: how many resamples are drawn.
        seed: of the resampling.

    Returns:
        An interval for each statistic; ``None`` for one that exists in less than half of the
        resamples, and for all without at least two units.
    """
    if units < 2:
        count = len(statistics(np.ones(units, dtype=np.int64)))
        return [None] * count
    random = np.random.default_rng(seed)
    drawn = np.array(
        [
            statistics(np.bincount(random.integers(units, size=units), minlength=units))
            for _ in range(replicates)
        ],
        dtype=float,
    )
    tail = (1 - CONFIDENCE) / 2
    intervals: list[Interval | None] = []
    for values in drawn.T:
        known = values[np.isfinite(values)]
        if 2 * len(known) < replicates:
            intervals.append(None)
        else:
            low, high = np.quantile(known, [tail, 1 - tail])
            intervals.append(Interval(float(low), float(high)))
    return intervals


def share_interval(bootstrapped: Interval | None, units: int) -> Interval | None:
    """Of a share, in 0..1, that was bootstrapped.

    Resamples that all agree, as where everything was right, say nothing of how sure that is: then
    it is Wilson's interval, with the units that the share is about as the trials.
    """
    if bootstrapped is None or bootstrapped.low < bootstrapped.high:
        return bootstrapped
    return wilson_interval(bootstrapped.low * units, units)
