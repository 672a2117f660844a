"""The HTTP service with the embedded model: one client, 32 of them, too many, and a pipeline.

The server is a process of its own; the clients share the machine with it. A request is one image of
320 x 320 px and five labels, answered with JSON.
"""

import asyncio
import io
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from labeling_pipeline.images.reading import read_image
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import EMBEDDED, load_model
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.tasks import Request, Task

LABELS = ("circle", "person", "square", "triangle", "star")
CLIENTS = 32
ROUNDS = 3
ALONE_S, TOGETHER_S = 10.0, 20.0
CROWD = 200
"""Clients at once that the queue of 64 has no room for."""
WARM, MANY = 500, 5000
"""Memory is compared after so many requests and after so many."""


@dataclass
class Load:
    """What came of many requests. latencies_s: of those that were answered with 200.

    errors: requests without any answer, by what went wrong.
    """

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies_s) / self.seconds

    def percentile_s(self, percent: float) -> float:
        return float(np.percentile(self.latencies_s, percent))

    @property
    def failed(self) -> int:
        """Requests that were not answered with 200."""
        return sum(self.errors.values()) + sum(n for s, n in self.statuses.items() if s != 200)

    def __iadd__(self, other: "Load") -> "Load":
        self.seconds += other.seconds
        self.latencies_s += other.latencies_s
        self.statuses += other.statuses
        self.errors += other.errors
        self.without_retry_after += other.without_retry_after
        return self


@dataclass(frozen=True)
class Server:
    """A service in a process of its own."""

    url: str
    process: subprocess.Popen

    def memory_mb(self) -> float:
        """Resident memory of the process; Linux only."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def load(
        self,
        pictures: Sequence[bytes],
        *,
        clients: int,
        seconds: float = float("inf"),
        requests: int | None = None,
        categories: Sequence[str] = LABELS,
    ) -> Load:
        """Ask for so long, or so many times; each client asks again when it has its answer."""
        numbers = iter(range(requests)) if requests is not None else iter(lambda: 0, None)
        fields = {"categories": ",".join(categories)}
        load = Load()

        async def client(http: httpx.AsyncClient, number: int, until: float) -> None:
            while time.perf_counter() < until and next(numbers, None) is not None:
                picture = pictures[number % len(pictures)]
                number += clients
                started = time.perf_counter()
                try:
                    answer = await http.post("/detection", data=fields, files={"file": picture})
                except httpx.HTTPError as error:
                    load.errors[type(error).__name__] += 1
                    continue
                load.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    load.latencies_s.append(time.perf_counter() - started)
                elif not answer.headers.get("Retry-After", "").isdecimal():
                    load.without_retry_after += 1

        async def all_clients() -> None:
            limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
            async with httpx.AsyncClient(
                base_url=self.url,
                headers={"Accept": "application/json"},
                limits=limits,
                timeout=120,
            ) as http:
                until = time.perf_counter() + seconds
                async with asyncio.TaskGroup() as group:
                    for number in range(clients):
                        group.create_task(client(http, number, until))

        started = time.perf_counter()
        asyncio.run(all_clients())
        load.seconds = time.perf_counter() - started
        return load


@contextmanager
def serving(model: str = EMBEDDED, *options: str, port: int | None = None) -> Iterator[Server]:
    """A service, ready to answer; it ends with the block."""
    port = port or free_port()
    command = [sys.executable, "-m", "labeling_pipeline", "serve", "--model", model]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LABELING_")}
    process = subprocess.Popen(
        [*command, "--port", str(port), *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 120
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the service did not start: {' '.join(command)}")
            time.sleep(0.1)
        yield Server(url, process)
    finally:
        process.terminate()
        process.wait(timeout=30)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def jpegs(count: int, side_px: int = 320) -> list[bytes]:
    """Drawn scenes as files."""
    files = []
    for number in range(count):
        scene = draw_scene(np.random.default_rng([4, number]), side_px, side_px)
        file = io.BytesIO()
        Image.fromarray(scene.image).save(file, "JPEG", quality=92)
        files.append(file.getvalue())
    return files


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (what, rate and latency, ratio). What is compared takes turns, so that a machine that
    is busy for a while is so for both."""
    pictures = jpegs(64)
    with serving() as server:
        server.load(pictures, clients=CLIENTS, requests=64)
        alone, together = Load(), Load()
        for _ in range(ROUNDS):
            alone += server.load(pictures, clients=1, seconds=ALONE_S)
            together += server.load(pictures, clients=CLIENTS, seconds=TOGETHER_S)
        yield "one client, one request at a time", _rate(alone), "1.00"
        what = f"{CLIENTS} clients, {ROUNDS} times for {TOGETHER_S:.0f} s"
        yield what, _rate(together), f"{together.rate / alone.rate:.2f}"

        crowd = server.load(pictures, clients=CROWD, requests=CROWD)
        calm = server.load(pictures, clients=1, requests=8)
        refused = crowd.statuses[503]
        yield (
            f"{CROWD} clients at once",
            f"{refused} refused with 503, {crowd.without_retry_after} of them without Retry-After; "
            f"{crowd.failed - refused} errors; after them {_rate(calm)}",
            f"{calm.rate / alone.rate:.2f}",
        )
        yield _remote(server.url, pictures)
    with serving() as server:
        small = jpegs(64, side_px=168)
        asked = {"clients": CLIENTS, "categories": LABELS[:1]}
        load = server.load(small, requests=WARM, **asked)
        warm_mb = server.memory_mb()
        load += server.load(small, requests=MANY - WARM, **asked)
        many_mb = server.memory_mb()
        yield (
            f"memory after {WARM} and {MANY} requests of 168 x 168 px",
            f"{warm_mb:.0f} and {many_mb:.0f} MB, {load.failed} errors",
            f"{many_mb / warm_mb:.3f}",
        )


def _remote(url: str, pictures: Sequence[bytes]) -> tuple[str, str, str]:
    """The same model in this process and behind the service, as a pipeline asks it."""
    settings = ModelSettings.model_validate({})
    models = {"near": load_model(EMBEDDED, settings), "far": load_model(f"remote:{url}", settings)}
    images = [read_image(picture) for picture in pictures]
    requests = [Request(image, Task.DETECTION, LABELS) for image in images]
    seconds = dict.fromkeys(models, 0.0)
    models["near"].generate(requests[:8])
    for _ in range(ROUNDS):
        for name, model in models.items():
            seconds[name] += _seconds(model, requests)
    rates = {name: ROUNDS * len(requests) / spent for name, spent in seconds.items()}
    return (
        "as a remote model, against the same in this process",
        f"{rates['far']:.1f} and {rates['near']:.1f} images/s",
        f"{rates['far'] / rates['near']:.2f}",
    )


def _seconds(model: Model, requests: Sequence[Request]) -> float:
    started = time.perf_counter()
    size = model.batch_limit.images
    for start in range(0, len(requests), size):
        model.generate(requests[start : start + size])
    return time.perf_counter() - started


def _rate(load: Load) -> str:
    return (
        f"{load.rate:.1f} requests/s, p50 {load.percentile_s(50):.2f} s, "
        f"p95 {load.percentile_s(95):.2f} s, {load.failed} errors"
    )
