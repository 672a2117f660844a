import numpy as np
import pandas as pd
import pytest
from sklearn.isotonic import IsotonicRegression

from labeling_pipeline.evaluation.calibration import (
    BOX_COLUMNS,
    LEAST_BOXES,
    LEAST_OF_A_KIND,
    calibrate_scores,
    choose_thresholds,
    deal,
    fit_score_map,
    lowest_threshold,
)
from labeling_pipeline.evaluation.intervals import wilson_interval
from labeling_pipeline.evaluation.reliability import measure_reliability


def share_right(scores: np.ndarray) -> np.ndarray:
    """The truth of the simulated boxes: what a perfect calibration would say."""
    return 1 / (1 + np.exp(-10 * (scores - 0.35)))


def boxes_of(count: int, seed: int = 0, per_image: int = 1, label: str = "cat") -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    scores = rng.beta(4, 2, count)
    return pd.DataFrame(
        {
            "entry": "object",
            "label": label,
            "score": scores,
            "correct": rng.random(count) < share_right(scores),
            "group": [f"{label}-{number // per_image}" for number in range(count)],
        },
        columns=BOX_COLUMNS,
    )


def boxes(scores, correct, groups=None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "entry": "object",
            "label": "cat",
            "score": np.asarray(scores, dtype=float),
            "correct": np.asarray(correct, dtype=bool),
            "group": [str(i) for i in range(len(scores))] if groups is None else groups,
        },
        columns=BOX_COLUMNS,
    )


# Scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [1, 2, 50, 3000])
def test_the_map_is_the_isotonic_regression_of_platts_targets(count, ties):
    drawn = boxes_of(count, seed=count)
    scores, right = drawn["score"].to_numpy(), drawn["correct"].to_numpy()
    if ties:
        scores = scores.round(1)
    targets = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    expected = IsotonicRegression(out_of_bounds="clip").fit(scores, targets)
    # Knots are rounded to six digits, which shifts where one step ends and the next begins.
    asked = np.linspace(0, 1, 1001)
    found = fit_score_map(scores, right)
    np.testing.assert_allclose(found.apply(asked), expected.predict(asked), atol=2e-3)
    np.testing.assert_allclose(found.apply(scores), expected.predict(scores), atol=2e-3)


def test_a_worked_example_of_pooling():
    # Wrong at 0.6 stands above right at 0.5: the two are pooled. Two right, two wrong: right boxes
    # count as 3/4, wrong ones as 1/4.
    found = fit_score_map(np.array([0.2, 0.5, 0.6, 0.9]), np.array([False, True, False, True]))
    assert found.knots == ((0.2, 0.25), (0.5, 0.5), (0.6, 0.5), (0.9, 0.75))


@pytest.mark.parametrize("right", [True, False])
def test_no_score_becomes_a_certainty(right):
    found = fit_score_map(np.linspace(0, 1, 98), np.full(98, right))
    assert set(found.probability) == {0.99 if right else 0.01}


def test_calibrated_scores_mean_what_they_say_on_boxes_that_nothing_was_learned_from():
    learned = calibrate_scores(boxes_of(2000))
    fresh = boxes_of(20_000, seed=1)
    scores, right = fresh["score"].to_numpy(), fresh["correct"].to_numpy()
    assert measure_reliability(scores, right).ece > 0.2
    assert measure_reliability(learned.score_map.apply(scores), right).ece < 0.02
    # What is said of it without those boxes is as good as what they say.
    assert learned.before.ece > 0.2
    assert learned.after.ece < 0.02
    assert (learned.boxes, learned.groups, learned.reason) == (2000, 2000, "")
    assert learned.after_interval.high < learned.before_interval.low


def test_the_error_is_judged_on_images_that_nothing_was_learned_from():
    # Scores say nothing, but each of a hundred images has its own, twenty times. A map that had
    # seen them would know every image by heart.
    rng = np.random.default_rng(3)
    images = np.repeat(np.arange(100), 20)
    scores, right = rng.random(100)[images], (rng.random(100) < 0.5)[images]
    learned = calibrate_scores(boxes(scores, right, images.astype(str)))
    seen = measure_reliability(fit_score_map(scores, right).apply(scores), right)
    assert seen.ece < 1e-3
    assert learned.after.ece > 0.05


def test_the_folds_keep_groups_together_and_share_out_what_is_wrong():
    drawn = boxes_of(1000, per_image=7)
    groups, right = drawn["group"].to_numpy(dtype=str), drawn["correct"].to_numpy(dtype=bool)
    fold_of = deal(groups, right, 5)
    assert (drawn.assign(fold=fold_of).groupby("group")["fold"].nunique() == 1).all()
    wrong = np.bincount(fold_of, weights=~right)
    assert wrong.min() > 0.8 * wrong.max()
    np.testing.assert_array_equal(fold_of, deal(groups, right, 5))


def few(boxes_: int, wrong: int, per_image: int = 1) -> pd.DataFrame:
    scores = np.linspace(0.1, 0.9, boxes_)
    groups = [str(i // per_image) for i in range(boxes_)]
    return boxes(scores, np.arange(boxes_) >= wrong, groups)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        pytest.param(few(0, 0), "no box has a score", id="no boxes"),
        pytest.param(few(9, 3).assign(score=np.nan), "no box has a score", id="no scores"),
        pytest.param(few(LEAST_BOXES - 1, 40), "too few boxes: 99", id="a box too few"),
        pytest.param(
            few(500, LEAST_OF_A_KIND - 1), "too few wrong boxes: 9", id="a wrong box too few"
        ),
        pytest.param(few(500, 500), "too few right boxes: 0", id="all wrong"),
        pytest.param(few(500, 0), "too few wrong boxes: 0", id="all right"),
        pytest.param(few(500, 40, per_image=125), "4 for 5 folds", id="an image too few"),
        pytest.param(few(500, 40, per_image=500), "1 for 5 folds", id="one image"),
    ],
)
def test_too_few_examples_calibrate_nothing(given, reason):
    learned = calibrate_scores(given)
    assert reason in learned.reason
    assert (learned.score_map, learned.after) == (None, None)
    assert learned.before.count == given["score"].notna().sum()


def test_the_fewest_examples_that_suffice():
    assert calibrate_scores(few(LEAST_BOXES, LEAST_OF_A_KIND)).score_map is not None


def test_scores_that_mean_what_they_say_are_left_alone():
    rng = np.random.default_rng(5)
    scores = rng.random(5000)
    learned = calibrate_scores(boxes(scores, rng.random(5000) < scores))
    if learned.score_map is None:
        assert "mean what they say" in learned.reason
        assert learned.after.ece >= learned.before.ece
    else:
        assert learned.after.ece < learned.before.ece < 0.03


# Thresholds


@pytest.mark.parametrize("target", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_is_the_lowest_that_a_search_over_all_finds(seed, target):
    drawn = boxes_of(60 + 40 * seed, seed=seed)
    scores, right = drawn["score"].to_numpy().round(3), drawn["correct"].to_numpy()
    found = lowest_threshold(scores, right, target)
    grid = np.arange(10_001) / 10_000
    reached = [
        t for t in grid if (right[scores >= t].sum() + 1) / ((scores >= t).sum() + 2) >= target
    ]
    if not reached:
        assert found is None
        return
    kept = scores >= min(reached)
    assert found <= scores[kept].min()
    np.testing.assert_array_equal(scores >= found, kept)


@pytest.mark.parametrize(
    ("scores", "right", "expected"),
    [
        pytest.param([], [], None, id="nothing"),
        pytest.param([0.5] * 18, [True] * 18, 0.0, id="just enough right ones: nothing is cut"),
        pytest.param([0.5] * 17, [True] * 17, None, id="one too few"),
        pytest.param([0.5] * 40, [True] * 30 + [False] * 10, None, id="ties cannot be parted"),
        pytest.param(
            [0.2] * 5 + [0.71239] * 30, [False] * 5 + [True] * 30, 0.7123, id="rounded down"
        ),
        pytest.param([0.9] * 50, [False] * 50, None, id="all wrong"),
    ],
)
def test_thresholds_at_the_edges(scores, right, expected):
    found = lowest_threshold(np.array(scores, dtype=float), np.array(right, dtype=bool), 0.95)
    assert found == expected


def chosen(given: pd.DataFrame, true: int = 100, **settings) -> pd.Series:
    return choose_thresholds(given, {("object", "cat"): true}, **settings).iloc[0]


def test_a_threshold_holds_on_fresh_boxes_within_its_interval():
    row = chosen(boxes_of(1500), true=1600)
    fresh = boxes_of(50_000, seed=1)
    kept = fresh[fresh["score"] >= row.threshold]
    assert row.precision_low <= kept["correct"].mean() <= row.precision_high
    assert kept["correct"].mean() == pytest.approx(0.95, abs=0.01)
    assert row.kept == pytest.approx(1500 * len(kept) / 50_000, rel=0.05)
    assert row.recall == pytest.approx(kept["correct"].sum() / 50_000 * 1500 / 1600, abs=0.02)
    assert row.recall < row.recall_of_all < 1
    assert (row.boxes, row.true, row.reason) == (1500, 1600, "")


def test_the_stated_precision_holds_about_as_often_as_it_says():
    fresh = boxes_of(50_000, seed=999)
    held = 0
    for seed in range(100):
        row = chosen(boxes_of(400, seed=seed))
        true = fresh.loc[fresh["score"] >= row.threshold, "correct"].mean()
        held += row.precision_low <= true <= row.precision_high
    assert held >= 90


def test_where_all_are_good_enough_nothing_is_taken_away():
    row = chosen(few(60, 1))
    assert (row.threshold, row.kept, row.recall) == (0.0, 60, row.recall_of_all)
    assert row.precision == pytest.approx(59 / 60)
    expected = wilson_interval(59, 60)
    assert row.precision_low == pytest.approx(expected.low, abs=5e-3)
    assert row.precision_high == pytest.approx(expected.high, abs=5e-3)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        pytest.param(few(0, 0), "too few boxes: 0, and 18 right ones", id="no predictions"),
        pytest.param(few(40, 0).assign(score=np.nan), "too few boxes: 0", id="no scores"),
        pytest.param(few(17, 0), "too few boxes: 17", id="a box too few"),
        pytest.param(few(60, 60), "no score reaches 95.0%", id="all wrong"),
        pytest.param(boxes([0.5] * 40, [True] * 30 + [False] * 10), "the best is 73.8%", id="ties"),
        pytest.param(few(30, 10), "without those of one fold", id="too few to be judged apart"),
        pytest.param(few(200, 100, per_image=200), "without those of one fold", id="one image"),
    ],
)
def test_no_threshold_is_invented(given, reason):
    row = chosen(given)
    assert reason in row.reason
    assert np.isnan([row.threshold, row.precision, row.precision_low, row.recall]).all()
    assert row.kept == 0


def test_a_threshold_that_does_not_hold_apart_is_not_given():
    # Each image has a score of its own, on which all its boxes are right or all are wrong; only
    # luck puts right images on top.
    rng = np.random.default_rng(0)
    reasons = set()
    for _ in range(40):
        images = np.repeat(np.arange(30), 40)
        right = rng.random(30) < 0.7
        scores = rng.random(30)
        reasons.add(chosen(boxes(scores[images], right[images], images.astype(str))).reason[:16])
    assert "it does not hold" in reasons


def test_every_pair_that_was_asked_has_a_row_in_order():
    given = pd.concat([boxes_of(200, label="dog"), boxes_of(200, label="cat", seed=1)])
    true = {("object", "dog"): 9, ("object", "cat"): 9, ("face", "owl"): 0}
    table = choose_thresholds(given, true)
    assert table[["entry", "label"]].to_numpy().tolist() == [
        *(["face", "owl"], ["object", "cat"], ["object", "dog"])
    ]
    assert np.isnan(table["recall_of_all"].iloc[0])


def test_the_order_of_the_boxes_changes_nothing():
    given = boxes_of(600, per_image=3)
    shuffled = given.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(
        choose_thresholds(given, {("object", "cat"): 600}),
        choose_thresholds(shuffled, {("object", "cat"): 600}),
    )
    assert calibrate_scores(given).score_map == calibrate_scores(shuffled).score_map
