import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from labeling_pipeline.evaluation.abstention import choose_threshold, measure_risk_coverage
from labeling_pipeline.evaluation.intervals import wilson_interval


def test_the_curve_is_the_one_worked_out_by_hand():
    found = measure_risk_coverage(
        np.array([0.9, 0.8, 0.8, 0.6]), np.array([True, True, False, False]), total=5
    )
    assert found.curve["threshold"].tolist() == [0.9, 0.8, 0.6]
    assert found.curve["kept"].tolist() == [1, 3, 4]
    assert found.curve["coverage"].tolist() == [0.2, 0.6, 0.8]
    assert found.curve["risk"].tolist() == pytest.approx([0, 1 / 3, 1 / 2])
    # The two of 0.8 are kept together: each has the risk of both.
    assert found.aurc == pytest.approx((0 + 1 / 3 + 1 / 3 + 1 / 2) / 4)


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_is_what_keeping_by_each_threshold_gives(seed):
    random = np.random.default_rng(seed)
    confidences = random.integers(0, 20, 80) / 20
    right = random.random(80) < confidences
    found = measure_risk_coverage(confidences, right)
    risks = []
    for row in found.curve.itertuples():
        keeps = confidences >= row.threshold
        risks.append(1 - accuracy_score(np.ones(keeps.sum()), right[keeps]))
        assert row.coverage == pytest.approx(keeps.mean())
    assert found.curve["risk"].tolist() == pytest.approx(risks)
    of_each = dict(zip(found.curve["threshold"], risks, strict=True))
    assert found.aurc == pytest.approx(np.mean([of_each[value] for value in confidences]))


def test_without_predictions_there_is_neither_a_curve_nor_a_threshold():
    nothing = np.array([])
    assert measure_risk_coverage(nothing, nothing).aurc is None
    found = choose_threshold(nothing, nothing, nothing, 0.9)
    assert (found.value, found.coverage, found.accuracy, found.interval) == (None,) * 4


@pytest.mark.parametrize(
    ("right", "target", "expected"),
    [
        pytest.param([1, 1, 1, 1], 1.0, 0.1, id="all are right: all are kept"),
        pytest.param([0, 0, 0, 0], 0.5, None, id="none is right"),
        pytest.param([1, 0, 1, 1], 0.75, 0.1, id="the lowest that reaches it, not the first"),
        pytest.param([1, 1, 0, 0], 2 / 3, 0.2, id="just reached"),
        pytest.param([0, 1, 1, 1], 0.8, None, id="the surest one is wrong"),
    ],
)
def test_the_threshold_is_the_lowest_that_reaches_the_target(right, target, expected):
    confidences = np.array([0.4, 0.3, 0.2, 0.1])
    found = choose_threshold(confidences, np.array(right, dtype=bool), np.arange(4), target)
    assert found.value == expected


def test_one_group_chooses_a_threshold_but_cannot_judge_it():
    found = choose_threshold(np.array([0.9, 0.5]), np.array([True, False]), np.array([7, 7]), 0.9)
    assert found.value == 0.9
    assert (found.judged, found.accuracy) == (0, None)


def test_the_judged_accuracy_is_not_flattered():
    """Confidences that say nothing: a threshold looks good only where it was chosen."""
    chosen, judged = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        confidences, right = random.random(60), random.random(60) < 0.8
        found = choose_threshold(confidences, right, np.arange(60), 0.9, seed=seed)
        if found.value is not None and found.kept:
            chosen.append(right[confidences >= found.value].mean())
            judged.append((found.right, found.kept))
    assert np.mean(chosen) >= 0.9
    rights, kepts = np.sum(judged, axis=0)
    assert wilson_interval(rights, kepts).holds(0.8)


def test_near_duplicates_of_what_chose_a_threshold_never_judge_it():
    # Copies of each other: judged by its twin every wrong one would be known to be wrong.
    random = np.random.default_rng(0)
    confidences, right = random.random(50), random.random(50) < 0.5
    twice = np.tile(confidences, 2), np.tile(right, 2), np.tile(np.arange(50), 2)
    found = choose_threshold(*twice, 0.7, seed=3)
    alone = choose_threshold(confidences, right, np.arange(50), 0.7, seed=3)
    assert (found.kept, found.right) == (2 * alone.kept, 2 * alone.right)
