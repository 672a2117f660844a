import dataclasses
import json
import math
import re
from collections.abc import Iterator
from itertools import combinations, count
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling_pipeline.annotations import (
    Annotation,
    Box,
    FinishReason,
    Generation,
    Keypoint,
    ParsedAnswer,
    State,
    TokenScores,
)
from labeling_pipeline.models.rex_omni_protocol import (
    DEGENERATE_RUN,
    LADDER_RUN,
    PERIODIC_TOKENS,
    TASKS,
    LoopWatch,
    from_bin,
    parse,
    prompt,
    to_bin,
    why_unsupported,
)
from labeling_pipeline.models.scripted import generation_of
from labeling_pipeline.tasks import HAND, PERSON, Skeleton, Task

# On a frame of 999 x 999 px a bin is its own pixel.
SIDE = 999
SQUARE = (SIDE, SIDE)
LABELS = ("person", "cat")


def says(label: str, body: str) -> str:
    """One segment of a detection answer, as published."""
    return f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>{body}<|box_end|>"


def detect(
    text: str,
    labels: tuple[str, ...] = LABELS,
    *,
    cut: bool = False,
    frame: tuple[int, int] = SQUARE,
    image: tuple[int, int] | None = None,
) -> ParsedAnswer:
    reason = FinishReason.LENGTH if cut else FinishReason.STOP
    generation = generation_of(text, frame, finish_reason=reason)
    return parse(generation, Task.DETECTION, labels, image or frame)


def keypoints(
    text: str,
    labels: tuple[str, ...] = ("person",),
    *,
    cut: bool = False,
    frame: tuple[int, int] = SQUARE,
    image: tuple[int, int] | None = None,
) -> ParsedAnswer:
    reason = FinishReason.LENGTH if cut else FinishReason.STOP
    generation = generation_of(text, frame, finish_reason=reason)
    return parse(generation, Task.KEYPOINT, labels, image or frame, PERSON)


def states(answer: ParsedAnswer) -> dict[str, str]:
    return {label: str(said.state) for label, said in answer.labels.items()}


def boxes(answer: ParsedAnswer) -> dict[str, list[Box | None]]:
    """Label -> boxes, for labels that have any."""
    return {
        label: [a.bbox for a in said.annotations]
        for label, said in answer.labels.items()
        if said.annotations
    }


def reasons(answer: ParsedAnswer) -> list[str]:
    """The short words before the colon."""
    return [what.partition(":")[0] for what in answer.dropped]


# Prompts


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param(
            ("person",),
            "Detect person. Output the bounding box coordinates in [x0, y0, x1, y1] format.",
            id="one label",
        ),
        pytest.param(
            ("person", "traffic light", "Katze"),
            "Detect person, traffic light, Katze. "
            "Output the bounding box coordinates in [x0, y0, x1, y1] format.",
            id="several labels, in their order and case",
        ),
    ],
)
def test_the_detection_prompt_is_the_trained_one_to_the_byte(
    labels: tuple[str, ...], expected: str
):
    assert prompt(Task.DETECTION, labels) == expected


def test_the_keypoint_prompt_is_the_trained_one_to_the_byte():
    assert prompt(Task.KEYPOINT, ("person",), PERSON) == (
        "Can you detect each person in the image using a [x0, y0, x1, y1] box format, and then "
        "provide the coordinates of its nose, left eye, right eye, left ear, right ear, left "
        "shoulder, right shoulder, left elbow, right elbow, left wrist, right wrist, left hip, "
        "right hip, left knee, right knee, left ankle, right ankle as [x0, y0]? "
        "Output the answer in JSON format."
    )


def test_a_keypoint_prompt_without_a_skeleton_is_refused():
    with pytest.raises(ValueError, match="skeleton"):
        prompt(Task.KEYPOINT, ("person",))


@pytest.mark.parametrize(
    ("label", "word"),
    [
        pytest.param("cups, mugs", "comma", id="a comma splits the label"),
        pytest.param("a<|im_end|>b", "control token", id="a control token"),
        pytest.param(" ", "empty", id="no label at all"),
    ],
)
def test_a_label_that_would_break_the_prompt_is_refused_with_the_fix(label: str, word: str):
    reason = why_unsupported(label)
    assert reason is not None
    assert word in reason
    assert not label.strip() or repr(label) in reason
    assert "ask" in reason


@pytest.mark.parametrize("label", ["person", "traffic light", "Straßenbahn", "x < y", "50%"])
def test_an_ordinary_label_may_be_asked(label: str):
    assert why_unsupported(label) is None


@pytest.mark.parametrize(
    ("pixel", "size", "expected"),
    [
        pytest.param(0, 640, 0, id="left border"),
        pytest.param(640, 640, 999, id="right border"),
        pytest.param(320, 640, 499, id="the middle is rounded down"),
        pytest.param(-5, 640, 0, id="left of the image"),
        pytest.param(700, 640, 999, id="right of the image"),
    ],
)
def test_a_pixel_becomes_the_bin_the_model_was_trained_with(pixel: int, size: int, expected: int):
    assert to_bin(pixel, size) == expected


@given(st.integers(0, 999), st.integers(1, 10_000))
def test_a_bin_comes_back_from_its_own_pixel_within_one(value: int, size: int):
    assert abs(to_bin(from_bin(value, size), size) - value) <= 1


# Detection answers


class Detection(NamedTuple):
    """An answer to (person, cat) on a 999 x 999 image, and what must be read out of it."""

    text: str
    states: tuple[str, str]
    boxes: dict[str, list[Box | None]] = {}  # noqa: RUF012
    dropped: tuple[str, ...] = ()
    complete: bool = True
    cut: bool = False


A, B = "<10><20><300><400>", "<500><600><700><800>"
BOX_A, BOX_B = (10.0, 20.0, 300.0, 400.0), (500.0, 600.0, 700.0, 800.0)

DETECTIONS = {
    "one box each": Detection(
        f"{says('person', A)}, {says('cat', B)}",
        ("found", "found"),
        {"person": [BOX_A], "cat": [BOX_B]},
    ),
    "several boxes of one label": Detection(
        says("person", f"{A}, {B}") + ", " + says("cat", "None"),
        ("found", "absent"),
        {"person": [BOX_A, BOX_B]},
    ),
    "boxes of one label in two segments": Detection(
        f"{says('person', A)}, {says('cat', 'None')}, {says('person', B)}",
        ("found", "absent"),
        {"person": [BOX_A, BOX_B]},
    ),
    "none of them": Detection(
        f"{says('person', 'None')}, {says('cat', 'None')}", ("absent", "absent")
    ),
    "a label that is not mentioned": Detection(
        says("person", A), ("found", "not_mentioned"), {"person": [BOX_A]}
    ),
    "labels in another case": Detection(
        f"{says('Person', A)}, {says('CAT', 'None')}",
        ("found", "absent"),
        {"person": [BOX_A]},
    ),
    "a label that was not asked": Detection(
        f"{says('dog', B)}, {says('person', A)}, {says('cat', 'None')}",
        ("found", "absent"),
        {"person": [BOX_A]},
        ("not_asked",),
    ),
    "corners in the other order": Detection(
        f"{says('person', '<300><400><10><20>')}, {says('cat', '<700><600><500><800>')}",
        ("found", "found"),
        {"person": [BOX_A], "cat": [BOX_B]},
    ),
    "three numbers are no box": Detection(
        f"{says('person', '<10><20><300>')}, {says('cat', B)}",
        ("unparsed", "found"),
        {"cat": [BOX_B]},
        ("half_box",),
        complete=False,
    ),
    "five numbers are no box": Detection(
        f"{says('person', A + '<5>')}, {says('cat', B)}",
        ("unparsed", "found"),
        {"cat": [BOX_B]},
        ("half_box",),
        complete=False,
    ),
    "a half box leaves the whole ones": Detection(
        f"{says('person', f'{A}, <7><8>, {B}')}, {says('cat', 'None')}",
        ("unparsed", "absent"),
        {"person": [BOX_A, BOX_B]},
        ("half_box",),
        complete=False,
    ),
    "four digits are no bin": Detection(
        f"{says('person', '<1000><20><300><400>')}, {says('cat', 'None')}",
        ("unparsed", "absent"),
        dropped=("half_box",),
        complete=False,
    ),
    "digits of another script are no bin": Detection(
        f"{says('person', '<١><٢><٣><٤>')}, {says('cat', 'None')}",
        ("unparsed", "absent"),
        dropped=("half_box",),
        complete=False,
    ),
    "a box without area": Detection(
        f"{says('person', '<10><20><10><400>')}, {says('cat', B)}",
        ("unparsed", "found"),
        {"cat": [BOX_B]},
        ("empty_box",),
    ),
    "cut inside a box": Detection(
        f"{says('person', A)}, <|object_ref_start|>cat<|object_ref_end|><|box_start|>{B}, <1><2",
        ("found", "truncated"),
        {"person": [BOX_A], "cat": [BOX_B]},
        ("half_box",),
        complete=False,
        cut=True,
    ),
    "cut between two boxes": Detection(
        f"<|object_ref_start|>person<|object_ref_end|><|box_start|>{A}, ",
        ("truncated", "truncated"),
        {"person": [BOX_A]},
        complete=False,
        cut=True,
    ),
    "cut inside a label": Detection(
        f"{says('person', A)}, <|object_ref_start|>ca",
        ("found", "truncated"),
        {"person": [BOX_A]},
        ("cut",),
        complete=False,
        cut=True,
    ),
    "cut after a whole segment": Detection(
        says("person", A),
        ("found", "truncated"),
        {"person": [BOX_A]},
        complete=False,
        cut=True,
    ),
    "no box end before the next label": Detection(
        "<|object_ref_start|>person<|object_ref_end|><|box_start|>" + A + ", " + says("cat", B),
        ("unparsed", "found"),
        {"person": [BOX_A], "cat": [BOX_B]},
        complete=False,
    ),
    "no box end at the end": Detection(
        says("cat", B) + ", <|object_ref_start|>person<|object_ref_end|><|box_start|>" + A,
        ("unparsed", "found"),
        {"person": [BOX_A], "cat": [BOX_B]},
        complete=False,
    ),
    "a label without boxes does not take those of the next": Detection(
        "<|object_ref_start|>person<|object_ref_end|>, " + says("cat", B),
        ("unparsed", "found"),
        {"cat": [BOX_B]},
        ("garbled",),
        complete=False,
    ),
    "a label that never ends does not swallow the next": Detection(
        "<|object_ref_start|>person" + says("cat", B),
        ("unparsed", "found"),
        {"cat": [BOX_B]},
        ("garbled",),
        complete=False,
    ),
    "words between label and boxes": Detection(
        "<|object_ref_start|>person<|object_ref_end|> two of them "
        f"<|box_start|>{A}<|box_end|>, {says('cat', 'None')}",
        ("found", "absent"),
        {"person": [BOX_A]},
        ("stray",),
        complete=False,
    ),
    "garbage after the answer": Detection(
        says("person", A) + " and so on",
        ("found", "unparsed"),
        {"person": [BOX_A]},
        ("stray",),
        complete=False,
    ),
    "garbage before the answer": Detection(
        "Sure! " + says("person", A),
        ("found", "unparsed"),
        {"person": [BOX_A]},
        ("stray",),
        complete=False,
    ),
    "a full stop is no garbage": Detection(
        f"{says('person', A)}, {says('cat', 'None')}.\n", ("found", "absent"), {"person": [BOX_A]}
    ),
    "pure prose": Detection(
        "There is a person on the left.",
        ("unparsed", "unparsed"),
        dropped=("stray",),
        complete=False,
    ),
    "prose that is cut": Detection(
        "There is a per",
        ("truncated", "truncated"),
        dropped=("stray",),
        complete=False,
        cut=True,
    ),
    "nothing at all": Detection("", ("not_mentioned", "not_mentioned")),
}


@pytest.mark.parametrize("case", DETECTIONS.values(), ids=DETECTIONS.keys())
def test_a_detection_answer_is_read_as_it_stands(case: Detection):
    answer = detect(case.text, cut=case.cut)
    assert states(answer) == dict(zip(LABELS, case.states, strict=True))
    assert boxes(answer) == {
        label: [pytest.approx(box) for box in found] for label, found in case.boxes.items()
    }
    assert reasons(answer) == list(case.dropped)
    assert answer.complete == case.complete


def test_a_segment_without_a_body_is_unparsed_and_noted():
    answer = detect(f"{says('person', '')}, {says('cat', 'None')}")
    assert states(answer) == {"person": "unparsed", "cat": "absent"}
    assert not answer.complete
    assert len(answer.dropped) == 1


def test_what_is_dropped_says_what_it_was():
    answer = detect(says("zebra", "<1><2><3><4>"))
    assert answer.dropped == ("not_asked: zebra: <1><2><3><4>",)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [("cherry", "cherries"), ("Babies", "baby"), ("box", "boxes"), ("cats", "Cat"), ("s", "s")],
)
def test_a_label_may_be_answered_in_another_number(asked: str, answered: str):
    assert states(detect(says(answered, A), (asked,))) == {asked: "found"}


@pytest.mark.parametrize("answered", ["catfish", "scat", "ca", "", "cat's"])
def test_a_label_that_only_looks_alike_was_not_asked(answered: str):
    answer = detect(says(answered, A), ("cat",))
    assert states(answer) == {"cat": "not_mentioned"}
    assert reasons(answer) == ["not_asked"]


def test_two_asked_labels_that_differ_only_in_case_stay_apart():
    answer = detect(f"{says('Polish', A)}, {says('polish', 'None')}", ("polish", "Polish"))
    assert states(answer) == {"polish": "absent", "Polish": "found"}


class Padding(NamedTuple):
    image: tuple[int, int]
    body: str
    expected: list[Box | None]
    dropped: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            Padding((999, 400), "<10><20><300><390>", [(10, 20, 300, 390)]), id="in the image"
        ),
        pytest.param(
            Padding((999, 400), "<10><20><300><900>", [(10, 20, 300, 400)]),
            id="cut at the lower border",
        ),
        pytest.param(
            Padding((400, 999), "<390><20><900><500>", [(390, 20, 400, 500)]),
            id="cut at the right border",
        ),
        pytest.param(
            Padding((999, 400), "<10><401><300><900>", [], ("empty_box",)),
            id="wholly in the padding below",
        ),
        pytest.param(
            Padding((400, 999), "<400><10><700><900>", [], ("empty_box",)),
            id="in the padding to the right, touching the image",
        ),
        pytest.param(
            Padding((999, 400), f"<0><500><9><600>, {A}", [BOX_A], ("empty_box",)),
            id="one in the padding, one in the image",
        ),
    ],
)
def test_a_box_in_a_padded_frame_is_cut_at_the_image(case: Padding):
    answer = detect(says("person", case.body), ("person",), frame=SQUARE, image=case.image)
    assert boxes(answer).get("person", []) == [pytest.approx(box) for box in case.expected]
    assert reasons(answer) == list(case.dropped)
    assert answer.labels["person"].state == (State.FOUND if case.expected else State.UNPARSED)


def test_coordinates_are_relative_to_the_frame_in_both_axes():
    answer = detect(says("person", "<0><111><999><999>"), ("person",), frame=(1920, 1080))
    assert answer.labels["person"].annotations[0].bbox == pytest.approx((0, 120, 1920, 1080))


# Scores


def with_none_probs(text: str, *probs: float) -> Generation:
    return dataclasses.replace(generation_of(text, SQUARE), none_probs=probs)


@pytest.mark.parametrize(
    ("text", "probs", "expected"),
    [
        pytest.param(
            f"{says('person', A)}, {says('cat', 'None')}",
            (0.25, 0.75),
            {"person": 0.75, "cat": 0.25},
            id="one for each label",
        ),
        pytest.param(
            f"{says('dog', B)}, {says('cat', 'None')}",
            (0.5, 0.75),
            {"person": None, "cat": 0.25},
            id="a label not asked has one of its own",
        ),
        pytest.param(
            "<|object_ref_start|>person<|box_start|><1><2>" + says("cat", B),
            (0.5, 0.125),
            {"person": None, "cat": 0.875},
            id="after a garbled segment with a box start",
        ),
        pytest.param(
            "<|object_ref_start|>person<|object_ref_end|>, " + says("cat", B),
            (0.125,),
            {"person": None, "cat": 0.875},
            id="after a garbled segment without a box start",
        ),
        pytest.param(
            f"{says('person', A)}, {says('person', B)}, {says('cat', 'None')}",
            (0.25, 0.5, 0.75),
            {"person": 0.75, "cat": 0.25},
            id="the first segment of a label counts",
        ),
        pytest.param(
            f"{says('person', A)}, <|object_ref_start|>cat<|object_ref_end|><|box_start|>",
            (0.25,),
            {"person": 0.75, "cat": None},
            id="cut right after a box start",
        ),
    ],
)
def test_presence_is_one_minus_the_probability_of_none(
    text: str, probs: tuple[float, ...], expected: dict[str, float | None]
):
    answer = parse(with_none_probs(text, *probs), Task.DETECTION, LABELS, SQUARE)
    assert {label: said.presence for label, said in answer.labels.items()} == expected


def test_a_score_is_measured_from_the_tokens_of_its_own_box():
    generation = generation_of(says("person", f"{A}, {B}"), SQUARE)
    at = [i for i, token in enumerate(generation.tokens) if re.fullmatch(r"<\d+>", token)]
    logprobs, masses = list(generation.token_logprobs), list(generation.token_window_mass)
    for index, (probability, mass) in zip(
        at, [(0.1, 0.5), (0.2, 0.6), (0.3, 0.7), (0.4, 0.8)] + [(1.0, 1.0)] * 4, strict=True
    ):
        logprobs[index], masses[index] = math.log(probability), mass
    measured = dataclasses.replace(
        generation, token_logprobs=tuple(logprobs), token_window_mass=tuple(masses)
    )
    first, second = (
        parse(measured, Task.DETECTION, ("person",), SQUARE).labels["person"].annotations
    )
    assert first.token_scores is not None
    assert first.token_scores.geometric_mean == pytest.approx((0.1 * 0.2 * 0.3 * 0.4) ** 0.25)
    assert first.token_scores.window_mass == pytest.approx((0.5 * 0.6 * 0.7 * 0.8) ** 0.25)
    assert first.score == first.token_scores.window_mass
    assert second.token_scores == TokenScores(pytest.approx(1.0), pytest.approx(1.0))


def test_coordinates_not_generated_as_tokens_have_no_score():
    generation = generation_of(says("person", A), SQUARE)
    whole = dataclasses.replace(
        generation,
        tokens=(generation.raw_text,),
        token_logprobs=(-0.1,),
        token_window_mass=(math.nan,),
    )
    (annotation,) = parse(whole, Task.DETECTION, ("person",), SQUARE).labels["person"].annotations
    assert annotation.bbox == pytest.approx(BOX_A)
    assert (annotation.score, annotation.token_scores) == (None, None)


def test_a_token_without_text_does_not_cost_its_neighbour_the_score():
    generation = generation_of(says("person", A), SQUARE)
    first = generation.tokens.index("<10>")

    def with_one_more(values: tuple, value: object) -> tuple:
        return (*values[:first], value, *values[first:])

    padded = dataclasses.replace(
        generation,
        tokens=with_one_more(generation.tokens, ""),
        token_logprobs=with_one_more(generation.token_logprobs, -1.0),
        token_window_mass=with_one_more(generation.token_window_mass, math.nan),
    )
    (annotation,) = parse(padded, Task.DETECTION, ("person",), SQUARE).labels["person"].annotations
    assert annotation.score == pytest.approx(0.9)


# Keypoint answers

NOSE = '"nose": " <540> <351> "'


def person(number: int, bbox: str = " <10> <20> <300> <400> ", points: str = NOSE) -> str:
    return f'"person{number}": {{"bbox": "{bbox}", "keypoints": {{{points}}}}}'


def fenced(body: str) -> str:
    return f"```json\n{body}\n```"


class Pose(NamedTuple):
    """An answer to (person) on a 999 x 999 image; boxes are those of the persons."""

    text: str
    state: str
    boxes: list[Box | None] = []  # noqa: RUF012
    dropped: tuple[str, ...] = ()
    complete: bool = True
    cut: bool = False


POSES = {
    "fenced": Pose(fenced("{" + person(1) + "}"), "found", [BOX_A]),
    "without a fence": Pose("{" + person(1) + "}", "found", [BOX_A]),
    "a fence without a language": Pose("```\n{" + person(1) + "}\n```", "found", [BOX_A]),
    "two people": Pose(
        fenced("{" + person(1) + ", " + person(2, "<500> <600> <700> <800>") + "}"),
        "found",
        [BOX_A, BOX_B],
    ),
    "an instance called by the label alone": Pose(
        '{"person": {"bbox": "<10> <20> <300> <400>", "keypoints": {}}}', "found", [BOX_A]
    ),
    "an instance in another case": Pose(
        '{"Person 1": {"bbox": "<10> <20> <300> <400>", "keypoints": {}}}', "found", [BOX_A]
    ),
    "nobody there": Pose("{}", "absent"),
    "nobody there, fenced": Pose(fenced("{}"), "absent"),
    "cut inside the second person": Pose(
        fenced("{" + person(1) + ", " + person(2))[:-40],
        "truncated",
        [BOX_A],
        ("cut",),
        complete=False,
        cut=True,
    ),
    "cut between two people": Pose(
        "```json\n{" + person(1) + ", ", "truncated", [BOX_A], complete=False, cut=True
    ),
    "cut before the first brace": Pose(
        "```json\n", "truncated", dropped=("stray",), complete=False, cut=True
    ),
    "unclosed though the model stopped": Pose("{" + person(1), "unparsed", [BOX_A], complete=False),
    "a box of three numbers": Pose(
        "{" + person(1, "<10> <20> <300>") + ", " + person(2, "<500> <600> <700> <800>") + "}",
        "found",
        [BOX_B],
        ("half_box",),
        complete=False,
    ),
    "only a wrong box": Pose(
        "{" + person(1, "somewhere") + "}", "unparsed", dropped=("half_box",), complete=False
    ),
    "a box as a list of numbers": Pose(
        '{"person1": {"bbox": [10, 20, 300, 400], "keypoints": {}}}',
        "unparsed",
        dropped=("half_box",),
        complete=False,
    ),
    "no box": Pose(
        '{"person1": {"keypoints": {' + NOSE + "}}}",
        "unparsed",
        dropped=("half_box",),
        complete=False,
    ),
    "an instance that was not asked": Pose(
        '{"dog1": {"bbox": "<1> <2> <3> <4>", "keypoints": {}}, ' + person(1) + "}",
        "found",
        [BOX_A],
        ("not_asked",),
    ),
    "only instances that were not asked": Pose(
        '{"dog1": {"bbox": "<1> <2> <3> <4>", "keypoints": {}}}', "absent", dropped=("not_asked",)
    ),
    "an instance that is no object": Pose(
        '{"person1": "<10> <20> <300> <400>", ' + person(2) + "}",
        "found",
        [BOX_A],
        ("garbled",),
        complete=False,
    ),
    "a quoted copy of a box inside a string": Pose(
        '{"person1": {"note": "\\"bbox\\": \\"<1> <2> <3> <4>\\"", '
        '"bbox": " <10> <20> <300> <400> ", "keypoints": {' + NOSE + "}}}",
        "found",
        [BOX_A],
    ),
    "a quote that ends a string early": Pose(
        '{"person1": {"bbox": " "<10> <20> <300> <400> " "}}',
        "unparsed",
        dropped=("garbled",),
        complete=False,
    ),
    "words after the JSON": Pose(
        fenced("{" + person(1) + "}") + "\nThat is all of them",
        "found",
        [BOX_A],
        ("stray",),
        complete=False,
    ),
    "prose": Pose("I see nobody.", "unparsed", dropped=("stray",), complete=False),
    "nothing at all": Pose("", "unparsed", complete=False),
    "a list": Pose("[1, 2]", "unparsed", dropped=("stray",), complete=False),
    "lists nested too deep for the decoder": Pose(
        '{"person1": ' + "[" * 100_000, "unparsed", dropped=("garbled",), complete=False
    ),
    "a number too long for the decoder": Pose(
        '{"person1": ' + "9" * 5_000 + "}", "unparsed", dropped=("garbled",), complete=False
    ),
}


@pytest.mark.parametrize("case", POSES.values(), ids=POSES.keys())
def test_a_keypoint_answer_is_read_as_it_stands(case: Pose):
    answer = keypoints(case.text, cut=case.cut)
    assert states(answer) == {"person": case.state}
    assert [a.bbox for a in answer.labels["person"].annotations] == [
        pytest.approx(box) for box in case.boxes
    ]
    assert reasons(answer) == list(case.dropped)
    assert answer.complete == case.complete


def test_every_keypoint_of_the_skeleton_is_there_in_its_order():
    points = f'{NOSE}, "left eye": "unvisible", "right ankle": "<1> <2>", "tail": "<3> <4>"'
    answer = keypoints("{" + person(1, points=points) + "}")
    (found,) = answer.labels["person"].annotations
    assert tuple(k.name for k in found.keypoints) == PERSON.keypoints
    placed = {k.name: k for k in found.keypoints if k.x_px is not None}
    assert placed == {
        "nose": Keypoint("nose", pytest.approx(540), pytest.approx(351), score=pytest.approx(0.9)),
        "right ankle": Keypoint(
            "right ankle", pytest.approx(1), pytest.approx(2), score=pytest.approx(0.9)
        ),
    }


@pytest.mark.parametrize(
    ("value", "dropped"),
    [
        pytest.param('"unvisible"', [], id="called invisible"),
        pytest.param('"<540>"', ["half_point"], id="one number"),
        pytest.param('"<540> <1> <2>"', ["half_point"], id="three numbers"),
        pytest.param("[540, 1]", [], id="a list"),
        pytest.param('"<10> <800>"', ["outside_image"], id="in the padding"),
    ],
)
def test_a_keypoint_without_a_place_has_none(value: str, dropped: list[str]):
    text = "{" + person(1, points=f'"nose": {value}') + "}"
    answer = keypoints(text, frame=SQUARE, image=(SIDE, 600))
    (found,) = answer.labels["person"].annotations
    assert found.keypoints[0] == Keypoint("nose", None, None, None)
    assert reasons(answer) == dropped


def test_left_eye_is_not_read_as_eye_nor_from_the_next_person():
    second_person = person(2, "<500> <20> <800> <400>", '"left eye": "<5> <6>"')
    text = "{" + person(1, points="") + ", " + second_person + "}"
    first, second = keypoints(text).labels["person"].annotations
    assert all(k.x_px is None for k in first.keypoints)
    assert [k.name for k in second.keypoints if k.x_px is not None] == ["left eye"]


# Answers that go in circles

OPEN_PERSON = "<|object_ref_start|>person<|object_ref_end|><|box_start|>"


def box_text(*bins: int) -> str:
    return "".join(f"<{b}>" for b in bins)


def listed(boxes: list[tuple[int, ...]]) -> str:
    return ", ".join(box_text(*box) for box in boxes)


def in_tokens(text: str) -> list[str]:
    """Cut as a vocabulary cuts: marks, words with the space before them, single signs."""
    return re.findall(r"<\|[a-z_]+\|>|<[0-9]{1,3}>| ?\w+|\s+|[^\w\s]", text)


def watched(tokens: list[str], task: Task = Task.DETECTION) -> int | None:
    """How many tokens it takes to see a loop; ``None`` if none is seen."""
    watch = LoopWatch(task)
    for number, token in enumerate(tokens, 1):
        watch.add([token])
        if watch.looping:
            return number
    return None


def row(length: int, *, step: int, size: int, y: int = 100) -> list[tuple[int, ...]]:
    return [(step * i, y, step * i + size, y + size) for i in range(length)]


def people(boxes: Iterator[str], points: str = '"nose": "unvisible"') -> str:
    return "{" + ", ".join(person(n, box, points) for n, box in enumerate(boxes, 1))


def unseen(skeleton: Skeleton) -> str:
    return ", ".join(f'"{name}": "unvisible"' for name in skeleton.keypoints)


UNSEEN = unseen(PERSON)
NEIGHBOURS = [(x, y, x + 90, y + 90) for y in (0, 300, 600) for x in range(0, 900, 100)]

LOOPS = {
    "one box said again and again": (Task.DETECTION, OPEN_PERSON + listed([(1, 2, 300, 400)] * 9)),
    "one box that trembles": (
        Task.DETECTION,
        OPEN_PERSON + listed([(10 + i % 3, 20, 300, 400 + i % 2) for i in range(12)]),
    ),
    "one box with its corners in either order": (
        Task.DETECTION,
        OPEN_PERSON + listed([(1, 2, 300, 400), (300, 400, 1, 2)] * 5),
    ),
    "a round of many boxes": (Task.DETECTION, OPEN_PERSON + listed(NEIGHBOURS * 2)),
    "segments that begin again": (
        Task.DETECTION,
        ", ".join([says("person", A), says("cat", B)] * 9),
    ),
    "under a label that was not asked": (Task.DETECTION, says("dog", listed([(1, 2, 3, 4)] * 9))),
    "boxes without area": (Task.DETECTION, OPEN_PERSON + listed([(1, 2, 1, 2)] * 9)),
    "half boxes": (Task.DETECTION, OPEN_PERSON + listed([(1, 2)] * 9)),
    "a ladder with a small step": (
        Task.DETECTION,
        OPEN_PERSON + listed(row(60, step=3, size=20)),
    ),
    "a ladder of boxes side by side": (
        Task.DETECTION,
        OPEN_PERSON + listed(row(60, step=16, size=15)),
    ),
    "a point said again and again": (Task.POINTING, OPEN_PERSON + listed([(1, 2)] * 9)),
    "a polygon said again and again": (
        Task.OCR_POLYGON,
        ", ".join([says("the", "<1><1><9><1><9><9><1><9>")] * 9),
    ),
    "a polygon without an end": (Task.OCR_POLYGON, OPEN_PERSON + "<1><1><9><1>" * 20),
    "a word said again at one place": (
        Task.OCR_BOX,
        ", ".join([says("the", box_text(1, 2, 30, 40))] * 9),
    ),
    "a label without an end": (Task.DETECTION, "<|object_ref_start|>" + "very " * 50),
    "prose": (Task.DETECTION, "I see a person. " * 30),
    "people at one place under rising numbers": (
        Task.KEYPOINT,
        people(" <1> <2> <300> <400> " for _ in range(9)),
    ),
    "keypoints that begin again": (
        Task.KEYPOINT,
        '{"person1": {"bbox": " <1> <2> <3> <4> ", "keypoints": {' + f"{NOSE}, " * 20,
    ),
}


@pytest.mark.parametrize(("task", "text"), LOOPS.values(), ids=LOOPS.keys())
def test_an_answer_that_goes_in_circles_is_stopped_and_reads_as_degenerate(task: Task, text: str):
    tokens = in_tokens(text)
    seen = watched(tokens, task)
    assert seen is not None
    stopped = generation_of("".join(tokens[:seen]), SQUARE, finish_reason=FinishReason.LOOP)
    skeleton = PERSON if task is Task.KEYPOINT else None
    answer = parse(stopped, task, ("person",), SQUARE, skeleton)
    assert answer.labels["person"].state is State.DEGENERATE
    assert not answer.complete


@pytest.mark.parametrize(
    ("text", "most"),
    [
        pytest.param(LOOPS["one box said again and again"][1], 40, id="a repeated box"),
        pytest.param(LOOPS["a ladder with a small step"][1], 6 * (LADDER_RUN + 3), id="a ladder"),
        pytest.param("so " * 1000, 2 * PERIODIC_TOKENS, id="words"),
    ],
)
def test_a_loop_costs_few_tokens_before_it_is_seen(text: str, most: int):
    seen = watched(in_tokens(text))
    assert seen is not None
    assert seen <= most


def windows(columns: int, rows: int) -> list[tuple[int, ...]]:
    """Equal windows row by row, at a pitch of whole bins: the hardest case."""
    return [
        (80 * column, 90 * r, 80 * column + 60, 90 * r + 70)
        for r in range(rows)
        for column in range(columns)
    ]


def scattered(number: int) -> list[tuple[int, ...]]:
    return [
        (x, y, x + 60, y + 45) for x, y in ((37 * i % 911, 53 * i % 877) for i in range(number))
    ]


HONEST = {
    "a hundred equal windows in rows of ten": (
        Task.DETECTION,
        says("window", listed(windows(10, 10))),
    ),
    "rows of twelve": (Task.DETECTION, says("window", listed(windows(12, 9)))),
    "one row as long as a row can be": (
        Task.DETECTION,
        says("window", listed(row(LADDER_RUN, step=30, size=25))),
    ),
    "two hundred scattered boxes": (Task.DETECTION, says("person", listed(scattered(200)))),
    "a few boxes said twice among many": (
        Task.DETECTION,
        says("person", listed([b for box in scattered(40) for b in (box, box)])),
    ),
    "one box over the image for each of many labels": (
        Task.DETECTION,
        ", ".join(says(f"scene {i}", "<0><0><999><999>") for i in range(20)),
    ),
    "forty labels that are not there": (
        Task.DETECTION,
        ", ".join(says(f"thing number {i}", "None") for i in range(40)),
    ),
    "points in rows": (
        Task.POINTING,
        says("window", listed([box[:2] for box in windows(12, 10)])),
    ),
    "a column of numbers in a table": (
        Task.OCR_BOX,
        ", ".join(says(str(i), box_text(10, 20 * i, 40, 20 * i + 15)) for i in range(49)),
    ),
    "one word at many places": (
        Task.OCR_BOX,
        ", ".join(says("the", box_text(*box)) for box in scattered(100)),
    ),
    "a dotted line": (Task.OCR_BOX, says("Index " + ". " * 15 + "7", "<1><2><300><20>")),
    "ten people of whom little is seen": (
        Task.KEYPOINT,
        people((listed([box]) for box in scattered(10)), UNSEEN) + "}",
    ),
    "hands with numbered joints, all hidden": (
        Task.KEYPOINT,
        people((listed([box]) for box in scattered(6)), unseen(HAND)) + "}",
    ),
}


@pytest.mark.parametrize(("task", "text"), HONEST.values(), ids=HONEST.keys())
def test_a_long_sound_answer_is_never_stopped(task: Task, text: str):
    assert watched(in_tokens(text), task) is None


distinct_boxes = st.lists(
    # Each box in a cell of its own, so no two are one thing said twice.
    st.tuples(st.integers(0, 24), st.integers(0, 24), st.integers(1, 39), st.integers(1, 39)).map(
        lambda v: (v[0] * 40, v[1] * 40, v[0] * 40 + v[2], v[1] * 40 + v[3])
    ),
    max_size=LADDER_RUN + 1,
    unique_by=lambda box: box[:2],
)


@given(st.lists(st.tuples(st.sampled_from(["person", "cat", "dog"]), distinct_boxes), max_size=3))
@settings(deadline=None)
def test_an_answer_of_boxes_that_are_all_new_is_never_stopped(
    said: list[tuple[str, list[tuple[int, ...]]]],
):
    numbers = count(1)
    text = ", ".join(says(f"{label} {next(numbers)}", listed(found)) for label, found in said)
    assert watched(in_tokens(text)) is None


@given(distinct_boxes)
@settings(deadline=None)
def test_people_who_all_stand_somewhere_else_are_never_stopped(found: list[tuple[int, ...]]):
    text = people((listed([box]) for box in found), UNSEEN)
    assert watched(in_tokens(text), Task.KEYPOINT) is None


@given(distinct_boxes.filter(len), st.data())
@settings(deadline=None)
def test_a_round_through_any_boxes_is_stopped_within_a_second_round(
    found: list[tuple[int, ...]], data: st.DataObject
):
    start = data.draw(st.integers(0, len(found) - 1))
    again = (found[start:] + found[:start]) * DEGENERATE_RUN
    text = OPEN_PERSON + listed(found + again[: DEGENERATE_RUN + 1]) + ", "
    assert watched(in_tokens(text)) is not None


class Circling(NamedTuple):
    """An answer to (person, cat), stopped in a loop, and what must be read out of it."""

    text: str
    states: tuple[str, str]
    boxes: dict[str, list[Box | None]] = {}  # noqa: RUF012


SIX_A = ", ".join([A] * 6)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            Circling(OPEN_PERSON + SIX_A, ("degenerate", "truncated"), {"person": [BOX_A]}),
            id="in the first label: the next was not reached",
        ),
        pytest.param(
            Circling(
                f"{says('person', B)}, " + OPEN_PERSON.replace("person", "cat") + f"{B}, {SIX_A}",
                ("found", "degenerate"),
                {"person": [BOX_B], "cat": [BOX_B, BOX_A]},
            ),
            id="in the last label: the one before keeps its state",
        ),
        pytest.param(
            Circling(
                f"{says('person', 'None')}, " + OPEN_PERSON.replace("person", "Cats") + SIX_A,
                ("absent", "degenerate"),
                {"cat": [BOX_A]},
            ),
            id="in a label said in other words",
        ),
        pytest.param(
            Circling(
                f"{says('person', A)}, " + OPEN_PERSON.replace("person", "dog") + SIX_A,
                ("found", "degenerate"),
                {"person": [BOX_A]},
            ),
            id="in a label that was not asked: what it had not come to",
        ),
        pytest.param(
            Circling("Well, " * 60, ("degenerate", "degenerate")), id="in words before any label"
        ),
    ],
)
def test_a_stopped_answer_tells_what_it_had_said_where_it_looped_and_what_it_never_reached(
    case: Circling,
):
    generation = generation_of(case.text, SQUARE, finish_reason=FinishReason.LOOP)
    answer = parse(generation, Task.DETECTION, LABELS, SQUARE)
    assert states(answer) == dict(zip(LABELS, case.states, strict=True))
    assert boxes(answer) == {
        label: [pytest.approx(box) for box in found] for label, found in case.boxes.items()
    }
    assert not answer.complete


def test_a_loop_reads_the_same_where_nobody_stopped_it():
    answer = detect(f"{says('person', SIX_A)}, {says('cat', B)}")
    assert states(answer) == {"person": "degenerate", "cat": "found"}
    assert boxes(answer) == {"person": [pytest.approx(BOX_A)], "cat": [pytest.approx(BOX_B)]}
    assert reasons(answer) == ["duplicate"] * 5


def test_an_honest_row_before_the_cut_is_found_and_the_ladder_that_was_cut_is_degenerate():
    windows_in_a_row = listed(row(8, step=100, size=80))
    text = says("person", windows_in_a_row) + ", " + OPEN_PERSON.replace("person", "cat")
    assert states(detect(text + A, cut=True)) == {"person": "found", "cat": "truncated"}
    assert states(detect(text + windows_in_a_row, cut=True)) == {
        "person": "found",
        "cat": "degenerate",
    }


def test_people_at_one_place_are_one_person_and_degenerate():
    answer = keypoints(people(" <10> <20> <300> <400> " for _ in range(9)) + "}")
    assert states(answer) == {"person": "degenerate"}
    assert [a.bbox for a in answer.labels["person"].annotations] == [pytest.approx(BOX_A)]


def test_a_point_said_twice_is_one_point():
    generation = generation_of(says("person", "<1><2>, <1><2>, <1><3>"), SQUARE)
    answer = parse(generation, Task.POINTING, ("person",), SQUARE)
    assert answer.labels["person"].state is State.FOUND
    assert [a.point for a in answer.labels["person"].annotations] == [(1, 2), (1, 3)]
    assert reasons(answer) == ["duplicate"]


def test_a_cut_reading_answer_is_truncated_even_between_two_texts():
    text = says("Total:", box_text(1, 2, 30, 40))
    for rest in ("", ", ", ", <|object_ref_start|>12", OPEN_PERSON):
        generation = generation_of(text + rest, SQUARE, finish_reason=FinishReason.LENGTH)
        answer = parse(generation, Task.OCR_BOX, ("word",), SQUARE)
        assert answer.labels["word"].state is State.TRUNCATED
        assert [a.text for a in answer.labels["word"].annotations] == ["Total:"]


# Boxes over the whole image

GIANT, NEARLY = "<0><0><999><999>", "<5><5><990><990>"
BOX_GIANT = (0.0, 0.0, 999.0, 999.0)


@pytest.mark.parametrize(
    ("text", "expected", "kept", "dropped"),
    [
        pytest.param(
            f"{says('person', GIANT)}, {says('cat', 'None')}",
            ("found", "absent"),
            {"person": [BOX_GIANT]},
            [],
            id="alone it may be a thing",
        ),
        pytest.param(
            f"{says('person', f'{GIANT}, {A}')}, {says('cat', B)}",
            ("found", "found"),
            {"person": [BOX_GIANT, BOX_A], "cat": [BOX_B]},
            [],
            id="with one box in it, it may be a thing",
        ),
        pytest.param(
            f"{says('person', f'{A}, {GIANT}, {B}')}, {says('cat', B)}",
            ("degenerate", "found"),
            {"person": [BOX_A, BOX_B], "cat": [BOX_B]},
            ["giant_box"],
            id="with two boxes in it, it is the scene",
        ),
        pytest.param(
            f"{says('person', f'{A}, {NEARLY}, {B}')}, {says('cat', 'None')}",
            ("degenerate", "absent"),
            {"person": [BOX_A, BOX_B]},
            ["giant_box"],
            id="nearly the whole image",
        ),
        pytest.param(
            f"{says('person', f'{A}, <0><0><999><900>, {B}')}, {says('cat', 'None')}",
            ("found", "absent"),
            {"person": [BOX_A, (0.0, 0.0, 999.0, 900.0), BOX_B]},
            [],
            id="a large box is no giant",
        ),
        pytest.param(
            f"{says('person', GIANT)}, {says('cat', NEARLY)}",
            ("degenerate", "degenerate"),
            {"person": [BOX_GIANT], "cat": [(5.0, 5.0, 990.0, 990.0)]},
            [],
            id="of two labels that are the whole image, one may be right",
        ),
        pytest.param(
            f"{says('person', f'{GIANT}, {A}, {B}')}, {says('cat', GIANT)}",
            ("degenerate", "found"),
            {"person": [BOX_A, BOX_B], "cat": [BOX_GIANT]},
            ["giant_box"],
            id="the one that was dropped does not count against the other",
        ),
    ],
)
def test_a_box_over_the_whole_image_is_doubted_where_the_answer_speaks_against_it(
    text: str,
    expected: tuple[str, str],
    kept: dict[str, list[Box]],
    dropped: list[str],
):
    answer = detect(text)
    assert states(answer) == dict(zip(LABELS, expected, strict=True))
    assert boxes(answer) == {
        label: [pytest.approx(box) for box in found] for label, found in kept.items()
    }
    assert reasons(answer) == dropped
    assert answer.complete


def test_a_giant_box_is_measured_by_the_image_and_not_by_its_padded_frame():
    text = says("person", f"<0><0><999><400>, {A}, <500><20><700><380>")
    assert states(detect(text, ("person",), image=(SIDE, 400))) == {"person": "degenerate"}
    assert states(detect(text, ("person",))) == {"person": "found"}


# Properties

FRAGMENTS = [
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|im_end|>",
    *LABELS,
    "Person",
    "dog",
    "None",
    ", ",
    " ",
    "\n",
    "<",
    ">",
    "<1000>",
    "<٣>",
    "```json\n",
    "```",
    "{",
    "}",
    "[",
    '"',
    "\\",
    ": ",
    '"bbox"',
    '"keypoints"',
    '"nose"',
    '"person1": ',
    '"unvisible"',
    "NaN",
    "\ud800",
]
coordinates = st.integers(0, 999).map("<{}>".format)
box_texts = st.lists(coordinates, min_size=2, max_size=8).map("".join)
lists = st.lists(box_texts, min_size=1, max_size=3).map(", ".join) | box_texts.map(
    lambda box: ", ".join([box] * 7)
)
spaced_texts = st.lists(coordinates, min_size=1, max_size=5).map(" ".join)
segments = st.builds(
    says, st.sampled_from([*LABELS, "CAT", "dog"]), st.one_of(lists, st.just("None"))
)
instances = st.builds(
    lambda name, bbox, point: json.dumps({name: {"bbox": bbox, "keypoints": {"nose": point}}}),
    st.sampled_from(["person1", "person2", "cat", "dog7"]),
    spaced_texts,
    spaced_texts,
)
answers = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), coordinates, segments, instances, st.text(max_size=4)),
    max_size=12,
).map("".join)


class Question(NamedTuple):
    generation: Generation
    task: Task
    image: tuple[int, int]


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Any text, whole or cut anywhere, on a frame that is padded or not."""
    width, height = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    frame = draw(st.sampled_from([(width, height), (max(width, height),) * 2]))
    text = draw(answers)
    text = text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text
    generation = generation_of(text, frame, finish_reason=draw(st.sampled_from(FinishReason)))
    return Question(generation, draw(st.sampled_from(TASKS)), (width, height))


def read(question: Question) -> ParsedAnswer:
    skeleton = PERSON if question.task is Task.KEYPOINT else None
    return parse(question.generation, question.task, LABELS, question.image, skeleton)


@given(questions())
@settings(max_examples=400, deadline=None)
def test_whatever_the_text_every_asked_label_and_no_other_is_answered(question: Question):
    answer = read(question)
    assert tuple(answer.labels) == LABELS
    for label, said in answer.labels.items():
        assert {a.label for a in said.annotations} <= {label}
        assert said.presence is None or 0 <= said.presence <= 1
    if question.generation.finish_reason is not FinishReason.STOP:
        assert not answer.complete
    if question.generation.finish_reason is FinishReason.LOOP:
        assert State.DEGENERATE in {said.state for said in answer.labels.values()}


def places(annotation: Annotation) -> list[tuple[float, float]]:
    """Every point, corner and keypoint that has a place."""
    found = list(annotation.polygon)
    if annotation.bbox is not None:
        found += [annotation.bbox[:2], annotation.bbox[2:]]
    if annotation.point is not None:
        found.append(annotation.point)
    for point in annotation.keypoints:
        if point.x_px is not None and point.y_px is not None:
            found.append((point.x_px, point.y_px))
    return found


@given(questions())
@settings(max_examples=400, deadline=None)
def test_whatever_the_text_all_lies_in_the_image_and_scores_in_the_unit_interval(
    question: Question,
):
    width, height = question.image
    for said in read(question).labels.values():
        for annotation in said.annotations:
            assert places(annotation)
            assert all(0 <= x <= width and 0 <= y <= height for x, y in places(annotation))
            assert annotation.score is None or 0 <= annotation.score <= 1
            if annotation.bbox is not None and not annotation.polygon:
                x0, y0, x1, y1 = annotation.bbox
                assert x0 < x1
                assert y0 < y1


@given(questions())
@settings(max_examples=400, deadline=None)
def test_whatever_the_text_nothing_is_invented(question: Question):
    frame_w, frame_h = question.generation.frame_size_px
    text = question.generation.raw_text
    written = [int(b) for b in re.findall(r"<([0-9]{1,3})>", text)]
    # What lies beyond the image was cut at its border.
    xs = {min(b / 999 * frame_w, question.image[0]) for b in written}
    ys = {min(b / 999 * frame_h, question.image[1]) for b in written}
    for said in read(question).labels.values():
        for annotation in said.annotations:
            assert all(x in xs and y in ys for x, y in places(annotation))
            assert annotation.text is None or annotation.text in text


@given(questions(), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_whatever_the_text_it_does_not_matter_how_many_tokens_come_at_once(
    question: Question, size: int
):
    tokens = question.generation.tokens
    one_by_one, in_chunks = LoopWatch(question.task), LoopWatch(question.task)
    for token in tokens:
        one_by_one.add([token])
    for start in range(0, len(tokens), size):
        in_chunks.add(tokens[start : start + size])
    assert one_by_one.looped == in_chunks.looped
    assert one_by_one.label == in_chunks.label


@given(questions())
@settings(max_examples=200, deadline=None)
def test_whatever_the_text_an_answer_that_the_watch_stops_reads_as_degenerate(question: Question):
    tokens = list(question.generation.tokens)
    seen = watched(tokens, question.task)
    if seen is not None:
        stopped = generation_of(
            "".join(tokens[:seen]),
            question.generation.frame_size_px,
            finish_reason=FinishReason.LOOP,
        )
        answer = read(question._replace(generation=stopped))
        assert State.DEGENERATE in {said.state for said in answer.labels.values()}


@given(questions())
@settings(max_examples=200, deadline=None)
def test_whatever_the_text_no_thing_is_kept_twice(question: Question):
    for said in read(question).labels.values():
        for one, two in combinations(said.annotations, 2):
            assert (one.bbox, one.point, one.text) != (two.bbox, two.point, two.text)


@given(
    st.dictionaries(
        st.sampled_from(LABELS),
        st.lists(
            # Each box in a cell of its own: two that overlap would be one thing said twice.
            st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(1, 99)] * 2).map(
                lambda v: (v[0] * 100, v[1] * 100, v[0] * 100 + v[2], v[1] * 100 + v[3])
            ),
            max_size=4,
            unique_by=lambda box: box[:2],
        ),
        min_size=1,
    )
)
def test_a_well_formed_answer_is_read_back_whole(wanted: dict[str, list[tuple[int, ...]]]):
    text = ", ".join(
        says(label, ", ".join("".join(f"<{b}>" for b in box) for box in found) or "None")
        for label, found in wanted.items()
    )
    answer = detect(text)
    assert answer.complete
    assert answer.dropped == ()
    for label in LABELS:
        found = [a.bbox for a in answer.labels[label].annotations]
        assert found == [pytest.approx(box) for box in wanted.get(label, [])]
