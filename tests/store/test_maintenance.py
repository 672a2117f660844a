import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner

from labeling_pipeline.__main__ import app
from labeling_pipeline.errors import StoreBusyError, StoreError, StoreVersionError
from labeling_pipeline.home import Home
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.database_file import DatabaseFile, backups_of, log_of
from labeling_pipeline.store.maintenance import KEEP, back_up, check, compact, restore
from labeling_pipeline.store.schema import SCHEMA_VERSION
from tests.store.stores import (
    COMMIT_AND_DIE,
    HOLDER,
    MANY_CLASSES,
    REPOSITORY,
    damage_rows,
    insert,
    names,
    start,
    wait_for_line,
)

NOON = datetime(2026, 5, 1, 12)
OUTCOME = {
    "image_id": "i",
    "entry": "object",
    "class": "cats",
    "model_key": "key",
    "attempt": 1,
    "parser_version": 1,
    "label": "cat",
    "request_hash": "hash",
    "state": "absent",
    "run_id": "run",
    "created_at": NOON,
}
ANNOTATION = {
    "annotation_id": "g-1-0",
    "generation_id": "g",
    "image_id": "i",
    "entry": "object",
    "label": "cat",
    "parser_version": 1,
    "position": 0,
}


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    """Two classes; the second and the last of four were removed again."""
    store = AnnotationStore(Home(tmp_path / "home").store_path)
    insert(store, "cats", "dogs", "eels", "fish")
    with store.transaction() as tx:
        tx.execute("DELETE FROM classes WHERE class IN ('dogs', 'fish')")
    return store


@pytest.fixture
def file(store: AnnotationStore) -> DatabaseFile:
    return DatabaseFile(store.path)


def schema_of(path: Path) -> list[list[tuple]]:
    """Tables, constraints, defaults, views, sequences and indexes, as DuckDB describes them."""
    with duckdb.connect(str(path), read_only=True) as connection:
        return [
            connection.execute(f"SELECT {what} ORDER BY ALL").fetchall()
            for what in (
                "sql FROM duckdb_tables()",
                "table_name, constraint_text FROM duckdb_constraints()",
                "table_name, column_name, data_type, is_nullable, column_default "
                "FROM duckdb_columns() WHERE NOT internal",
                "view_name, sql FROM duckdb_views() WHERE NOT internal",
                "sequence_name, increment_by, max_value, last_value FROM duckdb_sequences()",
                "index_name FROM duckdb_indexes()",
            )
        ]


def problems(store: AnnotationStore) -> list[str]:
    return check(DatabaseFile(store.path)).problems


# Copies


def test_a_backup_holds_all_that_the_store_holds(store: AnnotationStore, file: DatabaseFile):
    backup = AnnotationStore(back_up(file))
    assert schema_of(backup.path) == schema_of(store.path)
    assert names(backup) == ["cats", "eels"]
    # Numbers are never given twice, not even those of rows that are gone.
    insert(backup, "gnus")
    numbers = backup.query("SELECT class_number FROM classes ORDER BY ALL")
    assert numbers["class_number"].to_pylist() == [1, 3, 5]
    with pytest.raises(duckdb.ConstraintException):
        insert(backup, "gnus")
    assert names(store) == ["cats", "eels"]


def test_a_compacted_store_has_the_schema_of_a_new_one(
    store: AnnotationStore, file: DatabaseFile, tmp_path: Path
):
    fresh = AnnotationStore(tmp_path / "fresh.duckdb")
    insert(fresh, "a", "b", "c", "d")
    compact(file)
    assert schema_of(store.path) == schema_of(fresh.path)


def test_compaction_gives_back_the_room_of_deleted_rows(store: AnnotationStore, file: DatabaseFile):
    with store.transaction() as tx:
        tx.execute(MANY_CLASSES)
    with store.transaction() as tx:
        tx.execute("DELETE FROM classes WHERE length(class) = 32")
    before, after = compact(file)
    assert after < before / 2
    assert store.path.stat().st_size == after
    assert names(store) == ["cats", "eels"]
    insert(store, "gnus")
    assert names(store) == ["cats", "eels", "gnus"]


@pytest.mark.parametrize("work", [back_up, compact])
def test_what_is_only_in_the_log_of_a_killed_writer_is_copied_once(
    store: AnnotationStore, file: DatabaseFile, work: Callable[[DatabaseFile], Any]
):
    start(store, COMMIT_AND_DIE).communicate(timeout=60)
    assert log_of(store.path).exists()
    work(file)
    assert names(store) == ["cats", "eels", "logged"]
    assert problems(store) == []
    for backup in backups_of(store.path):
        assert names(AnnotationStore(backup)) == ["cats", "eels", "logged"]


def test_only_the_newest_backups_are_kept_and_nothing_else_is_touched(
    store: AnnotationStore, file: DatabaseFile
):
    folder = store.path.parent / "backups"
    written = [back_up(file)]
    mine = folder / "annotations-of-may.duckdb"
    mine.write_text("mine")
    left = folder / "annotations-20260101T000000.000000Z.duckdb.new"
    left.write_text("left by a killed backup")
    log_of(left).write_text("and its log")
    written += [back_up(file) for _ in range(KEEP)]
    assert backups_of(store.path) == written[:0:-1]
    assert set(folder.iterdir()) == {mine, *written[1:]}
    assert mine.read_text() == "mine"
    newest = back_up(file, keep=1)
    assert backups_of(store.path) == [newest]


def test_readers_and_writers_go_on_while_the_store_is_compacted(
    store: AnnotationStore, file: DatabaseFile
):
    body = """
for number in range(12):
    with store.transaction() as tx:
        tx.insert("classes", [{"class": f"{name}{number}_{i}", "display_name": "x"} for i in "ab"])
    print(store.query("SELECT count(*) AS n FROM classes")["n"][0], flush=True)
"""
    writers = [start(store, body.replace("{name}", name)) for name in "xy"]
    for writer in writers:
        wait_for_line(writer)
    for _ in range(5):
        compact(file)
        time.sleep(0.2)
    for writer in writers:
        output, errors = writer.communicate()
        counts = [int(line) for line in output.split()]
        assert writer.returncode == 0, errors
        assert counts == sorted(counts)
        assert {count % 2 for count in counts} == {0}
    assert len(names(store)) == 2 + 2 * 12 * 2
    assert problems(store) == []


# Restoring


def test_the_message_of_a_damaged_file_says_the_command_that_restores_it(
    store: AnnotationStore, file: DatabaseFile
):
    back_up(file)
    with store.transaction() as tx:
        tx.execute(MANY_CLASSES)
    backup = back_up(file)
    damage_rows(store.path)
    damaged = store.path.read_bytes()
    with pytest.raises(StoreError, match=backup.name) as caught:
        store.query("SELECT max(class), max(display_name) FROM classes")
    (command,) = re.findall("`python (.*?)`", str(caught.value))
    done = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(names(store)) == 60_002
    assert problems(store) == []
    (aside,) = store.path.parent.glob("*.damaged-*")
    assert aside.read_bytes() == damaged
    assert str(aside) in done.stdout


def test_the_log_of_a_damaged_file_goes_aside_with_it(store: AnnotationStore, file: DatabaseFile):
    backup = back_up(file)
    start(store, COMMIT_AND_DIE).communicate(timeout=60)
    _, aside = restore(file, backup)
    assert aside is not None
    assert names(store) == ["cats", "eels"]
    assert names(AnnotationStore(aside)) == ["cats", "eels", "logged"]


def test_a_store_that_is_gone_is_restored_too(store: AnnotationStore, file: DatabaseFile):
    backup = back_up(file)
    store.path.unlink()
    assert restore(file) == (backup, None)
    assert names(store) == ["cats", "eels"]


def test_a_backup_of_an_earlier_version_is_migrated_when_it_is_used(
    store: AnnotationStore, file: DatabaseFile, tmp_path: Path
):
    old = tmp_path / "old.duckdb"
    with duckdb.connect(str(old)) as connection:
        schema = Path(__file__).parent / f"schema_{SCHEMA_VERSION - 1}.sql"
        connection.execute(schema.read_text(encoding="utf-8"))
        connection.execute(f"INSERT INTO meta VALUES ('schema_version', '{SCHEMA_VERSION - 1}')")
    restore(file, old)
    assert names(AnnotationStore(store.path)) == []
    assert check(file).version == SCHEMA_VERSION


def newer_backup(store: AnnotationStore, file: DatabaseFile) -> Path:
    backup = back_up(file)
    with duckdb.connect(str(backup)) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    return backup


def damaged_backup(store: AnnotationStore, file: DatabaseFile) -> Path:
    with store.transaction() as tx:
        tx.execute(MANY_CLASSES)
    backup = back_up(file)
    damage_rows(backup)
    return backup


def foreign_file(store: AnnotationStore, file: DatabaseFile) -> Path:
    path = store.path.with_name("other.duckdb")
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 1 AS x")
    return path


def no_file(store: AnnotationStore, file: DatabaseFile) -> Path:
    back_up(file)
    return store.path.with_name("nothing.duckdb")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        pytest.param(newer_backup, StoreVersionError, "update labeling-pipeline", id="newer"),
        pytest.param(damaged_backup, StoreError, "cannot be restored.*Nothing was", id="damaged"),
        pytest.param(foreign_file, StoreError, "not an annotation store", id="no store"),
        pytest.param(no_file, StoreError, r"nothing\.duckdb; there are: /", id="no file"),
    ],
)
def test_what_cannot_be_restored_leaves_the_store_as_it_is(
    store: AnnotationStore,
    file: DatabaseFile,
    make: Callable[[AnnotationStore, DatabaseFile], Path],
    error: type[StoreError],
    message: str,
):
    backup = make(store, file)
    before = store.path.read_bytes()
    with pytest.raises(error, match=message):
        restore(file, backup)
    assert store.path.read_bytes() == before
    assert not [*store.path.parent.glob("*.new*"), *store.path.parent.glob("*.damaged*")]
    insert(store, "gnus")


RAW_HOLDER = """
import duckdb
connection = duckdb.connect(str(store.path))
print("holding", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("holder", [HOLDER, RAW_HOLDER], ids=["a store", "another program"])
def test_nothing_is_restored_while_somebody_writes(
    store: AnnotationStore, file: DatabaseFile, holder: str
):
    back_up(file)
    writer = start(store, holder)
    try:
        assert wait_for_line(writer) == "holding"
        with pytest.raises(StoreBusyError):
            restore(file)
    finally:
        writer.kill()
        writer.wait()
    restore(file)


# Checking


def test_a_sound_store_has_nothing_wrong_and_its_rows_counted(
    store: AnnotationStore, file: DatabaseFile
):
    condition = check(file)
    assert (condition.version, condition.problems) == (SCHEMA_VERSION, [])
    assert condition.size_bytes == store.path.stat().st_size
    assert condition.rows["classes"] == 2
    assert {"outcomes", "annotations", "generations", "corrections"} <= condition.rows.keys()


@pytest.mark.parametrize(
    ("table", "rows", "problem"),
    [
        ("outcomes", [OUTCOME, OUTCOME, OUTCOME], "outcomes: 2 rows have a key"),
        ("outcomes", [OUTCOME | {"generation_id": "g"}], "outcomes: 1 rows belong to a generation"),
        ("annotations", [ANNOTATION], "annotations: 1 rows belong to a generation"),
    ],
)
def test_rows_that_contradict_each_other_are_found(
    store: AnnotationStore, table: str, rows: list[dict[str, Any]], problem: str
):
    with store.transaction() as tx:
        tx.insert(table, rows)
    (found,) = problems(store)
    assert found.startswith(problem)


def test_damage_is_found_where_no_query_has_met_it(tmp_path: Path):
    store = AnnotationStore(tmp_path / "annotations.duckdb")
    with store.transaction() as tx:
        tx.execute(MANY_CLASSES)
    damage_rows(store.path)
    condition = check(DatabaseFile(store.path))
    assert any(problem.startswith("classes: ") for problem in condition.problems)
    assert "there is no backup to restore" in condition.problems[-1]
    assert "annotations" in condition.rows
    assert "classes" not in condition.rows


@pytest.mark.parametrize("work", [back_up, compact])
def test_a_damaged_file_becomes_no_backup_and_is_not_compacted(
    store: AnnotationStore, file: DatabaseFile, work: Callable[[DatabaseFile], Any]
):
    with store.transaction() as tx:
        tx.execute(MANY_CLASSES)
    damage_rows(store.path)
    damaged = store.path.read_bytes()
    with pytest.raises(StoreError, match="no backup to restore"):
        work(file)
    assert store.path.read_bytes() == damaged
    assert backups_of(store.path) == []
    assert not list(store.path.parent.rglob("*.new*"))


def test_a_newer_store_is_refused_and_not_judged(store: AnnotationStore, file: DatabaseFile):
    with store.transaction() as tx:
        tx.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    for work in (check, back_up, compact):
        with pytest.raises(StoreVersionError, match="update labeling-pipeline"):
            work(file)


@pytest.mark.parametrize("work", [back_up, compact, check, restore])
def test_where_there_is_no_store_none_is_made(tmp_path: Path, work: Callable[[DatabaseFile], Any]):
    file = DatabaseFile(tmp_path / "home" / "annotations.duckdb")
    with pytest.raises(StoreError, match=r"there is no store|no backup to restore"):
        work(file)
    assert list(tmp_path.iterdir()) == []


# From the command line


def verb(store: AnnotationStore, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["store", *arguments, "--home", str(store.path.parent)])
    return result.exit_code, result.output


def test_the_verbs_do_what_they_say(store: AnnotationStore):
    assert verb(store, "backup")[0] == 0
    (backup,) = backups_of(store.path)
    insert(store, "gnus")
    code, output = verb(store, "compact")
    assert (code, "MB before" in output) == (0, True)
    code, output = verb(store, "check")
    assert code == 0
    assert "Nothing is wrong" in output
    assert re.search(r"classes\W+3\b", output)
    code, output = verb(store, "restore", str(backup))
    assert code == 0
    assert "due again" in output
    assert names(store) == ["cats", "eels"]


def test_a_damaged_file_fails_the_check(store: AnnotationStore):
    store.path.write_bytes(b"nonsense" * 1000)
    code, output = verb(store, "check")
    assert code == 1
    assert "WRONG" in output
    code, output = verb(store, "restore")
    assert code == 1
    assert "StoreError" in output
