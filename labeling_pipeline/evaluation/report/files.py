"""Sections of the report: files that are no part of the dataset, and examples of the others."""

from collections.abc import Sequence
from dataclasses import dataclass

from labeling_pipeline.evaluation.report.data import Form, Headline, Picture, Section, many

MOST_FILES = 200
"""Files of one reason that are listed."""


@dataclass(frozen=True)
class RejectedFile:
    """A file that is not part of the dataset. ``path`` is relative to the image root."""

    path: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Rejects:
    """All files that are not part of the dataset."""

    files: tuple[RejectedFile, ...]

    @property
    def by_reason(self) -> list[tuple[str, list[RejectedFile]]]:
        """(reason, files), the most frequent reason first."""
        groups: dict[str, list[RejectedFile]] = {}
        for file in sorted(self.files, key=lambda file: file.path):
            groups.setdefault(file.reason, []).append(file)
        return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))

    @property
    def most_files(self) -> int:
        """See ``MOST_FILES``."""
        return MOST_FILES


def rejects_section(images: int, files: Sequence[RejectedFile]) -> Section:
    """The section. images: how many accepted ones the dataset has."""
    return Section(
        "rejects",
        "Rejected files",
        "rejects.html.j2",
        Rejects(tuple(files)) if files else None,
        headlines=(
            Headline("Images", images, Form.COUNT, many(len(files), "file", "files") + " rejected"),
        ),
        absent="Rejected files: every file was accepted.",
    )


def examples_section(pictures: Sequence[Picture]) -> Section:
    """A drawn picture of each class."""
    return Section(
        "examples",
        "Examples",
        "examples.html.j2",
        pictures or None,
        absent="Examples: no visualizations have been drawn.",
    )
