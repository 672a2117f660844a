"""What a stratified random sample says of all it was drawn from, and how sure that is.

**Estimates** are ratios of totals, in which every checked unit counts as often as it stands for
others.

**Intervals** of shares are Wilson's at the effective sample size of Korn and Graubard ("Confidence
intervals for proportions with small expected number of positive counts estimated from survey
data", 1998): ``p (1 - p)`` over the linearised variance of the design, with their correction for
few units. Rare events need one thing more. A stratum in which none was seen would count as known to
have none, however many units it has, and the interval would be far too short. So the effective size
is at most what the weights alone allow (Kish, "Survey sampling", 1965). Counts per unit, which no
share bounds, get the interval of a Poisson mean in the same way.
"""

import math
from dataclasses import dataclass

import numpy as np

from labeling_pipeline.evaluation.intervals import (
    CONFIDENCE,
    Interval,
    poisson_interval,
    wilson_interval,
)


@dataclass(frozen=True)
class Estimate:
    """A number and where it lies."""

    value: float
    interval: Interval

    def complement(self) -> "Estimate":
        """Of a share: what the other share is."""
        return Estimate(1 - self.value, Interval(1 - self.interval.high, 1 - self.interval.low))


@dataclass(frozen=True)
class Sample:
    """Units that were drawn from strata; n of them, at least one.

    strata: (n,) int, numbered from 0 without gaps.
    weights: (n,) float, how many units each stands for.
    unseen: (n,) float, the share of its stratum that is not in the sample, 0..1.
    """

    strata: np.ndarray
    weights: np.ndarray
    unseen: np.ndarray

    @classmethod
    def drawn(
        cls, strata: np.ndarray, sizes: np.ndarray, probabilities: np.ndarray, population: int
    ) -> "Sample":
        """Weigh units by what they stand for.

        A unit stands for as many as it was improbable to draw; within a stratum the weights are
        scaled to its size. Strata without a unit in the sample count as being like the others.

        Args:
            strata: (n,) int, numbered from 0 without gaps.
            sizes: (n,) how many units the stratum of each has.
            probabilities: (n,) with which each was drawn, in 0..1.
            population: how many units all strata have together, those without one here included.
        """
        weights = 1 / probabilities
        weights = weights * sizes / np.bincount(strata, weights)[strata]
        return cls(
            strata=strata,
            weights=weights * (population / weights.sum()),
            unseen=1 - np.bincount(strata)[strata] / sizes,
        )

    def ratio(self, values: np.ndarray, bases: np.ndarray) -> float:
        """Of the totals of two numbers per unit, (n,) float each."""
        return float(self.weights @ values) / float(self.weights @ bases)

    def share(self, part: np.ndarray, whole: np.ndarray) -> Estimate:
        """Of things that units have several of.

        Args:
            part: (n,) how many of a unit's things are of the kind.
            whole: (n,) how many things it has; not all zero.
        """
        value = self.ratio(part, whole)
        size = self._effective_size(part, whole, value * (1 - value))
        if math.isinf(size):
            return Estimate(value, Interval(value, value))
        interval = wilson_interval(min(value * size, size), size)
        assert interval is not None
        return Estimate(value, interval)

    def mean_count(self, counts: np.ndarray) -> Estimate:
        """How many things a unit has on average, where most have none. counts: (n,)."""
        ones = np.ones(len(counts))
        value = self.ratio(counts, ones)
        size = self._effective_size(counts, ones, value)
        if math.isinf(size):
            return Estimate(value, Interval(value, value))
        interval = poisson_interval(value * size, size)
        assert interval is not None
        return Estimate(value, interval)

    def _effective_size(self, values: np.ndarray, bases: np.ndarray, spread: float) -> float:
        """How many independent things would tell as much; infinite if all units were seen.

        spread: variance of one independent thing.
        """
        total = float(self.weights @ bases)
        unseen_squares = self.unseen * self.weights**2
        # What the weights alone allow: if a unit's things are independent, or all alike.
        independent, alike = (float(unseen_squares @ bases**power) for power in (1, 2))
        if not independent:
            return math.inf
        variance = self._variance(values, bases) * self._few_units()
        if not variance:
            return total**2 / alike
        return min(spread / variance, total**2 / independent)

    def _variance(self, values: np.ndarray, bases: np.ndarray) -> float:
        """Of the ratio of totals, linearised, over the strata of the design."""
        total = float(self.weights @ bases)
        residuals = self.weights * (values - self.ratio(values, bases) * bases) / total
        counts = np.bincount(self.strata)[self.strata]
        means = np.bincount(self.strata, residuals)[self.strata] / counts
        # A unit that is alone in its stratum is held against all: their mean residual is zero.
        spreads = np.where(
            counts > 1,
            (residuals - means) ** 2 * counts / np.maximum(counts - 1, 1),
            residuals**2,
        )
        return float(self.unseen @ spreads)

    def _few_units(self) -> float:
        """Korn and Graubard's correction: the variance itself is known only so well."""
        from scipy.special import ndtri, stdtrit

        freedom = max(len(self.strata) - int(self.strata.max()) - 1, 1)
        tail = (1 + CONFIDENCE) / 2
        return float(stdtrit(freedom, tail) / ndtri(tail)) ** 2


def product(one: Estimate, two: Estimate) -> Estimate:
    """Of two shares that were estimated independently.

    The ends lie as far from the value, on the scale of logarithms, as those of both together (Zou
    and Donner, "Construction of confidence limits about effect measures: a general approach",
    2008).
    """
    value = one.value * two.value
    if not value:
        return Estimate(0.0, Interval(0.0, one.interval.high * two.interval.high))
    down = math.hypot(*(_log_ratio(e.value, e.interval.low) for e in (one, two)))
    up = math.hypot(*(_log_ratio(e.interval.high, e.value) for e in (one, two)))
    return Estimate(value, Interval(value * math.exp(-down), min(value * math.exp(up), 1.0)))


def _log_ratio(larger: float, smaller: float) -> float:
    return math.log(larger / smaller) if smaller > 0 else math.inf
