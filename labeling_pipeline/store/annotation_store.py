"""The DuckDB file that holds everything known of a dataset."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa

from labeling_pipeline.store.database_file import (
    DatabaseFile,
    Engine,
    draft_of,
    set_aside,
)
from labeling_pipeline.store.maintenance import back_up
from labeling_pipeline.store.schema import (
    KEYS,
    SCHEMA_VERSION,
    create_tables,
    migrate,
    version_of,
)

Rows: TypeAlias = pa.Table | Sequence[Mapping[str, Any]]
log = logging.getLogger(__name__)


class AnnotationStore:
    """One store file. Cheap to construct; opens the file only while it is read or written.

    busy_timeout_s: how long to wait for other processes before ``StoreBusyError``.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float = 60.0) -> None:
        self.path = Path(path)
        self._file = DatabaseFile(path, busy_timeout_s=busy_timeout_s)
        self._ready = False
        self._table_schemas: dict[str, pa.Schema] = {}

    @property
    def state(self) -> tuple[Any, ...]:
        """Another one after every write, by whichever process."""
        return self._file.state

    def query(
        self, sql: str, params: Sequence[Any] = (), tables: Mapping[str, pa.Table] | None = None
    ) -> pa.Table:
        """Run one read-only statement.

        tables: what it may read besides the store, by name.

        Raises:
            StoreBusyError: a writer held the file for longer than ``busy_timeout_s``.
            StoreError: the file is damaged, or may not be read.
        """
        self._prepare()
        with (
            self._file.opened(read_only=True) as connection,
            _registered(connection, tables or {}),
        ):
            return connection.execute(sql, list(params)).to_arrow_table()

    @contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """One transaction: committed at the end of the block, rolled back if it raises.

        Raises:
            StoreBusyError: other processes held the file for longer than ``busy_timeout_s``.
            StoreError: the file is damaged or may not be written, or the disk is full.
        """
        self._prepare()
        started = time.perf_counter()
        with self._file.locked(), self._file.opened(read_only=False) as connection:
            waited_s = time.perf_counter() - started
            log.debug("waited %.3f s to write", waited_s, extra={"waited_s": waited_s})
            connection.begin()
            yield Transaction(connection, self._table_schemas)
            connection.commit()

    def _prepare(self) -> None:
        """Create the file, or check and migrate its schema; once per store object."""
        exists = self.path.exists()
        if self._ready and exists:
            return
        # Who only reads an up-to-date file needs no lock, and no right to write beside it.
        if not exists or self._version() < SCHEMA_VERSION:
            with self._file.locked():
                if not self.path.exists():
                    self._create()
                self._migrate()
        self._ready = True

    def _create(self) -> None:
        # A log without its file would be taken for the new one's.
        set_aside(self.path)
        with self._file.errors_explained(), draft_of(self.path) as draft:
            connection = duckdb.connect(str(draft))
            try:
                create_tables(connection)
            finally:
                connection.close()

    def _migrate(self) -> None:
        version = self._version()
        if version < SCHEMA_VERSION:
            back_up(self._file)
            with self._file.opened(read_only=False) as connection:
                migrate(connection, version)

    def _version(self) -> int:
        with self._file.opened(read_only=True) as connection:
            return version_of(connection, self.path)


@contextmanager
def one_thread() -> Iterator[None]:
    """DuckDB takes one core of this process. A few rows need no more, and a model that runs beside
    their writing needs the others."""
    engine = Engine.present()
    with engine.connection.cursor() as connection:
        connection.execute("SET threads = 1")
        try:
            yield
        finally:
            # One that died meanwhile has been replaced, and has no threads left.
            with suppress(duckdb.Error):
                connection.execute("RESET threads")


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
