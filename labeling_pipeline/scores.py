"""From measured scores to calibrated ones.

A measured score ranks what a model found. A calibrated one is a probability: of the things at 0.8,
eight in ten are right.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

_DIGITS = 6


@dataclass(frozen=True)
class ScoreMap:
    """A rising piecewise linear function: what a measured score means as a probability.

    measured: (k,) where its knots stand, strictly rising, 0..1.
    probability: (k,) its value there, never falling, 0..1. It is constant beyond the outer knots.
    """

    measured: tuple[float, ...]
    probability: tuple[float, ...]

    def __post_init__(self) -> None:
        measured, probability = np.asarray(self.measured), np.asarray(self.probability)
        if not len(measured) or len(measured) != len(probability):
            raise ValueError(
                "expected a probability for each of at least one measured score, got "
                f"{len(measured)} scores and {len(probability)} probabilities"
            )
        if (np.diff(measured) <= 0).any():
            raise ValueError("expected measured scores that rise from knot to knot")
        if (np.diff(probability) < 0).any():
            raise ValueError("expected probabilities that never fall from knot to knot")
        for values in (measured, probability):
            if not (values.min() >= 0 and values.max() <= 1):
                raise ValueError("expected scores and probabilities in 0..1")

    @classmethod
    def through(cls, knots: Iterable[tuple[float, float]]) -> Self:
        """From pairs (measured, probability), rounded to six digits so that a file holds exactly
        what is applied. Of knots that rounding makes one, the last one stays.

        Raises:
            ValueError: there is none, one lies outside 0..1, or they do not rise.
        """
        rounded = {round(float(m), _DIGITS): round(float(p), _DIGITS) for m, p in knots}
        return cls(tuple(rounded), tuple(rounded.values()))

    @property
    def knots(self) -> tuple[tuple[float, float], ...]:
        """Pairs (measured, probability)."""
        return tuple(zip(self.measured, self.probability, strict=True))

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """(n,) float measured -> (n,) float64 calibrated; NaN stays NaN."""
        return np.interp(scores, self.measured, self.probability)
