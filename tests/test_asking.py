from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling_pipeline.annotations import (
    Annotation,
    Box,
    Keypoint,
    LabelAnswer,
    ParsedAnswer,
    State,
)
from labeling_pipeline.asking.groups import smaller_groups
from labeling_pipeline.asking.questions import (
    Answered,
    Crop,
    Question,
    Region,
    Sourced,
    crop_around,
)
from labeling_pipeline.asking.rounds import conclude, first_questions, second_questions
from labeling_pipeline.asking.tiling import put_together, tiles
from labeling_pipeline.plan import Entry, Group, Tiling
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
    (first,) = first_questions(DETECTION, both, SIZE)
    rounds = [
        answered(first, ("duplicate: a",), a=said("degenerate", LEFT), b=said("found", RIGHT))
    ]
    again = second_questions(DETECTION, both, rounds, SIZE)
    assert again == (Question(Task.DETECTION, ("a",)),)
    rounds.append(answered(again[0], ("stray: x",), a=said("absent", presence=0.1)))
    conclusion = conclude(DETECTION, both, rounds, SIZE)
    assert conclusion.labels == {
        "a": Sourced(said("absent", presence=0.1), ()),
        "b": Sourced(said("found", RIGHT), (0,)),
    }
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
    conclusion = conclude(DETECTION, both, rounds, SIZE)
    best = (first, second)[kept]
    assert conclusion.labels["a"] == Sourced(best, (kept,) * len(best.annotations))


# Top-down keypoints


def test_top_down_asks_for_keypoints_and_boxes_and_then_for_every_instance_on_its_crop():
    alone = group("person")
    first = first_questions(TOP_DOWN, alone, SIZE)
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
    first = first_questions(TOP_DOWN, alone, SIZE)
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
    conclusion = conclude(TOP_DOWN, alone, rounds, SIZE)
    found = conclusion.labels["person"].answer
    assert [a.score for a in found.annotations] == [0.9, 0.7]
    assert conclusion.labels["person"].sources == (0, 3)
    assert (found.state, found.presence) == (State.FOUND, 0.97)


def test_a_detected_instance_without_keypoints_is_kept_as_a_box():
    alone = group("person")
    first = first_questions(TOP_DOWN, alone, SIZE)
    rounds = [
        answered(first[0], person=people(state="absent")),
        answered(first[1], person=said("found", LEFT)),
    ]
    (crop,) = second_questions(TOP_DOWN, alone, rounds, SIZE)
    rounds.append(answered(crop, person=people(state="absent")))
    conclusion = conclude(TOP_DOWN, alone, rounds, SIZE)
    (found,) = conclusion.labels["person"].answer.annotations
    assert found.bbox == LEFT
    assert [k.name for k in found.keypoints] == list(PERSON.keypoints)
    assert all(k.x_px is None for k in found.keypoints)
    assert conclusion.labels["person"].sources == (1,)


@pytest.mark.parametrize("state", ["absent", "not_mentioned", "unparsed"])
def test_nobody_there_costs_no_second_round(state: str):
    alone = group("person")
    first = first_questions(TOP_DOWN, alone, SIZE)
    rounds = [
        answered(first[0], person=people(state="absent")),
        answered(first[1], person=said(state)),
    ]
    assert second_questions(TOP_DOWN, alone, rounds, SIZE) == ()
    assert conclude(TOP_DOWN, alone, rounds, SIZE).labels["person"].answer.state == state


def test_a_detection_that_was_cut_stays_cut_whatever_the_crops_say():
    alone = group("person")
    first = first_questions(TOP_DOWN, alone, SIZE)
    rounds = [
        answered(first[0], person=people(person(LEFT, 0.9))),
        answered(first[1], person=said("truncated", LEFT)),
    ]
    concluded = conclude(TOP_DOWN, alone, rounds, SIZE)
    assert concluded.labels["person"].answer.state is State.TRUNCATED


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


# Tiles

TILED = Entry(name="object", task=Task.DETECTION, tiles=Tiling(size_px=400, overlap=0.25))
WIDE = (700, 400)
FIRST_TILE: Crop = (0, 0, 400, 400)
SECOND_TILE: Crop = (300, 0, 700, 400)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param((400, 300), [], id="an image that one tile holds"),
        pytest.param(WIDE, [FIRST_TILE, SECOND_TILE], id="two side by side"),
        pytest.param((300, 500), [(0, 0, 300, 400), (0, 100, 300, 500)], id="two one over another"),
        pytest.param(
            (500, 500),
            [(0, 0, 400, 400), (100, 0, 500, 400), (0, 100, 400, 500), (100, 100, 500, 500)],
            id="four, row by row",
        ),
    ],
)
def test_tiles_cover_the_image(size: tuple[int, int], expected: list[Crop]):
    assert tiles(size, Tiling(size_px=400, overlap=0.25)) == expected


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.builds(Tiling, size_px=st.integers(64, 2000), overlap=st.floats(0, 0.5)),
)
def test_whatever_the_size_tiles_cover_it_and_overlap_as_asked(width, height, tiling):
    cut = tiles((width, height), tiling) or [(0, 0, width, height)]
    for low, high, size in ((0, 2, width), (1, 3, height)):
        spans = sorted({(crop[low], crop[high]) for crop in cut})
        assert spans[0][0] == 0
        assert spans[-1][1] == size
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= int(tiling.overlap * tiling.size_px) - 1


def seen(*boxes: Box, state: str = "found", score: float = 0.5) -> LabelAnswer:
    return LabelAnswer(State(state), score, tuple(Annotation("cat", b, score=score) for b in boxes))


@pytest.mark.parametrize(
    ("whole", "first", "second", "expected"),
    [
        pytest.param([], [(10, 10, 60, 60)], [], [(10, 10, 60, 60)], id="in one tile"),
        pytest.param(
            [], [(320, 10, 380, 60)], [(321, 10, 381, 61)], [(320, 10, 380, 60)], id="in both"
        ),
        pytest.param(
            [],
            [(350, 10, 400, 60)],
            [(350, 10, 420, 60)],
            [(350, 10, 420, 60)],
            id="cut by one, whole in the other",
        ),
        pytest.param(
            [],
            [(200, 10, 400, 90)],
            [(300, 11, 600, 91)],
            [(200, 10, 600, 91)],
            id="cut by both: joined",
        ),
        pytest.param(
            [],
            [(200, 10, 400, 90)],
            [(300, 200, 600, 391)],
            [(200, 10, 400, 90), (300, 200, 600, 391)],
            id="cut by both, but two things",
        ),
        pytest.param(
            [(200, 10, 600, 90)],
            [(200, 10, 400, 90)],
            [(300, 11, 600, 91)],
            [(200, 10, 600, 90)],
            id="whole in the whole image only",
        ),
        pytest.param(
            [],
            [(0, 0, 390, 390)],
            [],
            [(0, 0, 390, 390)],
            id="at the border of the image is not cut",
        ),
        pytest.param(
            [],
            [(10, 10, 60, 60), (20, 10, 70, 60)],
            [],
            [(10, 10, 60, 60), (20, 10, 70, 60)],
            id="two that one answer tells apart stay two",
        ),
    ],
)
def test_things_near_a_seam_count_once(whole, first, second, expected):
    questions = first_questions(TILED, group("cat"), WIDE)
    assert [question.crop_px for question in questions] == [None, FIRST_TILE, SECOND_TILE]
    rounds = [
        answered(question, cat=seen(*boxes))
        for question, boxes in zip(questions, (whole, first, second), strict=True)
    ]
    conclusion = conclude(TILED, group("cat"), rounds, WIDE)
    said_of_cat = conclusion.labels["cat"]
    assert sorted(a.bbox for a in said_of_cat.answer.annotations if a.bbox) == expected
    assert len(said_of_cat.sources) == len(expected)


def test_what_seams_repeat_is_counted_as_dropped():
    rounds = [
        answered(question, cat=seen((320, 10, 380, 60)))
        for question in first_questions(TILED, group("cat"), WIDE)
    ]
    conclusion = conclude(TILED, group("cat"), rounds, WIDE)
    assert [what.split()[0] for what in conclusion.dropped] == ["seam:", "seam:"]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("absent", "absent", "absent"), "absent"),
        (("absent", "found", "absent"), "found"),
        (("found", "found", "truncated"), "truncated"),
        (("absent", "degenerate", "truncated"), "degenerate"),
        (("not_mentioned", "absent", "not_mentioned"), "absent"),
    ],
)
def test_a_label_is_as_settled_as_its_least_settled_tile(states, expected):
    questions = first_questions(TILED, group("cat"), WIDE)
    rounds = [
        answered(question, cat=said(state, presence=n / 10))
        for n, (question, state) in enumerate(zip(questions, states, strict=True))
    ]
    answer = conclude(TILED, group("cat"), rounds, WIDE).labels["cat"].answer
    assert (answer.state, answer.presence) == (expected, 0.2)


def test_a_tile_without_a_sound_end_is_asked_again_in_smaller_groups():
    both = group("a", "b")
    first, *others = first_questions(TILED, both, WIDE)
    rounds = [answered(first, a=said("absent"), b=said("absent"))]
    rounds.append(answered(others[0], a=said("absent"), b=said("absent")))
    rounds.append(answered(others[1], a=said("found", (310, 10, 350, 60)), b=said("degenerate")))
    (again,) = second_questions(TILED, both, rounds, WIDE)
    assert again == Question(Task.DETECTION, ("b",), SECOND_TILE)
    rounds.append(answered(again, b=said("found", (500, 10, 550, 60))))
    labels = conclude(TILED, both, rounds, WIDE).labels
    assert {label: (one.answer.state, one.sources) for label, one in labels.items()} == {
        "a": ("found", (2,)),
        "b": ("found", (3,)),
    }


def test_a_point_in_an_overlap_belongs_to_the_nearer_tile():
    pointing = Entry(name="spot", task=Task.POINTING, tiles=TILED.tiles)
    questions = first_questions(pointing, group("cat"), WIDE)
    assert [question.crop_px for question in questions] == [FIRST_TILE, SECOND_TILE]
    points = [[(340.0, 100.0), (362.0, 50.0)], [(341.0, 101.0), (363.0, 51.0)]]
    rounds = [
        answered(
            question,
            cat=LabelAnswer(State.FOUND, 0.5, tuple(Annotation("cat", point=p) for p in seen_at)),
        )
        for question, seen_at in zip(questions, points, strict=True)
    ]
    found = conclude(pointing, group("cat"), rounds, WIDE).labels["cat"].answer.annotations
    assert [one.point for one in found] == [(340.0, 100.0), (363.0, 51.0)]


@pytest.mark.parametrize(("task", "kept"), [(Task.OCR_BOX, 2), (Task.DETECTION, 1)])
def test_read_text_is_never_joined(task: Task, kept: int):
    left, right = ((200.0, 10.0, 400.0, 90.0), (300.0, 10.0, 600.0, 90.0))
    parts: list[tuple[Crop | None, dict[str, Sourced]]] = [
        (FIRST_TILE, {"cat": Sourced(seen(left), (0,))}),
        (SECOND_TILE, {"cat": Sourced(seen(right), (1,))}),
    ]
    answers, _ = put_together(task, ["cat"], parts, WIDE)
    assert len(answers["cat"].answer.annotations) == kept


def test_a_part_that_is_taken_for_another_thing_makes_way_for_the_whole_thing():
    # The cat's middle belongs to the first tile; the second one sees its tail and calls it a dog.
    both = group("cat", "dog")
    whole, first, second = first_questions(TILED, both, WIDE)
    tail = LabelAnswer(State.FOUND, 0.5, (Annotation("dog", (302.0, 10.0, 340.0, 60.0), score=1),))
    rounds = [
        answered(whole, cat=said("absent"), dog=said("absent")),
        answered(first, cat=seen((280, 10, 345, 60)), dog=said("absent")),
        answered(second, cat=said("absent"), dog=tail),
    ]
    labels = conclude(TILED, both, rounds, WIDE).labels
    assert [a.bbox for a in labels["cat"].answer.annotations] == [(280, 10, 345, 60)]
    assert labels["dog"].answer.annotations == ()


@pytest.mark.parametrize(
    "task",
    [
        Task.KEYPOINT,
        Task.VISUAL_PROMPTING,
        Task.REGION_TO_OCR,
        Task.CAPTION,
        Task.GROUNDED_CAPTION,
        Task.OCR,
    ],
)
def test_tiles_are_refused_where_they_make_no_sense(task: Task):
    with pytest.raises(ValueError, match=f"expected no tiles with {task}"):
        Entry(name="object", task=task, tiles=Tiling())


# Regions of another entry

CLOSER = Entry(name="pose", task=Task.KEYPOINT, regions="object")
REGIONS = (Region("left", LEFT), Region("right", RIGHT))


def test_every_region_is_asked_about_on_its_crop():
    questions = first_questions(CLOSER, group("person"), SIZE, REGIONS)
    assert questions == (
        Question(Task.KEYPOINT, ("person",), (75, 50, 225, 350), REGIONS[0]),
        Question(Task.KEYPOINT, ("person",), (375, 50, 525, 350), REGIONS[1]),
    )
    assert first_questions(CLOSER, group("person"), SIZE, ()) == ()


def test_a_task_about_boxes_is_asked_about_every_region_on_the_whole_image():
    closer = Entry(name="name", task=Task.REGION_TO_CATEGORY, regions="object")
    assert first_questions(closer, group("region"), SIZE, REGIONS) == tuple(
        Question(Task.REGION_TO_CATEGORY, ("region",), None, region) for region in REGIONS
    )


def test_of_the_people_in_a_crop_the_one_that_the_region_is_about_counts():
    questions = first_questions(CLOSER, group("person"), SIZE, REGIONS)
    neighbour = person((190.0, 100.0, 225.0, 300.0), 0.9)
    rounds = [
        answered(questions[0], person=people(neighbour, person(LEFT, 0.7), presence=0.8)),
        answered(questions[1], person=people(state="absent", presence=0.1)),
    ]
    assert second_questions(CLOSER, group("person"), rounds, SIZE) == ()
    said_of = conclude(CLOSER, group("person"), rounds, SIZE).labels["person"]
    assert [a.bbox for a in said_of.answer.annotations] == [LEFT]
    assert (said_of.answer.state, said_of.answer.presence) == (State.FOUND, 0.8)
    assert said_of.sources == (0,)


def test_what_two_overlapping_regions_show_counts_once():
    closer = Entry(name="wheel", task=Task.DETECTION, regions="object")
    near = Region("near", (110.0, 100.0, 210.0, 300.0))
    questions = first_questions(closer, group("wheel"), SIZE, (REGIONS[0], near))
    wheel = (120.0, 250.0, 150.0, 290.0)
    rounds = [answered(question, wheel=said("found", wheel)) for question in questions]
    said_of = conclude(closer, group("wheel"), rounds, SIZE).labels["wheel"]
    assert [a.bbox for a in said_of.answer.annotations] == [wheel]


def test_what_has_no_place_of_its_own_gets_that_of_its_region():
    closer = Entry(name="caption", task=Task.DETECTION, regions="object")
    questions = first_questions(closer, group("caption"), SIZE, REGIONS)
    rounds = [
        answered(
            question,
            caption=LabelAnswer(State.FOUND, None, (Annotation("caption", text=text),)),
        )
        for question, text in zip(questions, ("a cat", "a dog"), strict=True)
    ]
    found = conclude(closer, group("caption"), rounds, SIZE).labels["caption"].answer.annotations
    assert [(a.text, a.bbox) for a in found] == [("a cat", LEFT), ("a dog", RIGHT)]


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
