"""A service within the test's own process, on the scripted model."""

import asyncio
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from labeling_pipeline.annotations import Generation
from labeling_pipeline.models.base import Model
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.service.app import create_app
from labeling_pipeline.service.config import ServiceConfig

BOXES = {"cat": [[100, 200, 300, 400], [500, 500, 999, 999]], "person": [[200, 50, 800, 950]]}


def image_bytes(width: int = 120, height: int = 90, kind: str = "PNG", seed: int = 1) -> bytes:
    """A drawn scene in a file."""
    scene = draw_scene(np.random.default_rng([9, 7, seed]), width, height)
    file = io.BytesIO()
    Image.fromarray(scene.image).save(file, kind)
    return file.getvalue()


class Gate:
    """Holds a model in the middle of its first batch: what is asked meanwhile waits in line."""

    def __init__(self, model: Model) -> None:
        self._busy, self._may_go_on = Event(), Event()
        forward = model.forward

        def held(prepared: Sequence[Any]) -> list[Generation]:
            # The empty batch loads the model.
            if prepared:
                self._busy.set()
                assert self._may_go_on.wait(60)
            return forward(prepared)

        model.forward = held

    async def closes(self) -> None:
        """Until the model is in the middle of a batch."""
        assert await asyncio.to_thread(self._busy.wait, 60)

    def open(self) -> None:
        """Let the model go on, and hold it no more."""
        self._may_go_on.set()


@pytest.fixture
def serve(script) -> Iterator[Callable[..., TestClient]]:
    """Start a service on a scripted model, or on named ones; returns a client of it."""
    with ExitStack() as stack:

        def start(
            *models: str, script_keys: dict | None = None, ready: bool = True, **options
        ) -> TestClient:
            names = models or (script(**{"boxes": BOXES, **(script_keys or {})}),)
            app = create_app(ServiceConfig(models=names, **options))
            client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
            stack.enter_context(client)
            if ready:
                wait_until_ready(app)
            return client

        yield start


def wait_until_ready(app: FastAPI) -> None:
    """Until all models are loaded."""
    service = app.state.service
    while not service.is_ready:
        assert service.failure is None, service.failure
        time.sleep(0.01)


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port, from a thread; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        wait_until_ready(app)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(serve) -> TestClient:
    """A client of a service on the scripted model, with the usual limits."""
    return serve()
