"""Inventory and near duplicates: a real tree of small images, and up to a million injected records.

Every row comes from a process of its own, so that its peak memory is its own. For injected records
that includes what they take themselves; a ratio of 1 per record is linear growth.
"""

import hashlib
import io
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.alone import alone
from labeling_pipeline.cleaning import clean
from labeling_pipeline.images.duplicates import represent
from labeling_pipeline.images.hashing import THUMBNAIL_SIZE
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import LISTING, FolderSource
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.store.annotation_store import AnnotationStore

FILES = 100_000
RECORDS = (100_000, 1_000_000)
CLASSES = 100
CROWD = 20_000
_CHUNK = 50_000


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (what, time and peak memory, ratio)."""
    yield from _real_tree()
    first: dict[str, float] = {}
    for records in RECORDS:
        for what, seconds, peak in _injected(records):
            first.setdefault(what, seconds / records)
            ratio = seconds / records / first[what]
            yield f"{records:,} records: {what}", _told(seconds, peak), f"{ratio:.2f} per record"
    for what, spread in (("alike", 0), ("unlike each other", 120)):
        told = _told(*alone(_find_in_crowd, spread))
        yield f"near duplicates: {CROWD:,} pictures of one hash, {what}", told, ""


def _told(seconds: float, peak_mib: float) -> str:
    return f"{seconds:.2f} s, peak {peak_mib:.0f} MiB"


# A real tree ------------------------------------------------------------------------------------


def _real_tree() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        root, home = Path(folder) / "images", Path(folder) / "home"
        _write_tree(root)
        bare, _ = alone(_bare_walk, root)
        yield f"bare walk and stat of {FILES:,} files", f"{bare:.2f} s", "1.00"
        for what, work in (
            ("first scan", _scan),
            ("first cleaning: all read, measured and judged", _clean),
            ("unchanged re-scan", _scan),
            ("cleaning again, nothing changed", _clean),
        ):
            seconds, peak = alone(work, root, home)
            yield f"{FILES:,} files: {what}", _told(seconds, peak), f"{seconds / bare:.1f}"


def _write_tree(root: Path) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda number: _write_class(root, number), range(CLASSES)))


def _write_class(root: Path, number: int) -> None:
    rng = np.random.default_rng([3, number])
    folder = root / f"class_{number:02}" / "deeper"
    folder.mkdir(parents=True)
    for i in range(FILES // CLASSES):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((64, 48), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        (folder / f"{i:05}.jpg").write_bytes(buffer.getvalue())


def _bare_walk(root: Path) -> float:
    started = time.perf_counter()
    pending = [str(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    entry.stat()
    return time.perf_counter() - started


def _scan(root: Path, home: Path) -> float:
    return _update(home, FolderSource(root))


def _clean(root: Path, home: Path) -> float:
    store = _opened(home)
    started = time.perf_counter()
    summary = clean(store, FolderSource(root), CleaningRules())
    seconds = time.perf_counter() - started
    assert summary.files.total == FILES
    assert summary.files.statuses["accepted"] > 0.99 * FILES, summary.files.statuses
    return seconds


# Injected records -------------------------------------------------------------------------------


def _injected(records: int) -> Iterator[tuple[str, float, float]]:
    """What, seconds, peak MiB."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        yield "listed for the first time", *alone(_list, records, 0, home)
        yield "listed again, 1 in 100 changed", *alone(_list, records, 1, home)
        yield "listed again, nothing changed", *alone(_list, records, 1, home)
        yield "near-duplicate search, half of them copies", *alone(_find_copies, records)
        alone(_inject_images, records, home)
        yield "all that judges them, near duplicates included", *alone(_judge, records, home)
        yield "judged again, nothing changed", *alone(_judge, records, home)


def _list(records: int, changes: int, home: Path) -> float:
    return _update(home, _Injected(_listing(records, changes)))


def _opened(home: Path) -> AnnotationStore:
    store = AnnotationStore(home / "annotations.duckdb")
    store.query("SELECT 1")
    return store


def _update(home: Path, source: Any) -> float:
    store = _opened(home)
    started = time.perf_counter()
    update_inventory(store, source)
    return time.perf_counter() - started


@dataclass(frozen=True)
class _Injected:
    """A source that lists records instead of files."""

    listed: pa.Table
    name = "injected"

    def scan(self) -> pa.Table:
        """See `ImageSource`."""
        return self.listed


def _path(number: int) -> str:
    return f"class_{number % CLASSES:02}/photo_{number:08}.jpg"


def _listing(count: int, changes: int) -> pa.Table:
    """changes: of each hundred files, so many have another time."""
    numbers = np.arange(count)
    return pa.table(
        {
            "path": [_path(number) for number in range(count)],
            "class_name": [f"class_{number % CLASSES:02}" for number in range(count)],
            "size_bytes": 50_000 + numbers % 7919,
            "mtime_ns": 1_700_000_000 * 10**9 + (numbers % 100 < changes),
            "skipped_reason": pa.nulls(count),
            "etag": pa.nulls(count),
        }
    ).cast(LISTING)


def _copies(records: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and thumbnails; those of the second half are like those of the first."""
    rng = np.random.default_rng(records)
    half = records // 2
    hashes = rng.integers(0, 2**64, half, dtype=np.uint64)
    bits = rng.integers(0, 64, (half, 4)).astype(np.uint64)
    copies = hashes ^ np.bitwise_or.reduce(np.uint64(1) << bits, axis=1)
    thumbnails = rng.integers(5, 251, (half, THUMBNAIL_SIZE), dtype=np.uint8)
    noisy = thumbnails + rng.integers(0, 6, (half, THUMBNAIL_SIZE), dtype=np.uint8)
    return np.concatenate([hashes, copies]), np.concatenate([thumbnails, noisy])


def _find_copies(records: int) -> float:
    return _search(*_copies(records), records // 2)


def _find_in_crowd(spread: int) -> float:
    rng = np.random.default_rng(spread)
    thumbnails = rng.integers(128 - spread, 129 + spread, (CROWD, THUMBNAIL_SIZE), dtype=np.uint8)
    return _search(np.zeros(CROWD, np.uint64), thumbnails, CROWD if spread else 1)


def _search(hashes: np.ndarray, thumbnails: np.ndarray, kept: int) -> float:
    started = time.perf_counter()
    found = represent(hashes, thumbnails, np.ones(len(hashes)), CleaningRules())
    seconds = time.perf_counter() - started
    assert len(np.unique(found)) == kept
    return seconds


def _inject_images(records: int, home: Path) -> float:
    """Give the files of a store the measurements of images that nobody has decoded."""
    store = _opened(home)
    hashes, thumbnails = _copies(records)
    for start in range(0, records, _CHUNK):
        numbers = range(start, min(start + _CHUNK, records))
        ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
        marks = [f"{hashes[n]:016x}:{thumbnails[n].tobytes().hex()}" for n in numbers]
        measured = {"size_bytes": 50_000, "width_px": 1600, "height_px": 1200, "brightness": 100.0}
        measured |= {"contrast": 50.0, "sharpness": 100.0, "entropy": 7.0, "status": "new"}
        columns = {name: [value] * len(ids) for name, value in measured.items()}
        columns["flags"] = pa.array([[]] * len(ids), pa.list_(pa.string()))
        images = pa.table({"image_id": ids, "perceptual_hash": marks} | columns)
        read = pa.table({"path": [_path(number) for number in numbers], "image_id": ids})
        with store.transaction() as tx:
            tx.insert("images", images)
            tx.execute(
                "UPDATE dataset_files SET image_id = read.image_id FROM read "
                "WHERE dataset_files.path = read.path",
                tables={"read": read},
            )
    return 0.0


def _judge(records: int, home: Path) -> float:
    store = _opened(home)
    started = time.perf_counter()
    summary = clean(store, FolderSource(home), CleaningRules())
    seconds = time.perf_counter() - started
    half = records // 2
    assert summary.files.statuses == {"accepted": half, "rejected": half}, summary
    return seconds
