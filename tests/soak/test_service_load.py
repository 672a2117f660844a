"""The service under many clients, over the same driver as the benchmark."""

import json
from pathlib import Path

import httpx
import pytest

from benchmarks.service import CLIENTS, MANY, WARM, jpegs, serving
from labeling_pipeline.models.registry import EMBEDDED
from tests.soak.live_server import wait_for

pytestmark = pytest.mark.soak

BOXES = {"cat": [[100, 100, 500, 500], [10, 20, 300, 400]]}


@pytest.fixture
def slow(script) -> str:
    """A model whose batches take their time, whatever their size."""
    return script(boxes=BOXES, delay_s=0.1)


def depth(url: str) -> int:
    """Images that are being worked on."""
    return httpx.get(f"{url}/health", timeout=60).json()["queue"]["depth"]


def test_many_clients_share_batches(slow: str):
    pictures = jpegs(16, side_px=100)
    with serving(slow) as server:
        server.load(pictures, clients=CLIENTS, requests=64, categories=["cat"])
        alone = server.load(pictures, clients=1, requests=20, categories=["cat"])
        together = server.load(pictures, clients=CLIENTS, seconds=15, categories=["cat"])
    print(f"one client {alone.rate:.1f}/s, {CLIENTS} {together.rate:.1f}/s")
    print(f"p95 {together.percentile_s(95):.3f} s")
    assert (alone.failed, together.failed) == (0, 0)
    # What a batch takes is time asleep, so that how busy the machine is hardly matters.
    assert together.rate >= 2.5 * alone.rate


@pytest.mark.checkpoint
def test_the_embedded_model_answers_many_clients_for_a_minute_without_an_error():
    pictures = jpegs(32)
    with serving(EMBEDDED) as server:
        together = server.load(pictures, clients=CLIENTS, seconds=60)
    print(f"{CLIENTS} clients {together.rate:.1f}/s, p95 {together.percentile_s(95):.3f} s")
    assert set(together.statuses) == {200}
    assert not together.errors


def test_what_is_too_much_is_refused_with_the_time_to_come_back_and_then_all_is_well(slow: str):
    pictures = jpegs(4, side_px=100)
    with serving(slow, "--queue", "16") as server:
        crowd = server.load(pictures, clients=100, seconds=3, categories=["cat"])
        assert crowd.statuses[503] > 0
        assert crowd.statuses[200] > 0
        assert set(crowd.statuses) == {200, 503}
        assert crowd.without_retry_after == 0
        assert not crowd.errors
        wait_for(lambda: depth(server.url) == 0, timeout_s=30)
        calm = server.load(pictures, clients=8, requests=40, categories=["cat"])
        assert calm.statuses == {200: 40}


def test_clients_that_hang_up_leave_nothing_behind(slow: str, tmp_path: Path):
    log = tmp_path / "asked.jsonl"
    Path(slow.removeprefix("scripted:")).write_text(
        json.dumps({"boxes": BOXES, "delay_s": 1.0, "log": str(log)})
    )
    picture = jpegs(1, side_px=100)[0]
    with serving(slow) as server, httpx.Client(timeout=0.5) as impatient:
        for _ in range(20):
            with pytest.raises(httpx.ReadTimeout):
                impatient.post(
                    f"{server.url}/detection", data={"categories": "cat"}, files={"file": picture}
                )
        wait_for(lambda: depth(server.url) == 0, timeout_s=10)
        # Who has gone before a batch begins is not asked about.
        assert len(log.read_text().splitlines()) < 20
        assert server.load([picture], clients=4, requests=4, categories=["cat"]).failed == 0


def test_memory_stays_where_it_was_after_the_first_requests(script):
    pictures = jpegs(16, side_px=100)
    with serving(script(boxes=BOXES)) as server:
        ask = {"clients": CLIENTS, "categories": ["cat"]}
        load = server.load(pictures, requests=WARM, **ask)
        warm_mb = server.memory_mb()
        load += server.load(pictures, requests=MANY - WARM, **ask)
        many_mb = server.memory_mb()
    print(f"{warm_mb:.1f} MB after {WARM} requests, {many_mb:.1f} MB after {MANY}")
    assert (load.statuses, load.errors) == ({200: MANY}, {})
    assert many_mb < 1.05 * warm_mb
