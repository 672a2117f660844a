"""What the report shows, as plain values."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd

from labeling_pipeline.annotations import State
from labeling_pipeline.evaluation.actions import ActionEvaluation
from labeling_pipeline.evaluation.agreement import Agreement
from labeling_pipeline.evaluation.detection import DetectionEvaluation, KeypointEvaluation

_WIDE_PX = 950


@dataclass(frozen=True)
class CoverageRow:
    """What came of one class and one entry of the plan.

    outcomes: state -> images.
    mean_score: of the annotations; ``None`` if none has a score.
    """

    display_name: str
    entry: str
    label: str
    images: int
    outcomes: Mapping[str, int]
    annotations: int
    mean_score: float | None


@dataclass(frozen=True)
class RejectedFile:
    """A file that is not part of the dataset. ``path`` is relative to the image root."""

    path: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG, as bytes."""

    title: str
    data: bytes
    caption: str = ""

    @property
    def is_wide(self) -> bool:
        """Whether it is a PNG with so many pixels across that it needs a row of its own."""
        # The header's width, https://www.w3.org/TR/png/#11IHDR
        return self._is_png and int.from_bytes(self.data[16:20]) > _WIDE_PX

    @property
    def _is_png(self) -> bool:
        return self.data.startswith(b"\x89PNG")

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        kind = "png" if self._is_png else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class EntryDetection:
    """How one entry of the plan compares with the ground truth."""

    entry: str
    boxes: DetectionEvaluation
    keypoints: KeypointEvaluation | None = None
    figures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class AgreementReport:
    """How far entries with different models agree."""

    measured: Agreement
    figures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class ActionReport:
    """How well actions were recognised."""

    evaluation: ActionEvaluation
    figures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class ModelUse:
    """Which model answered an entry. ``parameters`` is all that went into the key."""

    entry: str
    name: str
    checkpoint: str
    revision: str
    licence: str
    model_key: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows.

    images: how many accepted images the dataset has.
    plan: the text of the labeling plan.
    absent: section (``coverage, rejects, detection, agreement, actions, examples, models, plan``)
        -> the sentence that says why it is left out, in place of the usual one.
    """

    title: str
    generated_at: datetime
    image_root: str
    images: int
    coverage: tuple[CoverageRow, ...] = ()
    rejects: tuple[RejectedFile, ...] = ()
    detection: tuple[EntryDetection, ...] = ()
    agreement: AgreementReport | None = None
    actions: ActionReport | None = None
    examples: tuple[Picture, ...] = ()
    models: tuple[ModelUse, ...] = ()
    plan: str = ""
    absent: Mapping[str, str] = field(default_factory=dict)


def coverage_rows(class_table: pd.DataFrame) -> tuple[CoverageRow, ...]:
    """Read the rows of a table with one column a state.

    Args:
        class_table: ``display_name, entry, label, images, annotations, mean_score`` and a column
            of counts for every state that occurs, named like the state.
    """
    states = [state.value for state in State if state.value in class_table]
    return tuple(
        CoverageRow(
            display_name=str(row["display_name"]),
            entry=str(row["entry"]),
            label=str(row["label"]),
            images=int(row["images"]),
            outcomes={state: int(row[state]) for state in states if row[state] > 0},
            annotations=int(row["annotations"]),
            mean_score=None if pd.isna(row["mean_score"]) else float(row["mean_score"]),
        )
        for row in class_table.to_dict("records")
    )
