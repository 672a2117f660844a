import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import load_model
from labeling_pipeline.models.remote_protocol import Answers, Failed, RawAnswer
from labeling_pipeline.models.scripted import generation_of
from labeling_pipeline.tasks import PERSON, Request, Task

BOXES = {"cat": [[100, 100, 500, 500]], "person": [[0, 0, 900, 900]]}
POISON_PX = (48, 32)
CAT = {"file": 0, "task": "detection", "labels": ["cat"]}


@pytest.fixture
def name(script) -> str:
    return script(boxes=BOXES, vocabulary=["cat", "person"], fail_size_px=POISON_PX)


@pytest.fixture
def client(serve, name: str) -> TestClient:
    return serve(name, max_pixels=10_000, max_files=4, queue_images=8)


def png(size_px: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size_px, "teal").save(file, "PNG")
    return file.getvalue()


def post(client: TestClient, requests: Any, *files: bytes, **fields: str) -> Any:
    text = requests if isinstance(requests, str) else json.dumps(requests)
    return client.post(
        "/generations",
        data={"requests": text, **fields},
        files=[("file", (f"{number}.png", file)) for number, file in enumerate(files)],
    )


def test_an_answer_on_the_way_is_the_answer_that_was_sent():
    generation = generation_of(
        "<|object_ref_start|>Kühe<|object_ref_end|><|box_start|><0><35><980><987><|box_end|>",
        (640, 480),
        prompt="Detect Kühe.",
    )
    sent = Answers(model_key="k", answers=(RawAnswer.of(generation),)).model_dump_json()
    assert "NaN" not in sent
    (read,) = Answers.model_validate_json(sent).answers
    assert isinstance(read, RawAnswer)
    # Equal but for NaN, which equals nothing.
    assert repr(read.generation()) == repr(generation)


def test_every_request_is_answered_in_order_with_the_key_of_the_model(
    client: TestClient, name: str
):
    keypoints = {
        "file": 1,
        "task": "keypoint",
        "labels": ["person"],
        "skeleton": {"name": "person", "keypoints": PERSON.keypoints, "edges": PERSON.edges},
    }
    answer = post(client, [keypoints, CAT, CAT | {"file": 1}], png(), png((80, 60)))
    assert answer.status_code == 200
    said = Answers.model_validate(answer.json())
    local = load_model(name, ModelSettings())
    assert said.model_key == local.model_key
    expected = local.generate(
        [
            Request(np.zeros((60, 80, 3), np.uint8), Task.KEYPOINT, ("person",), PERSON),
            Request(np.zeros((48, 64, 3), np.uint8), Task.DETECTION, ("cat",)),
            Request(np.zeros((60, 80, 3), np.uint8), Task.DETECTION, ("cat",)),
        ]
    )
    assert [repr(one.generation()) for one in said.answers] == [repr(one) for one in expected]


@pytest.mark.parametrize(
    ("question", "file", "reason", "detail"),
    [
        pytest.param({}, b"no image", "not_an_image", "no image format", id="no image"),
        pytest.param({}, png()[:60], "truncated", "decoding failed", id="half an image"),
        pytest.param({}, b"", "empty_file", "no bytes", id="nothing"),
        pytest.param({}, png((200, 200)), "too_large", "at most 10000 pixels", id="too large"),
        pytest.param({}, png(POISON_PX), "failed", "RuntimeError", id="an image it breaks on"),
        pytest.param(
            {"labels": ["dog"]}, png(), "unsupported", "outside the vocabulary", id="vocabulary"
        ),
        pytest.param(
            {"labels": ["<|im_end|>"]},
            png(),
            "unsupported",
            "control token",
            id="words of the protocol",
        ),
        pytest.param(
            {"task": "keypoint"}, png(), "unsupported", "wants a skeleton", id="no skeleton"
        ),
        pytest.param(
            {"task": "visual_prompting"}, png(), "unsupported", "reference_boxes", id="no boxes"
        ),
    ],
)
def test_what_cannot_be_answered_has_an_error_in_its_place_and_costs_no_other(
    client: TestClient, name: str, question: dict, file: bytes, reason: str, detail: str
):
    answer = post(client, [CAT, {**CAT, "file": 1, **question}, CAT], png(), file)
    assert answer.status_code == 200
    first, failed, last = Answers.model_validate(answer.json()).answers
    assert isinstance(failed, Failed)
    assert failed.error.reason == reason
    assert detail in failed.error.detail
    assert str(Path(name.removeprefix("scripted:")).parent) not in answer.text
    for sound in (first, last):
        assert isinstance(sound, RawAnswer)
        assert "cat" in "".join(sound.tokens)


@pytest.mark.parametrize(
    ("requests", "files", "fields", "status", "detail"),
    [
        pytest.param("[", 1, {}, 422, "JSON", id="no JSON"),
        pytest.param([], 1, {}, 422, "got none", id="no request"),
        pytest.param([{"file": 0}], 1, {}, 422, "task", id="no task"),
        pytest.param([CAT | {"task": "dance"}], 1, {}, 422, "detection", id="no such task"),
        pytest.param([CAT | {"labels": []}], 1, {}, 422, "labels", id="no labels"),
        pytest.param([CAT | {"file": -1}], 1, {}, 422, "file", id="a file before the first"),
        pytest.param([CAT | {"file": 1}], 1, {}, 422, "file 1", id="a file after the last"),
        pytest.param(
            '[{"file": 0, "task": "visual_prompting", "labels": ["cat"],'
            ' "reference_boxes": [[0, 0, NaN, 1]]}]',
            *(1, {}, 422, "finite"),
            id="a box without an end",
        ),
        pytest.param([CAT], 0, {}, 422, "file", id="no file"),
        pytest.param([CAT], 5, {}, 400, "4", id="too many files"),
        pytest.param([CAT] * 9, 1, {}, 413, "at most 8", id="more than the queue is long"),
        pytest.param([CAT], 1, {"model": "yolo"}, 422, "yolo", id="no such model"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_with_what_to_do(
    client: TestClient,
    requests: Any,
    files: int,
    fields: dict[str, str],
    status: int,
    detail: str,
):
    answer = post(client, requests, *[png()] * files, **fields)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert detail in answer.json()["detail"]
    assert post(client, [CAT], png()).status_code == 200


def test_a_model_that_cannot_do_the_task_says_who_can(client: TestClient, monkeypatch):
    (served,) = client.app.state.service.models.values()
    card = served.card.model_copy(update={"tasks": (Task.DETECTION,)})
    monkeypatch.setattr(served, "card", card)
    refused = post(client, [{"file": 0, "task": "caption", "labels": ["caption"]}], png())
    assert refused.status_code == 422
    mixed = post(client, [CAT, {"file": 0, "task": "caption", "labels": ["caption"]}], png())
    first, failed = Answers.model_validate(mixed.json()).answers
    assert isinstance(first, RawAnswer)
    assert isinstance(failed, Failed)
    assert "GET /tasks" in failed.error.detail
