"""The sheet that a reviewer fills in: a CSV, as spreadsheet programs write and mangle it.

One row stands for a picture and a label. Nobody needs to touch any column but ``wrong`` (numbers of
the wrong boxes, ``none`` or ``all``), ``missed`` (how many things have no box) and ``note``.

Excel takes a file for UTF-8 only with a byte order mark, and saves it in the separator and often
in the encoding of its country: all that is understood, and the separator is kept. Names of rows
begin with a letter, or some would be taken for numbers. What begins like a formula gets an
apostrophe before it, since paths and labels come from elsewhere.
"""

import codecs
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labeling_pipeline.errors import AuditError
from labeling_pipeline.export.corrections_json import listed

COLUMNS = ("item", "picture", "path", "label", "shown", "wrong", "missed", "note")
_NONE, _ALL = ("none", "0"), "all"


@dataclass(frozen=True)
class Verdict:
    """What a reviewer says of a row: numbers of the wrong boxes, from 1, and how much has none."""

    wrong: tuple[int, ...]
    missed: int


@dataclass(frozen=True)
class SheetRow:
    """One row.

    shown: how many boxes the picture shows. wrong, missed, note: as they were written.
    more: what else a reviewer has beside it, by the name of the column.
    """

    item: str
    picture: str
    path: str
    label: str
    shown: int
    wrong: str = ""
    missed: str = ""
    note: str = ""
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_checked(self) -> bool:
        """Whether it has a verdict."""
        return bool(self.wrong or self.missed)

    @property
    def is_filled(self) -> bool:
        """Whether a reviewer wrote anything."""
        return bool(self.wrong or self.missed or self.note or any(self.more.values()))

    def verdict(self) -> Verdict:
        """What is written, understood. What is left empty is none.

        Raises:
            ValueError: it cannot be; says what was expected and what came.
        """
        return Verdict(self._wrong(), self._missed())

    def _wrong(self) -> tuple[int, ...]:
        written = self.wrong.casefold()
        if not written or written in _NONE:
            return ()
        if written == _ALL:
            return tuple(range(1, self.shown + 1))
        pieces = [piece for piece in re.split(r"[\s,;]+", written) if piece]
        numbers = {int(piece) for piece in pieces if piece.isdecimal()}
        if not all(map(str.isdecimal, pieces)) or not numbers <= set(range(1, self.shown + 1)):
            several = f"none, all, or numbers from 1 to {self.shown} with spaces between"
            expected = {0: "none, for nothing is shown", 1: "none or 1"}.get(self.shown, several)
            raise ValueError(f"wrong: expected {expected}, got {self.wrong!r}")
        return tuple(sorted(numbers))

    def _missed(self) -> int:
        if self.missed.casefold() in ("", *_NONE):
            return 0
        if not self.missed.isdecimal():
            raise ValueError(f"missed: expected how many, as 0 or 2, got {self.missed!r}")
        return int(self.missed)


@dataclass(frozen=True)
class Sheet:
    """A sheet as it was found. lines: item -> line of the file. separator: between its columns."""

    rows: tuple[SheetRow, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict)
    separator: str = ","


def read_sheet(path: Path) -> Sheet:
    """Read a sheet; one that does not exist has no rows.

    Raises:
        AuditError: names the file, the lines, what was expected and what came.
    """
    if not path.exists():
        return Sheet()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AuditError(f"{path}: expected the sheet of an audit, but {error.strerror}") from error
    lines = io.StringIO(_decoded(path, content), newline="")
    first = lines.readline()
    separator = max(",;\t", key=first.count)
    header = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise AuditError(
            f"{path}:1: expected the columns {', '.join(COLUMNS)}, got none called "
            f"{', '.join(missing)}: put them back, or move the file away and draw the sample again"
        )
    rows: dict[str, SheetRow] = {}
    where: dict[str, int] = {}
    problems: list[str] = []
    reader = csv.reader(lines, delimiter=separator)
    for cells in reader:
        line = reader.line_num + 1
        if not any(map(str.strip, cells)):
            continue
        try:
            row = _row(header, cells)
            row.verdict()
            if rows.get(row.item, row) != row:
                raise ValueError(
                    f"item: expected every row once, got {row.item} again, with something else "
                    f"than on line {where[row.item]}"
                )
            rows[row.item], where[row.item] = row, line
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
    if problems:
        raise AuditError(listed(problems))
    return Sheet(tuple(rows.values()), where, separator)


def _decoded(path: Path, content: bytes) -> str:
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise AuditError(
            f"{path}: expected text in UTF-8, got another encoding: save it as CSV UTF-8"
        ) from None


def _row(header: Sequence[str], cells: Sequence[str]) -> SheetRow:
    """Raises ValueError, saying what was expected and what came."""
    if any(map(str.strip, cells[len(header) :])):
        raise ValueError(
            f"expected {len(header)} columns, got {len(cells)}: quote what holds the separator"
        )
    named = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    given = {name: named.get(name, "") for name in COLUMNS}
    if not given["item"]:
        raise ValueError("item: expected the name of the row, got nothing")
    if not given["shown"].isdecimal():
        raise ValueError(f"shown: expected the number as it was written, got {given['shown']!r}")
    more = {name: cell for name, cell in named.items() if name and name not in COLUMNS}
    return SheetRow(**(given | {"shown": int(given["shown"])}), more=more)  # type: ignore[arg-type]


def sheet_cells(rows: Sequence[SheetRow]) -> list[list[str]]:
    """The names of the columns, then the cells of each row."""
    more = list(dict.fromkeys(name for row in rows for name in row.more))
    cells = [
        [
            *(row.item, row.picture, no_formula(row.path), no_formula(row.label), str(row.shown)),
            *(row.wrong, row.missed, row.note, *(row.more.get(name, "") for name in more)),
        ]
        for row in rows
    ]
    return [[*COLUMNS, *more], *cells]


def sheet_bytes(rows: Sequence[SheetRow], separator: str = ",") -> bytes:
    """A sheet with these rows."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(sheet_cells(rows))
    return text.getvalue().encode("utf-8-sig")


def no_formula(text: str) -> str:
    """Text that no spreadsheet program takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
