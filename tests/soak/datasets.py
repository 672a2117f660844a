"""Small image folders whose every image has a size of its own, so that a log can name it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Size = tuple[int, int]
Asked = tuple[tuple[str, ...], Size]
"""Labels, and width and height in px of the image: one question."""


def write_classes(root: Path, sizes: Mapping[str, list[Size]]) -> None:
    """Write a class folder of JPEGs. sizes: class -> (width, height) in px of each image."""
    for name, class_sizes in sizes.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for width_px, height_px in class_sizes:
            rng = np.random.default_rng([width_px, height_px])
            blocks = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(blocks).resize(
                (width_px, height_px), Image.Resampling.NEAREST
            )
            picture.save(folder / f"{width_px}x{height_px}.jpg", quality=95)


def write_script(path: Path, **script: Any) -> None:
    """Write what the scripted model answers, whole or not at all."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(script))
    draft.rename(path)


def asked_of(log: Path) -> list[Asked]:
    """What the scripted model was asked, in order."""
    if not log.exists():
        return []
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(tuple(line["labels"]), tuple(line["size_px"])) for line in lines]
