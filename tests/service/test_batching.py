import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labeling_pipeline.annotations import Generation
from labeling_pipeline.errors import ModelError, RequestError
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import load_model
from labeling_pipeline.service import batching
from labeling_pipeline.service.batching import Batcher, QueueLimits
from labeling_pipeline.tasks import Request, Task
from tests.service.conftest import Gate

SETTINGS = ModelSettings.model_validate({})


def request(width: int = 64, height: int = 48, label: str = "cat", task=Task.DETECTION) -> Request:
    return Request(np.zeros((height, width, 3), np.uint8), task, (label,))


def with_batcher(name: str, use, **limits):
    """Run ``use(batcher)`` beside a loaded scripted model called ``m``."""

    async def main():
        batcher = Batcher({"m": load_model(name, SETTINGS)}, QueueLimits(**limits))
        await batcher.load("m")
        try:
            return await use(batcher)
        finally:
            await batcher.close()

    return asyncio.run(main())


async def answers(batcher: Batcher, *requests: Request) -> list[Generation]:
    """What an endpoint does: find room, and ask."""
    pixels = sum(width * height for width, height in (one.size_px for one in requests))
    async with batcher.admitted(len(requests), pixels):
        return await batcher.ask("m", requests)


async def in_line(batcher: Batcher, images: int) -> None:
    """Until so many images have been admitted and are on their way to the model."""
    while batcher.depth < images:
        await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """However slow this machine is, those who are being made ready are waited for."""
    monkeypatch.setattr(batching, "_COMPANY_S", 30.0)


def test_answers_are_what_the_model_gives_when_it_is_asked_directly(script):
    name = script(boxes={"cat": [[1, 2, 3, 4]]})
    requests = [request(label="cat"), request(label="dog"), request(32, 32)]
    answered = with_batcher(name, lambda batcher: answers(batcher, *requests))
    assert answered == load_model(name, SETTINGS).generate(requests)


def test_what_comes_while_the_model_works_shares_the_next_batch(script):
    name = script()
    model = load_model(name, SETTINGS)
    gate, sizes = Gate(model), []
    forward = model.forward
    model.forward = lambda prepared: sizes.append(len(prepared)) or forward(prepared)

    async def use(batcher):
        first = asyncio.create_task(answers(batcher, request()))
        await gate.closes()
        others = [asyncio.create_task(answers(batcher, request())) for _ in range(6)]
        await in_line(batcher, 7)
        gate.open()
        await asyncio.gather(first, *others)

    with_batcher(name, use)
    assert sizes == [0, 1, 6]


def test_who_is_being_made_ready_shares_the_batch_that_is_about_to_begin(script):
    name = script()
    model = load_model(name, SETTINGS)
    sizes = []
    forward, prepare = model.forward, model.prepare
    model.forward = lambda prepared: sizes.append(len(prepared)) or forward(prepared)
    model.prepare = lambda one: time.sleep(0.02) or prepare(one)
    with_batcher(name, lambda batcher: answers(batcher, *[request()] * 6), gather_s=0.0)
    assert sizes == [0, 6]


@pytest.mark.parametrize(
    ("company", "together"),
    [
        pytest.param(request(), True, id="the same task and size"),
        pytest.param(request(80, 48), True, id="a size that costs no more than twice as much"),
        pytest.param(request(640, 480), False, id="a size that costs far more"),
        pytest.param(request(task=Task.POINTING), False, id="another task"),
    ],
)
def test_a_batch_is_of_one_task_and_like_sizes(script, company, together):
    name = script()
    model = load_model(name, SETTINGS)
    batches = []
    forward = model.forward
    model.forward = lambda prepared: batches.append(list(prepared)) or forward(prepared)
    requests = [request(), company, request()]
    with_batcher(name, lambda batcher: answers(batcher, *requests))
    number = {id(one): at for at, one in enumerate(requests)}
    # Made ready side by side, so that any may be the first.
    shared = sorted(sorted(number[id(one)] for one in batch) for batch in batches)
    assert shared == ([[], [0, 1, 2]] if together else [[], [0, 2], [1]])


def test_an_image_that_breaks_the_model_costs_its_own_request_only(script):
    name = script(fail_size_px=[50, 50])

    async def use(batcher):
        asked = [answers(batcher, one) for one in (request(), request(50, 50), request())]
        return await asyncio.gather(*asked, return_exceptions=True)

    good, bad, other = with_batcher(name, use)
    assert isinstance(bad, RuntimeError)
    assert len(good) == len(other) == 1


def test_a_full_queue_is_refused_with_the_time_to_come_again_and_recovers(script):
    async def use(batcher):
        held = [asyncio.create_task(answers(batcher, request())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="queue is full, 2 images") as refused:
            await answers(batcher, request())
        await asyncio.gather(*held)
        assert batcher.depth == 0
        await answers(batcher, request())
        return refused.value

    refused = with_batcher(script(delay_s=0.1), use, images=2)
    assert refused.status == 503
    assert refused.retry_after_s >= 1


def test_more_pixels_than_memory_is_meant_for_are_refused_unless_alone(script):
    async def use(batcher):
        held = asyncio.create_task(answers(batcher, request(100, 100)))
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="queue is full"):
            await answers(batcher, request(10, 10))
        await held

    with_batcher(script(delay_s=0.1), use, pixels=100)


def test_a_request_longer_than_the_queue_is_told_to_be_split(script):
    with pytest.raises(RequestError, match="at most 2 images in a request, got 3") as refused:
        with_batcher(script(), lambda b: answers(b, *[request()] * 3), images=2)
    assert (refused.value.status, refused.value.retry_after_s) == (413, None)


def test_what_takes_too_long_is_given_up_and_not_asked_any_more(script, tmp_path: Path):
    log = tmp_path / "asked.jsonl"
    name = script(log=str(log))
    gate = Gate(load_model(name, SETTINGS))

    async def use(batcher):
        first = asyncio.create_task(answers(batcher, request(label="first")))
        await gate.closes()
        batcher.limits = replace(batcher.limits, timeout_s=0.05)
        with pytest.raises(RequestError, match=r"no answer within 0\.05 s") as given_up:
            await answers(batcher, request(label="second"))
        assert batcher.depth == 1
        gate.open()
        await first
        return given_up.value

    given_up = with_batcher(name, use)
    assert given_up.status == 503
    assert given_up.retry_after_s >= 1
    assert asked(log) == [["first"]]


def test_who_stops_waiting_leaves_the_queue(script, tmp_path: Path):
    log = tmp_path / "asked.jsonl"
    name = script(log=str(log))
    gate = Gate(load_model(name, SETTINGS))

    async def use(batcher):
        first = asyncio.create_task(answers(batcher, request(label="first")))
        await gate.closes()
        gone = asyncio.create_task(answers(batcher, request(label="gone")))
        await in_line(batcher, 2)
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.wait([gone])
        assert batcher.depth == 1
        gate.open()
        await first
        await answers(batcher, request(label="last"))

    with_batcher(name, use)
    assert asked(log) == [["first"], ["last"]]


def asked(log: Path) -> list[list[str]]:
    """Labels that the scripted model was asked, in order."""
    return [json.loads(line)["labels"] for line in log.read_text().splitlines()]


def test_a_model_that_loses_an_answer_costs_the_batch_and_no_other(script):
    name = script()
    model = load_model(name, SETTINGS)
    forward = model.forward
    model.forward = lambda prepared: forward(prepared)[: 1 if len(prepared) == 2 else None]

    async def use(batcher):
        with pytest.raises(ModelError, match="expected 2 answers of the model, got 1"):
            await answers(batcher, request(), request())
        return await answers(batcher, request())

    assert len(with_batcher(name, use)) == 1


def test_a_model_that_is_not_loaded_yet_says_so(script):
    async def main():
        batcher = Batcher({"m": load_model(script(), SETTINGS)}, QueueLimits())
        try:
            with pytest.raises(RequestError, match="m is being loaded") as refused:
                await answers(batcher, request())
            return refused.value
        finally:
            await batcher.close()

    assert asyncio.run(main()).status == 503
