"""Florence-2's prompts to the byte, and answers of the published formats read out."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling_pipeline.annotations import FinishReason, State
from labeling_pipeline.models import florence2_protocol as protocol
from labeling_pipeline.models.scripted import generation_of
from labeling_pipeline.tasks import RULES, Task

SIZE = (1000, 1000)  # so that a bin b is the pixel b + 0.5
REGION = (10, 20, 300, 400)


def spelled(*bins: int) -> str:
    return "".join(f"<loc_{b}>" for b in bins)


def read(task, text, labels=("thing",), size=SIZE, frame=SIZE, regions=(REGION,), **options):
    prompt = protocol.END.join(protocol.prompts(task, labels, regions, frame))
    generation = generation_of(text, frame, prompt=prompt, **options)
    return protocol.parse(generation, task, labels, size)


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        (Task.OCR, ("text",), "What is the text in the image?"),
        (Task.OCR_POLYGON, ("word",), "What is the text in the image, with regions?"),
        (Task.CAPTION, ("caption",), "What does the image describe?"),
        (
            Task.DETAILED_CAPTION,
            ("caption",),
            "Describe in detail what is shown in the image.",
        ),
        (
            Task.MORE_DETAILED_CAPTION,
            ("caption",),
            "Describe with a paragraph what is shown in the image.",
        ),
        (Task.GROUNDED_CAPTION, ("caption",), "What does the image describe?"),
        (
            Task.GROUNDED_DETAILED_CAPTION,
            ("caption",),
            "Describe in detail what is shown in the image.",
        ),
        (
            Task.GROUNDED_MORE_DETAILED_CAPTION,
            ("caption",),
            "Describe with a paragraph what is shown in the image.",
        ),
        (
            Task.OBJECT_DETECTION,
            ("object",),
            "Locate the objects with category name in the image.",
        ),
        (
            Task.DENSE_REGION_CAPTION,
            ("region",),
            "Locate the objects in the image, with their descriptions.",
        ),
        (Task.REGION_PROPOSAL, ("region",), "Locate the region proposals in the image."),
        (Task.DETECTION, ("Kuh", "子犬"), "Locate Kuh<and>子犬 in the image."),
        (
            Task.PHRASE_GROUNDING,
            ("a cow, and a dog",),
            "Locate the phrases in the caption: a cow, and a dog",
        ),
        (
            Task.REFERRING_SEGMENTATION,
            ("the red cow",),
            "Locate the red cow in the image with mask",
        ),
        (
            Task.REGION_TO_SEGMENTATION,
            ("region",),
            "What is the polygon mask of region <loc_10><loc_20><loc_300><loc_400>",
        ),
        (
            Task.REGION_TO_CATEGORY,
            ("region",),
            "What is the region <loc_10><loc_20><loc_300><loc_400>?",
        ),
        (
            Task.REGION_TO_DESCRIPTION,
            ("region",),
            "What does the region <loc_10><loc_20><loc_300><loc_400> describe?",
        ),
        (
            Task.REGION_TO_OCR,
            ("text",),
            "What text is in the region <loc_10><loc_20><loc_300><loc_400>?",
        ),
    ],
)
def test_prompts_are_those_the_model_was_trained_on(task, labels, expected):
    assert protocol.prompts(task, labels, [REGION], SIZE) == (expected,)


def test_every_task_has_a_prompt_and_a_reader():
    for task in protocol.TASKS:
        assert protocol.prompt(task, ("thing",))
        assert isinstance(read(task, "").labels, dict)


def test_each_region_is_a_turn_of_its_own():
    first, second = protocol.prompts(
        Task.REGION_TO_CATEGORY, ("region",), [(0, 0, 50, 50), (100, 50, 200, 100)], (200, 100)
    )
    assert spelled(0, 0, 250, 500) in first
    assert spelled(500, 500, 999, 999) in second


def test_a_task_about_regions_needs_one():
    with pytest.raises(ValueError, match="asks about regions"):
        protocol.prompts(Task.REGION_TO_OCR, ("text",), [], SIZE)


@pytest.mark.parametrize("label", ["cat<and>dog", "<loc_12>", "x</s>", "<sep>"])
def test_labels_with_control_tokens_are_refused_with_the_fix(label):
    assert "rename it in `ask`" in (protocol.why_unsupported(label) or "")


@pytest.mark.parametrize("label", ["cat, dog", "a < b", "Übermütige Kühe", "子犬"])
def test_all_other_labels_can_be_asked(label):
    assert protocol.why_unsupported(label) is None


def test_boxes_belong_to_the_words_before_them_and_keep_fractions_of_pixels():
    text = f"cat{spelled(0, 10, 500, 999)}{spelled(1, 2, 3, 4)}Über-Kühe{spelled(5, 6, 70, 80)}"
    parsed = read(Task.DETECTION, text, ("Über-Kühe", "cat", "dog"), size=(30, 50), frame=(30, 50))
    assert [a.bbox for a in parsed.labels["cat"].annotations] == [
        pytest.approx((0.015, 0.525, 15.015, 49.975)),
        pytest.approx((0.045, 0.125, 0.105, 0.225)),
    ]
    (cow,) = parsed.labels["Über-Kühe"].annotations
    assert cow.label == "Über-Kühe"
    assert cow.text is None
    assert {label: answer.state for label, answer in parsed.labels.items()} == {
        "cat": State.FOUND,
        "Über-Kühe": State.FOUND,
        "dog": State.ABSENT,
    }
    assert parsed.complete
    assert parsed.dropped == ()


def test_an_answer_in_another_case_is_the_asked_label_and_another_word_is_not():
    text = f"CAT{spelled(1, 2, 30, 40)}cow{spelled(5, 6, 70, 80)}"
    parsed = read(Task.DETECTION, text, ("cat",))
    assert len(parsed.labels["cat"].annotations) == 1
    assert parsed.dropped == (f"not_asked: cow{spelled(5, 6, 70, 80)}",)


def test_silence_says_that_nothing_is_there_and_how_sure_that_is():
    parsed = read(Task.DETECTION, "", ("cat",))
    assert parsed.labels["cat"].state is State.ABSENT
    assert parsed.complete


def test_scores_are_those_of_the_location_tokens():
    parsed = read(Task.DETECTION, f"cat{spelled(1, 2, 30, 40)}", ("cat",))
    (cat,) = parsed.labels["cat"].annotations
    assert cat.token_scores is not None
    assert cat.token_scores.geometric_mean == pytest.approx(0.8)
    assert cat.token_scores.window_mass == cat.score == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        (
            Task.OBJECT_DETECTION,
            f"Straße{spelled(1, 2, 30, 40)}dog{spelled(5, 6, 70, 80)}{spelled(100, 100, 200, 200)}",
            [
                ("Straße", (1.5, 2.5, 30.5, 40.5)),
                ("dog", (5.5, 6.5, 70.5, 80.5)),
                ("dog", (100.5, 100.5, 200.5, 200.5)),
            ],
        ),
        (
            Task.DENSE_REGION_CAPTION,
            f"a man in a hat{spelled(1, 2, 30, 40)}",
            [("a man in a hat", (1.5, 2.5, 30.5, 40.5))],
        ),
        (
            Task.PHRASE_GROUNDING,
            f"two cows{spelled(1, 2, 30, 40)}{spelled(50, 2, 80, 40)}a dog{spelled(5, 60, 7, 80)}",
            [
                ("two cows", (1.5, 2.5, 30.5, 40.5)),
                ("two cows", (50.5, 2.5, 80.5, 40.5)),
                ("a dog", (5.5, 60.5, 7.5, 80.5)),
            ],
        ),
        (
            Task.REGION_PROPOSAL,
            spelled(1, 2, 30, 40, 50, 2, 80, 40),
            [(None, (1.5, 2.5, 30.5, 40.5)), (None, (50.5, 2.5, 80.5, 40.5))],
        ),
        (
            Task.REGION_TO_CATEGORY,
            f"car{spelled(*REGION)}",
            [("car", (10.5, 20.5, 300.5, 400.5))],
        ),
        (Task.REGION_TO_DESCRIPTION, "a red car", [("a red car", (10.5, 20.5, 300.5, 400.5))]),
        (Task.REGION_TO_OCR, f"EXIT{spelled(*REGION)}", [("EXIT", (10.5, 20.5, 300.5, 400.5))]),
        (Task.CAPTION, "Two cows, 子犬.", [("Two cows, 子犬.", None)]),
        (Task.OCR, " EXIT <now> ", [("EXIT <now>", None)]),
        (
            Task.GROUNDED_CAPTION,
            f"Two cows.</s>two cows{spelled(1, 2, 30, 40)}",
            [("Two cows.", None), ("two cows", (1.5, 2.5, 30.5, 40.5))],
        ),
    ],
)
def test_words_of_the_model_are_the_text_of_what_was_asked(task, text, expected):
    parsed = read(task, text)
    answer = parsed.labels["thing"]
    assert answer.state is State.FOUND
    assert [(a.text, a.bbox) for a in answer.annotations] == expected
    assert {a.label for a in answer.annotations} == {"thing"}
    assert parsed.complete


def test_outlines_are_separated():
    text = spelled(0, 0, 10, 0, 10, 10) + "<sep>" + spelled(50, 50, 60, 50, 60, 60, 50, 60)
    parsed = read(Task.REFERRING_SEGMENTATION, text, ("two kites",))
    one, two = parsed.labels["two kites"].annotations
    assert one.polygon == ((0.5, 0.5), (10.5, 0.5), (10.5, 10.5))
    assert len(two.polygon) == 4
    assert two.bbox == (50.5, 50.5, 60.5, 60.5)
    assert parsed.complete


def test_text_is_read_with_its_four_corners():
    text = f"Ausgang →{spelled(10, 10, 90, 12, 88, 40, 12, 38)}B{spelled(1, 1, 9, 1, 9, 9, 1, 9)}"
    parsed = read(Task.OCR_POLYGON, text, ("word",))
    first, second = parsed.labels["word"].annotations
    assert (first.text, second.text) == ("Ausgang →", "B")
    assert first.polygon[2] == (88.5, 40.5)
    assert first.bbox == (10.5, 10.5, 90.5, 40.5)


def test_every_region_has_its_own_answer():
    regions = [(0, 0, 100, 100), (200, 200, 400, 400)]
    parsed = read(Task.REGION_TO_CATEGORY, "car</s>cow", ("region",), regions=regions)
    car, cow = parsed.labels["region"].annotations
    assert (car.text, cow.text) == ("car", "cow")
    assert cow.bbox == (200.5, 200.5, 400.5, 400.5)


@pytest.mark.parametrize(
    ("task", "text", "kept", "dropped"),
    [
        (Task.DETECTION, f"thing{spelled(1, 2, 30)}", 0, "half_box"),
        (Task.DETECTION, f"thing{spelled(1, 2, 30, 40, 5)}", 1, "half_box"),
        (Task.DETECTION, "thing", 0, "no_boxes"),
        (Task.DETECTION, spelled(1, 2, 30, 40), 0, "no_words"),
        (
            Task.DETECTION,
            f"thing{spelled(1, 2, 30, 40)}<sep>{spelled(5, 6, 70, 80)}",
            2,
            "half_box",
        ),
        (Task.REGION_PROPOSAL, f"cat{spelled(1, 2, 30, 40)}", 0, "stray"),
        (Task.REFERRING_SEGMENTATION, spelled(1, 2, 3, 4, 5, 6, 7), 0, "half_polygon"),
        (Task.REFERRING_SEGMENTATION, spelled(1, 2, 30, 40), 0, "half_polygon"),
        (Task.REFERRING_SEGMENTATION, "no idea", 0, "stray"),
        (Task.OCR_POLYGON, f"A{spelled(1, 2, 3, 4, 5, 6)}", 0, "half_polygon"),
        (Task.OCR_POLYGON, spelled(1, 2, 3, 4, 5, 6, 7, 8), 0, "no_words"),
        (Task.CAPTION, f"a cat{spelled(1, 2, 3, 4)}", 0, "stray"),
        (Task.REGION_TO_CATEGORY, f"car{spelled(1, 2)}", 0, "half_box"),
        (Task.REGION_TO_CATEGORY, spelled(1, 2, 3, 4), 0, "no_words"),
        (Task.GROUNDED_CAPTION, "A cat.", 1, "no_grounding"),
    ],
)
def test_what_does_not_fit_is_reported_and_not_repaired(task, text, kept, dropped):
    parsed = read(task, text)
    answer = parsed.labels["thing"]
    assert answer.state is State.UNPARSED
    assert len(answer.annotations) == kept
    assert [reason.split(":")[0] for reason in parsed.dropped] == [dropped]
    assert not parsed.complete


def test_a_cut_answer_keeps_what_was_whole_and_says_so():
    text = f"cat{spelled(1, 2, 30, 40)}cat{spelled(5, 6)}"
    parsed = read(Task.DETECTION, text, ("cat", "dog"), finish_reason=FinishReason.LENGTH)
    assert len(parsed.labels["cat"].annotations) == 1
    assert {answer.state for answer in parsed.labels.values()} == {State.TRUNCATED}
    assert not parsed.complete


def test_boxes_that_are_said_again_and_again_are_degenerate():
    text = f"cat{spelled(1, 2, 30, 40)}" * 8
    parsed = read(Task.DETECTION, text, ("cat",), finish_reason=FinishReason.LENGTH)
    assert parsed.labels["cat"].state is State.DEGENERATE
    assert len(parsed.labels["cat"].annotations) == 1


def test_words_that_go_in_circles_are_degenerate():
    tokens = ("a", " cat", " and ") * 30
    generation = replace(
        generation_of("", SIZE, finish_reason=FinishReason.LOOP),
        tokens=tokens,
        token_logprobs=(-0.1,) * len(tokens),
        token_window_mass=(math.nan,) * len(tokens),
    )
    parsed = protocol.parse(generation, Task.CAPTION, ("caption",), SIZE)
    assert parsed.labels["caption"].state is State.DEGENERATE


def test_a_box_said_twice_counts_once():
    text = f"cat{spelled(1, 2, 300, 400)}{spelled(1, 3, 300, 400)}"
    parsed = read(Task.DETECTION, text, ("cat",))
    assert len(parsed.labels["cat"].annotations) == 1
    assert parsed.dropped[0].startswith("duplicate")
    assert parsed.labels["cat"].state is State.FOUND


def test_corners_may_come_in_either_order_and_a_box_without_area_is_dropped():
    text = f"cat{spelled(300, 400, 1, 2)}{spelled(5, 5, 5, 90)}"
    parsed = read(Task.DETECTION, text, ("cat",))
    (cat,) = parsed.labels["cat"].annotations
    assert cat.bbox == (1.5, 2.5, 300.5, 400.5)
    assert parsed.dropped[0].startswith("empty_box")


def test_shapes_end_where_the_padding_begins():
    parsed = read(Task.DETECTION, f"cat{spelled(100, 100, 999, 999)}", ("cat",), size=(1000, 400))
    (cat,) = parsed.labels["cat"].annotations
    assert cat.bbox == (100.5, 100.5, 999.5, 400.0)


@given(value=st.integers(0, 999), size=st.integers(1, 5000))
def test_a_bin_survives_the_way_to_pixels_and_back(value, size):
    assert protocol.to_bin(protocol.from_bin(value, size), size) == value


pieces = st.lists(
    st.one_of(
        st.integers(0, 999).map(lambda b: f"<loc_{b}>"),
        st.sampled_from(
            ["cat", " dog", "<sep>", "</s>", "<and>", "<loc_", "子", ",", ">", "\n", ""]
        ),
        st.text(max_size=4),
    ),
    max_size=40,
)


@given(
    task=st.sampled_from(protocol.TASKS),
    pieces=pieces,
    labels=st.sampled_from([("cat",), ("cat", "dog")]),
    finish_reason=st.sampled_from(FinishReason),
    size=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
)
def test_no_text_makes_the_parser_raise_and_no_location_is_lost(
    task, pieces, labels, finish_reason, size
):
    parsed = read(task, "".join(pieces), labels, size, size, finish_reason=finish_reason)
    assert set(parsed.labels) == set(labels)
    for label, answer in parsed.labels.items():
        for annotation in answer.annotations:
            assert annotation.label == label
            assert (annotation.text is None) or RULES[task].reads_text
            if annotation.bbox is not None:
                x0, y0, x1, y1 = annotation.bbox
                assert 0 <= x0 <= x1 <= size[0]
                assert 0 <= y0 <= y1 <= size[1]
            if annotation.score is not None:
                assert 0 <= annotation.score <= 1
                assert math.isfinite(annotation.score)
    said_anything = any(answer.annotations for answer in parsed.labels.values())
    mentions_location = any(piece.startswith("<loc_") and piece != "<loc_" for piece in pieces)
    if mentions_location:
        assert said_anything or parsed.dropped
