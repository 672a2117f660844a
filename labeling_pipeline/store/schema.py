"""The version of the store's schema, and how a file comes to it."""

from contextlib import suppress
from pathlib import Path

import duckdb

from labeling_pipeline.errors import StoreError, StoreVersionError

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


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Make an empty database a store."""
    connection.execute(_SCHEMA.read_text(encoding="utf-8"))
    connection.execute("INSERT INTO meta VALUES ('schema_version', ?)", [str(SCHEMA_VERSION)])


def version_of(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """The schema version of the store at ``path``, that ``connection`` has open.

    Raises:
        StoreVersionError: it is newer than what this package knows.
        StoreError: this is no store.
    """
    row = None
    with suppress(duckdb.CatalogException):
        row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    if row is None:
        raise StoreError(
            f"{path} is a DuckDB file but not an annotation store (it says no schema version): "
            "choose another home, or move the file away"
        )
    version = int(row[0])
    if version > SCHEMA_VERSION:
        raise StoreVersionError(
            f"{path} has schema version {version}, this package knows up to {SCHEMA_VERSION}: "
            "update labeling-pipeline"
        )
    return version


def migrate(connection: duckdb.DuckDBPyConnection, version: int) -> None:
    """Bring a store of an earlier version to the current one, all steps or none."""
    connection.begin()
    for step in range(version, SCHEMA_VERSION):
        migration = _MIGRATIONS / f"{step}_to_{step + 1}.sql"
        connection.execute(migration.read_text(encoding="utf-8"))
    connection.execute(
        "UPDATE meta SET value = ? WHERE key = 'schema_version'", [str(SCHEMA_VERSION)]
    )
    connection.commit()
