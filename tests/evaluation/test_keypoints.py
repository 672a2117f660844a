import math

import pandas as pd
import pytest

from labeling_pipeline.annotations import Keypoint
from labeling_pipeline.evaluation.keypoints import evaluate_keypoints

BOX = ["x0_px", "y0_px", "x1_px", "y1_px"]
FAR = (100, 100, 110, 110)


def people(*rows):
    """(image_id, box, {name: point or None})"""
    return pd.DataFrame(
        [
            (i, 0.9, *box, [Keypoint(n, *(p or (None, None)), None) for n, p in points.items()])
            for i, box, points in rows
        ],
        columns=["image_id", "score", *BOX, "keypoints"],
    )


def true_people(*rows):
    """(image_id, instance, box, {name: (x, y, visibility)})"""
    return pd.DataFrame(
        [
            (image, instance, "person", *box, name, *point)
            for image, instance, box, points in rows
            for name, point in points.items()
        ],
        columns=["image_id", "instance", "label", *BOX, "name", "x_px", "y_px", "visibility"],
    )


TALL = (0, 0, 50, 100)


@pytest.mark.parametrize(
    ("point", "correct"),
    [
        pytest.param((20, 20), 1, id="exact"),
        pytest.param((30, 20), 1, id="a tenth of the larger side away"),
        pytest.param((30.1, 20), 0, id="just beyond"),
        pytest.param(None, 0, id="called invisible"),
    ],
)
def test_a_keypoint_is_correct_within_a_tenth_of_the_larger_side_of_the_box(point, correct):
    evaluation = evaluate_keypoints(
        people(("a", TALL, {"nose": point})),
        true_people(("a", 0, TALL, {"nose": (20, 20, 2)})),
        pd.DataFrame({"image_id": ["a"]}),
    )
    assert (evaluation.labelled, evaluation.correct) == (1, correct)
    assert evaluation.pck == correct


def test_points_that_are_not_labelled_and_persons_that_are_not_matched_are_not_judged():
    evaluation = evaluate_keypoints(
        people(("a", TALL, {"nose": (20, 20), "left ear": (1, 1)}), ("b", FAR, {"nose": (0, 0)})),
        true_people(
            ("a", 0, TALL, {"nose": (20, 20, 1), "left ear": (math.nan, math.nan, 0)}),
            ("b", 1, TALL, {"nose": (20, 20, 2)}),
            ("c", 2, TALL, {"nose": (20, 20, 2)}),
            ("never asked", 3, TALL, {"nose": (20, 20, 2)}),
        ),
        pd.DataFrame({"image_id": ["a", "b", "c"]}),
    )
    assert (evaluation.persons, evaluation.matched) == (3, 1)
    assert evaluation.per_keypoint.to_dict("records") == [
        {"name": "nose", "labelled": 1, "placed": 1, "correct": 1, "pck": 1.0}
    ]


def test_without_a_person_there_is_no_share_of_correct_keypoints():
    evaluation = evaluate_keypoints(people(), true_people(), pd.DataFrame({"image_id": ["a"]}))
    assert evaluation.pck is None
    assert evaluation.per_keypoint.empty
