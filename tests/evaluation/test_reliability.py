import numpy as np
import pytest

from labeling_pipeline.evaluation.plots.frame import png_bytes
from labeling_pipeline.evaluation.plots.shapes import reliability_diagram
from labeling_pipeline.evaluation.reliability import (
    calibration_error_interval,
    measure_reliability,
)


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


def test_two_curves_are_drawn_beside_each_other():
    rng = np.random.default_rng(4)
    scores = rng.random(400)
    right = rng.random(400) < scores**2
    figure = reliability_diagram(
        measure_reliability(scores, right), "Title", "boxes", measure_reliability(scores**2, right)
    )
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["ideal", *(f"{k}, with 95 % intervals" for k in ("measured", "calibrated"))]
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == 800


@pytest.mark.parametrize("off", [0.0, 0.1])
def test_the_interval_of_the_error_holds_the_truth_about_as_often_as_it_says(off):
    random = np.random.default_rng(7)
    held = 0
    for _ in range(40):
        scores = random.uniform(0.2, 0.8, 300)
        right = random.random(300) < scores + off
        found = calibration_error_interval(scores, right, np.arange(300))
        assert found.holds(measure_reliability(scores, right).ece)
        # Of scores that mean what they say the error is 0, the least that it can be.
        held += found.holds(off) or (off == 0 and found.low < 0.02)
    assert held / 40 >= 0.9


def test_an_error_over_few_images_is_known_less_well():
    random = np.random.default_rng(8)
    scores = np.full(1000, 0.75)
    right = np.repeat(random.random(50) < 0.5, 20)

    def width(groups):
        found = calibration_error_interval(scores, right, groups)
        return found.high - found.low

    assert width(np.repeat(np.arange(50), 20)) > 2 * width(np.arange(1000))


@pytest.mark.parametrize("count", [0, 1])
def test_less_than_two_images_say_nothing_of_chance(count):
    nothing = np.zeros(count)
    assert calibration_error_interval(nothing, nothing.astype(bool), nothing) is None
