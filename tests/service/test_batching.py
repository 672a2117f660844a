import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest

from labeling_pipeline.errors import RequestError
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import load_model
from labeling_pipeline.service import batching
from labeling_pipeline.service.batching import Batcher, QueueLimits
from labeling_pipeline.tasks import Request, Task

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


def test_answers_are_what_the_model_gives_when_it_is_asked_directly(script):
    name = script(boxes={"cat": [[1, 2, 3, 4]]})
    requests = [request(label="cat"), request(label="dog"), request(32, 32)]
    answers = with_batcher(name, lambda batcher: batcher.answers("m", requests))
    assert answers == load_model(name, SETTINGS).generate(requests)


def test_what_comes_while_the_model_works_shares_the_next_batch(script):
    name = script(delay_s=0.1)
    model = load_model(name, SETTINGS)
    sizes = []
    forward = model.forward
    model.forward = lambda prepared: sizes.append(len(prepared)) or forward(prepared)

    async def use(batcher):
        first = asyncio.create_task(batcher.answers("m", [request()]))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, *(batcher.answers("m", [request()]) for _ in range(6)))

    with_batcher(name, use)
    assert sizes == [0, 1, 6]


def test_who_is_being_made_ready_shares_the_batch_that_is_about_to_begin(script, monkeypatch):
    # However slow this machine is.
    monkeypatch.setattr(batching, "_COMPANY_S", 30.0)
    name = script()
    model = load_model(name, SETTINGS)
    sizes = []
    forward, prepare = model.forward, model.prepare
    model.forward = lambda prepared: sizes.append(len(prepared)) or forward(prepared)
    model.prepare = lambda one: time.sleep(0.02) or prepare(one)
    with_batcher(name, lambda batcher: batcher.answers("m", [request()] * 6), gather_s=0.0)
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
    name = script(delay_s=0.01)
    model = load_model(name, SETTINGS)
    batches = []
    forward = model.forward
    model.forward = lambda prepared: batches.append(list(prepared)) or forward(prepared)
    requests = [request(), company, request()]
    with_batcher(name, lambda batcher: batcher.answers("m", requests), gather_s=0.05)
    assert [len(batch) for batch in batches] == [0, *([3] if together else [2, 1])]


def test_an_image_that_breaks_the_model_costs_its_own_request_only(script):
    name = script(fail_size_px=[50, 50])

    async def use(batcher):
        asked = [batcher.answers("m", [one]) for one in (request(), request(50, 50), request())]
        return await asyncio.gather(*asked, return_exceptions=True)

    good, bad, other = with_batcher(name, use, gather_s=0.05)
    assert isinstance(bad, RuntimeError)
    assert len(good) == len(other) == 1


def test_a_full_queue_is_refused_with_the_time_to_come_again_and_recovers(script):
    async def use(batcher):
        held = [asyncio.create_task(batcher.answers("m", [request()])) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="queue is full, 2 images") as refused:
            await batcher.answers("m", [request()])
        await asyncio.gather(*held)
        assert batcher.depth == 0
        await batcher.answers("m", [request()])
        return refused.value

    refused = with_batcher(script(delay_s=0.1), use, images=2)
    assert refused.status == 503
    assert refused.retry_after_s >= 1


def test_more_pixels_than_memory_is_meant_for_are_refused_unless_alone(script):
    async def use(batcher):
        held = asyncio.create_task(batcher.answers("m", [request(100, 100)]))
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="queue is full"):
            await batcher.answers("m", [request(10, 10)])
        await held

    with_batcher(script(delay_s=0.1), use, pixels=100)


def test_a_request_longer_than_the_queue_is_told_to_be_split(script):
    with pytest.raises(RequestError, match="at most 2 images in a request, got 3") as refused:
        with_batcher(script(), lambda b: b.answers("m", [request()] * 3), images=2)
    assert (refused.value.status, refused.value.retry_after_s) == (413, None)


def test_what_takes_too_long_is_given_up_and_not_asked_any_more(script, tmp_path: Path):
    log = tmp_path / "asked.jsonl"

    async def use(batcher):
        first = asyncio.create_task(batcher.answers("m", [request(label="first")]))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(batcher.answers("m", [request(label="second")]))
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [getattr(one, "status", None) for one in outcomes] == [503, 503]
        assert batcher.depth == 0

    with_batcher(script(delay_s=0.5, log=str(log)), use, timeout_s=0.2)
    assert [json.loads(line)["labels"] for line in log.read_text().splitlines()] == [["first"]]


def test_who_stops_waiting_leaves_the_queue(script, tmp_path: Path):
    log = tmp_path / "asked.jsonl"

    async def use(batcher):
        first = asyncio.create_task(batcher.answers("m", [request(label="first")]))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(batcher.answers("m", [request(label="gone")]))
        await asyncio.sleep(0.05)
        gone.cancel()
        await first
        assert batcher.depth == 0
        await batcher.answers("m", [request(label="last")])

    with_batcher(script(delay_s=0.2, log=str(log)), use)
    asked = [json.loads(line)["labels"] for line in log.read_text().splitlines()]
    assert asked == [["first"], ["last"]]


def test_a_model_that_is_not_loaded_yet_says_so(script):
    async def main():
        batcher = Batcher({"m": load_model(script(), SETTINGS)}, QueueLimits())
        try:
            with pytest.raises(RequestError, match="m is being loaded") as refused:
                await batcher.answers("m", [request()])
            return refused.value
        finally:
            await batcher.close()

    assert asyncio.run(main()).status == 503
