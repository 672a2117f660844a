"""Small stores, damage to them, and other processes that work on them."""

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb

from labeling_pipeline.store.annotation_store import AnnotationStore

REPOSITORY = Path(__file__).parents[2]

HOLDER = """
with store.transaction() as tx:
    tx.insert("classes", [
        {"class": f"open_{i}", "display_name": "x" * 1000} for i in range(20000)
    ])
    print("holding", flush=True)
    time.sleep(60)
"""

COMMIT_AND_DIE = """
import duckdb
connection = duckdb.connect(str(store.path))
connection.execute("INSERT INTO classes (class, display_name) VALUES ('logged', 'Logged')")
os.kill(os.getpid(), signal.SIGKILL)
"""
"""A writer that was killed: what it committed is in the log only."""

MANY_CLASSES = (
    "INSERT INTO classes (class, display_name) "
    "SELECT md5(i::VARCHAR), md5(i::VARCHAR) || md5((i + 1)::VARCHAR) FROM range(60000) t(i)"
)


HEAD_OF_DUCKDB_2 = base64.b64decode(
    "nU/AEbA9u1tEVUNL5wMAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAHYyLjAuMAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAZDU0Y2JiZTNkZgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAOUTdT+JqcP0RUXWHVkn"
    "bnw="
)
"""How a file begins that DuckDB 2.0.0 wrote; the rest of its first three blocks is zeros."""


def class_row(name: str, **values: Any) -> dict[str, Any]:
    """A row of ``classes``."""
    return {"class": name, "display_name": name.title()} | values


def insert(store: AnnotationStore, *names: str) -> None:
    """Add classes."""
    with store.transaction() as tx:
        tx.insert("classes", [class_row(name) for name in names])


def names(store: AnnotationStore) -> list[str]:
    """The classes, in order of registration."""
    table = store.query("SELECT class FROM classes ORDER BY class_number")
    return table["class"].to_pylist()


def damage_rows(path: Path) -> None:
    """Overwrite some rows of ``classes`` in a store with ``MANY_CLASSES``, and nothing else."""
    with duckdb.connect(str(path), read_only=True) as connection:
        stored = "SELECT max(block_id) FROM pragma_storage_info('classes')"
        ((number,),) = connection.execute(stored).fetchall()
    header, block = 12_288, 262_144
    data = bytearray(path.read_bytes())
    place = header + number * block + 1000
    data[place : place + 64] = os.urandom(64)
    path.write_bytes(data)


def start(store: AnnotationStore, body: str) -> subprocess.Popen[str]:
    """Another process, in which ``store`` is this store and ``file`` its file."""
    code = (
        "import os, resource, signal, sys, time\n"
        "from pathlib import Path\n"
        "from labeling_pipeline.store import maintenance\n"
        "from labeling_pipeline.store.annotation_store import AnnotationStore\n"
        "from labeling_pipeline.store.database_file import DatabaseFile\n"
        f"store = AnnotationStore(Path({str(store.path)!r}))\n"
        f"file = DatabaseFile(store.path)\n{body}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_line(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
