"""Inventory: a tree of small files, and change detection among a million injected records.

Every row comes from a process of its own, so that its peak memory is its own; that includes what
the imports take and, for injected records, the listing itself.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.alone import alone
from labeling_pipeline.images.sources import LISTING, FolderSource
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.store.annotation_store import AnnotationStore

FILES = 100_000
RECORDS = (100_000, 1_000_000)
CLASSES = 100


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (what, time and peak memory, ratio)."""
    with tempfile.TemporaryDirectory() as folder:
        root, home = Path(folder) / "images", Path(folder) / "home"
        _write_tree(root)
        bare, _ = alone(_bare_walk, root)
        yield f"bare walk and stat of {FILES:,} files", f"{bare:.2f} s", "1.00"
        for what in ("first scan", "unchanged re-scan"):
            seconds, peak = alone(_scan, root, home)
            yield f"{what} of {FILES:,} files", _told(seconds, peak), f"{seconds / bare:.2f}"
    per_row = None
    for records in RECORDS:
        with tempfile.TemporaryDirectory() as folder:
            seconds, peak = alone(_inject, records, 0, Path(folder))
            first = seconds / records
            seconds, peak = alone(_inject, records, 1, Path(folder))
            yield (
                f"{records:,} records, 1 in 100 changed",
                f"{_told(seconds, peak)}; written at first at {1 / first:,.0f} records/s",
                f"{seconds / records / (per_row or seconds / records):.2f} per record",
            )
            per_row = per_row or seconds / records


def _told(seconds: float, peak: float) -> str:
    return f"{seconds:.2f} s, peak {peak:.0f} MiB"


def _write_tree(root: Path) -> None:
    for number in range(CLASSES):
        folder = root / f"class_{number:02}" / "deeper"
        folder.mkdir(parents=True)
        for i in range(FILES // CLASSES):
            (folder / f"{i:05}.jpg").write_bytes(b"small")


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


def _inject(records: int, changes: int, home: Path) -> float:
    return _update(home, _Injected(_records(records, changes)))


def _update(home: Path, source: Any) -> float:
    store = AnnotationStore(home / "annotations.duckdb")
    store.query("SELECT 1")
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


def _records(count: int, changes: int) -> pa.Table:
    """A listing. changes: of each hundred files, so many have another time."""
    numbers = np.arange(count)
    classes = [f"class_{number % CLASSES:02}" for number in range(count)]
    return pa.table(
        {
            "path": [f"{name}/photo_{i:08}.jpg" for i, name in enumerate(classes)],
            "class_name": classes,
            "size_bytes": 50_000 + numbers % 7919,
            "mtime_ns": 1_700_000_000 * 10**9 + (numbers % 100 < changes),
            "skipped_reason": pa.nulls(count),
            "etag": pa.nulls(count),
        }
    ).cast(LISTING)
