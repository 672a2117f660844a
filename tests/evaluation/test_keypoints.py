import math

import numpy as np
import pandas as pd
import pytest
from pycocotools.cocoeval import Params

from labeling_pipeline.annotations import Keypoint
from labeling_pipeline.evaluation.intervals import Interval, wilson_interval
from labeling_pipeline.evaluation.keypoints import PERSON_SIGMAS, evaluate_keypoints
from labeling_pipeline.tasks import FACE, PERSON
from tests.evaluation.reference import BOX, coco_evaluation

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
    assert (evaluation.oks, evaluation.average_precision, evaluation.pck_interval) == (None,) * 3


def test_the_sigmas_are_those_of_coco():
    np.testing.assert_allclose(PERSON_SIGMAS, Params("keypoints").kpt_oks_sigmas)


def random_people(seed, images=8):
    """Predicted and true people; some are missing, some true ones have no labelled keypoint."""
    rng = np.random.default_rng(seed)
    found, true, instance = [], [], 0
    for image in map(str, range(images)):
        for _ in range(rng.integers(0, 4)):
            corner, side = rng.uniform(0, 300, 2), rng.uniform(40, 200, 2)
            box = (*corner, *(corner + side))
            points = corner + rng.uniform(0, 1, (17, 2)) * side
            shown = rng.random(17) < (0.8 if rng.random() < 0.85 else 0)
            given = [
                (*point, 2) if one else (math.nan, math.nan, 0)
                for point, one in zip(points, shown, strict=True)
            ]
            true.append((image, instance, box, dict(zip(PERSON.keypoints, given, strict=True))))
            instance += 1
            for _ in range(rng.integers(0, 3)):
                moved = points + rng.normal(0, rng.uniform(1, 12), (17, 2))
                shifted = np.array(box) + rng.normal(0, 4, 4)
                found.append(
                    (
                        *(image, rng.random(), shifted),
                        {
                            name: None if rng.random() < 0.1 else tuple(point)
                            for name, point in zip(PERSON.keypoints, moved, strict=True)
                        },
                    )
                )
    return found, true, [str(i) for i in range(images)]


def coco_keypoints(found, true, images):
    named = [PERSON.name] * len(images)
    rows = {
        "found": [(image, PERSON.name, *box, score) for image, score, box, _ in found],
        "true": [(image, PERSON.name, *box) for image, _, box, _ in true],
    }
    # Far away is how COCO can be told that a point is nowhere.
    placed = [
        {"keypoints": [v for name in PERSON.keypoints for v in (*(p[name] or (-1e6, -1e6)), 2)]}
        for *_, p in found
    ]
    labelled = [
        {
            "keypoints": [0.0 if v != v else v for name in PERSON.keypoints for v in p[name]],
            "num_keypoints": sum(p[name][2] > 0 for name in PERSON.keypoints),
        }
        for *_, p in true
    ]
    return coco_evaluation(
        pd.DataFrame(rows["found"], columns=["image_id", "label", *BOX, "score"]),
        pd.DataFrame(rows["true"], columns=["image_id", "label", *BOX]),
        pd.DataFrame({"image_id": images, "label": named}),
        *("keypoints", placed, labelled),
    )


def scored_people(rows):
    table = people(*((image, box, points) for image, _, box, points in rows))
    return table.assign(score=[score for _, score, *_ in rows])


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_of_keypoints_is_that_of_pycocotools(seed):
    found, true, images = random_people(seed)
    ranking = evaluate_keypoints(
        scored_people(found), true_people(*true), pd.DataFrame({"image_id": images})
    ).average_precision
    values = (ranking.ap, ranking.ap_50, ranking.ap_75, ranking.ap_medium, ranking.ap_large)
    stats = coco_keypoints(found, true, images).stats
    np.testing.assert_allclose([-1 if v is None else v for v in (*values, ranking.ar)], stats[:6])
    assert ranking.ap_small is None


@pytest.mark.parametrize("seed", range(5))
def test_the_similarity_of_a_matched_person_is_that_of_pycocotools(seed):
    found, true, images = random_people(seed, images=6)
    # One person an image and one prediction of them, in the very box, so that who is whom is plain.
    true = list({image: row for image, *row in [(r[0], *r) for r in true]}.values())
    boxes = {image: box for image, _, box, _ in true}
    found = list({r[0]: (r[0], r[1], boxes[r[0]], r[3]) for r in found if r[0] in boxes}.values())
    evaluation = evaluate_keypoints(
        scored_people(found), true_people(*true), pd.DataFrame({"image_id": images})
    )
    coco = coco_keypoints(found, true, images)
    labelled = {i for i, (_, _, _, points) in enumerate(true) if any(p[2] for p in points.values())}
    shown = {true[i][0] for i in labelled}
    expected = [
        float(coco.ious[images.index(image) + 1, 1][0, 0])
        for image in sorted({row[0] for row in found} & shown)
    ]
    assert (evaluation.matched, evaluation.persons) == (len(expected), len(labelled))
    assert evaluation.oks == pytest.approx(np.mean(expected))


def test_similarity_by_hand():
    """A shoulder as far off as its own spread: exp(-1/2); an ear that was not placed: 0."""
    spread_px = 2 * 0.079 * math.sqrt(50 * 100)
    evaluation = evaluate_keypoints(
        people(("a", TALL, {"left shoulder": (10 + spread_px, 20), "left ear": None})),
        true_people(("a", 0, TALL, {"left shoulder": (10, 20, 2), "left ear": (15, 5, 1)})),
        pd.DataFrame({"image_id": ["a"]}),
    )
    assert evaluation.oks == pytest.approx(math.exp(-0.5) / 2)
    assert evaluation.has_coco_sigmas


def test_another_skeleton_has_its_own_keypoints_and_one_tolerance_for_all():
    spread_px = 2 * (1 / 5) * math.sqrt(50 * 100)
    evaluation = evaluate_keypoints(
        people(("a", TALL, {"nose": (10 + spread_px, 20), "left elbow": (0, 0)})),
        true_people(("a", 0, TALL, {"nose": (10, 20, 2), "left elbow": (0, 0, 2)})),
        pd.DataFrame({"image_id": ["a"]}),
        skeleton=FACE,
    )
    assert evaluation.oks == pytest.approx(math.exp(-0.5))
    assert evaluation.per_keypoint["name"].tolist() == ["nose"]
    assert not evaluation.has_coco_sigmas


def test_nobody_is_judged_by_a_person_without_a_labelled_keypoint():
    evaluation = evaluate_keypoints(
        people(("a", TALL, {"nose": (20, 20)})),
        true_people(("a", 0, TALL, {"nose": (math.nan, math.nan, 0)})),
        pd.DataFrame({"image_id": ["a"]}),
    )
    assert (evaluation.persons, evaluation.matched, evaluation.pck) == (0, 0, None)
    assert evaluation.average_precision is None


def test_people_that_are_never_found_cost_average_precision_but_not_similarity():
    true = true_people(*((image, i, TALL, {"nose": (20, 20, 2)}) for i, image in enumerate("ab")))
    evaluation = evaluate_keypoints(
        people(("a", TALL, {"nose": (20, 20)})), true, pd.DataFrame({"image_id": ["a", "b"]})
    )
    assert (evaluation.oks, evaluation.pck) == (1.0, 1.0)
    # COCO's 101 recalls: 51 lie at or below one half.
    assert evaluation.average_precision.ap == pytest.approx(51 / 101)


def test_the_interval_of_shares_is_over_images_and_no_certainty_where_all_are_right():
    points = {"nose": (20, 20), "left ear": (5, 5)}
    there = {name: (*point, 2) for name, point in points.items()}
    images = [str(i) for i in range(12)]
    true = true_people(*((image, i, TALL, there) for i, image in enumerate(images)))
    asked = pd.DataFrame({"image_id": images})
    right = evaluate_keypoints(people(*((i, TALL, points) for i in images)), true, asked)
    assert right.pck_interval == wilson_interval(12, 12)
    wrong = {**points, "nose": None}
    found = people(*((i, TALL, wrong if int(i) % 2 else points) for i in images))
    mixed = evaluate_keypoints(found, true, asked)
    assert mixed.pck == 0.75
    assert isinstance(mixed.pck_interval, Interval)
    assert 0.6 < mixed.pck_interval.low < 0.75 < mixed.pck_interval.high < 0.9
