import math

import numpy as np
import pytest
from scipy.stats import binomtest, chi2

from labeling_pipeline.evaluation.intervals import (
    Interval,
    bootstrap_intervals,
    clustered_interval,
    poisson_interval,
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


@pytest.mark.parametrize(("events", "exposure"), [(0, 10), (1, 10), (3, 0.5), (250, 1000)])
def test_counts_have_the_interval_that_chi_square_gives(events, exposure):
    # Garwood's limits, as half the quantiles of chi-square.
    low = chi2.ppf(0.025, 2 * events) / 2 if events else 0.0
    high = chi2.ppf(0.975, 2 * events + 2) / 2
    found = poisson_interval(events, exposure)
    assert (found.low, found.high) == pytest.approx((low / exposure, high / exposure))


def test_counts_over_nothing_have_no_interval_and_negative_ones_are_refused():
    assert poisson_interval(0, 0) is None
    with pytest.raises(ValueError, match="from 0 on"):
        poisson_interval(-1, 3)


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


@pytest.mark.parametrize("right", [0, 1, 57, 99, 100])
def test_clusters_of_one_have_wilsons_interval(right):
    ended = np.arange(100) < right
    found = clustered_interval(ended, np.arange(100))
    expected = wilson_interval(right, 100)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-3)


def test_clusters_that_end_alike_count_as_one_trial_each():
    clusters = np.repeat(np.arange(20), 10)
    ended = clusters < 14
    found, expected = clustered_interval(ended, clusters), wilson_interval(14 * 0.95, 19)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-2)
    assert clustered_interval(np.ones(200, bool), clusters) == wilson_interval(20, 20)


def test_no_trials_in_clusters_have_no_interval():
    assert clustered_interval(np.array([], bool), np.array([])) is None


def test_a_single_cluster_says_next_to_nothing():
    assert clustered_interval(np.array([True] * 9 + [False]), np.zeros(10)).low < 0.3


def test_clustered_intervals_hold_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(6)
    clusters = np.repeat(np.arange(50), 6)
    held = {"clustered": 0, "as if independent": 0}
    for _ in range(300):
        # The trials of a cluster share a chance of their own; its mean is 0.8.
        ended = random.random(300) < random.beta(1.6, 0.4, 50)[clusters]
        held["clustered"] += clustered_interval(ended, clusters).holds(0.8)
        held["as if independent"] += wilson_interval(ended.sum(), 300).holds(0.8)
    assert held["clustered"] / 300 > 0.92
    assert held["as if independent"] / 300 < 0.85
