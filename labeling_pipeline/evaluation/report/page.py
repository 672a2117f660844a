"""The report: one HTML page that says what was labeled, how well, and by what.

The page is self-contained: styles and pictures are inside, nothing is loaded, so it can be mailed,
archived and printed. What there is nothing to say about is left out, with a sentence saying why.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labeling_pipeline.annotations import State
from labeling_pipeline.evaluation.report.data import CoverageRow, RejectedFile, ReportData

PROBLEM_STATES = (State.TRUNCATED, State.UNPARSED, State.DEGENERATE, State.FAILED)
"""States in which nothing can be said of the label: the class is not fully labeled."""
_TEMPLATE = "page.html.j2"
_MOST_FILES = 200
_MOST_DISAGREEING = 20
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
class Headline:
    """A number to read first."""

    name: str
    value: str
    note: str = ""


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
