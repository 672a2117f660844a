"""What people have judged already, of what the review queue would show them.

A correction settles what an entry says of an image, an audited row what it says of a label on it,
and a mark in the queue the whole image: until its labels are others than those that were looked at.

A mark is any word in the column ``reviewed`` of ``queue.csv``. Each time the queue is made anew the
marks move to ``reviewed.csv``, which nothing ever takes a row from.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.export.audit_sheet import no_formula
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.home import Home
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.audit import checked_pairs
from labeling_pipeline.store.annotation_store import AnnotationStore

QUEUE, REVIEWED = "queue.csv", "reviewed.csv"
MARK_COLUMNS = ["image_id", "answers", "reviewed", "path"]

_DELIMITERS = ",;\t"


def settled(
    doubts: pd.DataFrame,
    images: pd.DataFrame,
    store: AnnotationStore,
    plan: Plan,
    home: Home,
) -> np.ndarray:
    """Which doubts a person has settled.

    Args:
        doubts: ``image_id, entry, label``.
        images: ``answers``: what stands for the labels of today, see
            ``MARK_COLUMNS``; index: image id.
        store: its corrections count.
        plan: of its entries verdicts count.
        home: the files in its reports count.

    Returns:
        (n,) bool.

    Raises:
        AuditError, ConfigurationError: a file that people fill in cannot be read; says which and
            why.
    """
    corrected = store.query("SELECT DISTINCT image_id, entry FROM corrections").to_pandas()
    audited = pd.DataFrame(
        sorted(checked_pairs(plan, home)), columns=["entry", "image_id", "label"]
    )
    marks = read_marks(review_folder(home))
    looked_at = marks[marks["answers"] == marks["image_id"].map(images["answers"])]
    return (
        _are_among(doubts, corrected, ["image_id", "entry"])
        | _are_among(doubts, audited, ["entry", "image_id", "label"])
        | _are_among(doubts, looked_at, ["image_id"])
    )


def review_folder(home: Home) -> Path:
    """Where the queue and its pictures lie."""
    return home.reports / "review"


def read_marks(folder: Path) -> pd.DataFrame:
    """The marks that people have set so far, in the queue and before: ``MARK_COLUMNS``, each once.

    folder: of the review.

    Raises:
        ConfigurationError: a file has not the columns of a queue.
    """
    rows = [
        row
        for name in (REVIEWED, QUEUE)
        for row in _filled_in(folder / name, MARK_COLUMNS)
        if row["reviewed"]
    ]
    marks = pd.DataFrame(rows, columns=MARK_COLUMNS)
    # What was said first stays, whatever else the line says by now.
    return marks.drop_duplicates(["image_id", "answers"], ignore_index=True)


def write_marks(folder: Path, marks: pd.DataFrame) -> None:
    """Keep the marks, in a file that spreadsheets open."""
    if len(marks):
        write_sheet(folder / REVIEWED, marks.sort_values(["path", "answers"]))


def write_sheet(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file that a spreadsheet takes for what it is, if it has changed.

    Texts that it would take for a formula get an apostrophe: paths and labels come from elsewhere.
    """
    texts = table.select_dtypes(exclude="number")
    table = table.assign(**{n: texts[n].map(no_formula, na_action="ignore") for n in texts})
    # Rounded, because a number that is formatted would be quoted as a text.
    text = table.round(4).to_csv(index=False, lineterminator="\r\n", quoting=csv.QUOTE_NONNUMERIC)
    write_if_changed(path, text.encode("utf-8-sig"))


def _filled_in(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a file that was perhaps saved by a spreadsheet, which chooses its own delimiter and
    encoding; stripped texts. No file, no rows."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    header = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise ConfigurationError(
            f"{path}: expected the columns {', '.join(columns)}, found no {', '.join(missing)}: "
            "put them back, or delete the file, and what was filled in with it"
        )
    return [{name: (row[name] or "").strip() for name in columns} for row in reader]


def _are_among(rows: pd.DataFrame, others: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """(n,) bool: whether the columns of each row occur together in the other table."""
    keys, known = (
        pd.MultiIndex.from_frame(table[columns].astype(object)) for table in (rows, others)
    )
    return np.asarray(keys.isin(known), dtype=bool)
