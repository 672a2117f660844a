"""What is done to a store file as a whole: backups, compaction, restoring, checking.

A copy is DuckDB's own: it reads every block, so that a damaged file is noticed and never becomes a
backup, and it leaves behind the room that deleted and rewritten rows took.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import duckdb

from labeling_pipeline.errors import StoreBusyError, StoreError, StoreVersionError
from labeling_pipeline.store.database_file import (
    DatabaseFile,
    backups_of,
    draft_of,
    how_to_restore,
    log_of,
    remove,
    set_aside,
    utc_stamp,
)
from labeling_pipeline.store.schema import KEYS, SCHEMA_VERSION, version_of

_Answer = TypeVar("_Answer")

KEEP = 3
"""How many backups of a store are kept."""


def back_up(file: DatabaseFile, keep: int = KEEP) -> Path:
    """Write a backup of a store; of all its backups only the newest ``keep`` stay.

    Writers wait meanwhile. Returns its path.

    Raises:
        StoreError: there is no store, it is damaged, or there is no room for the backup.
    """
    _must_exist(file)
    folder = file.path.parent / "backups"
    backup = folder / f"{file.path.stem}-{utc_stamp()}{file.path.suffix}"
    with file.locked(), file.errors_explained():
        folder.mkdir(exist_ok=True)
        for left in folder.glob(f"{file.path.stem}-*.new"):
            remove(left)
        with draft_of(backup) as draft:
            _copy(file, draft)
        for old in backups_of(file.path)[keep:]:
            remove(old)
    return backup


def compact(file: DatabaseFile) -> tuple[int, int]:
    """Put a copy without waste in place of a store; returns the size in bytes before and after.

    Writers wait meanwhile, and readers at the end for a moment. Killed at any time, it leaves the
    old file or the new one.

    Raises:
        StoreError: there is no store, it is damaged, or there is no room for the copy.
    """
    _must_exist(file)
    with file.locked(), file.errors_explained():
        with file.opened(read_only=False) as connection:
            connection.execute("CHECKPOINT")
        before = file.path.stat().st_size
        with ExitStack() as held, draft_of(file.path) as draft:
            _copy(file, draft)
            # Held until the copy is in place: nobody goes on reading the old file and takes the
            # log of the new one for its own.
            held.enter_context(file.opened(read_only=False))
            if log_of(file.path).exists():
                raise StoreError(
                    f"{file.path} was written by a program that does not heed {file.path.name}.lock"
                    ": close it and compact again"
                )
        return before, file.path.stat().st_size


def restore(file: DatabaseFile, backup: Path | None = None) -> tuple[Path, Path | None]:
    """Put a backup in place of a store. backup: default the newest.

    Returns which backup, and where the file that was there lies now, if there was one.

    Raises:
        StoreBusyError: somebody is writing to the store.
        StoreVersionError: the backup is newer than this package.
        StoreError: there is no such backup, it is damaged, or there is no room for a copy.
    """
    backups = backups_of(file.path)
    backup = backup or next(iter(backups), None)
    known = ", ".join(str(one) for one in backups) or "none"
    if backup is None or not backup.is_file():
        raise StoreError(
            f"{file.path}: no backup to restore{f' at {backup}' if backup else ''}; there are: "
            f"{known}. Without one, move the damaged file away and label again"
        )
    with file.locked(timeout_s=0), file.errors_explained():
        _refuse_if_held(file)
        with draft_of(file.path) as draft:
            try:
                _copy(DatabaseFile(backup), draft)
            except (StoreBusyError, StoreVersionError):
                raise
            except StoreError as error:
                raise StoreError(
                    f"{backup} cannot be restored: {error}. Nothing was changed; there are: {known}"
                ) from error
            aside = set_aside(file.path)
    return backup, aside


@dataclass
class Condition:
    """What a store file holds and what is wrong with it.

    version: ``None`` if it could not be read. rows: table -> rows, of what could be read.
    """

    size_bytes: int
    version: int | None = None
    rows: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def check(file: DatabaseFile) -> Condition:
    """Read everything in a store and say what is wrong. Writes nothing and needs no lock.

    Raises:
        StoreBusyError: others held the file all the time.
        StoreVersionError: the file is newer than this package, or than the DuckDB beside it.
        StoreError: there is no store.
    """
    _must_exist(file)
    condition = Condition(file.path.stat().st_size)
    damaged = False

    def read(what: str, ask: Callable[[duckdb.DuckDBPyConnection], _Answer]) -> _Answer | None:
        # Each on its own: after damage DuckDB answers nothing more about the file.
        nonlocal damaged
        try:
            with file.opened(read_only=True) as connection:
                return ask(connection)
        except (StoreBusyError, StoreVersionError):
            raise
        except StoreError as error:
            damaged |= error.__cause__ is not None
            condition.problems.append(f"{what}: {error.__cause__ or error}")
            return None

    condition.version = read("schema version", partial(version_of, path=file.path))
    tables = "SELECT table_name FROM duckdb_tables() ORDER BY ALL"
    for table in read("list of tables", partial(_column, sql=tables)) or []:
        # Of every value, so that every block is read and its checksum compared.
        everything = (
            f"SELECT n FROM (SELECT count(*) AS n, bit_xor(hash(t)) AS all_values FROM {table} t) "
            "WHERE all_values IS NOT NULL OR n = 0"
        )
        for rows in read(table, partial(_column, sql=everything)) or []:
            condition.rows[table] = rows
    if damaged:
        condition.problems.append(f"the file is damaged: {how_to_restore(file.path)}")
    elif condition.version == SCHEMA_VERSION:
        condition.problems += read("keys", _contradictions) or []
    return condition


def _contradictions(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """What no damage of the disk explains: rows written twice, or without what they belong to."""
    problems = []
    for table, key in KEYS.items():
        (extra,) = _column(
            connection,
            "SELECT coalesce(sum(n - 1), 0)::BIGINT FROM "
            f"(SELECT count(*) AS n FROM {table} GROUP BY {', '.join(key)} HAVING n > 1)",
        )
        if extra:
            problems.append(f"{table}: {extra} rows have a key that another row has, too")
    for table in ("outcomes", "annotations"):
        (lost,) = _column(
            connection,
            f"SELECT count(*) FROM {table} ANTI JOIN generations USING (generation_id) "
            "WHERE generation_id IS NOT NULL",
        )
        if lost:
            problems.append(f"{table}: {lost} rows belong to a generation that is not there")
    return problems


def _must_exist(file: DatabaseFile) -> None:
    if not file.path.exists():
        raise StoreError(
            f"there is no store at {file.path}: name the home that has one, with --home or "
            "LABELING_HOME"
        )


def _copy(file: DatabaseFile, target: Path) -> None:
    """Write all that a store holds into a new database."""
    with file.opened(read_only=True) as connection:
        version_of(connection, file.path)
        (source,) = _column(connection, "SELECT current_database()")
        name = str(target.resolve()).replace("'", "''")
        connection.execute(f"ATTACH '{name}' AS {source}_copy")
        try:
            connection.execute(f"COPY FROM DATABASE {source} TO {source}_copy")
        finally:
            with suppress(duckdb.TransactionException):
                connection.rollback()
            connection.execute(f"DETACH {source}_copy")


def _refuse_if_held(file: DatabaseFile) -> None:
    """Raise ``StoreBusyError`` if a program writes to a file without the writers' lock."""
    if not file.path.exists():
        return
    at_once = DatabaseFile(file.path, busy_timeout_s=0)
    try:
        with at_once.opened(read_only=True):
            pass
    except StoreBusyError:
        raise
    except StoreError:
        # Damaged: what a backup is restored for.
        return


def _column(connection: duckdb.DuckDBPyConnection, sql: str) -> list:
    return [value for (value,) in connection.execute(sql).fetchall()]
