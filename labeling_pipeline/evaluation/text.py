"""Text that was read, against what stands there.

**Error rates** are the least number of substitutions, deletions and insertions that make the read
text the true one, divided by the length of the true one (Levenshtein 1966; jiwer counts them): of
characters, CER, and of words, WER. A rate can exceed 1. Both texts are brought to Unicode NFC and
every run of white space to one space first; upper and lower case differ. Words are what stands
between spaces, so in scripts without spaces WER says little.

**Line by line**: a true line is compared with the text of the box that found it, matched as in
`labeling_pipeline.evaluation.matching`; all of a line that no box found is deleted. Boxes where
there is no line do not enter here: they are false boxes, and add to the page.

**Page by page**: all text of an image in reading order, what is there against what was read. A line
split in two costs nothing here, a line in the wrong place does. Reading order is from top to
bottom and, among boxes beside each other, which share half of the height of the less high one,
from left to right.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.detection import ratio
from labeling_pipeline.evaluation.intervals import (
    Interval,
    Measure,
    bootstrap_intervals,
    share_interval,
)
from labeling_pipeline.evaluation.matching import match_rows
from labeling_pipeline.evaluation.tables import boxes_of, crowd_of, pairs_of, rows_of

_SAME_LINE = 0.5
MISREAD_COLUMNS = ["image_id", "label", "true_text", "read_text", "errors", "cer", "iou"]


@dataclass(frozen=True)
class ErrorRate:
    """Edits that make one text the other. length: of the true text, in the same unit."""

    substitutions: int
    deletions: int
    insertions: int
    length: int
    interval: Interval | None = None

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Edits per character or word; ``None`` if there is no true text."""
        return ratio(self.errors, self.length)

    @property
    def measure(self) -> Measure:
        """The rate with its interval."""
        return Measure(self.rate, self.interval)


@dataclass(frozen=True)
class Reading:
    """How well some texts were read. texts: how many true ones there are."""

    texts: int
    characters: ErrorRate
    words: ErrorRate


@dataclass(frozen=True)
class TextEvaluation:
    """How well text was read.

    pages: over whole images.
    lines: over true lines; ``None`` if the text has no places.
    found_lines: those of them that a box found, alone: what is read of what is found.
    misread: one row a true line, or a page where there are no lines, that was not read exactly, the
        most errors first: ``image_id, label, true_text, read_text`` (empty if no box found it),
        ``errors`` (characters), ``cer, iou`` (NaN if no box found it).
    judged_images: sorted.
    """

    pages: Reading
    lines: Reading | None
    found_lines: Reading | None
    misread: pd.DataFrame
    judged_images: tuple[str, ...]


def evaluate_text(
    predictions: pd.DataFrame,
    truths: pd.DataFrame,
    asked: pd.DataFrame,
    *,
    has_places: bool = True,
    iou_threshold: float = 0.5,
) -> TextEvaluation:
    """Judge what was read.

    Args:
        predictions: ``image_id, label, score, text`` and ``x0_px, y0_px, x1_px, y1_px``.
        truths: ``image_id, label, text``, the box columns and, optionally, ``iscrowd``: such
            regions hold text that nobody could read, and are left out with what was read there.
        asked: ``image_id, label``, every pair that was asked and that the truth covers.
        has_places: whether both have boxes; without, only pages are judged.
        iou_threshold: least IoU of a line and the box that found it, above 0 and at most 1.
    """
    pairs = pairs_of(asked)
    image_of, images = pd.factorize(pairs["image_id"], sort=True)
    found, found_pairs = rows_of(predictions, pairs)
    true, true_pairs = rows_of(truths, pairs)
    found = found.assign(image=image_of[found_pairs], text=_normalized(found["text"]))
    true = true.assign(image=image_of[true_pairs], text=_normalized(true["text"]))
    lines = None
    if has_places:
        matching = match_rows(found, found_pairs, true, true_pairs, [iou_threshold]).at(0)
        row = np.flatnonzero(matching.taken >= 0)
        read, iou = np.full(len(true), "", dtype=object), np.full(len(true), np.nan)
        read[matching.taken[row]] = found["text"].to_numpy(dtype=object)[row]
        iou[matching.taken[row]] = matching.iou[row]
        true = true.assign(read=read, iou=iou)[~crowd_of(true)]
        found = found[~matching.ignored]
        lines = _Compared.of(true, len(images))
    pages = _Compared.of(_pages(true, found, list(images)), len(images))
    return TextEvaluation(
        pages=pages.reading(),
        lines=None if lines is None else lines.reading(),
        found_lines=None if lines is None else lines.reading(lines.texts["iou"].notna()),
        misread=(lines or pages).misread(),
        judged_images=tuple(images),
    )


@dataclass(frozen=True)
class _Compared:
    """Texts and what was read of each.

    texts: n rows: ``image`` (position), ``image_id, label, text, read, iou``.
    characters, words: (n, 4) int: substitutions, deletions, insertions, length.
    """

    texts: pd.DataFrame
    images: int
    characters: np.ndarray
    words: np.ndarray

    @classmethod
    def of(cls, texts: pd.DataFrame, images: int) -> "_Compared":
        from jiwer import process_characters, process_words

        true, read = texts["text"].tolist(), texts["read"].tolist()
        characters = _edits(process_characters(true, read))
        return cls(texts, images, characters, _edits(process_words(true, read)))

    def reading(self, which: pd.Series | None = None) -> Reading:
        """Over all of them, or over some."""
        chosen = np.ones(len(self.texts), dtype=bool) if which is None else which.to_numpy()
        image_of = self.texts["image"].to_numpy()[chosen]

        def rate(edits: np.ndarray) -> ErrorRate:
            substitutions, deletions, insertions, length = edits[chosen].sum(axis=0).tolist()
            sums = np.zeros((self.images, 4))
            np.add.at(sums, image_of, edits[chosen])

            def statistics(weights: np.ndarray) -> list[float | None]:
                *errors, true = weights @ sums
                return [ratio(sum(errors), true)]

            (interval,) = bootstrap_intervals(statistics, self.images)
            if interval is not None and interval.low <= 1:
                interval = share_interval(interval, len(np.unique(image_of)))
            return ErrorRate(substitutions, deletions, insertions, length, interval)

        return Reading(int(chosen.sum()), rate(self.characters), rate(self.words))

    def misread(self) -> pd.DataFrame:
        """See ``TextEvaluation``."""
        errors = self.characters[:, :3].sum(axis=1)
        length = self.characters[:, 3]
        table = self.texts.rename(columns={"text": "true_text", "read": "read_text"}).assign(
            errors=errors,
            cer=np.divide(errors, length, out=np.full(len(errors), np.nan), where=length > 0),
        )
        return table.loc[errors > 0, MISREAD_COLUMNS].sort_values(
            ["errors", "image_id", "true_text"], ascending=[False, True, True], ignore_index=True
        )


def _edits(compared: Any) -> np.ndarray:
    """(n, 4) int of what jiwer says: substitutions, deletions, insertions, length of the true."""
    counts = np.zeros((len(compared.alignments), 4), dtype=np.int64)
    counts[:, 3] = [len(true) for true in compared.references]
    places = {"substitute": 0, "delete": 1, "insert": 2}
    for row, chunks in zip(counts, compared.alignments, strict=True):
        for chunk in chunks:
            if chunk.type in places:
                true = chunk.ref_end_idx - chunk.ref_start_idx
                read = chunk.hyp_end_idx - chunk.hyp_start_idx
                row[places[chunk.type]] += max(true, read)
    return counts


def _pages(true: pd.DataFrame, found: pd.DataFrame, images: Sequence[str]) -> pd.DataFrame:
    """One row an image that has text or where some was read; as ``_Compared.texts``."""
    texts = {"text": _page_texts(true), "read": _page_texts(found)}
    pages = pd.DataFrame({name: pd.Series(texts[name], dtype=object) for name in texts})
    pages = pages.fillna("").sort_index()
    labels = pd.concat([true, found]).drop_duplicates("image").set_index("image")["label"]
    return pages.assign(
        image=pages.index,
        image_id=[images[image] for image in pages.index],
        label=labels.reindex(pages.index),
        iou=np.nan,
    )


def _page_texts(rows: pd.DataFrame) -> dict[int, str]:
    """Image -> all its text in reading order."""
    boxes, texts = boxes_of(rows), rows["text"].tolist()
    return {
        image: " ".join(filter(None, (texts[row] for row in which[reading_order(boxes[which])])))
        for image, which in rows.groupby("image").indices.items()
    }


def reading_order(boxes: np.ndarray) -> np.ndarray:
    """(n,) int, the order in which boxes of text are read; those without a place stay as they are.

    boxes: (n, 4) float xyxy in pixels, or NaN.
    """
    lines: list[tuple[float, float, list[int]]] = []
    for box in np.argsort(boxes[:, 1] + boxes[:, 3], kind="stable").tolist():
        top, bottom = boxes[box, 1], boxes[box, 3]
        if lines:
            line_top, line_bottom, members = lines[-1]
            shared = min(bottom, line_bottom) - max(top, line_top)
            if shared >= _SAME_LINE * min(bottom - top, line_bottom - line_top):
                members.append(box)
                continue
        lines.append((top, bottom, [box]))
    return np.array(
        [box for *_, members in lines for box in sorted(members, key=lambda b: boxes[b, 0])],
        dtype=np.int64,
    )


def _normalized(texts: pd.Series) -> list[str]:
    return [
        re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()
        if isinstance(text, str)
        else ""
        for text in texts
    ]
