"""Every task: its prompt to the byte, and answers of the published format read out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling_pipeline.annotations import FinishReason, State
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.scripted import generation_of
from labeling_pipeline.tasks import ANIMAL, FACE, HAND, PERSON, RULES, Geometry, Task

SIZE = (999, 999)  # so that a bin is a pixel

DETECT = "Detect {}. Output the bounding box coordinates in [x0, y0, x1, y1] format."
KEYPOINTS = (
    "Can you detect each {} in the image using a [x0, y0, x1, y1] box format, and then provide the "
    "coordinates of its {} as [x0, y0]? Output the answer in JSON format."
)


@pytest.mark.parametrize(
    ("task", "labels", "options", "expected"),
    [
        (Task.DETECTION, ("cat", "dog"), {}, DETECT.format("cat, dog")),
        (Task.FACE, ("human face",), {}, DETECT.format("human face")),
        (Task.REFERRING, ("man in red",), {}, DETECT.format("man in red")),
        (Task.LAYOUT, ("header", "figure"), {}, DETECT.format("header, figure")),
        (Task.POINTING, ("cat", "dog"), {}, "Point to cat, dog."),
        (
            Task.VISUAL_PROMPTING,
            ("cat",),
            {"references": [(12, 412, 339, 568), (0, 1, 2, 3)]},
            'Given reference boxes {"object_1": ["<12><412><339><568>", "<0><1><2><3>"]} '
            "indicating one or more objects, find all similar objects in the image and output "
            "their bounding boxes.",
        ),
        (Task.OCR_BOX, ("word",), {}, "Detect all word and recognize them."),
        (Task.OCR_BOX, ("text line",), {}, "Detect all text line and recognize them."),
        (
            Task.OCR_POLYGON,
            ("word",),
            {},
            "Can you detect all word in this image in polygon format like "
            "[x0, y0, x1, y1, x2, y2 ...] and then recognize them?",
        ),
        (Task.GUI_BOX, ("Save",), {}, 'Detect element "Save"" in the image.'),
        (Task.GUI_POINT, ("Save",), {}, 'Point to element "Save".'),
        *(
            (
                Task.KEYPOINT,
                (skeleton.name,),
                {"skeleton": skeleton},
                KEYPOINTS.format(skeleton.name, ", ".join(skeleton.keypoints)),
            )
            for skeleton in (PERSON, ANIMAL, HAND, FACE)
        ),
    ],
)
def test_prompts_are_those_the_model_was_trained_on(task, labels, options, expected):
    assert protocol.prompt(task, labels, **options) == expected


def test_there_is_a_prompt_for_every_task_of_the_model():
    for task in protocol.TASKS:
        assert protocol.prompt(task, ("thing",), skeleton=PERSON)


@pytest.mark.parametrize(
    ("skeleton", "count"), [(PERSON, 17), (ANIMAL, 17), (HAND, 21), (FACE, 5)], ids=lambda v: str(v)
)
def test_skeletons_name_every_point_once_and_their_limbs_exist(skeleton, count):
    assert len(set(skeleton.keypoints)) == len(skeleton.keypoints) == count
    assert all(a != b and min(a, b) >= 0 and max(a, b) < count for a, b in skeleton.edges)


def said(label: str, body: str) -> str:
    return f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>{body}<|box_end|>"


def read(task, text, labels, **options):
    return protocol.parse(generation_of(text, SIZE, **options), task, labels, SIZE)


def test_points_are_read_as_points():
    parsed = read(
        Task.POINTING,
        said("cat", "<10><20>, <30><40>") + ", " + said("dog", "None"),
        ("cat", "dog"),
    )
    assert [a.point for a in parsed.labels["cat"].annotations] == [(10, 20), (30, 40)]
    assert parsed.labels["dog"].state is State.ABSENT
    assert parsed.complete


def test_a_box_is_no_point_and_a_point_no_box():
    for task, body in ((Task.POINTING, "<1><2><3><4>"), (Task.DETECTION, "<1><2>")):
        parsed = read(task, said("cat", body), ("cat",))
        assert parsed.labels["cat"].state is State.UNPARSED
        assert not parsed.labels["cat"].annotations
        assert parsed.dropped == (f"half_{RULES[task].geometry}: cat {body}",)


def test_words_are_read_with_their_boxes():
    text = said("Total:", "<1><2><30><40>") + ", " + said("a<b", "<50><60><70><80>")
    parsed = read(Task.OCR_BOX, text, ("word",))
    answer = parsed.labels["word"]
    assert answer.state is State.FOUND
    assert [(a.text, a.bbox) for a in answer.annotations] == [
        ("Total:", (1, 2, 30, 40)),
        ("a<b", (50, 60, 70, 80)),
    ]
    assert {a.label for a in answer.annotations} == {"word"}


def test_words_are_read_with_their_outlines():
    parsed = read(
        Task.OCR_POLYGON, said("Straße", "<10><10><90><12><88><40><12><38>"), ("text line",)
    )
    (word,) = parsed.labels["text line"].annotations
    assert word.text == "Straße"
    assert word.polygon == ((10, 10), (90, 12), (88, 40), (12, 38))
    assert word.bbox == (10, 10, 90, 40)


def test_an_empty_answer_to_a_reading_task_means_that_there_is_no_text():
    assert read(Task.OCR_BOX, "", ("word",)).labels["word"].state is State.ABSENT


def test_two_words_may_be_the_same_text_and_one_word_said_twice_is_one():
    text = ", ".join(
        [
            said("the", "<1><1><50><20>"),
            said("the", "<100><1><150><20>"),
            said("the", "<100><1><150><20>"),
        ]
    )
    parsed = read(Task.OCR_BOX, text, ("word",))
    assert len(parsed.labels["word"].annotations) == 2
    assert [d.split(":")[0] for d in parsed.dropped] == ["duplicate"]


@pytest.mark.parametrize("answered", ["object_1", "cat", "anything"])
def test_what_looks_like_the_reference_belongs_to_the_one_label(answered):
    parsed = read(Task.VISUAL_PROMPTING, said(answered, "<1><2><3><4>"), ("cat",))
    assert len(parsed.labels["cat"].annotations) == 1


@pytest.mark.parametrize(
    ("asked", "answered"),
    [("cat", "cats"), ("cats", "cat"), ("bus", "buses"), ("boxes", "Box"), ("Dog", "dog")],
)
def test_case_and_number_of_a_label_may_differ(asked, answered):
    parsed = read(Task.DETECTION, said(answered, "<1><2><3><4>"), (asked,))
    assert parsed.labels[asked].state is State.FOUND


def test_an_exact_label_is_never_taken_for_its_plural():
    text = said("cats", "<1><2><3><4>") + said("cat", "None")
    parsed = read(Task.DETECTION, text, ("cat", "cats"))
    assert parsed.labels["cats"].state is State.FOUND
    assert parsed.labels["cat"].state is State.ABSENT


def test_a_box_said_many_times_is_degenerate_and_kept_once():
    parsed = read(Task.DETECTION, said("cat", ", ".join(["<1><2><300><400>"] * 9)), ("cat",))
    assert parsed.labels["cat"].state is State.DEGENERATE
    assert len(parsed.labels["cat"].annotations) == 1
    assert len(parsed.dropped) == 8


def test_a_ladder_that_never_ends_is_degenerate_and_a_row_of_windows_is_not():
    rungs = ", ".join(f"<{10 * i}><5><{10 * i + 8}><20>" for i in range(12))
    endless = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>" + rungs
    parsed = read(Task.DETECTION, endless, ("cat",), finish_reason=FinishReason.LENGTH)
    assert parsed.labels["cat"].state is State.DEGENERATE
    parsed = read(Task.DETECTION, said("cat", rungs), ("cat",))
    assert parsed.labels["cat"].state is State.FOUND
    assert len(parsed.labels["cat"].annotations) == 12


def test_every_task_says_what_it_is_drawn_with():
    assert set(RULES) == set(Task)
    assert {rule.geometry for rule in RULES.values()} == set(Geometry)


PIECES = st.lists(
    st.sampled_from(
        [
            "<|object_ref_start|>",
            "<|object_ref_end|>",
            "<|box_start|>",
            "<|box_end|>",
            *("None", "cat", "cats", "object_1", "a<b", ", ", " ", "{", '"', "\n"),
            *("<0>", "<7>", "<500>", "<999>", "<1000>", "<", ">"),
        ]
    )
    | st.text(max_size=3),
    max_size=40,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(
    text=PIECES, task=st.sampled_from(protocol.TASKS), reason=st.sampled_from(list(FinishReason))
)
def test_no_text_raises_and_nothing_leaves_the_image(text, task, reason):
    generation = generation_of(text, (200, 100), finish_reason=reason)
    parsed = protocol.parse(generation, task, ("cat",), (150, 100), PERSON)
    assert set(parsed.labels) == {"cat"}
    for annotation in parsed.labels["cat"].annotations:
        points = [*annotation.polygon]
        if annotation.point is not None:
            points.append(annotation.point)
        if annotation.bbox is not None:
            x0, y0, x1, y1 = annotation.bbox
            assert x0 <= x1
            assert y0 <= y1
            points += [(x0, y0), (x1, y1)]
        points += [(k.x_px, k.y_px) for k in annotation.keypoints if k.x_px is not None]
        assert points
        assert all(0 <= x <= 150 and 0 <= y <= 100 for x, y in points)
        if annotation.text is not None:
            assert annotation.text in text
