"""The embedded checkpoint, through the registry, as the pipeline asks it."""

import io
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from labeling_pipeline.annotations import FinishReason, Generation, State
from labeling_pipeline.errors import ConfigurationError, MissingDependencyError, ModelError
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.generation_runtime import LOOK_EVERY, choose_attention
from labeling_pipeline.models.registry import EMBEDDED, find_card, load_model
from labeling_pipeline.models.rex_omni import RexOmni
from labeling_pipeline.models.rex_omni_runtime import RexOmniRuntime
from labeling_pipeline.sample.scenes import Scene, draw_scene
from labeling_pipeline.tasks import PERSON, Request, Task
from tests.images.orientations import STORED_AS

pytestmark = pytest.mark.checkpoint

SHAPES = ("circle", "square", "triangle", "star")
CPU = ModelSettings(device="cpu")


@pytest.fixture(scope="module")
def model() -> RexOmni:
    model = load_model(EMBEDDED, CPU)
    assert isinstance(model, RexOmni)
    return model


@pytest.fixture(scope="module")
def runtime(model: RexOmni) -> RexOmniRuntime:
    model.generate([detection(scene(0))])
    assert model._runtime is not None
    return model._runtime


def scene(seed: int, width: int = 224, height: int = 168) -> Scene:
    return draw_scene(np.random.default_rng(seed), width, height)


def detection(drawn: Scene, labels: tuple[str, ...] = (*SHAPES, "person")) -> Request:
    return Request(drawn.image, Task.DETECTION, labels)


def keypoint(drawn: Scene) -> Request:
    return Request(drawn.image, Task.KEYPOINT, ("person",), PERSON)


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


@pytest.fixture(scope="module")
def mixed() -> list[Request]:
    """Both tasks, several sizes, one of them padded."""
    return [
        detection(scene(1)),
        keypoint(draw_scene(np.random.default_rng(2), 168, 224, ["standing"])),
        detection(scene(3, 320, 160), ("person", "star")),
        detection(scene(4, 336, 252), ("circle",)),
        keypoint(draw_scene(np.random.default_rng(5), 240, 180, ["sitting"])),
    ]


@pytest.fixture(scope="module")
def answers(model: RexOmni, mixed: list[Request]) -> list[Generation]:
    return model.generate(mixed)


def test_a_batch_of_mixed_tasks_and_sizes_equals_its_requests_asked_alone(
    model: RexOmni, mixed: list[Request], answers: list[Generation]
):
    for request, together in zip(mixed, answers, strict=True):
        (alone,) = model.generate([request])
        assert (
            together.prompt
            == alone.prompt
            == model.prompt(request.task, request.labels, request.skeleton)
        )
        assert together.tokens == alone.tokens
        assert together.frame_size_px == alone.frame_size_px
        assert together.finish_reason == alone.finish_reason
        np.testing.assert_allclose(together.token_logprobs, alone.token_logprobs, atol=1e-4)
        np.testing.assert_allclose(together.token_window_mass, alone.token_window_mass, atol=1e-4)
        np.testing.assert_allclose(together.none_probs, alone.none_probs, atol=1e-4)


def test_what_is_recorded_of_the_tokens_is_consistent(answers: list[Generation]):
    for answer in answers:
        assert answer.finish_reason is FinishReason.STOP
        assert "".join(answer.tokens) == answer.raw_text
        assert "<|im_end|>" not in answer.raw_text
        assert len(answer.tokens) == len(answer.token_logprobs) == len(answer.token_window_mass)
        assert max(answer.token_logprobs) <= 1e-5
        assert len(answer.none_probs) == answer.raw_text.count(protocol.BOX_START)
        for token, logprob, mass in zip(
            answer.tokens, answer.token_logprobs, answer.token_window_mass, strict=True
        ):
            if token.startswith("<") and token[1:-1].isdigit():
                assert math.exp(logprob) - 1e-5 <= mass <= 1
            else:
                assert math.isnan(mass)


def test_answers_speak_the_protocol(
    model: RexOmni, mixed: list[Request], answers: list[Generation]
):
    for request, answer in zip(mixed, answers, strict=True):
        parsed = model.parse(
            answer, request.task, request.labels, request.size_px, request.skeleton
        )
        assert parsed.complete, answer.raw_text
        assert set(parsed.labels) == set(request.labels)
        for said in parsed.labels.values():
            assert said.state in (State.FOUND, State.ABSENT, State.NOT_MENTIONED)
            assert (said.state is State.FOUND) == bool(said.annotations)
            for annotation in said.annotations:
                assert annotation.score is not None
                assert 0 < annotation.score <= 1


def test_boxes_land_in_the_same_place_however_a_camera_was_held(model: RexOmni):
    drawn = scene(1)
    requests = []
    for orientation, stored_as in STORED_AS.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        buffer = io.BytesIO()
        stored = Image.fromarray(np.ascontiguousarray(stored_as(drawn.image)))
        stored.save(buffer, "JPEG", exif=exif, quality=95, subsampling=0)
        pixels = read_image(buffer.getvalue())
        requests.append(Request(pixels, Task.DETECTION, (*SHAPES, "person")))
    boxes = []
    for request, answer in zip(requests, model.generate(requests), strict=True):
        parsed = model.parse(answer, request.task, request.labels, request.size_px)
        boxes.append([a.bbox for said in parsed.labels.values() for a in said.annotations])
    assert boxes[0]
    for found in boxes:
        assert all(iou(one, other) > 0.9 for one, other in zip(found, boxes[0], strict=True))


def test_what_is_recorded_equals_what_plain_raw_logits_say(
    runtime: RexOmniRuntime, mixed: list[Request], answers: list[Generation]
):
    first_bin = runtime.tokenizer.convert_tokens_to_ids("<0>")
    none = runtime.tokenizer("None", add_special_tokens=False).input_ids[0]
    box_start = runtime.tokenizer.convert_tokens_to_ids(protocol.BOX_START)
    for request, answer in zip(mixed, answers, strict=True):
        height, width = request.image.shape[:2]
        side = max(width, height)
        frame = request.image
        if answer.frame_size_px != (width, height):
            frame = np.pad(frame, ((0, side - height), (0, side - width), (0, 0)), mode="edge")
        inputs = runtime.processor(
            text=[runtime._chat(answer.prompt)],
            images=[Image.fromarray(frame)],
            return_tensors="pt",
        )
        with torch.inference_mode():
            plain = runtime.model.generate(
                **inputs,
                do_sample=False,
                repetition_penalty=1.0,
                max_new_tokens=len(answer.tokens),
                output_logits=True,
                return_dict_in_generate=True,
            )
        ids = plain.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        logprobs = torch.stack(plain.logits, 1)[0].double().log_softmax(-1)
        assert len(ids) == len(answer.tokens)
        expected = logprobs[range(len(ids)), ids].numpy()
        np.testing.assert_allclose(answer.token_logprobs, expected, atol=1e-4)
        masses, none_probs = [], []
        for step, token in enumerate(ids):
            low = max(token - protocol.WINDOW_BINS, first_bin)
            high = min(token + protocol.WINDOW_BINS + 1, first_bin + protocol.BINS)
            is_bin = first_bin <= token < first_bin + protocol.BINS
            masses.append(float(logprobs[step, low:high].exp().sum()) if is_bin else math.nan)
            if token == box_start and step + 1 < len(ids):
                none_probs.append(float(logprobs[step + 1, none].exp()))
        np.testing.assert_allclose(answer.token_window_mass, masses, atol=1e-4)
        np.testing.assert_allclose(answer.none_probs, none_probs, atol=1e-4)


def with_card(folder: Path, **changes: object) -> RexOmni:
    """A copy of the embedded checkpoint whose card says something else."""
    shutil.copytree(find_card(EMBEDDED).checkpoint, folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | changes))
    model = load_model(str(folder), CPU)
    assert isinstance(model, RexOmni)
    return model


def test_a_token_limit_cuts_the_answer_and_keeps_its_complete_boxes(model: RexOmni, tmp_path: Path):
    labels = ("circle", "square")
    for seed in range(8):
        drawn = draw_scene(np.random.default_rng(seed), 224, 224, labels)
        request = detection(drawn, labels)
        (whole,) = model.generate([request])
        complete = model.parse(whole, Task.DETECTION, labels, request.size_px)
        if [said.state for said in complete.labels.values()] == [State.FOUND] * 2:
            break
    else:
        pytest.fail("the model saw a circle and a square together in none of 8 scenes")
    # Two coordinates before the end of the second box.
    limit = len(whole.tokens) - 3
    (cut,) = with_card(tmp_path / "short", max_new_tokens=limit).generate([request])
    assert cut.finish_reason is FinishReason.LENGTH
    assert cut.tokens == whole.tokens[:limit]
    parsed = model.parse(cut, Task.DETECTION, labels, request.size_px)
    assert not parsed.complete
    circle, square = parsed.labels["circle"], parsed.labels["square"]
    assert circle == complete.labels["circle"]
    assert (square.state, square.annotations) == (State.TRUNCATED, ())
    assert [what.partition(":")[0] for what in parsed.dropped] == ["half_box"]


def test_a_repetition_penalty_leaves_the_recorded_probabilities_raw(model: RexOmni, tmp_path: Path):
    request = detection(scene(1))
    (plain,) = model.generate([request])
    (penalised,) = with_card(tmp_path / "penalty", repetition_penalty=1.05).generate([request])
    shared = next(
        (
            i
            for i, pair in enumerate(zip(plain.tokens, penalised.tokens, strict=False))
            if pair[0] != pair[1]
        ),
        min(len(plain.tokens), len(penalised.tokens)),
    )
    assert shared > 0
    np.testing.assert_allclose(
        penalised.token_logprobs[:shared], plain.token_logprobs[:shared], atol=1e-4
    )


@pytest.mark.parametrize(
    ("width", "height"),
    [pytest.param(400, 168, id="wide"), pytest.param(168, 400, id="tall")],
)
def test_boxes_of_a_padded_frame_are_those_of_the_image(model: RexOmni, width: int, height: int):
    overlaps = []
    for seed in range(4):
        drawn = draw_scene(np.random.default_rng(seed), width, height, ["circle"])
        request = detection(drawn, ("circle",))
        (answer,) = model.generate([request])
        assert answer.frame_size_px == (400, 400)
        parsed = model.parse(answer, Task.DETECTION, ("circle",), request.size_px)
        found = [a.bbox for a in parsed.labels["circle"].annotations if a.bbox is not None]
        assert all(box[2] <= width and box[3] <= height for box in found)
        truth = drawn.objects[0].bbox_px.tolist()
        overlaps.append(max((iou(box, truth) for box in found), default=0.0))
    # Read in the wrong frame a box would be off by a factor of over two along one side, which no
    # box survives with half its overlap; that a circle is missed now and then is the model's.
    assert np.median(overlaps) > 0.5, overlaps


def test_a_frame_within_the_aspect_limit_is_not_padded(model: RexOmni):
    (answer,) = model.generate([detection(scene(0, 300, 180))])
    assert answer.frame_size_px == (300, 180)


@pytest.mark.parametrize(
    ("device", "images"), [pytest.param("cpu", 8, id="cpu"), pytest.param("cuda:0", 64, id="gpu")]
)
def test_without_a_batch_size_a_batch_starts_as_large_as_the_device_bears(
    monkeypatch: pytest.MonkeyPatch, device: str, images: int
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = RexOmni(find_card(EMBEDDED), ModelSettings(device=device))
    assert model.batch_limit.images == images


def test_a_gpu_that_is_not_there_is_told_with_the_fix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = RexOmni(find_card(EMBEDDED), ModelSettings(device="cuda"))
    with pytest.raises(ModelError, match=r"torch sees no CUDA GPU here.*device to auto or cpu"):
        _ = model.batch_limit


@pytest.mark.parametrize(
    "size_px",
    [(224, 168), (112, 196), (640, 480), (640, 360), (30, 30), (1920, 300), (300, 1920), (3, 500)],
    ids=str,
)
@pytest.mark.parametrize("published", [False, True], ids=["embedded", "published limits"])
def test_what_an_image_costs_is_known_before_it_is_prepared(
    model: RexOmni, size_px: tuple[int, int], published: bool
):
    if published:
        limits = find_card("rex-omni")
        changes = {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
        model = RexOmni(model.card.model_copy(update=changes), CPU)
    image = np.zeros((size_px[1], size_px[0], 3), np.uint8)
    prepared = model.prepare(Request(image, Task.DETECTION, ("circle",)))
    tokens = prepared.input_ids.count(model._loaded().processor.image_token_id)
    assert model.input_tokens(size_px) == tokens


def test_out_of_memory_above_8_images_ends_at_8_with_every_answer(
    monkeypatch: pytest.MonkeyPatch,
):
    model = RexOmni(find_card(EMBEDDED), ModelSettings(device="cpu", batch_size=16))
    requests = [detection(scene(seed), ("circle", "star")) for seed in range(16)]
    prepared = [model.prepare(request) for request in requests]
    runtime = model._loaded()
    generate, sizes = runtime.model.generate, []

    def on_a_small_gpu(**inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return generate(**inputs)

    monkeypatch.setattr(runtime.model, "generate", on_a_small_gpu)
    first, second = model.forward(prepared), model.forward(prepared)
    assert sizes == [16, 8, 8, 8, 8]
    assert model.batch_limit.images == 8
    monkeypatch.undo()
    for request, one, again in zip(requests, first, second, strict=True):
        (alone,) = model.generate([request])
        assert one.tokens == again.tokens == alone.tokens


# Answers that go in circles


def test_an_answer_that_goes_in_circles_ends_early_and_leaves_its_batch_alone(
    model: RexOmni, runtime: RexOmniRuntime, mixed: list[Request], answers: list[Generation]
):
    opening = protocol.REF_START + "circle" + protocol.REF_END + protocol.BOX_START
    circle = "<100><200><300><400>, "
    forced = runtime.tokenizer(opening + circle * 200, add_special_tokens=False).input_ids

    def generate(requests: list[Request]) -> list[Generation]:
        step = 0

        def say_it_again(module: torch.nn.Module, inputs: tuple, logits: torch.Tensor) -> None:
            nonlocal step
            logits[0, -1] = logits[0, -1].clamp(max=0)
            logits[0, -1, forced[step]] = 10
            step += 1

        hook = runtime.model.lm_head.register_forward_hook(say_it_again)
        try:
            return model.generate(requests)
        finally:
            hook.remove()

    looping, *others = generate([mixed[0], *mixed[1:]])
    assert looping.finish_reason is FinishReason.LOOP
    assert looping.raw_text.startswith(opening + circle * 2)
    assert len(looping.tokens) % LOOK_EVERY == 0
    assert len(looping.tokens) < model.card.max_new_tokens / 4
    assert len(looping.tokens) == len(looping.token_logprobs) == len(looping.token_window_mass)
    assert len(looping.none_probs) == 1
    for other, expected in zip(others, answers[1:], strict=True):
        assert (other.finish_reason, other.tokens) == (expected.finish_reason, expected.tokens)
        np.testing.assert_allclose(other.token_logprobs, expected.token_logprobs, atol=1e-4)
        np.testing.assert_allclose(other.none_probs, expected.none_probs, atol=1e-4)
    # It ends where it would have ended alone, however long the others in the batch take.
    (alone,) = generate([mixed[0]])
    assert (alone.finish_reason, alone.tokens) == (looping.finish_reason, looping.tokens)
    np.testing.assert_allclose(alone.none_probs, looping.none_probs, atol=1e-4)


# Settings


def with_settings(**settings: object) -> RexOmni:
    return RexOmni(find_card(EMBEDDED), ModelSettings(device="cpu", **settings))


@pytest.mark.parametrize(
    "settings", [{"static_cache": True}, {"attention": "eager"}, {"attention": "sdpa"}], ids=str
)
@pytest.mark.soak
def test_a_setting_outside_the_model_key_changes_no_token(
    model: RexOmni, mixed: list[Request], answers: list[Generation], settings: dict
):
    other = with_settings(**settings)
    assert other.model_key == model.model_key
    assert [a.tokens for a in other.generate(mixed)] == [a.tokens for a in answers]


def test_pixel_limits_and_token_limit_reach_the_model(model: RexOmni):
    few = with_settings(min_pixels=28 * 28, max_pixels=28 * 28 * 12, max_new_tokens=5)
    request = detection(scene(0))
    assert few.input_tokens(request.size_px) <= 12 < model.input_tokens(request.size_px)
    (answer,) = few.generate([request])
    assert (len(answer.tokens), answer.finish_reason) == (5, FinishReason.LENGTH)


def test_pixels_wait_in_the_precision_of_the_model(model: RexOmni):
    half = with_settings(dtype="bfloat16")
    request = detection(scene(0))
    assert half.prepare(request).pixel_values.dtype == torch.bfloat16
    assert model.prepare(request).pixel_values.dtype == torch.float32
    assert half.generate([request])[0].finish_reason is FinishReason.STOP


def test_weights_in_8_bits_answer_nearly_as_plain_ones_do(model: RexOmni):
    pytest.importorskip("torchao", reason="the extra `quantization` is not installed")
    quantized = with_settings(quantization="int8")
    requests = [detection(scene(seed, 196, 196)) for seed in range(8)]
    same = 0
    for one, two in zip(quantized.generate(requests), model.generate(requests), strict=True):
        said, plain = (
            model.parse(answer, Task.DETECTION, requests[0].labels, (196, 196)).labels
            for answer in (one, two)
        )
        same += all(said[label].state == plain[label].state for label in plain)
    assert same >= 6
    layer = quantized._loaded().model.model.language_model.layers[0].mlp.up_proj.weight
    assert "Int8" in type(layer).__name__
    assert quantized.model_key != model.model_key


@pytest.mark.parametrize(
    ("stored", "settings", "package", "extra"),
    [
        pytest.param({}, {"quantization": "int8"}, "torchao", "quantization", id="int8"),
        pytest.param({"quant_method": "awq", "bits": 4}, {}, "gptqmodel", "awq", id="AWQ"),
    ],
)
def test_a_package_that_is_missing_is_told_with_its_extra_before_any_weights_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: dict,
    settings: dict,
    package: str,
    extra: str,
):
    # The folder holds a configuration and no weights: reading any would fail otherwise.
    config = json.loads((Path(find_card(EMBEDDED).checkpoint) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": stored}))
    is_installed = "labeling_pipeline.models.generation_runtime.find_spec"
    monkeypatch.setattr(is_installed, lambda name: None if name == package else sys)
    asked = load_model(str(tmp_path), ModelSettings(device="cpu", **settings))
    expected = rf"{package}.*pip install 'labeling-pipeline\[{extra}\]'"
    with pytest.raises(MissingDependencyError, match=expected):
        asked.generate([detection(scene(0))])


def test_the_published_awq_weights_are_not_downloaded_without_what_they_need(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("labeling_pipeline.models.generation_runtime.find_spec", lambda name: None)
    asked = load_model("rex-omni-awq", CPU)
    with pytest.raises(MissingDependencyError, match=r"gptqmodel and accelerate.*\[awq\]"):
        asked.generate([detection(scene(0))])


GPU = torch.device("cuda:0")


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "not installed"])
@pytest.mark.parametrize(
    ("device", "dtype", "static_cache", "flash"),
    [
        pytest.param(GPU, torch.bfloat16, False, True, id="a GPU in bfloat16"),
        pytest.param(GPU, torch.float16, False, True, id="a GPU in float16"),
        pytest.param(GPU, torch.float32, False, False, id="a GPU in float32"),
        pytest.param(GPU, torch.bfloat16, True, False, id="a static cache"),
        pytest.param(torch.device("cpu"), torch.bfloat16, False, False, id="a CPU"),
    ],
)
def test_flash_attention_is_taken_where_it_is_installed_and_can_run(
    monkeypatch: pytest.MonkeyPatch,
    installed: bool,
    device: torch.device,
    dtype: torch.dtype,
    static_cache: bool,
    flash: bool,
):
    available = "labeling_pipeline.models.generation_runtime.is_flash_attn_2_available"
    monkeypatch.setattr(available, lambda: installed)

    def choose(wanted: str) -> str:
        return choose_attention(wanted, device, dtype, static_cache=static_cache)

    assert choose("auto") == ("flash_attention_2" if flash and installed else "sdpa")
    assert (choose("sdpa"), choose("eager")) == ("sdpa", "eager")
    if not flash:
        with pytest.raises(ConfigurationError, match="runs on a CUDA GPU"):
            choose("flash_attention_2")
    elif not installed:
        with pytest.raises(MissingDependencyError, match="pip install flash-attn"):
            choose("flash_attention_2")
    else:
        assert choose("flash_attention_2") == "flash_attention_2"
