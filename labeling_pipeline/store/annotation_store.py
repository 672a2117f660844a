"""The DuckDB file that holds everything known of a dataset.

DuckDB lets one process write and then no other even read. So a connection lives for one query or
one transaction: compute first, then open, write, close. Writers queue on a side-car file lock;
readers open read-only and retry for a while, because a writer is gone in milliseconds.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa
from filelock import FileLock, Timeout
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from labeling_pipeline.errors import StoreBusyError, StoreError, StoreVersionError

SCHEMA_VERSION = 2
_SCHEMA = Path(__file__).parent / "schema.sql"

# Forward migrations: MIGRATIONS[n] takes a file from version n to n + 1.
MIGRATIONS: dict[int, str] = {
    1: """
    ALTER TABLE generations ADD COLUMN follows VARCHAR;
    ALTER TABLE generations ADD COLUMN crop_px INTEGER[];
    ALTER TABLE generations ADD COLUMN region VARCHAR;
    ALTER TABLE annotations ADD COLUMN answered_in VARCHAR;
    UPDATE annotations SET answered_in = generation_id;
    """,
}

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

    def query(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """Run one read-only statement.

        Raises:
            StoreBusyError: a writer held the file for longer than ``busy_timeout_s``.
            StoreError: the file is damaged.
        """
        self._prepare()
        connection = self._connect(read_only=True)
        try:
            with self._damage_named():
                return connection.execute(sql, list(params)).to_arrow_table()
        finally:
            connection.close()

    @contextmanager
    def transaction(self, *, threads: int | None = None) -> Iterator["Transaction"]:
        """One transaction: committed at the end of the block, rolled back if it raises.

        threads: of DuckDB; by default one a core. A few rows need one, and it leaves the cores to
            whoever works beside them.

        Raises:
            StoreBusyError: other processes held the file for longer than ``busy_timeout_s``.
            StoreError: the file is damaged, or the disk is full.
        """
        self._prepare()
        with self._locked():
            connection = self._connect(read_only=False, threads=threads)
            try:
                with self._damage_named():
                    connection.begin()
                    yield Transaction(connection, self._table_schemas)
                    connection.commit()
            finally:
                # An open transaction is rolled back by closing.
                connection.close()

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

    def _connect(self, *, read_only: bool, threads: int | None = None) -> duckdb.DuckDBPyConnection:
        config = {} if threads is None else {"threads": threads}
        attempts = Retrying(
            retry=retry_if_exception(_is_held_elsewhere),
            wait=wait_random(0.005, 0.05),
            stop=stop_after_delay(self.busy_timeout_s),
            reraise=True,
        )
        try:
            return attempts(duckdb.connect, str(self.path), read_only=read_only, config=config)
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
        connection = self._connect(read_only=True)
        try:
            version = _version(connection, self.path)
        finally:
            connection.close()
        if version > SCHEMA_VERSION:
            raise StoreVersionError(
                f"{self.path} has schema version {version}, this package knows up to "
                f"{SCHEMA_VERSION}: update labeling-pipeline"
            )
        while version < SCHEMA_VERSION:
            connection = self._connect(read_only=False)
            try:
                connection.begin()
                connection.execute(MIGRATIONS[version])
                version += 1
                connection.execute(
                    "UPDATE meta SET value = ? WHERE key = 'schema_version'", [str(version)]
                )
                connection.commit()
            finally:
                connection.close()


class Transaction:
    """What can be done while the store is open for writing."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, table_schemas: dict[str, pa.Schema]
    ) -> None:
        self._connection = connection
        self._table_schemas = table_schemas

    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        """Run one statement."""
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
        if replace:
            conflict = self._update_clause(table, data.column_names)
        self._connection.register("incoming", data)
        try:
            self._connection.execute(
                f"INSERT INTO {table} ({columns}) SELECT {columns} FROM incoming {conflict}"
            )
        finally:
            self._connection.unregister("incoming")

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
