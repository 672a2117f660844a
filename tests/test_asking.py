from pathlib import Path

import pytest

from labeling_pipeline.annotations import (
    Annotation,
    Box,
    Keypoint,
    LabelAnswer,
    ParsedAnswer,
    State,
)
from labeling_pipeline.asking import (
    Answered,
    Question,
    conclude,
    crop_around,
    first_questions,
    second_questions,
    smaller_groups,
)
from labeling_pipeline.plan import Entry, Group
from labeling_pipeline.tasks import PERSON, Task

SIZE = (640, 480)
DETECTION = Entry(name="object", task=Task.DETECTION)
TOP_DOWN = Entry(name="posture", task=Task.KEYPOINT, top_down=True)
LEFT: Box = (100.0, 100.0, 200.0, 300.0)
RIGHT: Box = (400.0, 100.0, 500.0, 300.0)


def group(*labels: str, distractors: tuple[str, ...] = ()) -> Group:
    return Group((*labels, *distractors), {label: label for label in labels}, "hash")


def said(state: State | str, *boxes: Box, presence: float | None = None) -> LabelAnswer:
    found = tuple(Annotation("thing", box) for box in boxes)
    return LabelAnswer(State(state), presence, found)


def answered(question: Question, dropped: tuple[str, ...] = (), **labels: LabelAnswer) -> Answered:
    return Answered(question, ParsedAnswer(labels, dropped))


def person(box: Box, score: float, invisible: int = 0) -> Annotation:
    points = [
        Keypoint(name, None, None, None) if n < invisible else Keypoint(name, 1.0, 2.0, score)
        for n, name in enumerate(PERSON.keypoints)
    ]
    return Annotation("person", box, keypoints=tuple(points), score=score)


def people(*found: Annotation, state: str = "found", presence: float | None = None) -> LabelAnswer:
    return LabelAnswer(State(state), presence, found)


# Smaller groups


@pytest.mark.parametrize(
    ("states", "distractors", "expected"),
    [
        pytest.param("found absent", "", [], id="everything settled"),
        pytest.param("degenerate", "", [], id="a label that was alone already"),
        pytest.param("degenerate", "found", [], id="a label that was alone with a distractor"),
        pytest.param("found degenerate", "", ["b"], id="one of two"),
        pytest.param("found degenerate truncated", "", ["b c"], id="all but the settled one"),
        pytest.param("degenerate truncated", "", ["a", "b"], id="both of two"),
        pytest.param("truncated truncated truncated", "", ["a b", "c"], id="all three"),
        pytest.param("found unparsed not_mentioned", "", [], id="what asking again does not mend"),
        pytest.param("found degenerate", "absent", ["b x"], id="beside a sound distractor"),
        pytest.param(
            "found truncated", "degenerate", ["b"], id="without a distractor that went in circles"
        ),
        pytest.param("found found", "degenerate", [], id="only a distractor went in circles"),
    ],
)
def test_labels_without_a_sound_end_are_asked_again_in_smaller_groups(
    states: str, distractors: str, expected: list[str]
):
    labels = dict(zip("abc", states.split(), strict=False))
    company = dict(zip("xyz", distractors.split(), strict=False))
    answers = {label: said(state) for label, state in (labels | company).items()}
    groups = smaller_groups(group(*labels, distractors=tuple(company)), answers)
    assert groups == [tuple(labels.split()) for labels in expected]


def test_two_classes_may_ask_one_label():
    shared = Group(("a", "b"), {"one": "a", "two": "a", "three": "b"}, "hash")
    groups = smaller_groups(shared, {"a": said("degenerate"), "b": said("found")})
    assert groups == [("a",)]


def test_a_settled_second_answer_replaces_one_that_went_in_circles():
    both = group("a", "b")
    (first,) = first_questions(DETECTION, both)
    rounds = [
        answered(first, ("duplicate: a",), a=said("degenerate", LEFT), b=said("found", RIGHT))
    ]
    again = second_questions(DETECTION, both, rounds, SIZE)
    assert again == (Question(Task.DETECTION, ("a",)),)
    rounds.append(answered(again[0], ("stray: x",), a=said("absent", presence=0.1)))
    conclusion = conclude(DETECTION, both, rounds)
    assert conclusion.labels == {"a": said("absent", presence=0.1), "b": said("found", RIGHT)}
    assert conclusion.sources == {"a": (), "b": (0,)}
    assert conclusion.dropped == ("duplicate: a", "stray: x")


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        pytest.param(said("degenerate", LEFT), said("degenerate"), 0, id="less than before"),
        pytest.param(said("degenerate", LEFT), said("truncated", LEFT, RIGHT), 1, id="more"),
        pytest.param(said("degenerate", LEFT), said("unparsed"), 0, id="not readable"),
        pytest.param(said("truncated", LEFT, RIGHT), said("found", LEFT), 1, id="settled"),
    ],
)
def test_where_neither_answer_is_sound_the_one_that_holds_more_is_kept(
    first: LabelAnswer, second: LabelAnswer, kept: int
):
    both = group("a", "b")
    rounds = [
        answered(Question(Task.DETECTION, ("a", "b")), a=first, b=said("absent")),
        answered(Question(Task.DETECTION, ("a",)), a=second),
    ]
    conclusion = conclude(DETECTION, both, rounds)
    assert conclusion.labels["a"] == (first, second)[kept]
    assert conclusion.sources["a"] == (kept,) * len(conclusion.labels["a"].annotations)


# Top-down keypoints


def test_top_down_asks_for_keypoints_and_boxes_and_then_for_every_instance_on_its_crop():
    alone = group("person")
    first = first_questions(TOP_DOWN, alone)
    assert first == (
        Question(Task.KEYPOINT, ("person",)),
        Question(Task.DETECTION, ("person",)),
    )
    rounds = [
        answered(first[0], person=people(person(RIGHT, 0.5))),
        answered(first[1], person=said("found", LEFT)),
    ]
    # One that was detected, and one that only the keypoint answer names.
    assert second_questions(TOP_DOWN, alone, rounds, SIZE) == (
        Question(Task.KEYPOINT, ("person",), (75, 50, 225, 350)),
        Question(Task.KEYPOINT, ("person",), (375, 50, 525, 350)),
    )


def test_of_two_answers_about_an_instance_the_better_supported_one_is_kept():
    alone = group("person")
    first = first_questions(TOP_DOWN, alone)
    rounds = [
        answered(first[0], person=people(person(LEFT, 0.9), person(RIGHT, 0.4))),
        answered(first[1], person=said("found", LEFT, RIGHT, presence=0.97)),
    ]
    crops = second_questions(TOP_DOWN, alone, rounds, SIZE)
    rounds += [
        answered(crops[0], person=people(person(LEFT, 0.8))),
        # Few keypoints that the model is sure of support less than many.
        answered(crops[1], person=people(person(RIGHT, 0.7), person(RIGHT, 0.99, invisible=12))),
    ]
    conclusion = conclude(TOP_DOWN, alone, rounds)
    found = conclusion.labels["person"]
    assert [a.score for a in found.annotations] == [0.9, 0.7]
    assert conclusion.sources["person"] == (0, 3)
    assert (found.state, found.presence) == (State.FOUND, 0.97)


def test_a_detected_instance_without_keypoints_is_kept_as_a_box():
    alone = group("person")
    first = first_questions(TOP_DOWN, alone)
    rounds = [
        answered(first[0], person=people(state="absent")),
        answered(first[1], person=said("found", LEFT)),
    ]
    (crop,) = second_questions(TOP_DOWN, alone, rounds, SIZE)
    rounds.append(answered(crop, person=people(state="absent")))
    conclusion = conclude(TOP_DOWN, alone, rounds)
    (found,) = conclusion.labels["person"].annotations
    assert found.bbox == LEFT
    assert [k.name for k in found.keypoints] == list(PERSON.keypoints)
    assert all(k.x_px is None for k in found.keypoints)
    assert conclusion.sources["person"] == (1,)


@pytest.mark.parametrize("state", ["absent", "not_mentioned", "unparsed"])
def test_nobody_there_costs_no_second_round(state: str):
    alone = group("person")
    first = first_questions(TOP_DOWN, alone)
    rounds = [
        answered(first[0], person=people(state="absent")),
        answered(first[1], person=said(state)),
    ]
    assert second_questions(TOP_DOWN, alone, rounds, SIZE) == ()
    assert conclude(TOP_DOWN, alone, rounds).labels["person"].state == state


def test_a_detection_that_was_cut_stays_cut_whatever_the_crops_say():
    alone = group("person")
    first = first_questions(TOP_DOWN, alone)
    rounds = [
        answered(first[0], person=people(person(LEFT, 0.9))),
        answered(first[1], person=said("truncated", LEFT)),
    ]
    assert conclude(TOP_DOWN, alone, rounds).labels["person"].state is State.TRUNCATED


@pytest.mark.parametrize(
    ("box", "crop"),
    [
        pytest.param((100, 100, 200, 300), (75, 50, 225, 350), id="a quarter on every side"),
        pytest.param((0, 0, 640, 480), (0, 0, 640, 480), id="never beyond the image"),
        pytest.param((10.4, 20.6, 12.4, 22.6), (0, 5, 28, 38), id="a speck gets company"),
    ],
)
def test_a_crop_shows_the_instance_with_a_margin(box: Box, crop: tuple[int, ...]):
    assert crop_around(box, SIZE) == crop


def test_top_down_is_for_keypoints_only(tmp_path: Path):
    with pytest.raises(ValueError, match="top_down only with task keypoint, got it with detection"):
        Entry(name="object", task=Task.DETECTION, top_down=True)


def test_what_is_read_off_a_crop_moves_with_it():
    found = Annotation(
        "a",
        (1.0, 2.0, 3.0, 4.0),
        (5.0, 6.0),
        ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)),
        (Keypoint("nose", 1.0, 1.0, 0.5), Keypoint("left eye", None, None, None)),
    )
    answer = ParsedAnswer({"a": LabelAnswer(State.FOUND, 0.9, (found,))}, ("x",), False)
    moved = answer.moved(10, 20)
    assert (moved.dropped, moved.complete, moved.labels["a"].presence) == (("x",), False, 0.9)
    assert moved.labels["a"].annotations == (
        Annotation(
            "a",
            (11.0, 22.0, 13.0, 24.0),
            (15.0, 26.0),
            ((10.0, 20.0), (11.0, 20.0), (11.0, 21.0)),
            (Keypoint("nose", 11.0, 21.0, 0.5), Keypoint("left eye", None, None, None)),
        ),
    )
