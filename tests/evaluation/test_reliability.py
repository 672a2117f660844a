import numpy as np
import pytest

from labeling_pipeline.evaluation.plots.frame import png_bytes
from labeling_pipeline.evaluation.plots.shapes import reliability_diagram
from labeling_pipeline.evaluation.reliability import measure_reliability


def test_a_worked_example():
    # Bin 0.1..0.2: mean 0.15, none right. Bin 0.9..1: mean 0.975, three of four right.
    measured = measure_reliability(
        [0.1, 0.2 - 1e-9, 0.95, 0.95, 1.0, 1.0], [False, False, True, True, True, False]
    )
    assert measured.ece == pytest.approx((2 * 0.15 + 4 * (0.975 - 0.75)) / 6)
    assert measured.bins["count"].tolist() == [2, 4]
    assert measured.bins["right"].tolist() == [0, 0.75]


def test_scores_drawn_as_they_say_are_reliable():
    random = np.random.default_rng(1)
    scores = random.random(20_000)
    assert measure_reliability(scores, random.random(20_000) < scores).ece < 0.02


def test_bins_agree_with_numpys_histogram():
    scores = np.random.default_rng(2).random(999)
    counts, _ = np.histogram(scores, bins=10, range=(0, 1))
    assert measure_reliability(scores, scores > 0.5).bins["count"].tolist() == counts.tolist()


@pytest.mark.parametrize("edge", [0.1, 0.2, 0.3, 0.6, 0.7, 0.9])
def test_a_score_on_an_edge_is_of_the_upper_bin(edge):
    assert measure_reliability([edge], [True]).bins["low"].tolist() == [edge]


def test_what_has_no_score_is_left_out():
    measured = measure_reliability([np.nan, 0.5], [True, True])
    assert (measured.count, measured.ece) == (1, 0.5)


def test_without_scores_there_is_no_error():
    measured = measure_reliability([], [])
    assert (measured.count, measured.ece, len(measured.bins)) == (0, None, 0)


@pytest.mark.parametrize("score", [-0.1, 1.1])
def test_a_score_that_is_no_probability_is_refused(score):
    with pytest.raises(ValueError, match=r"scores in 0\.\.1"):
        measure_reliability([score], [True])


@pytest.mark.parametrize("count", [0, 1, 400])
def test_it_is_drawn_however_much_there_is(count):
    scores = np.random.default_rng(4).random(count)
    figure = reliability_diagram(measure_reliability(scores, scores > 0.4), "Title", "boxes")
    assert png_bytes(figure, dpi=60).startswith(b"\x89PNG")
