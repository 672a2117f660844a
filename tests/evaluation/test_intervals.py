import math

import numpy as np
import pytest
from scipy.stats import binomtest

from labeling_pipeline.evaluation.intervals import (
    Interval,
    bootstrap_intervals,
    clustered_interval,
    share_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 7), (950, 1000), (1, 100_000)]
)
def test_shares_have_the_interval_that_scipy_computes(successes, trials):
    found = wilson_interval(successes, trials)
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.holds(successes / trials)


def test_a_share_of_nothing_has_no_interval():
    assert wilson_interval(0, 0) is None


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize("right", [0, 3, 19, 20])
def test_trials_in_clusters_of_one_are_independent(right):
    successes = np.arange(20) < right
    found = clustered_interval(successes, np.ones(20))
    expected = wilson_interval(right, 20)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("right", [0, 7, 30])
def test_clusters_that_are_right_or_wrong_as_one_count_about_once(right):
    successes = 4 * (np.arange(30) < right)
    found = clustered_interval(successes, np.full(30, 4))
    expected = wilson_interval(right, 30)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_one_cluster_is_one_trial_and_none_has_no_interval():
    assert clustered_interval(np.array([3]), np.array([5])) == wilson_interval(0.6, 1)
    assert clustered_interval(np.array([]), np.array([])) is None


def test_a_share_of_clustered_trials_lies_in_its_interval_as_often_as_promised():
    random = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        sizes = random.integers(1, 6, 60)
        # Within a cluster shares differ much: a plain interval would hold in about 80 %.
        shares = random.beta(0.9 * 0.5, 0.1 * 0.5, 60)
        held += clustered_interval(random.binomial(sizes, shares), sizes).holds(0.9)
    assert held >= 0.92 * 400


def test_the_bootstrap_of_a_mean_is_the_one_of_theory():
    values = np.random.default_rng(3).normal(5, 2, 400)
    (found,) = bootstrap_intervals(lambda drawn: [(drawn @ values) / drawn.sum()], len(values))
    error = values.std() / math.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=error / 4)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=error / 4)


def test_the_same_seed_gives_the_same_interval():
    def mean(drawn):
        return [(drawn @ np.arange(30)) / 30]

    assert bootstrap_intervals(mean, 30, seed=1) == bootstrap_intervals(mean, 30, seed=1)
    assert bootstrap_intervals(mean, 30, seed=1) != bootstrap_intervals(mean, 30, seed=2)


def test_several_statistics_share_their_resamples():
    values = np.random.default_rng(0).random(50)
    low, double = bootstrap_intervals(
        lambda drawn: [(drawn @ values) / 50, 2 * (drawn @ values) / 50], 50
    )
    assert (double.low, double.high) == pytest.approx((2 * low.low, 2 * low.high))


def test_a_statistic_that_seldom_exists_has_no_interval():
    assert bootstrap_intervals(lambda drawn: [None, 1.0], 10) == [None, Interval(1.0, 1.0)]


@pytest.mark.parametrize("units", [0, 1])
def test_less_than_two_units_say_nothing_of_chance(units):
    assert bootstrap_intervals(lambda drawn: [0.5, 0.5], units) == [None, None]


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        values = random.random(60) < 0.8
        (found,) = bootstrap_intervals(lambda drawn: [drawn @ values / 60], 60, replicates=200)  # noqa: B023
        held += found.holds(0.8)
    assert 0.88 < held / 200 <= 1


def test_resamples_that_all_agree_are_no_certainty():
    (found,) = bootstrap_intervals(lambda drawn: [1.0], 14)
    assert share_interval(found, 14) == wilson_interval(14, 14)
    assert share_interval(Interval(0.5, 0.9), 14) == Interval(0.5, 0.9)
    assert share_interval(None, 14) is None
