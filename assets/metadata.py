"""Metadata of materializations: what a person wants to see, within what the UI shows well."""

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
from PIL import Image

from labeling_pipeline.labeling import ClassSummary
from labeling_pipeline.store.ledger import MAX_ATTEMPTS

MAX_ROWS = 20
MAX_CHARACTERS = 4000
"""So much of one value the UI shows well."""

_LONGEST = 600
"""Characters of one cell or sentence."""


def class_metadata(summary: ClassSummary) -> dict[str, dg.MetadataValue]:
    """What one materialization of an entry did for a class."""
    standing: list[dict[str, Any]] = [
        {"state": state, "images": images, "annotations": annotations}
        for state, (images, annotations) in summary.standing.items()
    ]
    metadata: dict[str, dg.MetadataValue] = {
        "asked": dg.MetadataValue.text(summary.label),
        "images": dg.MetadataValue.int(sum(row["images"] for row in standing)),
        "annotations": dg.MetadataValue.int(sum(row["annotations"] for row in standing)),
        "outcomes": table(standing),
        "due_in_this_run": dg.MetadataValue.int(summary.due),
        "generations": dg.MetadataValue.int(summary.generations),
        "new_annotations": dg.MetadataValue.int(summary.annotations),
        "tokens": dg.MetadataValue.int(summary.tokens),
        "seconds": dg.MetadataValue.float(round(summary.seconds, 2)),
        "model_key": dg.MetadataValue.text(summary.model_key),
    }
    if summary.answered and summary.seconds:
        # Left out where nothing was asked, so that the plot over time shows real rates only.
        rate = summary.answered / summary.seconds
        metadata["images_per_second"] = dg.MetadataValue.float(round(rate, 2))
    if summary.asked_again:
        metadata["images_asked_again"] = dg.MetadataValue.int(summary.asked_again)
    if summary.restored:
        metadata["earlier_answers_in_force_again"] = dg.MetadataValue.int(summary.restored)
    if summary.dropped:
        metadata["dropped_pieces"] = dg.MetadataValue.int(summary.dropped)
    if summary.errors:
        rows = [{"image": path, "error": error} for path, error in summary.errors.items()]
        metadata["errors"] = table(rows)
    notes = summary.notes
    if not summary.due and not notes:
        notes = (
            "nothing was due: every image of the class is settled, or held after "
            f"{MAX_ATTEMPTS} failed attempts; `force: true` in the run config asks again",
        )
    if notes:
        metadata["notes"] = dg.MetadataValue.md("\n".join(f"- {cut(note)}" for note in notes))
    return metadata


def table(rows: Sequence[Mapping[str, Any]]) -> dg.MetadataValue:
    """The first rows as a table, within the limits of what the UI shows well; how many were left
    out stands in the last one."""
    if not rows:
        return dg.MetadataValue.text("none")
    shown: list[dict[str, Any]] = [
        {k: v if isinstance(v, int | float) else cut(str(v)) for k, v in row.items()}
        for row in rows[:MAX_ROWS]
    ]
    shown = shown[: fitting([sum(len(str(v)) for v in row.values()) for row in shown])]
    if len(shown) < len(rows):
        shown = [{k: str(v) for k, v in row.items()} for row in shown[: MAX_ROWS - 1]]
        more = f"and {len(rows) - len(shown)} more"
        shown.append(dict.fromkeys(rows[0], "") | {next(iter(rows[0])): more})
    return dg.MetadataValue.table([dg.TableRecord(row) for row in shown])


def fitting(lengths: Sequence[int]) -> int:
    """How many of the first texts of these lengths have room in one value; one at least."""
    ends = itertools.accumulate(lengths)
    return max(1, sum(end <= MAX_CHARACTERS for end in ends))


def cut(text: str) -> str:
    """A text, or its beginning if it is too long for one cell."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def png(data: bytes) -> dg.MetadataValue:
    """A picture inside a Markdown value, the one form that the UI renders."""
    return dg.MetadataValue.md(f"![](data:image/png;base64,{base64.b64encode(data).decode()})")


def picture(pixels: np.ndarray, max_side_px: int = 900) -> dg.MetadataValue:
    """pixels: (height, width, 3) uint8 RGB; scaled down to what a dialog shows."""
    image = Image.fromarray(pixels)
    image.thumbnail((max_side_px, max_side_px))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    return dg.MetadataValue.md(f"![](data:image/jpeg;base64,{data})")


def fixed(value: float | None) -> dg.MetadataValue:
    """A ratio, or a dash where it does not exist."""
    if value is None or not math.isfinite(value):
        return dg.MetadataValue.text("–")
    return dg.MetadataValue.float(round(float(value), 4))


def frame_table(frame: pd.DataFrame) -> dg.MetadataValue:
    """A data frame as a table: plain scalars, ratios with four digits, a dash for what is none."""

    def cell(value: Any) -> Any:
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return "–"
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            return int(value)
        return round(float(value), 4) if isinstance(value, float | np.floating) else str(value)

    rows = [{k: cell(v) for k, v in row.items()} for row in frame.to_dict("records")]
    return table(rows)
