"""The DuckDB file that holds everything known of a dataset.

DuckDB lets one process write and then no other even read. So a file is held for one query or one
transaction: compute first, then open, write, close. Writers queue on a side-car file lock; readers
open read-only and retry for a while, because a writer is gone in milliseconds.

Starting DuckDB costs more than opening a file with it. So it is started once a process, and files
are attached to it and detached again.
"""

import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import duckdb
import pyarrow as pa
from filelock import FileLock, Timeout
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from labeling_pipeline.errors import StoreBusyError, StoreError, StoreVersionError

SCHEMA_VERSION = 4
_SCHEMA = Path(__file__).parent / "schema.sql"
_MIGRATIONS = Path(__file__).parent / "migrations"
"""``<n>_to_<n + 1>.sql``: forward migrations, with the tables as those versions had them."""

KEYS = {
    "generations": ("generation_id",),
    "outcomes": ("image_id", "entry", "class", "model_key", "attempt", "parser_version"),
    "annotations": ("annotation_id",),
}
"""Keys of the tables that have no index, see ``schema.sql``."""

Rows: TypeAlias = pa.Table | Sequence[Mapping[str, Any]]


class AnnotationStore:
    """One store file. Cheap to construct; opens the file only while it is read or written.

    busy_timeout_s: how long to wait for other processes before ``StoreBusyError``.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float = 60.0) -> None:
        self.path = Path(path)
        self.busy_timeout_s = busy_timeout_s
        self._lock = FileLock(f"{self.path}.lock")
        self._ready = False
        self._table_schemas: dict[str, pa.Schema] = {}

    def query(
        self, sql: str, params: Sequence[Any] = (), tables: Mapping[str, pa.Table] | None = None
    ) -> pa.Table:
        """Run one read-only statement.

        tables: what it may read besides the store, by name.

        Raises:
            StoreBusyError: a writer held the file for longer than ``busy_timeout_s``.
            StoreError: the file is damaged.
        """
        self._prepare()
        with (
            self._opened(read_only=True) as connection,
            self._damage_named(),
            _registered(connection, tables or {}),
        ):
            return connection.execute(sql, list(params)).to_arrow_table()

    @contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """One transaction: committed at the end of the block, rolled back if it raises.

        Raises:
            StoreBusyError: other processes held the file for longer than ``busy_timeout_s``.
            StoreError: the file is damaged, or the disk is full.
        """
        self._prepare()
        with (
            self._locked(),
            self._opened(read_only=False) as connection,
            self._damage_named(),
        ):
            connection.begin()
            yield Transaction(connection, self._table_schemas)
            connection.commit()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with self._lock.acquire(timeout=self.busy_timeout_s):
                yield
        except Timeout as error:
            raise StoreBusyError(
                f"{self.path}: another process has been writing for over {self.busy_timeout_s:.0f} "
                "s; wait for it, or find it and end it"
            ) from error

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        # Checksums of blocks are compared when the blocks are read, not when the file is opened.
        try:
            yield
        except (duckdb.IOException, duckdb.InternalException, duckdb.FatalException) as error:
            raise StoreError(
                f"{self.path} could not be read or written: {error}. If the file is damaged, move "
                "it away and restore a backup, or label again"
            ) from error

    @contextmanager
    def _opened(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that has the file; what was not committed is rolled back at its end."""
        attempts = Retrying(
            retry=retry_if_exception(_is_held_elsewhere),
            wait=wait_random(0.005, 0.05),
            stop=stop_after_delay(self.busy_timeout_s),
            reraise=True,
        )
        try:
            file = attempts(_AttachedFile, self.path, read_only=read_only)
        except duckdb.Error as error:
            if _is_held_elsewhere(error):
                raise StoreBusyError(
                    f"{self.path}: held by another process for over {self.busy_timeout_s:.0f} s. "
                    f"Close other programs that have it open ({error})"
                ) from error
            raise StoreError(
                f"{self.path} could not be opened: {error}. If the file is damaged, move it away "
                "and restore a backup, or label again"
            ) from error
        try:
            yield file.connection
        finally:
            with self._damage_named():
                file.close()

    def _prepare(self) -> None:
        """Create the file, or check and migrate its schema; once per store object."""
        if self._ready and self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if not self.path.exists():
                self._create()
            self._migrate()
        self._ready = True

    def _create(self) -> None:
        # Under another name until the schema is in, so that nobody ever sees half a store.
        draft = self.path.with_name(self.path.name + ".new")
        draft.unlink(missing_ok=True)
        connection = duckdb.connect(str(draft))
        try:
            connection.execute(_SCHEMA.read_text(encoding="utf-8"))
            connection.execute(
                "INSERT INTO meta VALUES ('schema_version', ?)", [str(SCHEMA_VERSION)]
            )
        finally:
            connection.close()
        draft.rename(self.path)

    def _migrate(self) -> None:
        with self._opened(read_only=True) as connection, self._damage_named():
            version = _version(connection, self.path)
        if version > SCHEMA_VERSION:
            raise StoreVersionError(
                f"{self.path} has schema version {version}, this package knows up to "
                f"{SCHEMA_VERSION}: update labeling-pipeline"
            )
        while version < SCHEMA_VERSION:
            with self._opened(read_only=False) as connection:
                connection.begin()
                migration = _MIGRATIONS / f"{version}_to_{version + 1}.sql"
                connection.execute(migration.read_text(encoding="utf-8"))
                version += 1
                connection.execute(
                    "UPDATE meta SET value = ? WHERE key = 'schema_version'", [str(version)]
                )
                connection.commit()


@contextmanager
def one_thread() -> Iterator[None]:
    """DuckDB takes one core of this process. A few rows need no more, and a model that runs beside
    their writing needs the others."""
    engine = _Engine.present()
    with engine.connection.cursor() as connection:
        connection.execute("SET threads = 1")
        try:
            yield
        finally:
            # One that died meanwhile has been replaced, and has no threads left.
            with suppress(duckdb.Error):
                connection.execute("RESET threads")


class _Engine:
    """The process's DuckDB, to which files are attached."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.connection = duckdb.connect(":memory:")
        self.aliases = itertools.count()

    _present: "_Engine | None" = None
    _inherited: ClassVar[list["_Engine"]] = []
    _starting = threading.Lock()

    @classmethod
    def present(cls) -> "_Engine":
        """The one of this process: a fork starts its own."""
        with cls._starting:
            if cls._present is not None and cls._present.process != os.getpid():
                # Never closed here: what it had open when the process forked is the parent's.
                cls._inherited.append(cls._present)
                cls._present = None
            if cls._present is None:
                cls._present = cls()
            return cls._present

    def give_up(self) -> None:
        """A DuckDB that met an internal error answers nothing any more."""
        with self._starting:
            if _Engine._present is self:
                _Engine._present = None


class _AttachedFile:
    """A file attached to the process's DuckDB, under a name of its own.

    Raises:
        duckdb.Error: the file is held elsewhere, is no database or is damaged.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._engine = _Engine.present()
        self._alias = f"store_{next(self._engine.aliases)}"
        self.connection = self._engine.connection.cursor()
        name = str(path.resolve()).replace("'", "''")
        try:
            self.connection.execute(
                f"ATTACH '{name}' AS {self._alias} (READ_ONLY {'true' if read_only else 'false'})"
            )
            self.connection.execute(f"USE {self._alias}")
        except BaseException:
            self._discard()
            raise

    def close(self) -> None:
        """Roll back what was not committed, and let the file go."""
        try:
            with suppress(duckdb.TransactionException):
                self.connection.rollback()
            self.connection.execute("USE memory")
            self.connection.execute(f"DETACH {self._alias}")
        except duckdb.Error:
            self._engine.give_up()
            raise
        finally:
            self.connection.close()

    def _discard(self) -> None:
        try:
            self.connection.execute("USE memory")
            self.connection.execute(f"DETACH DATABASE IF EXISTS {self._alias}")
        except duckdb.Error:
            self._engine.give_up()
        finally:
            self.connection.close()


class Transaction:
    """What can be done while the store is open for writing."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, table_schemas: dict[str, pa.Schema]
    ) -> None:
        self._connection = connection
        self._table_schemas = table_schemas

    def execute(
        self, sql: str, params: Sequence[Any] = (), tables: Mapping[str, pa.Table] | None = None
    ) -> None:
        """Run one statement. tables: what it may read besides the store, by name."""
        with _registered(self._connection, tables or {}):
            self._connection.execute(sql, list(params))

    def query(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """Run one statement and return its rows."""
        return self._connection.execute(sql, list(params)).to_arrow_table()

    def insert(
        self, table: str, rows: Rows, *, replace: bool = False, skip_existing: bool = False
    ) -> None:
        """Append rows, set-based. Columns that are not given take their defaults.

        replace: update the given columns where the primary key exists already.
        skip_existing: leave rows whose primary key exists already as they are; a replay of the
            same rows then changes nothing.
        """
        data = rows if isinstance(rows, pa.Table) else self._to_arrow(table, rows)
        if data.num_rows == 0:
            return
        columns = ", ".join(f'"{name}"' for name in data.column_names)
        conflict = "ON CONFLICT DO NOTHING" if skip_existing else ""
        if skip_existing and table in KEYS:
            conflict = f"ANTI JOIN {table} USING ({', '.join(KEYS[table])})"
        if replace:
            conflict = self._update_clause(table, data.column_names)
        self.execute(
            f"INSERT INTO {table} ({columns}) SELECT {columns} FROM incoming {conflict}",
            tables={"incoming": data},
        )

    def _to_arrow(self, table: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Types come from the table, so that a column of nothing but NULL still has one."""
        if not rows:
            return pa.table({})
        schema = self._table_schemas.get(table)
        if schema is None:
            empty = self._connection.execute(f"SELECT * FROM {table} LIMIT 0")
            schema = self._table_schemas[table] = empty.to_arrow_table().schema
        fields = [schema.field(name) for name in rows[0]]
        return pa.Table.from_pylist([dict(row) for row in rows], schema=pa.schema(fields))

    def _update_clause(self, table: str, columns: Sequence[str]) -> str:
        keys = self._connection.execute(
            "SELECT unnest(constraint_column_names) FROM duckdb_constraints() "
            "WHERE table_name = ? AND constraint_type = 'PRIMARY KEY'",
            [table],
        ).fetchall()
        key_names = [name for (name,) in keys]
        updates = ", ".join(f'"{c}" = excluded."{c}"' for c in columns if c not in key_names)
        target = ", ".join(key_names)
        return f"ON CONFLICT ({target}) DO " + (f"UPDATE SET {updates}" if updates else "NOTHING")


@contextmanager
def _registered(
    connection: duckdb.DuckDBPyConnection, tables: Mapping[str, pa.Table]
) -> Iterator[None]:
    """SQL finds the tables under their names."""
    for name, table in tables.items():
        connection.register(name, table)
    try:
        yield
    finally:
        for name in tables:
            connection.unregister(name)


def _version(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    try:
        row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    except duckdb.CatalogException as error:
        raise StoreError(
            f"{path} is a DuckDB file but not an annotation store (it has no table meta): choose "
            "another home, or move the file away"
        ) from error
    return int(row[0]) if row else 0


def _is_held_elsewhere(error: BaseException) -> bool:
    """Whether opening failed only because another connection holds the file just now."""
    if isinstance(error, duckdb.ConnectionException):
        return "different configuration" in str(error)
    if isinstance(error, duckdb.BinderException):
        # Another thread of this process is just opening or closing it.
        return "already attached" in str(error)
    # The whole phrase: damaged files are reported by "block", and paths may hold any word.
    return isinstance(error, duckdb.IOException) and "could not set lock" in str(error).lower()
