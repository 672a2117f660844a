"""What tests share: small real images in real folders, and a model that follows a script."""

import itertools
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.sample.scenes import draw_scene


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
