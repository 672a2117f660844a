"""Figures as files and as pictures of the report."""

from pathlib import Path

from labeling_pipeline.evaluation.report.data import Picture
from labeling_pipeline.files import write_if_changed


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
