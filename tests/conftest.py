"""What tests share: small real images in real folders, and a model that follows a script."""

import itertools
import json
import logging
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.sample.scenes import draw_scene


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes as one piece begins first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_sample_run.py", "test_run.py"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch, request):
    """Anything that reaches beyond this machine fails loudly."""
    real = socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise RuntimeError(f"a test tried to reach {address}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server of this process; returns its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """An empty bucket: its URL, the options that reach it, and a file system to fill it with."""
    import s3fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    options = {"endpoint_url": s3_server}
    files = s3fs.S3FileSystem(**options, use_listings_cache=False, skip_instance_cache=True)
    name = f"bucket-{next(_BUCKETS)}"
    files.mkdir(name)
    return SimpleNamespace(url=f"s3://{name}", options=options, files=files, name=name)


_BUCKETS = itertools.count()


@pytest.fixture
def image_root(tmp_path) -> Path:
    """Three classes, ``cat``, ``dog`` and ``Über Kühe``, with four images each."""
    root = tmp_path / "images"
    for number, name in enumerate(("cat", "dog", "Über Kühe")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            scene = draw_scene(np.random.default_rng([9, number, i]), 120 + 10 * number, 100)
            Image.fromarray(scene.image).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def script(tmp_path):
    """Write a script for the scripted model; returns the model's name, a new one each time."""
    numbers = itertools.count()

    def write(**keys) -> str:
        path = tmp_path / f"script_{next(numbers)}.json"
        path.write_text(json.dumps(keys))
        return f"scripted:{path}"

    return write
