"""The embedded Florence-2: the real class from prompt to answer, on drawn pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from labeling_pipeline.annotations import FinishReason, Generation, ParsedAnswer, State, box_iou
from labeling_pipeline.errors import ConfigurationError, ModelError
from labeling_pipeline.models import florence2_protocol as protocol
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.florence2 import Florence2
from labeling_pipeline.models.registry import find_card, load_model
from labeling_pipeline.sample.scenes import Scene, draw_scene
from labeling_pipeline.tasks import RULES, Geometry, Request, Task
from training.florence_2.data import draw_page
from training.florence_2.wording import Picture

pytestmark = pytest.mark.checkpoint

NAME = "tiny-florence-2"


@pytest.fixture(scope="module")
def model() -> Florence2:
    model = load_model(NAME, ModelSettings(device="cpu"))
    assert isinstance(model, Florence2)
    return model


def scene(*kinds: str, seed: int = 1, size=(320, 320)) -> Scene:
    drawn = draw_scene(np.random.default_rng([2, seed, 7]), *size, kinds)
    assert len(drawn.objects) == len(kinds)
    return drawn


def page(seed: int = 3) -> Picture:
    return draw_page(np.random.default_rng([2, seed, 7]), most_words=1)


def boxes_of(drawn: Scene | Picture) -> tuple[tuple[float, float, float, float], ...]:
    things = drawn.words if isinstance(drawn, Picture) and drawn.words else drawn.objects
    return tuple(tuple(map(float, thing.bbox_px)) for thing in things)


def request_for(task: Task) -> tuple[Request, Scene | Picture]:
    """A question that has an answer."""
    reads = task in (Task.OCR, Task.OCR_POLYGON, Task.REGION_TO_OCR)
    drawn = page() if reads else scene("circle", "star")
    labels = LABELS.get(task, (RULES[task].default_label or "circle",))
    regions = boxes_of(drawn) if RULES[task].needs_references else ()
    return Request(drawn.image, task, labels, reference_boxes=regions), drawn


LABELS = {
    Task.DETECTION: ("circle", "square", "star"),
    Task.PHRASE_GROUNDING: ("a circle and a star",),
    Task.REFERRING_SEGMENTATION: ("a circle",),
}

SAYS = {
    Task.CAPTION: ["a circle and a star"],
    Task.REGION_TO_CATEGORY: ["circle", "star"],
    Task.OBJECT_DETECTION: ["circle", "star"],
    Task.PHRASE_GROUNDING: ["a circle", "a star"],
    Task.GROUNDED_CAPTION: ["a circle and a star", "a circle", "a star"],
}


def ask(model: Florence2, *requests: Request) -> list[tuple[Generation, ParsedAnswer]]:
    return [
        (generation, model.parse(generation, one.task, one.labels, one.size_px))
        for one, generation in zip(requests, model.generate(requests), strict=True)
    ]


@pytest.mark.parametrize("task", protocol.TASKS)
def test_a_task_is_answered_in_its_own_form(model, task):
    request, drawn = request_for(task)
    ((generation, parsed),) = ask(model, request)
    assert generation.finish_reason is FinishReason.STOP
    assert parsed.complete, parsed.dropped
    label = request.labels[0]
    answer = parsed.labels[label]
    assert answer.state is State.FOUND
    found = answer.annotations
    if task in SAYS:
        assert sorted(a.text or "" for a in found) == sorted(SAYS[task])
    assert all((a.text is not None) == RULES[task].reads_text for a in found)
    assert all(a.score is not None and 0 < a.score <= 1 for a in found)
    boxes = [a.bbox for a in found if a.bbox is not None]
    if RULES[task].geometry is Geometry.NONE:
        assert not boxes
        return
    wanted = boxes_of(drawn) if len(boxes) > 1 else boxes_of(drawn)[:1]
    for box in wanted:
        assert max(box_iou(box, other) for other in boxes) > 0.5
    if RULES[task].geometry is Geometry.POLYGON:
        assert all(len(a.polygon) >= 3 for a in found)


def test_labels_are_answered_each_with_its_own_boxes_and_absent_ones_with_none(model):
    request, drawn = request_for(Task.DETECTION)
    ((_, parsed),) = ask(model, request)
    states = {label: said.state for label, said in parsed.labels.items()}
    assert states == {"circle": State.FOUND, "square": State.ABSENT, "star": State.FOUND}
    for label, box in zip(("circle", "star"), boxes_of(drawn), strict=True):
        (found,) = parsed.labels[label].annotations
        assert box_iou(found.bbox, box) > 0.7


def test_a_lone_label_comes_with_the_probability_that_it_is_there(model):
    drawn = scene("circle", "star")
    there, absent = (
        parsed.labels[label].presence
        for label in ("circle", "square")
        for _, parsed in ask(model, Request(drawn.image, Task.DETECTION, (label,)))
    )
    assert there is not None
    assert absent is not None
    assert there > 0.9 > 0.1 > absent


def test_unlike_prompts_in_one_batch_are_answered_as_one_by_one(model):
    requests = [request_for(task)[0] for task in protocol.TASKS]
    together = model.generate(requests)
    for request, in_batch in zip(requests, together, strict=True):
        (alone,) = model.generate([request])
        assert in_batch.tokens == alone.tokens
        assert in_batch.prompt == alone.prompt
        np.testing.assert_allclose(in_batch.token_logprobs, alone.token_logprobs, atol=1e-4)
        np.testing.assert_allclose(in_batch.token_window_mass, alone.token_window_mass, atol=1e-4)


def test_what_was_measured_is_what_the_model_computes(model):
    request, _ = request_for(Task.DETECTION)
    runtime = model._loaded()
    (generation,) = model.generate([request])
    prepared = runtime.prepare(request)
    tokenizer = runtime.tokenizer
    text = f"{runtime.processor.image_token * prepared.image_tokens}<s>{generation.prompt}</s>"
    said = (
        tokenizer.convert_tokens_to_ids(["</s>", "<s>"])
        + tokenizer(generation.raw_text, add_special_tokens=False).input_ids
    )
    with torch.no_grad():
        logits = runtime.model(
            input_ids=tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids,
            pixel_values=prepared.pixel_values,
            decoder_input_ids=torch.tensor([said]),
        ).logits[0]
    probabilities = logits.softmax(-1)
    expected = [float(probabilities[i + 1, token].log()) for i, token in enumerate(said[2:])]
    np.testing.assert_allclose(generation.token_logprobs, expected, atol=1e-4)
    end = tokenizer.convert_tokens_to_ids("</s>")
    assert generation.none_probs[0] == pytest.approx(float(probabilities[1, end]), abs=1e-5)


def test_prompts_are_those_of_the_published_processor(model):
    processor = model._loaded().processor
    region = (10, 20, 300, 400)
    spelled = "".join(f"<loc_{b}>" for b in region)
    given = {
        **dict.fromkeys(processor.task_prompts_without_inputs, ""),
        **dict.fromkeys(processor.task_prompts_with_input, spelled),
        "<OPEN_VOCABULARY_DETECTION>": "a cat<and>dog",
        "<CAPTION_TO_PHRASE_GROUNDING>": "a cat and a dog",
        "<REFERRING_EXPRESSION_SEGMENTATION>": "the black cat",
    }
    published = [processor._construct_prompts(token + text)[0] for token, text in given.items()]
    labels = {
        Task.DETECTION: ("a cat", "dog"),
        Task.PHRASE_GROUNDING: ("a cat and a dog",),
        Task.REFERRING_SEGMENTATION: ("the black cat",),
    }
    ours = [
        protocol.prompt(task, labels.get(task, ()), region)
        for task in protocol.TASKS
        if task not in protocol.CAPTION_OF
    ]
    assert sorted(ours) == sorted(published)


def test_inputs_are_those_of_the_published_processor(model):
    runtime = model._loaded()
    request, _ = request_for(Task.PHRASE_GROUNDING)
    prepared = runtime.prepare(request)
    expected = runtime.processor(
        text="<CAPTION_TO_PHRASE_GROUNDING>a circle and a star",
        images=Image.fromarray(request.image),
        return_tensors="pt",
    )
    torch.testing.assert_close(prepared.pixel_values, expected["pixel_values"])
    text = f"{runtime.processor.image_token * prepared.image_tokens}<s>{prepared.prompts[0]}</s>"
    ids = runtime.tokenizer(text, add_special_tokens=False).input_ids
    assert ids == expected["input_ids"][0].tolist()


def test_boxes_are_where_the_published_parser_sees_them_to_the_pixel(model):
    request, _ = request_for(Task.OBJECT_DETECTION)
    ((generation, parsed),) = ask(model, request)
    published = model._loaded().processor.post_process_generation(
        text=generation.raw_text, task="<OD>", image_size=request.size_px
    )["<OD>"]
    ours = parsed.labels["object"].annotations
    assert [a.text for a in ours] == published["labels"]
    assert [tuple(int(v) for v in a.bbox) for a in ours] == [tuple(b) for b in published["bboxes"]]


def test_frames_of_any_aspect_keep_their_coordinates(model):
    for size in ((400, 300), (240, 320), (480, 160)):
        drawn = scene("circle", size=size)
        ((generation, parsed),) = ask(model, Request(drawn.image, Task.DETECTION, ("circle",)))
        (circle,) = parsed.labels["circle"].annotations
        assert box_iou(circle.bbox, boxes_of(drawn)[0]) > 0.6
        padded = max(size) > 1.8 * min(size)
        assert generation.frame_size_px == ((max(size),) * 2 if padded else size)


def test_an_answer_that_is_cut_says_so_and_its_caption_is_not_grounded():
    settings = ModelSettings(device="cpu", max_new_tokens=6)
    cut = load_model(NAME, settings)
    request, _ = request_for(Task.GROUNDED_CAPTION)
    ((generation, parsed),) = ask(cut, request)
    assert generation.finish_reason is FinishReason.LENGTH
    assert protocol.END not in generation.tokens
    assert parsed.labels["caption"].state is State.TRUNCATED


def test_a_task_about_regions_without_one_fails_by_name(model):
    request, _ = request_for(Task.REGION_TO_OCR)
    with pytest.raises(ValueError, match="region_to_ocr asks about regions, got none"):
        model.generate([replace(request, reference_boxes=())])


def test_pixel_limits_are_refused_since_every_image_becomes_one_square():
    with pytest.raises(ConfigurationError, match="a square of 160 px"):
        load_model(NAME, ModelSettings(max_pixels=1000))


@pytest.mark.parametrize(
    ("label", "task", "may"),
    [
        ("circle", Task.DETECTION, True),
        ("dog", Task.DETECTION, False),
        ("caption", Task.DETECTION, False),
        ("caption", Task.CAPTION, True),
        ("word", Task.OCR_POLYGON, True),
        ("two circles and a dog", Task.PHRASE_GROUNDING, True),
        ("a dog", Task.REFERRING_SEGMENTATION, False),
    ],
)
def test_the_vocabulary_binds_names_and_what_phrases_speak_of(model, label, task, may):
    assert (model.why_unsupported(label, task) is None) is may


def test_another_architecture_under_the_same_name_is_told(tmp_path):
    card = find_card(NAME).model_copy(update={"checkpoint": str(tmp_path)})
    with pytest.raises(ModelError, match="could not be loaded"):
        Florence2(card, ModelSettings(device="cpu")).generate([request_for(Task.CAPTION)[0]])


def test_a_static_cache_answers_the_same(model):
    static = load_model(NAME, ModelSettings(device="cpu", static_cache=True))
    requests = [request_for(task)[0] for task in (Task.CAPTION, Task.OBJECT_DETECTION)]
    for one, other in zip(model.generate(requests), static.generate(requests), strict=True):
        assert one.tokens == other.tokens
    assert static.model_key == model.model_key
