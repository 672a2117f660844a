import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from labeling_pipeline.annotations import Keypoint
from labeling_pipeline.evaluation.actions import (
    NO_PERSON,
    NOT_PREDICTED,
    evaluate_actions,
    keypoint_features,
    predict_actions,
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


def test_postures_are_told_apart_out_of_fold():
    predictions = predict_actions(postures(8), folds=3)
    evaluation = evaluate_actions(predictions)
    assert evaluation.accuracy_all > 0.9
    assert sorted(predictions["fold"].unique()) == [0, 1, 2]
    for row in predictions.itertuples():
        assert sum(row.probabilities.values()) == pytest.approx(1)
        assert row.top_probability == row.probabilities[row.predicted_action]


def test_the_same_seed_predicts_the_same():
    people = postures(4, names=("standing", "lying"))
    pd.testing.assert_frame_equal(
        predict_actions(people, folds=2, seed=3), predict_actions(people, folds=2, seed=3)
    )


def test_near_duplicates_never_lie_on_both_sides_of_a_fold():
    people = postures(6, names=("standing", "lying"))
    people["group"] = [f"{a}-{i % 3}" for i, a in enumerate(people["true_action"])]
    predictions = predict_actions(people, folds=3)
    folds_of_group = predictions.groupby(people["group"])["fold"].nunique()
    assert (folds_of_group == 1).all()


def test_an_image_without_a_person_stays_unpredicted_and_is_counted_as_wrong():
    people = postures(6, names=("standing", "lying"))
    people.loc[0, ["keypoints", "bbox"]] = None
    predictions = predict_actions(people, folds=2)
    evaluation = evaluate_actions(predictions)

    assert predictions.loc[0, "predicted_action"] is None
    assert predictions.loc[0, "reason"] == NO_PERSON
    assert (evaluation.images, evaluation.predicted, evaluation.without_person) == (12, 11, 1)
    assert evaluation.confusion.loc["standing", NO_PERSON] == 1
    assert evaluation.accuracy_all == pytest.approx(evaluation.accuracy_predicted * 11 / 12)


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
    ],
)
def test_what_cannot_be_learned_from_is_left_unpredicted_with_a_reason(people, reason):
    predictions = predict_actions(people)
    assert predictions["predicted_action"].isna().all()
    assert predictions["reason"].str.startswith(reason).all()
    evaluation = evaluate_actions(predictions)
    assert evaluation.accuracy_all == (0 if reason == NO_PERSON else None)
    assert evaluation.accuracy_predicted is None
    assert evaluation.per_class["precision"].isna().all()
    column = NO_PERSON if reason == NO_PERSON else NOT_PREDICTED
    assert evaluation.confusion[column].sum() == len(people)


def test_no_images_at_all_is_an_empty_evaluation():
    evaluation = evaluate_actions(predict_actions(postures(1).iloc[:0]))
    assert evaluation.images == 0
    assert evaluation.accuracy_all is None
    assert evaluation.per_class.empty


def test_an_unknown_true_action_is_neither_learned_from_nor_judged():
    people = postures(4, names=("standing", "lying"))
    people.loc[0, "true_action"] = None
    predictions = predict_actions(people, folds=2)
    assert predictions.loc[0, "reason"] == "no true action is known"
    assert evaluate_actions(predictions).images == 7


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    names = np.array(["eat", "run", "sit"])
    true, predicted = names[rng.integers(0, 3, 60)], names[rng.integers(0, 2, 60)]
    table = pd.DataFrame({"image_id": "x", "true_action": true, "predicted_action": predicted})
    evaluation = evaluate_actions(table)

    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=names, zero_division=np.nan
    )
    np.testing.assert_allclose(evaluation.per_class["precision"], precision)
    np.testing.assert_allclose(evaluation.per_class["recall"], recall)
    np.testing.assert_allclose(evaluation.per_class["f1"], f1)
    assert evaluation.per_class["support"].tolist() == support.tolist()
    assert math.isnan(evaluation.per_class["precision"].iloc[2])  # "sit" was never predicted
    assert evaluation.accuracy_all == accuracy_score(true, predicted)
    np.testing.assert_array_equal(
        evaluation.confusion.to_numpy()[:, :3], confusion_matrix(true, predicted, labels=names)
    )


def test_a_class_that_is_called_like_the_extra_column_is_not_confused_with_it():
    table = pd.DataFrame(
        {
            "image_id": ["a", "b"],
            "true_action": [NO_PERSON, NO_PERSON],
            "predicted_action": [NO_PERSON, None],
        }
    )
    evaluation = evaluate_actions(table)
    assert evaluation.confusion.to_numpy().tolist() == [[1, 1]]
    assert evaluation.accuracy_all == 0.5
