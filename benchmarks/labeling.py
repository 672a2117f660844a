"""Labeling with the embedded model: one by one, in batches, and end to end into the store.

The bare loop does what any script would: read, generate, in batches, on the same threads. End to
end adds the ledger, parsing and one transaction a batch.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from labeling_pipeline.cleaning import clean
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.registry import load_model
from labeling_pipeline.plan import Plan, parse_plan
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.tasks import Request, Task

LABELS = ("circle", "person", "square", "triangle", "star")
BATCH = 8
IMAGES = 200
ROUNDS = 2
PLAN = f"""
runtime: {{batch_size: {BATCH}}}
entries:
  - name: object
    task: detection
    classes: [circle]
    distractors: [person, square, triangle, star]
"""


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (what, rate, ratio). What is compared takes turns, so that a machine that is busy for
    a while is so for both."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        _draw(root / "circle")
        plan = parse_plan(PLAN)
        stores = [_ingested(Path(folder) / f"{n}.duckdb", root, plan) for n in range(ROUNDS)]
        paths = stores[0].query("SELECT path FROM class_images ORDER BY path")["path"].to_pylist()
        model = load_model(plan.model, plan.runtime)
        # As the labeling loop does: images of like size share a batch.
        paths.sort(key=lambda path: model.input_tokens(read_image(root / path).shape[1::-1]))
        few = paths[: 4 * BATCH]
        model.generate([_request(root / path) for path in few[:BATCH]])
        label = partial(label_class, plan=plan, entry=plan.entries[0], class_slug="circle")
        alone = batched = full = five = together = 0.0
        for store in stores:
            batched += _seconds(_bare_loop, model, root, paths, BATCH)
            full += _seconds(label, store, source=open_source(root), run_id="benchmark")
            alone += _seconds(_bare_loop, model, root, paths, 1)
            five += sum(_seconds(_bare_loop, model, root, few, BATCH, (one,)) for one in LABELS)
            together += _seconds(_bare_loop, model, root, few, BATCH)
    images, labels = ROUNDS * len(paths), ROUNDS * len(few) * len(LABELS)
    yield "bare loop, one image at a time", f"{images / alone:.1f} images/s", "1.00"
    yield (
        f"bare loop, batches of {BATCH}",
        f"{images / batched:.1f} images/s",
        f"{alone / batched:.2f}",
    )
    yield (
        "end to end into the store",
        f"{images / full:.1f} images/s",
        f"{batched / full:.2f} of the bare loop",
    )
    yield "five prompts of one label", f"{labels / five:.1f} labels/s", "1.00"
    yield "one prompt of five labels", f"{labels / together:.1f} labels/s", f"{five / together:.2f}"


def _ingested(path: Path, root: Path, plan: Plan) -> AnnotationStore:
    store = AnnotationStore(path)
    source = open_source(root)
    update_inventory(store, source, plan.class_names)
    clean(store, source, plan.cleaning)
    return store


def _draw(folder: Path) -> None:
    folder.mkdir(parents=True)
    sizes = ((320, 320), (400, 300), (300, 400), (384, 224))
    for number in range(IMAGES):
        rng = np.random.default_rng([4, number])
        scene = draw_scene(rng, *sizes[number % len(sizes)])
        Image.fromarray(scene.image).save(folder / f"{number:03}.jpg", quality=92)


def _request(path: Path, labels: tuple[str, ...] = LABELS) -> Request:
    return Request(read_image(path), Task.DETECTION, labels)


def _bare_loop(
    model: Model, root: Path, paths: list[str], size: int, labels: tuple[str, ...] = LABELS
) -> None:
    for start in range(0, len(paths), size):
        model.generate([_request(root / path, labels) for path in paths[start : start + size]])


def _seconds(work: Callable[..., object], *args: Any, **named: Any) -> float:
    started = time.perf_counter()
    work(*args, **named)
    return time.perf_counter() - started
