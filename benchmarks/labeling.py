"""Labeling with the embedded model: one by one, in batches, and end to end into the store.

The bare loop does what any script would: read, generate, in batches, on the same threads. End to
end adds the ledger, parsing and one transaction a batch.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from labeling_pipeline.images.reading import read_image
from labeling_pipeline.inventory import clean, update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import EMBEDDED, load_model
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.tasks import Request, Task

LABELS = ("circle", "person", "square", "triangle", "star")
BATCH = 8
IMAGES = 200
PLAN = """
entries:
  - name: object
    task: detection
    classes: [circle]
    distractors: [person, square, triangle, star]
"""


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (what, rate, ratio)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        _draw(root / "circle")
        plan = parse_plan(PLAN)
        store = AnnotationStore(Path(folder) / "annotations.duckdb")
        update_inventory(store, root, plan.class_names)
        clean(store, root, plan.cleaning)
        paths = store.query(
            "SELECT path FROM class_images ORDER BY width_px::DOUBLE / height_px, width_px, path"
        )["path"].to_pylist()
        model = load_model(EMBEDDED, ModelSettings(batch_size=BATCH))
        model.generate([_request(root / paths[0])])

        alone = _rate(len(paths), lambda: _bare_loop(model, root, paths, 1))
        batched = _rate(len(paths), lambda: _bare_loop(model, root, paths, BATCH))
        entry = plan.entries[0]

        full = _rate(
            len(paths), lambda: label_class(store, plan, entry, "circle", root, "benchmark")
        )
        alone_by_label = _rate(
            BATCH * len(LABELS),
            lambda: [
                model.generate([_request(root / p, (label,)) for p in paths[:BATCH]])
                for label in LABELS
            ],
        )
        grouped = _rate(
            BATCH * len(LABELS), lambda: model.generate([_request(root / p) for p in paths[:BATCH]])
        )
    yield "bare loop, one image at a time", f"{alone:.1f} images/s", "1.00"
    yield f"bare loop, batches of {BATCH}", f"{batched:.1f} images/s", f"{batched / alone:.2f}"
    yield (
        "end to end into the store",
        f"{full:.1f} images/s",
        f"{full / batched:.2f} of the bare loop",
    )
    yield "five prompts of one label", f"{alone_by_label:.1f} labels/s", "1.00"
    yield "one prompt of five labels", f"{grouped:.1f} labels/s", f"{grouped / alone_by_label:.2f}"


def _draw(folder: Path) -> None:
    folder.mkdir(parents=True)
    sizes = ((320, 320), (400, 300), (300, 400), (384, 224))
    for number in range(IMAGES):
        rng = np.random.default_rng([4, number])
        scene = draw_scene(rng, *sizes[number % len(sizes)])
        Image.fromarray(scene.image).save(folder / f"{number:03}.jpg", quality=92)


def _request(path: Path, labels: tuple[str, ...] = LABELS) -> Request:
    return Request(read_image(path), Task.DETECTION, labels)


def _bare_loop(model, root: Path, paths: list[str], size: int) -> None:
    for start in range(0, len(paths), size):
        model.generate([_request(root / path) for path in paths[start : start + size]])


def _rate(count: int, work) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)
