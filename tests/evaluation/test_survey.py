import math

import numpy as np
import pytest

from labeling_pipeline.evaluation.intervals import Interval, poisson_interval, wilson_interval
from labeling_pipeline.evaluation.survey import Estimate, Sample, product


def sample(sizes, drawn, **options):
    """Simple random samples of strata. sizes, drawn: units of each stratum, and of its sample."""
    strata = np.repeat(np.arange(len(sizes)), drawn)
    sizes = np.array(sizes)
    shares = np.array(drawn) / sizes
    return Sample.drawn(
        strata, sizes[strata], shares[strata], **{"population": sizes.sum(), **options}
    )


def test_each_unit_stands_for_as_many_as_its_stratum_has_for_it():
    of = sample([100, 30, 4], [5, 3, 4])
    assert of.weights.tolist() == pytest.approx([20.0] * 5 + [10.0] * 3 + [1.0] * 4)
    assert of.unseen.tolist() == pytest.approx([0.95] * 5 + [0.9] * 3 + [0.0] * 4)


def test_units_that_were_easier_to_draw_stand_for_fewer():
    of = Sample.drawn(np.zeros(3, int), np.full(3, 110), np.array([0.1, 0.1, 0.01]), 110)
    assert of.weights.tolist() == pytest.approx([110 * w / 120 for w in (10, 10, 100)])


def test_strata_without_a_unit_are_like_the_others():
    of = sample([100, 30], [5, 3], population=260)
    assert of.weights.tolist() == pytest.approx([40.0] * 5 + [20.0] * 3)


def test_a_share_and_its_variance_are_those_of_a_worked_example():
    # Two strata of 40 and 20 units, four and two of them drawn: weights of 10 each.
    wrong = np.array([1, 0, 0, 1, 0, 1.0])
    boxes = np.array([2, 1, 1, 2, 1, 1.0])
    of = sample([40, 20], [4, 2])
    found = of.share(wrong, boxes)
    ratio = 3 / 8
    residuals = 10 * (wrong - ratio * boxes) / 80
    variance = sum(
        (1 - 1 / 10) * n * residuals[part].var(ddof=1)
        for n, part in ((4, slice(4)), (2, slice(4, 6)))
    )
    # Four degrees of freedom: Student's quantile is 2.7764, the normal one 1.9600.
    size = ratio * (1 - ratio) / (variance * (2.776445 / 1.959964) ** 2)
    assert size < 8 / 0.9
    assert found.value == pytest.approx(ratio)
    expected = wilson_interval(ratio * size, size)
    assert (found.interval.low, found.interval.high) == pytest.approx(
        (expected.low, expected.high), abs=1e-6
    )


def test_without_a_mistake_a_unit_counts_once_however_many_things_it_has():
    found = sample([1_000_000], [20]).share(np.zeros(20), np.full(20, 7.0))
    expected = wilson_interval(0, 20)
    assert found.value == 0
    assert found.interval.high == pytest.approx(expected.high, rel=1e-4)


def test_a_stratum_that_shows_no_mistake_does_not_count_as_free_of_them():
    # All mistakes lie in the small stratum; the large one was hardly looked at.
    values = np.array([1, 0, 1, 0, 0, 0, 0, 0, 0, 0.0])
    found = sample([6, 100_000], [5, 5]).share(values, np.ones(10))
    assert found.interval.high > 0.4


def test_things_that_are_independent_at_best_never_tell_more_than_they_are():
    random = np.random.default_rng(1)
    wrong = random.permutation(np.repeat([0.0, 1.0], 50))
    one = sample([10**7, 10**7], [50, 50]).share(np.sort(wrong), np.ones(100))
    # Strata that are all alike within have no variance between their units.
    assert one.interval.low >= wilson_interval(50, 100).low - 1e-6


def test_where_all_was_seen_nothing_is_uncertain():
    values = np.array([1, 0, 0.0])
    of = sample([2, 1], [2, 1])
    assert of.share(values, np.ones(3)) == Estimate(1 / 3, Interval(1 / 3, 1 / 3))
    assert of.mean_count(values) == Estimate(1 / 3, Interval(1 / 3, 1 / 3))


def test_counts_that_were_never_seen_have_the_interval_of_poisson():
    found = sample([5000], [15]).mean_count(np.zeros(15))
    expected = poisson_interval(0, 15 / (1 - 15 / 5000))
    assert (found.value, found.interval.low) == (0.0, 0.0)
    assert found.interval.high == pytest.approx(expected.high)


def test_counts_that_come_in_heaps_are_less_certain():
    apart, heaped = np.zeros(40), np.zeros(40)
    apart[:8], heaped[0] = 1, 8
    of = sample([5000], [40])
    one, two = of.mean_count(apart), of.mean_count(heaped)
    assert one.value == two.value == pytest.approx(0.2)
    assert two.interval.low < one.interval.low < one.interval.high < two.interval.high


def test_a_product_is_as_uncertain_as_both_factors_together():
    certain = Estimate(1.0, Interval(1.0, 1.0))
    half = Estimate(0.5, Interval(0.4, 0.6))
    same = product(half, certain)
    assert (same.interval.low, same.interval.high) == pytest.approx((0.4, 0.6))
    both = product(half, half)
    assert both.value == 0.25
    assert both.interval.low == pytest.approx(0.25 * math.exp(-math.sqrt(2) * math.log(1.25)))
    assert both.interval.high == pytest.approx(0.25 * math.exp(math.sqrt(2) * math.log(1.2)))


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        pytest.param((0.0, 0.0, 0.3), (0.5, 0.4, 0.8), (0.0, 0.0, 0.24), id="none of them"),
        pytest.param((0.2, 0.0, 0.3), (0.5, 0.4, 0.8), (0.1, 0.0, None), id="perhaps none"),
        pytest.param((1.0, 0.8, 1.0), (1.0, 0.9, 1.0), (1.0, None, 1.0), id="all of them"),
    ],
)
def test_products_at_the_edges(one, two, expected):
    found = product(*(Estimate(value, Interval(low, high)) for value, low, high in (one, two)))
    for got, wanted in zip(
        (found.value, found.interval.low, found.interval.high), expected, strict=True
    ):
        assert 0 <= got <= 1
        assert wanted is None or got == pytest.approx(wanted)


def test_the_other_share_has_the_other_interval():
    other = Estimate(0.2, Interval(0.1, 0.5)).complement()
    assert (other.value, other.interval.low, other.interval.high) == (0.8, 0.5, 0.9)
