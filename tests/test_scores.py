import math

import numpy as np
import pytest

from labeling_pipeline.scores import ScoreMap

MAP = ScoreMap((0.2, 0.4, 0.8), (0.0, 0.5, 0.9))


@pytest.mark.parametrize(
    ("measured", "calibrated"),
    [
        pytest.param(0.4, 0.5, id="a knot"),
        pytest.param(0.3, 0.25, id="half way between two"),
        pytest.param(0.0, 0.0, id="below the first"),
        pytest.param(1.0, 0.9, id="above the last"),
        pytest.param(math.nan, math.nan, id="no score"),
    ],
)
def test_a_measured_score_becomes_a_probability(measured, calibrated):
    assert MAP.apply(np.array([measured])) == pytest.approx([calibrated], nan_ok=True)


def test_a_single_knot_is_a_constant():
    assert ScoreMap((0.5,), (0.7,)).apply(np.array([0.0, 0.5, 1.0])).tolist() == [0.7] * 3


def test_knots_are_rounded_and_those_that_become_one_leave_the_last():
    knots = [(0.1, 0.2), (0.30000001, 0.4), (0.30000002, 0.6), (0.5, 0.7000000004)]
    assert ScoreMap.through(knots).knots == ((0.1, 0.2), (0.3, 0.6), (0.5, 0.7))


@pytest.mark.parametrize(
    ("measured", "probability", "expected"),
    [
        pytest.param((), (), "at least one measured score", id="none"),
        pytest.param((0.1, 0.2), (0.5,), "2 scores and 1 prob", id="one probability missing"),
        pytest.param((0.2, 0.1), (0.5, 0.6), "scores that rise", id="falling scores"),
        pytest.param((0.1, 0.1), (0.5, 0.6), "scores that rise", id="one score twice"),
        pytest.param((0.1, 0.2), (0.6, 0.5), "never fall", id="a falling probability"),
        pytest.param((0.1, 1.2), (0.5, 0.6), r"in 0\.\.1", id="a score above 1"),
        pytest.param((0.1, 0.2), (-0.1, 0.6), r"in 0\.\.1", id="a probability below 0"),
        pytest.param((math.nan,), (0.5,), r"in 0\.\.1", id="not a number"),
    ],
)
def test_what_is_no_such_map_is_refused(measured, probability, expected):
    with pytest.raises(ValueError, match=expected):
        ScoreMap(measured, probability)
