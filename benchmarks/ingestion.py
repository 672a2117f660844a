"""Ingestion: 600 photos through the whole pass, beside a bare decode and cleanvision's audit.

The whole pass is inventory and cleaning into a new store: bytes, hash, all checks, duplicates, and
the start of the processes that decode. The bare decode reads the same files and lets JPEG scale
them down to what our pass looks at, in as many threads as there are cores. Cleanvision does its
checks that are like ours, in as many processes; its imports do not count. They take turns, and the
best round of each counts.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from labeling_pipeline.cleaning import clean
from labeling_pipeline.images.inspection import MEASURED_SIDE_PX
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.store.annotation_store import AnnotationStore

PHOTOS = 600
SIZE_PX = (1600, 1200)
ROUNDS = 2

_CLEANVISION = """
import sys, time
from cleanvision import Imagelab
started = time.perf_counter()
checks = ("dark", "light", "blurry", "low_information", "odd_aspect_ratio", "odd_size",
          "exact_duplicates", "near_duplicates")
lab = Imagelab(data_path=sys.argv[1], verbose=False)
lab.find_issues({check: {} for check in checks}, n_jobs=int(sys.argv[2]), verbose=False)
print(time.perf_counter() - started)
"""


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (what, rate or time, ratio)."""
    cores = len(os.sched_getaffinity(0))
    bare: list[float] = []
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        _take_photos(root / "photos")
        for number in range(ROUNDS):
            bare.append(_seconds(_decode_all, root, cores))
            ours.append(_seconds(_whole_pass, root, Path(folder) / f"{number}.duckdb"))
            theirs.append(_audit(root, cores))
    best = min(ours)
    yield f"bare scaled decode, {cores} threads", _rate(min(bare)), "1.00"
    yield "whole pass", _rate(best), f"{min(bare) / best:.2f} of the bare decode"
    yield "cleanvision", _rate(min(theirs)), f"we are {min(theirs) / best:.1f} times as fast"


def _take_photos(folder: Path) -> None:
    """Gradients, edges and texture at several scales, and the noise of a sensor."""
    folder.mkdir(parents=True)
    width, height = SIZE_PX
    with ThreadPoolExecutor() as pool:
        list(
            pool.map(
                lambda n: _photo(n, width, height).save(folder / f"{n:03}.jpg", quality=90),
                range(PHOTOS),
            )
        )


def _photo(number: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng([7, number])
    layers = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 100):
        coarse = rng.normal(0, 60 / cells**0.35, (cells * 3 // 4 + 1, cells + 1, 3))
        bands = [
            Image.fromarray(coarse[:, :, band].astype(np.float32)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            for band in range(3)
        ]
        layers += np.stack([np.asarray(band) for band in bands], axis=2)
    for _ in range(12):
        x, y, w, h = rng.integers((0, 0, 40, 40), (width - 100, height - 100, 400, 400))
        layers[y : y + h, x : x + w] += rng.normal(0, 50, 3)
    noise = rng.normal(0, 6, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(layers + 128 + noise, 0, 255).astype(np.uint8))


def _decode_all(root: Path, cores: int) -> None:
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(_decode, sorted(root.rglob("*.jpg"))))


def _decode(path: Path) -> None:
    with Image.open(path) as image:
        scale = MEASURED_SIDE_PX / max(image.size)
        image.draft(None, (round(image.width * scale), round(image.height * scale)))
        image.load()


def _whole_pass(root: Path, store_path: Path) -> None:
    store, source = AnnotationStore(store_path), open_source(root)
    update_inventory(store, source)
    summary = clean(store, source, CleaningRules())
    assert summary.files.statuses == {"accepted": PHOTOS}, summary


def _audit(root: Path, cores: int) -> float:
    """Seconds of cleanvision's pass, without its imports."""
    command = [sys.executable, "-c", _CLEANVISION, str(root), str(cores)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(ran.stdout.split()[-1])


def _seconds(work: Callable[..., object], *args: Any) -> float:
    started = time.perf_counter()
    work(*args)
    return time.perf_counter() - started


def _rate(seconds: float) -> str:
    return f"{PHOTOS / seconds:.0f} images/s"
