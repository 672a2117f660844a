"""Figures and tables as files, and as pictures of the report."""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from labeling_pipeline.annotations import Annotation
from labeling_pipeline.drawing import contact_sheet, draw_annotations
from labeling_pipeline.errors import ImageError
from labeling_pipeline.evaluation.report.data import Picture
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.images.sources import ImageSource

Panel = tuple[str, Sequence[Annotation]]
"""A title, and what is drawn onto an image."""


def write_figures(folder: Path, figures: dict[str, bytes]) -> dict[str, Path]:
    """Write PNG files; returns name -> path."""
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, path in paths.items():
        write_if_changed(path, figures[name])
    return paths


def report_pictures(figures: dict[str, bytes]) -> tuple[Picture, ...]:
    return tuple(
        Picture(name.replace("_", " ").capitalize(), data) for name, data in figures.items()
    )


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file for people; numbers with four digits."""
    text = table.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    write_if_changed(path, text.encode())


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write CSV files of many rows, one a table, called by its name; numbers with four digits at
    most."""
    for name, table in tables.items():
        text = io.BytesIO()
        # Ten times as fast as the writer of pandas.
        pyarrow.csv.write_csv(pa.Table.from_pandas(table.round(4), preserve_index=False), text)
        write_if_changed(folder / f"{name}.csv", text.getvalue())


def draw_side_by_side(
    images: Iterable[tuple[str, tuple[Panel, Panel]]], source: ImageSource
) -> np.ndarray | None:
    """One row an image: the same picture twice, with different things drawn. An image that cannot
    be read any more is left out.

    Args:
        images: path, and its two panels.
        source: where the images are.

    Returns:
        (height, width, 3) uint8 RGB; ``None`` without images.
    """
    panels, titles = [], []
    for path, of_image in images:
        with suppress(ImageError):
            pixels = read_image(source.read(path))
            for title, found in of_image:
                panels.append(draw_annotations(pixels, found))
                titles.append(f"{title} in {Path(path).name}")
    return contact_sheet(panels, titles, columns=2) if panels else None
