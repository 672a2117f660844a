import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from labeling_pipeline.errors import StoreBusyError, StoreError, StoreVersionError
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.database_file import DatabaseFile, backups_of, log_of
from labeling_pipeline.store.maintenance import back_up, check
from labeling_pipeline.store.schema import SCHEMA_VERSION
from tests.store.stores import (
    HEAD_OF_DUCKDB_2,
    HOLDER,
    MANY_CLASSES,
    class_row,
    damage_rows,
    insert,
    names,
    start,
    wait_for_line,
)


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    return AnnotationStore(tmp_path / "home" / "annotations.duckdb")


# Reading and writing


def test_a_new_store_has_every_table_and_the_current_version(store: AnnotationStore):
    version = store.query("SELECT value FROM meta WHERE key = 'schema_version'")
    assert version["value"].to_pylist() == [str(SCHEMA_VERSION)]
    assert names(store) == []
    assert list(store.path.parent.glob("*.new*")) == []


def test_columns_that_are_not_given_take_their_defaults(store: AnnotationStore):
    insert(store, "cats", "dogs")
    rows = store.query("SELECT * FROM classes ORDER BY class_number").to_pylist()
    assert rows == [
        {"class": "cats", "class_number": 1, "display_name": "Cats", "retired": False},
        {"class": "dogs", "class_number": 2, "display_name": "Dogs", "retired": False},
    ]


def test_a_column_of_nothing_but_null_can_be_written(store: AnnotationStore):
    row = {"path": "a.jpg", "class": None, "image_id": None, "size_bytes": 1, "mtime_ns": 2}
    with store.transaction() as tx:
        tx.insert("dataset_files", [row])
    (stored,) = store.query("SELECT * FROM dataset_files").to_pylist()
    assert stored == dict.fromkeys(stored) | row


def test_lists_and_structs_come_back_as_they_went_in(store: AnnotationStore):
    keypoints = [
        {"name": "nose", "x_px": 1.5, "y_px": 2.5, "score": 0.5},
        {"name": "left eye", "x_px": None, "y_px": None, "score": None},
    ]
    row = {
        "annotation_id": "g-1-0",
        "generation_id": "g",
        "image_id": "i",
        "entry": "posture",
        "label": "Straßenbahn 🚋",
        "parser_version": 1,
        "position": 0,
        "keypoints": keypoints,
    }
    with store.transaction() as tx:
        tx.insert("annotations", [row, row | {"annotation_id": "g-1-1", "keypoints": None}])
    stored = store.query("SELECT label, keypoints FROM annotations ORDER BY 1, annotation_id")
    assert stored["label"].to_pylist() == ["Straßenbahn 🚋"] * 2
    assert stored["keypoints"].to_pylist() == [keypoints, None]


def test_an_arrow_table_is_written_as_it_is(store: AnnotationStore):
    with store.transaction() as tx:
        tx.insert("classes", pa.table({"class": ["cats"], "display_name": ["Cats"]}))
    assert names(store) == ["cats"]


@pytest.mark.parametrize("rows", [[], pa.table({"class": pa.array([], pa.string())})])
def test_no_rows_are_written_without_complaint(store: AnnotationStore, rows: Any):
    with store.transaction() as tx:
        tx.insert("classes", rows)
    assert names(store) == []


def test_an_empty_answer_still_has_typed_columns(store: AnnotationStore):
    table = store.query("SELECT image_id, attempt, presence, created_at FROM outcomes")
    assert table.num_rows == 0
    assert table.schema.field("image_id").type == pa.string()
    assert table.schema.field("attempt").type == pa.int32()
    assert table.schema.field("presence").type == pa.float64()
    assert pa.types.is_timestamp(table.schema.field("created_at").type)


def test_replace_updates_the_given_columns_and_leaves_the_others(store: AnnotationStore):
    with store.transaction() as tx:
        tx.insert("classes", [class_row("cats", retired=True)])
        tx.insert("classes", [{"class": "cats", "display_name": "Kitties"}], replace=True)
    (row,) = store.query("SELECT * FROM classes").to_pylist()
    assert row == {
        "class": "cats",
        "class_number": 1,
        "display_name": "Kitties",
        "retired": True,
    }


def test_replace_with_nothing_but_the_key_keeps_the_row(store: AnnotationStore):
    row = {"key": "answer", "value": "42"}
    with store.transaction() as tx:
        tx.insert("meta", [row])
        tx.insert("meta", [row], replace=True)
    assert store.query("SELECT value FROM meta WHERE key = 'answer'").num_rows == 1


def test_a_replay_that_skips_what_exists_adds_only_what_is_new(store: AnnotationStore):
    insert(store, "cats")
    with store.transaction() as tx:
        rows = [class_row("cats", retired=True), class_row("dogs", retired=True)]
        tx.insert("classes", rows, skip_existing=True)
    assert store.query("SELECT class, retired FROM classes ORDER BY class").to_pylist() == [
        {"class": "cats", "retired": False},
        {"class": "dogs", "retired": True},
    ]


def test_the_same_key_twice_is_an_error_and_writes_nothing(store: AnnotationStore):
    insert(store, "cats")
    with pytest.raises(duckdb.ConstraintException):
        insert(store, "dogs", "cats")
    assert names(store) == ["cats"]


def test_parameters_are_bound_not_pasted(store: AnnotationStore):
    insert(store, "x'; DROP TABLE classes; --")
    found = store.query("SELECT class FROM classes WHERE class = ?", ["x'; DROP TABLE classes; --"])
    assert found.num_rows == 1


def test_times_come_back_as_they_went_in(store: AnnotationStore):
    now = datetime.now(UTC).replace(tzinfo=None)
    with store.transaction() as tx:
        tx.insert(
            "corrections",
            [
                {
                    "correction_id": "c",
                    "image_id": "i",
                    "entry": "object",
                    "label": "cat",
                    "kind": "add",
                    "author": "me",
                    "created_at": now,
                }
            ],
        )
    assert store.query("SELECT created_at FROM corrections")["created_at"].to_pylist() == [now]


# Transactions


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_exception_rolls_the_whole_block_back(store: AnnotationStore, error: BaseException):
    insert(store, "cats")

    def write_and_fail() -> None:
        with store.transaction() as tx:
            tx.insert("classes", [class_row("dogs")])
            tx.execute("UPDATE classes SET retired = true")
            raise error

    with pytest.raises(type(error)):
        write_and_fail()
    assert store.query("SELECT class, retired FROM classes").to_pylist() == [
        {"class": "cats", "retired": False}
    ]
    insert(store, "birds")
    assert names(store) == ["cats", "birds"]


def test_a_transaction_reads_its_own_writes(store: AnnotationStore):
    with store.transaction() as tx:
        tx.insert("classes", [class_row("cats")])
        assert tx.query("SELECT count(*) AS n FROM classes")["n"].to_pylist() == [1]


# Files that are no current store


def test_a_store_of_a_newer_version_is_refused_naming_the_fix(store: AnnotationStore):
    with store.transaction() as tx:
        tx.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    with pytest.raises(StoreVersionError, match=r"99.*update labeling-pipeline"):
        AnnotationStore(store.path).query("SELECT 1")


@pytest.mark.skipif(duckdb.__version__ >= "2", reason="this DuckDB reads what DuckDB 2 wrote")
def test_a_file_of_a_later_duckdb_is_refused_naming_the_fix_and_not_called_damaged(
    store: AnnotationStore,
):
    written = HEAD_OF_DUCKDB_2.ljust(3 * 4096, b"\0")
    store.path.parent.mkdir()
    store.path.write_bytes(written)

    def write() -> None:
        insert(store, "cats")

    file = DatabaseFile(store.path)
    for work in (partial(names, store), write, partial(check, file), partial(back_up, file)):
        with pytest.raises(StoreVersionError, match="update the package duckdb") as caught:
            work()
        assert "restore" not in str(caught.value)
        assert "move it away" not in str(caught.value)
    assert store.path.read_bytes() == written


GENERATION = (
    "INSERT INTO generations BY NAME SELECT 'g' AS generation_id, 'i' AS image_id, "
    "'object' AS entry, 'hash' AS request_hash, 'key' AS model_key, 'detection' AS task, "
    "['cat'] AS labels, 'Detect cat.' AS prompt, 'text' AS raw_text, ['text'] AS tokens, "
    "[-0.5] AS token_logprobs, ['nan'] AS token_window_mass, [0.1] AS none_probs, "
    "'stop' AS finish_reason, 640 AS frame_width_px, 480 AS frame_height_px, 0.5 AS latency_s, "
    "1 AS attempt, 'run' AS run_id, TIMESTAMP '2026-01-02 03:04:05' AS created_at"
)
OUTCOMES = (
    "INSERT INTO outcomes BY NAME SELECT 'i' AS image_id, 'object' AS entry, 'cat' AS class, "
    "'key' AS model_key, attempt, {parsed}'cat' AS label, 'hash' AS request_hash, state, "
    "generation_id, 'run' AS run_id, TIMESTAMP '2026-01-02 03:04:05' AS created_at "
    "FROM (VALUES (1, 'failed', NULL, 0), (2, 'found', 'g', 2), (3, 'absent', 'h', 1)) "
    "t(attempt, state, generation_id, parser_version)"
)
ANNOTATION = (
    "INSERT INTO annotations (annotation_id, generation_id, image_id, entry, label, "
    "parser_version, position, x0_px) VALUES ('g-2-0', 'g', 'i', 'object', 'cat', 2, 0, 7)"
)


def store_of_version(version: int, path: Path, *statements: str) -> AnnotationStore:
    path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(path)) as old:
        old.execute((Path(__file__).parent / f"schema_{version}.sql").read_text(encoding="utf-8"))
        old.execute("INSERT INTO meta VALUES ('schema_version', ?)", [str(version)])
        for statement in statements:
            old.execute(statement)
    return AnnotationStore(path)


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_store_of_an_earlier_version_is_migrated_with_all_that_it_holds(
    tmp_path: Path, version: int
):
    outcomes = OUTCOMES.format(parsed="parser_version, " if version >= 3 else "")
    store = store_of_version(version, tmp_path / "old.duckdb", GENERATION, outcomes, ANNOTATION)
    assert store.query("SELECT value FROM meta").to_pylist() == [{"value": str(SCHEMA_VERSION)}]
    assert store.query("SELECT generation_id, x0_px FROM annotations").to_pylist() == [
        {"generation_id": "g", "x0_px": 7.0}
    ]
    assert store.query("SELECT raw_text, follows, crop_px FROM generations").to_pylist() == [
        {"raw_text": "text", "follows": None, "crop_px": None}
    ]
    kept = store.query("SELECT attempt, state, parser_version FROM outcomes ORDER BY attempt")
    assert [tuple(row.values()) for row in kept.to_pylist()] == [
        (1, "failed", 0),
        (2, "found", 2),
        (3, "absent", 1),
    ]


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_migrated_store_has_the_columns_of_a_new_one(
    store: AnnotationStore, tmp_path: Path, version: int
):
    old = store_of_version(version, tmp_path / "old" / "annotations.duckdb")
    columns = (
        "SELECT table_name, column_name, data_type, is_nullable, column_default "
        "FROM information_schema.columns ORDER BY ALL"
    )
    assert old.query(columns).to_pylist() == store.query(columns).to_pylist()


def test_several_processes_that_migrate_at_once_do_it_once(tmp_path: Path):
    outcomes = OUTCOMES.format(parsed="")
    store = store_of_version(1, tmp_path / "old.duckdb", GENERATION, outcomes, ANNOTATION)
    count = "print(store.query('SELECT count(*) AS n FROM outcomes')['n'][0])"
    processes = [start(store, count) for _ in range(3)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [output for output, _ in answers] == ["3\n"] * 3, answers
    (backup,) = backups_of(store.path)
    with duckdb.connect(str(backup), read_only=True) as old:
        assert old.execute("SELECT value FROM meta").fetchall() == [("1",)]
        assert old.execute("SELECT count(*) FROM outcomes").fetchall() == [(3,)]


def test_a_damaged_file_is_not_migrated(tmp_path: Path):
    store = store_of_version(1, tmp_path / "old.duckdb", MANY_CLASSES)
    damage_rows(store.path)
    damaged = store.path.read_bytes()
    with pytest.raises(StoreError, match="no backup to restore"):
        store.query("SELECT 1")
    assert store.path.read_bytes() == damaged
    assert backups_of(store.path) == []


def test_a_duckdb_file_that_is_no_store_is_refused_naming_the_fix(tmp_path: Path):
    path = tmp_path / "other.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 1 AS x")
    with pytest.raises(StoreError, match=r"not an annotation store.*another home"):
        AnnotationStore(path).query("SELECT 1")
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("SELECT x FROM mine").fetchall() == [(1,)]


def zeroed(data: bytes) -> bytes:
    return b""


def text(data: bytes) -> bytes:
    return b"path,label\n" * 1000


def without_header(data: bytes) -> bytes:
    return bytes(4096) + data[4096:]


def cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def overwritten(data: bytes) -> bytes:
    return data[:12_288] + bytes(len(data) - 12_288)


@pytest.mark.parametrize("damage", [zeroed, text, without_header, cut_in_half, overwritten])
def test_a_damaged_file_says_at_once_how_to_go_on(
    store: AnnotationStore, damage: Callable[[bytes], bytes]
):
    insert(store, *(f"class_{i}" for i in range(2000)))
    store.path.write_bytes(damage(store.path.read_bytes()))
    started = time.monotonic()
    with pytest.raises(StoreError, match="no backup to restore, so move it away") as caught:
        AnnotationStore(store.path).query("SELECT max(class), max(display_name) FROM classes")
    assert str(store.path) in str(caught.value)
    assert not isinstance(caught.value, StoreBusyError)
    assert time.monotonic() - started < 10, "damage was taken for another process's lock"


def test_damage_inside_the_rows_is_named_when_they_are_read(store: AnnotationStore):
    with store.transaction() as tx:
        tx.execute(MANY_CLASSES)
    damage_rows(store.path)
    for _ in range(2):
        with pytest.raises(StoreError, match="no backup to restore, so move it away"):
            AnnotationStore(store.path).query("SELECT max(class), max(display_name) FROM classes")


def test_a_path_that_says_lock_is_no_lock(tmp_path: Path):
    path = tmp_path / "blocks_and_locks" / "annotations.duckdb"
    path.parent.mkdir()
    path.write_bytes(b"nonsense" * 1000)
    started = time.monotonic()
    with pytest.raises(StoreError, match="no backup to restore, so move it away"):
        AnnotationStore(path).query("SELECT 1")
    assert time.monotonic() - started < 10


def test_a_store_that_was_moved_away_is_made_anew(store: AnnotationStore):
    insert(store, "cats")
    store.path.rename(store.path.with_suffix(".old"))
    assert names(store) == []
    assert names(AnnotationStore(store.path.with_suffix(".old"))) == ["cats"]


def test_a_log_whose_file_was_moved_away_is_not_taken_for_the_new_ones(store: AnnotationStore):
    insert(store, "cats")
    killed = start(
        store,
        "import duckdb\n"
        "connection = duckdb.connect(str(store.path))\n"
        "connection.execute('UPDATE classes SET retired = true')\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    killed.communicate(timeout=60)
    log = log_of(store.path)
    assert log.exists()
    content = log.read_bytes()
    store.path.rename(store.path.with_suffix(".old"))
    assert names(store) == []
    (kept,) = store.path.parent.glob("*.damaged-*.wal")
    assert kept.read_bytes() == content


# Several at once

WRITER = """
for batch in range({batches}):
    with store.transaction() as tx:
        tx.insert("classes", [
            {{"class": f"{name}_{{batch}}_{{i}}", "display_name": "x"}} for i in range(10)
        ])
    print("written", flush=True)
"""


def read_while(store: AnnotationStore, running: Callable[[], bool]) -> list[int]:
    counts = []
    while running():
        table = store.query("SELECT count(*) AS n FROM classes")
        counts.append(table["n"].to_pylist()[0])
    return counts


def test_readers_see_whole_batches_while_another_process_writes(store: AnnotationStore):
    names(store)
    writer = start(store, WRITER.format(batches=8, name="a"))
    assert wait_for_line(writer) == "written"
    counts = read_while(store, lambda: writer.poll() is None)
    assert writer.wait() == 0
    assert counts
    assert counts == sorted(counts)
    assert {count % 10 for count in counts} == {0}
    assert len(names(store)) == 80


def test_readers_see_whole_batches_while_another_thread_writes(store: AnnotationStore):
    names(store)

    def write() -> None:
        mine = AnnotationStore(store.path)
        for batch in range(8):
            insert(mine, *(f"{batch}_{i}" for i in range(10)))

    writer = threading.Thread(target=write)
    writer.start()
    counts = read_while(store, writer.is_alive)
    writer.join()
    assert counts
    assert counts == sorted(counts)
    assert {count % 10 for count in counts} == {0}
    assert len(names(store)) == 80


def test_threads_that_share_one_store_object_lose_nothing(store: AnnotationStore):
    def write(name: str) -> None:
        for batch in range(6):
            insert(store, f"{name}_{batch}")

    writers = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(names(store)) == sorted(f"{name}_{batch}" for name in "abc" for batch in range(6))


def test_several_writer_processes_lose_nothing_from_the_first_moment(store: AnnotationStore):
    # Nobody has made the file yet: they also race to create it.
    writers = [start(store, WRITER.format(batches=4, name=name)) for name in "abc"]
    for writer in writers:
        writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    expected = {f"{name}_{batch}_{i}" for name in "abc" for batch in range(4) for i in range(10)}
    assert set(names(store)) == expected


def test_who_waits_too_long_is_told_that_another_process_holds_the_store(store: AnnotationStore):
    insert(store, "cats")
    holder = start(store, HOLDER)
    try:
        assert wait_for_line(holder) == "holding"
        hasty = AnnotationStore(store.path, busy_timeout_s=0.3)
        with pytest.raises(StoreBusyError, match=str(store.path)):
            hasty.query("SELECT 1")
        with pytest.raises(StoreBusyError, match=str(store.path)):
            insert(hasty, "dogs")
    finally:
        holder.kill()
        holder.wait()


def test_a_writer_killed_in_mid_transaction_leaves_the_last_commit(store: AnnotationStore):
    insert(store, "cats")
    holder = start(store, HOLDER)
    assert wait_for_line(holder) == "holding"
    os.kill(holder.pid, signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    assert names(store) == ["cats"]
    insert(store, "dogs")
    assert names(AnnotationStore(store.path)) == ["cats", "dogs"]
