"""The report: one HTML page that says what was labeled, how well, and by what.

The page is self-contained: styles and pictures are inside, nothing is loaded, so it can be mailed,
archived and printed. What there is nothing to say about is left out, with a sentence saying why.
"""

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from labeling_pipeline.annotations import State
from labeling_pipeline.evaluation.actions import ActionEvaluation
from labeling_pipeline.evaluation.agreement import Agreement
from labeling_pipeline.evaluation.detection import DetectionEvaluation, KeypointEvaluation

PROBLEM_STATES = (State.TRUNCATED, State.UNPARSED, State.DEGENERATE, State.FAILED)
"""States in which nothing can be said of the label: the class is not fully labeled."""

_TEMPLATE = "report.html.j2"
_MOST_FILES = 200
_MOST_DISAGREEING = 20
_WIDE_PX = 950
_ABSENT_TEXT = {
    "coverage": "Classes: nothing has been labeled yet.",
    "rejects": "Rejected files: every file was accepted.",
    "detection": "Detection: there is no ground truth to compare with.",
    "agreement": "Agreement of models: no two entries ask the same label of a class with different "
    "models.",
    "actions": "Action recognition: there are no action predictions.",
    "examples": "Examples: no visualizations have been drawn.",
    "models": "Models: none has been used yet.",
    "plan": "Plan: its text was not handed over.",
}


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


@dataclass(frozen=True)
class Headline:
    """A number to read first."""

    name: str
    value: str
    note: str = ""


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


def headlines(data: ReportData) -> tuple[Headline, ...]:
    """Return the numbers that stand at the top."""
    entries = {row.entry for row in data.coverage}
    outcomes = _total_outcomes(data.coverage)
    asked = sum(outcomes.values())
    problems = sum(outcomes[state] for state in PROBLEM_STATES)
    annotations = sum(row.annotations for row in data.coverage)
    numbers = [
        Headline(
            "Images", f"{data.images:,}", _many(len(data.rejects), "file", "files") + " rejected"
        ),
        Headline(
            "Classes",
            f"{len({row.display_name for row in data.coverage}):,}",
            _many(len(entries), "entry", "entries") + " of the plan",
        ),
        Headline("Annotations", f"{annotations:,}", _many(asked, "outcome", "outcomes")),
        Headline(
            "Without an answer",
            f"{problems:,}",
            f"{problems / asked:.1%} of the outcomes" if asked else "",
        ),
    ]
    numbers += [
        Headline(
            f"F1 of {part.entry}",
            number(part.boxes.overall.f1),
            f"at IoU {part.boxes.iou_threshold:g}, "
            + _many(len(part.boxes.judged_images), "image", "images"),
        )
        for part in data.detection
    ]
    numbers += [
        Headline(
            f"Keypoints of {part.entry}",
            percent(part.keypoints.pck),
            f"PCK@{part.keypoints.alpha:g}, " + _many(part.keypoints.matched, "person", "persons"),
        )
        for part in data.detection
        if part.keypoints is not None
    ]
    if data.agreement is not None:
        images = len(data.agreement.measured.per_image)
        numbers.append(
            Headline(
                "Agreement of models",
                number(data.agreement.measured.mean),
                _many(images, "image", "images") + " compared",
            )
        )
    if data.actions is not None:
        evaluation = data.actions.evaluation
        numbers.append(
            Headline(
                "Action accuracy",
                percent(evaluation.accuracy_all),
                f"{percent(evaluation.accuracy_predicted)} where predicted",
            )
        )
    return tuple(numbers)


def render_report(data: ReportData) -> str:
    """Render the page as HTML. All text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent}
    states = [
        state.value for state in State if any(row.outcomes.get(state) for row in data.coverage)
    ]
    return environment.get_template(_TEMPLATE).render(
        data=data,
        headlines=headlines(data),
        states=states,
        problem_states={state.value for state in PROBLEM_STATES},
        total_outcomes=_total_outcomes(data.coverage),
        rejects=_by_reason(data.rejects),
        most_files=_MOST_FILES,
        most_disagreeing=_MOST_DISAGREEING,
        absent=_absent(data),
    )


def number(value: float | None, digits: int = 2) -> str:
    """Format a number; one that does not exist is a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Format a share; one that does not exist is a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.1%}"


def _many(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _total_outcomes(rows: Iterable[CoverageRow]) -> Counter[str]:
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row.outcomes)
    return total


def _by_reason(rejects: Iterable[RejectedFile]) -> list[tuple[str, list[RejectedFile]]]:
    """(reason, files), the most frequent reason first."""
    groups: dict[str, list[RejectedFile]] = {}
    for file in sorted(rejects, key=lambda file: file.path):
        groups.setdefault(file.reason, []).append(file)
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))


def _absent(data: ReportData) -> list[str]:
    """Return the sentences about what is left out."""
    return [
        data.absent.get(section, text)
        for section, text in _ABSENT_TEXT.items()
        if not getattr(data, section)
    ]
