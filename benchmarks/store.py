"""The store at a million images: what is due, and appending annotations.

What is due is counted over 10 classes with 10,000,000 outcomes, by a fresh process: once with a
folder per class, once with all images in one folder, where every class applies to every image.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from labeling_pipeline.store.annotation_store import AnnotationStore

IMAGES = 1_000_000
CLASSES = 10
ANNOTATIONS = 1_000_000
BATCH = 65_536
DUE_LIMIT_S = 1.0

_COUNT = """
import json, sys, time
from pathlib import Path
from benchmarks.alone import peak_mib
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import Ask, count_due

store = AnnotationStore(Path(sys.argv[1]))
asks = [Ask("object", f"class_{number}", "key", "hash") for number in range(int(sys.argv[2]))]
store.query("SELECT 1")
seconds = []
for _ in range(3):
    started = time.perf_counter()
    due = sum(count_due(store, asks)["due"].to_pylist())
    seconds.append(time.perf_counter() - started)
print(json.dumps({"due": due, "seconds": min(seconds), "peak_mib": peak_mib()}))
"""


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (what, measured, ratio)."""
    with tempfile.TemporaryDirectory() as folder:
        for what, of_class in (
            ("a folder per class", f"'class_' || (i % {CLASSES})"),
            ("one folder for all", "NULL"),
        ):
            path = Path(folder) / "due.duckdb"
            _fill(path, of_class)
            done = subprocess.run(
                [sys.executable, "-c", _COUNT, str(path), str(CLASSES)],
                check=True,
                capture_output=True,
                text=True,
            )
            counted = json.loads(done.stdout)
            yield (
                f"what is due, {what}",
                f"{counted['seconds']:.2f} s, {counted['peak_mib'] / 1024:.1f} GiB, "
                f"{counted['due']:,} due",
                f"{counted['seconds'] / DUE_LIMIT_S:.2f} of {DUE_LIMIT_S:.0f} s",
            )
            path.unlink()
        rows = _annotations()
        for what, batches in (
            ("one insert", [rows]),
            (f"batches of {BATCH:,}", [rows.slice(n, BATCH) for n in range(0, len(rows), BATCH)]),
        ):
            # By turns, so that a machine that is busy for a while is so for both.
            seconds = [
                [_seconds(work, folder, batches) for work in (_insert_bare, _append)]
                for _ in range(2)
            ]
            bare, ours = map(min, zip(*seconds, strict=True))
            yield f"bare Arrow insert, {what}", f"{ANNOTATIONS / bare:,.0f} rows/s", "1.00"
            yield f"store, {what}", f"{ANNOTATIONS / ours:,.0f} rows/s", f"{bare / ours:.2f}"


def _fill(path: Path, of_class: str) -> None:
    """Every hundredth image is due for every class, every thousandth failed once."""
    with AnnotationStore(path).transaction() as tx:
        tx.execute(
            "INSERT INTO classes (class, display_name) "
            f"SELECT 'class_' || c, 'class ' || c FROM range({CLASSES}) t(c)"
        )
        tx.execute(
            "INSERT INTO images (image_id, width_px, height_px, status) "
            f"SELECT sha256(i::VARCHAR), 640, 480, 'accepted' FROM range({IMAGES}) t(i)"
        )
        tx.execute(
            "INSERT INTO dataset_files (path, class, image_id, size_bytes, mtime_ns) "
            f"SELECT 'photos/' || i || '.jpg', {of_class}, sha256(i::VARCHAR), 1, 1 "
            f"FROM range({IMAGES}) t(i)"
        )
        tx.execute(
            "INSERT INTO outcomes (image_id, entry, class, model_key, attempt, parser_version, "
            "label, request_hash, state, run_id, created_at) "
            "SELECT sha256(i::VARCHAR), 'object', 'class_' || c, 'key', 1, 1, 'label', 'hash', "
            "if(i % 1000 = 7, 'failed', 'found'), 'run', TIMESTAMP '2026-01-01' "
            f"FROM range({IMAGES}) t(i), range({CLASSES}) u(c) WHERE i % 100 <> 3"
        )


def _annotations() -> pa.Table:
    rng = np.random.default_rng(5)
    numbers = np.arange(ANNOTATIONS)
    images, positions = (numbers // 4).astype(str), (numbers % 4).astype(str)
    generations = np.char.add("generation-", images)
    corners = rng.uniform(0, 640, (4, ANNOTATIONS))
    return pa.table(
        {
            "annotation_id": np.char.add(np.char.add(generations, "-1-"), positions),
            "generation_id": generations,
            "answered_in": generations,
            "image_id": np.char.add("image-", images),
            "entry": pa.repeat("object", ANNOTATIONS),
            "label": pa.repeat("person", ANNOTATIONS),
            "parser_version": pa.array(np.ones(ANNOTATIONS, np.int32)),
            "position": pa.array((numbers % 4).astype(np.int32)),
            **dict(zip(("x0_px", "y0_px", "x1_px", "y1_px"), corners, strict=True)),
            "score": rng.uniform(0, 1, ANNOTATIONS),
        }
    )


def _insert_bare(folder: Path, batches: list[pa.Table]) -> None:
    """What DuckDB does alone: the same table, one open connection, a transaction for each batch."""
    with duckdb.connect(str(folder / "bare.duckdb")) as connection:
        for batch in batches:
            connection.register("incoming", batch)
            connection.execute("INSERT INTO annotations BY NAME SELECT * FROM incoming")
            connection.unregister("incoming")


def _append(folder: Path, batches: list[pa.Table]) -> None:
    """What the labeling loop does: lock, open, leave out what is there already, close."""
    store = AnnotationStore(folder / "ours.duckdb")
    for batch in batches:
        with store.transaction() as tx:
            tx.insert("annotations", batch, skip_existing=True)


def _seconds(work: Callable[[Path, list[pa.Table]], None], within: str, batches: list) -> float:
    """What it takes on two empty stores of its own."""
    with tempfile.TemporaryDirectory(dir=within) as folder:
        for name in ("bare", "ours"):
            AnnotationStore(Path(folder) / f"{name}.duckdb").query("SELECT 1")
        started = time.perf_counter()
        work(Path(folder), batches)
        return time.perf_counter() - started
