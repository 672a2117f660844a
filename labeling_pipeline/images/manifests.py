"""Manifests: files that say which image belongs to which class."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator

import pyarrow as pa

from labeling_pipeline.errors import ConfigurationError

_SCHEMA = pa.schema({"path": pa.string(), "class_name": pa.string()})


def read_manifest(name: str, data: bytes) -> pa.Table:
    """Read which image belongs to which class.

    Args:
        name: of the file: ``.csv`` with a header that names the columns ``path`` and ``class``, or
            ``.jsonl`` (``.ndjson``) with an object of these two keys in each line. Other columns
            and keys are passed over.
        data: its bytes, UTF-8.

    Returns:
        Columns ``path`` (relative to the root, in NFC) and ``class_name`` (NFC), one row a path.

    Raises:
        ConfigurationError: it is not that; names the file and the line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{name}:{line}: expected text in UTF-8") from error
    suffix = name.rpartition(".")[2].lower()
    if suffix not in ("csv", "jsonl", "ndjson"):
        raise ConfigurationError(
            f"{name}: expected a manifest that ends in .csv, .jsonl or .ndjson, got .{suffix}"
        )
    class_of: dict[str, str] = {}
    line_of: dict[str, int] = {}
    for line, path, class_name in (_csv_rows if suffix == "csv" else _jsonl_rows)(name, text):
        known = class_of.setdefault(path, class_name)
        if known != class_name:
            raise ConfigurationError(
                f"{name}:{line}: {path} belongs to {class_name!r} here and to {known!r} in line "
                f"{line_of[path]}; an image has one class"
            )
        line_of.setdefault(path, line)
    return pa.table([list(class_of), list(class_of.values())], schema=_SCHEMA)


def _csv_rows(name: str, text: str) -> Iterator[tuple[int, str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        columns = [header.index(column) for column in ("path", "class") if column in header]
        if len(columns) < 2:
            raise ConfigurationError(
                f"{name}:1: expected a header with the columns path and class, got "
                f"{','.join(header) or 'nothing'}"
            )
        for row in reader:
            if row:
                path, class_name = (row[i] if i < len(row) else None for i in columns)
                yield reader.line_num, *_checked(name, reader.line_num, path, class_name)
    except csv.Error as error:
        raise ConfigurationError(f"{name}:{reader.line_num}: expected CSV: {error}") from error


def _jsonl_rows(name: str, text: str) -> Iterator[tuple[int, str, str]]:
    # Not `splitlines`, which also ends lines at characters that may stand in a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigurationError(f"{name}:{number}: expected JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigurationError(f"{name}:{number}: expected an object, got {line[:80]}")
        yield number, *_checked(name, number, row.get("path"), row.get("class"))


def _checked(name: str, line: int, path: object, class_name: object) -> tuple[str, str]:
    for key, value in (("path", path), ("class", class_name)):
        if not isinstance(value, str) or not value.strip():
            raise ConfigurationError(f"{name}:{line}: expected a text as {key}, got {value!r}")
    relative = unicodedata.normalize("NFC", str(path)).removeprefix("./")
    if {"", ".", ".."} & set(relative.split("/")):
        raise ConfigurationError(
            f"{name}:{line}: expected a path relative to the images, with '/', got {path!r}"
        )
    return relative, unicodedata.normalize("NFC", str(class_name).strip())
