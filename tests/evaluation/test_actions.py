import numpy as np
import pandas as pd
import pytest

from labeling_pipeline.annotations import Keypoint
from labeling_pipeline.evaluation.actions import (
    KEYPOINTS,
    NO_ACTION,
    NO_ANSWER,
    NO_PERSON,
    NO_PRESENCE,
    NOT_LABELED,
    ZERO_SHOT,
    Recognition,
    compare_methods,
    evaluate_actions,
    judged_images,
    keypoint_features,
    predict_from_keypoints,
    predict_from_presences,
)
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.tasks import PERSON

BENT = {"nose": (40, 10), "left hip": (40, 60), "left knee": (70, 60), "left ankle": (70, 100)}


def keypoints(points):
    return [Keypoint(name, x, y, None) for name, (x, y) in points.items()]


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (3.5, 0), (1, 200), (0.5, -17)])
def test_features_do_not_depend_on_place_and_size(scale, shift):
    def moved(x, y):
        return x * scale + shift, y * scale + shift

    plain = keypoint_features(keypoints(BENT), (30, 0, 80, 110))
    other = keypoint_features(
        keypoints({name: moved(*point) for name, point in BENT.items()}),
        (*moved(30, 0), *moved(80, 110)),
    )
    assert plain.shape == (67,)
    np.testing.assert_allclose(plain, other)


def test_lying_and_standing_have_different_features():
    standing = keypoint_features(keypoints(BENT), (30, 0, 80, 110))
    lying = keypoint_features(
        keypoints({name: (y, x) for name, (x, y) in BENT.items()}), (0, 30, 110, 80)
    )
    assert not np.allclose(standing, lying, equal_nan=True)


def test_a_missing_point_makes_its_own_features_missing_and_no_others():
    features = keypoint_features(
        [*keypoints(BENT), Keypoint("left wrist", None, None, None)], (30, 0, 80, 110)
    )
    points = features[:34].reshape(17, 2)
    seen = [
        name for name, point in zip(PERSON.keypoints, points, strict=True) if point[0] == point[0]
    ]
    assert sorted(seen) == sorted(BENT)
    limbs = features[34:66].reshape(16, 2)
    assert int(np.isfinite(limbs[:, 0]).sum()) == 2  # hip to knee, knee to ankle


def test_mappings_from_the_store_give_the_same_features_as_value_types():
    rows = [{"name": n, "x_px": x, "y_px": y, "score": None} for n, (x, y) in BENT.items()]
    box = (30, 0, 80, 110)
    np.testing.assert_array_equal(
        keypoint_features(rows, box), keypoint_features(keypoints(BENT), box)
    )


def test_without_box_and_points_every_feature_is_missing():
    assert np.isnan(keypoint_features(None, None)).all()


def postures(per_class, names=("standing", "lying", "arms_raised"), seed=9):
    rng = np.random.default_rng([seed, 1])
    rows = []
    for name in names:
        for i in range(per_class):
            person = draw_scene(rng, 160, 160, [name]).objects[0]
            points = dict(zip(PERSON.keypoints, person.keypoints_px.tolist(), strict=True))
            rows.append(
                {
                    "image_id": f"{name}-{i}",
                    "group": None,
                    "true_action": name,
                    "keypoints": keypoints(points),
                    "bbox": tuple(person.bbox_px),
                }
            )
    return pd.DataFrame(rows)


def accuracy(predictions):
    return evaluate_actions(predictions).scores.accuracy.value


def test_postures_are_told_apart_out_of_fold():
    predictions = predict_from_keypoints(postures(8), folds=3)
    assert accuracy(predictions) > 0.9
    assert sorted(predictions["fold"].unique()) == [0, 1, 2]
    for row in predictions.itertuples():
        assert sum(row.probabilities.values()) == pytest.approx(1)
        assert row.top_probability == row.probabilities[row.predicted_action]


def test_the_same_seed_predicts_the_same():
    people = postures(4, names=("standing", "lying"))
    pd.testing.assert_frame_equal(
        predict_from_keypoints(people, folds=2, seed=3),
        predict_from_keypoints(people, folds=2, seed=3),
    )


def test_near_duplicates_never_lie_on_both_sides_of_a_fold():
    people = postures(6, names=("standing", "lying"))
    people["group"] = [f"{a}-{i % 3}" for i, a in enumerate(people["true_action"])]
    predictions = predict_from_keypoints(people, folds=3)
    folds_of_group = predictions.groupby(people["group"])["fold"].nunique()
    assert (folds_of_group == 1).all()


def test_an_image_without_a_person_stays_unpredicted_and_is_counted_as_wrong():
    people = postures(6, names=("standing", "lying"))
    people.loc[0, ["keypoints", "bbox"]] = None
    predictions = predict_from_keypoints(people, folds=2)
    evaluation = evaluate_actions(predictions)
    scores = evaluation.scores

    assert predictions.loc[0, "predicted_action"] is None
    assert predictions.loc[0, "reason"] == NO_PERSON
    assert (scores.images, scores.predicted, evaluation.reasons) == (12, 11, {NO_PERSON: 1})
    assert scores.confusion.loc["standing", NO_PERSON] == 1
    assert scores.accuracy.value == pytest.approx(scores.accuracy_predicted.value * 11 / 12)


def test_what_keeps_an_image_from_being_judged_counts_nowhere():
    people = postures(6, names=("standing", "lying")).assign(reason=None)
    people.loc[:2, ["keypoints", "bbox"]] = None
    people.loc[:1, "reason"] = [NOT_LABELED, NO_ANSWER]
    evaluation = evaluate_actions(predict_from_keypoints(people, folds=2))
    assert evaluation.reasons == {NO_ANSWER: 1, NO_PERSON: 1}
    assert evaluation.not_judged == {NOT_LABELED: 1}
    assert (evaluation.scores.images, evaluation.images) == (11, 12)
    assert evaluation.scores.confusion.columns.tolist() == [
        *("lying", "standing", NO_PERSON, NO_ANSWER)
    ]


@pytest.mark.parametrize(
    ("people", "reason"),
    [
        pytest.param(postures(5, names=("lying",)), "one action only", id="single class"),
        pytest.param(postures(1), "too few images", id="one image a class"),
        pytest.param(postures(1, names=("lying",)), "one action only", id="one image"),
        pytest.param(
            postures(3).assign(keypoints=None, bbox=None), NO_PERSON, id="nobody found anywhere"
        ),
        pytest.param(
            postures(4).assign(group="all the same"), "too few images", id="all near-duplicates"
        ),
        pytest.param(
            postures(4).assign(is_held_out=True), "too few images", id="nothing to learn from"
        ),
        pytest.param(
            postures(4).assign(is_test=True), "too few images", id="nothing but a test folder"
        ),
    ],
)
def test_what_cannot_be_learned_from_is_left_unpredicted_with_a_reason(people, reason):
    predictions = predict_from_keypoints(people)
    assert predictions["predicted_action"].isna().all()
    assert predictions["reason"].str.startswith(reason).all()
    evaluation = evaluate_actions(predictions)
    assert evaluation.scores.accuracy_predicted.value is None
    if reason == NO_PERSON:
        assert evaluation.scores.accuracy.value == 0
        assert evaluation.scores.confusion[NO_PERSON].sum() == len(people)
    else:
        assert evaluation.scores.images == 0
        assert sum(evaluation.not_judged.values()) == len(people)


def test_no_images_at_all_is_an_empty_evaluation():
    evaluation = evaluate_actions(predict_from_keypoints(postures(1).iloc[:0]))
    assert (evaluation.images, evaluation.scores.accuracy.value) == (0, None)


def test_an_unknown_true_action_is_neither_learned_from_nor_judged():
    people = postures(4, names=("standing", "lying"))
    people.loc[0, "true_action"] = None
    predictions = predict_from_keypoints(people, folds=2)
    assert predictions.loc[0, "reason"] == "no true action is known"
    assert evaluate_actions(predictions).images == 7


def test_a_class_that_is_called_like_a_reason_is_not_confused_with_it():
    table = pd.DataFrame(
        {"true_action": [NO_PERSON, NO_PERSON], "predicted_action": [NO_PERSON, None]}
    )
    scores = evaluate_actions(table).scores
    assert scores.confusion.to_numpy().tolist() == [[1, 1]]
    assert scores.accuracy.value == 0.5


# A test folder


def with_test_folder(lie=False):
    """Postures, the last quarter of each in the test folder; with ``lie`` under wrong names."""
    people = postures(8, names=("standing", "lying"))
    people["is_test"] = np.arange(len(people)) % 8 >= 6
    if lie:
        other = people["true_action"].map({"standing": "lying", "lying": "standing"})
        people["true_action"] = people["true_action"].where(~people["is_test"], other)
    return people


def test_a_test_folder_is_predicted_once_and_never_learned_from():
    people = with_test_folder()
    told, lied = (predict_from_keypoints(with_test_folder(lie), folds=2) for lie in (False, True))
    columns = ["predicted_action", "top_probability", "fold"]
    pd.testing.assert_frame_equal(told[columns], lied[columns])
    assert told.loc[people["is_test"], "fold"].isna().all()
    assert told.loc[~people["is_test"], "fold"].notna().all()
    assert accuracy(told[people["is_test"]]) == 1


def test_nothing_is_learned_from_a_near_duplicate_of_a_test_image_which_is_still_predicted():
    people = with_test_folder()
    held_out = people["is_test"] | people["image_id"].isin(["standing-0", "lying-0"])
    expected = predict_from_keypoints(
        people[people["is_test"] | ~held_out].assign(is_held_out=False), folds=2
    )
    found = predict_from_keypoints(people.assign(is_held_out=held_out), folds=2)
    assert found.set_index("image_id").loc[["standing-0", "lying-0"], "fold"].notna().all()
    in_test = people.loc[people["is_test"], "image_id"]
    pd.testing.assert_series_equal(
        found.set_index("image_id").loc[in_test, "top_probability"],
        expected.set_index("image_id").loc[in_test, "top_probability"],
    )


def test_an_action_that_only_the_test_folder_has_is_never_recognised():
    people = with_test_folder()
    people.loc[people["is_test"], "true_action"] = "dancing"
    predictions = predict_from_keypoints(people, folds=2)
    assert accuracy(predictions[people["is_test"]]) == 0
    assert accuracy(predictions[~people["is_test"]]) > 0.9


# Zero-shot

ACTIONS = ("eat", "run", "sit")


def answers_of(**images):
    """image -> of each action (state, presence)."""
    return pd.DataFrame(
        [
            (image, action, state, presence)
            for image, said in images.items()
            for action, (state, presence) in zip(ACTIONS, said, strict=False)
        ],
        columns=["image_id", "action", "state", "presence"],
    )


def zero_shot(**images):
    table = pd.DataFrame({"image_id": list(images), "true_action": "run"})
    return predict_from_presences(table, answers_of(**images), ACTIONS)


def test_presences_are_shared_out_among_the_actions():
    (row,) = zero_shot(a=[("absent", 0.1), ("found", 0.9), ("absent", 0.2)]).itertuples()
    assert row.probabilities == pytest.approx({"eat": 0.1 / 1.2, "run": 0.75, "sit": 0.2 / 1.2})
    assert (row.predicted_action, row.top_probability) == ("run", pytest.approx(0.75))
    assert pd.isna(row.fold)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param(
            [("found", 0.6), ("found", 0.7), ("absent", 0.1)], "run", id="the most present"
        ),
        pytest.param([("found", 0.7), ("found", 0.7), ("absent", 0.1)], "eat", id="a tie"),
        pytest.param(
            [("found", 0.7), ("not_mentioned", None), ("absent", 0.1)], "eat", id="passed over"
        ),
        pytest.param(
            [("absent", 0.4), ("not_mentioned", None), ("absent", 0.1)], NO_ACTION, id="none found"
        ),
        pytest.param(
            [("found", 0.7), ("truncated", None), ("absent", 0.1)], NO_ANSWER, id="one cut off"
        ),
        pytest.param([("failed", None)] * 3, NO_ANSWER, id="failed"),
        pytest.param([("found", 0.7), ("absent", 0.1)], NOT_LABELED, id="one was not asked yet"),
        pytest.param([], NOT_LABELED, id="nothing was asked yet"),
        pytest.param(
            [("found", None), ("absent", None), ("absent", None)], NO_PRESENCE, id="not measured"
        ),
    ],
)
def test_what_the_answers_say_is_the_prediction_or_why_there_is_none(said, expected):
    (row,) = zero_shot(a=said).itertuples()
    assert expected == (row.reason or row.predicted_action)
    assert (row.reason is None) == (row.predicted_action is not None)


def test_answers_about_other_images_are_passed_over_and_rows_keep_their_order():
    sure = [("absent", 0.1), ("found", 0.9), ("absent", 0.2)]
    answers = answers_of(b=sure, other=sure, a=sure[::-1])
    images = pd.DataFrame({"image_id": ["a", "c", "b"], "true_action": "run"})
    found = predict_from_presences(images, answers.sample(frac=1, random_state=0), ACTIONS)
    assert found["image_id"].tolist() == ["a", "c", "b"]
    assert found["reason"].tolist() == [None, NOT_LABELED, None]


def test_nothing_is_predicted_where_the_plan_does_not_allow_it():
    images = pd.DataFrame({"image_id": ["a"], "true_action": "run"})
    found = predict_from_presences(images, answers_of(), ACTIONS, "asked apart")
    assert found["reason"].tolist() == ["asked apart"]
    assert evaluate_actions(found).not_judged == {"asked apart": 1}


# Comparing


def test_methods_are_compared_row_by_row_with_their_intervals():
    table = pd.DataFrame(
        {"true_action": ["a", "b", "b"] * 10, "predicted_action": ["a", "b", None] * 10}
    )
    evaluation = evaluate_actions(table, top_k=2)
    rows = compare_methods(
        [
            Recognition(method, is_test, judged_images(table), evaluation)
            for is_test in (False, True)
            for method in (KEYPOINTS, ZERO_SHOT)
        ]
    )
    assert rows["method"].tolist() == [
        *("keypoints", "zero-shot", "keypoints, test folder", "zero-shot, test folder")
    ]
    first = rows.iloc[0]
    assert (first["images"], first["without_prediction"], first["not_judged"]) == (30, 10, 0)
    assert first["accuracy"] == pytest.approx(2 / 3)
    assert first["accuracy_low"] < 2 / 3 < first["accuracy_high"]
    assert first["balanced_accuracy"] == 0.75
    assert np.isnan(first["abstain_below"]) == (evaluation.scores.abstain.value is None)
