"""Section of the report: what came of asking, class by class."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from labeling_pipeline.annotations import State
from labeling_pipeline.evaluation.report.data import Form, Headline, Section, many

PROBLEM_STATES = (State.TRUNCATED, State.UNPARSED, State.DEGENERATE, State.FAILED)
"""States in which nothing can be said of the label: the class is not fully labeled."""


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
class Coverage:
    """The rows of all classes and entries."""

    rows: tuple[CoverageRow, ...]

    @property
    def outcomes(self) -> Counter[str]:
        """State -> images, over all rows."""
        total: Counter[str] = Counter()
        for row in self.rows:
            total.update(row.outcomes)
        return total

    @property
    def states(self) -> list[str]:
        """Those that occur."""
        return [state.value for state in State if self.outcomes[state]]

    @property
    def problem_states(self) -> set[str]:
        """See ``PROBLEM_STATES``."""
        return {state.value for state in PROBLEM_STATES}

    @property
    def annotations(self) -> int:
        """Of all rows."""
        return sum(row.annotations for row in self.rows)


def coverage_section(rows: Sequence[CoverageRow]) -> Section:
    """The section."""
    coverage = Coverage(tuple(rows))
    asked = coverage.outcomes.total()
    problems = sum(coverage.outcomes[state] for state in PROBLEM_STATES)
    classes = {row.display_name for row in rows}
    entries = {row.entry for row in rows}
    return Section(
        "classes",
        "Classes",
        "coverage.html.j2",
        coverage if rows else None,
        headlines=(
            Headline(
                "Classes",
                len(classes),
                Form.COUNT,
                many(len(entries), "entry", "entries") + " of the plan",
            ),
            Headline(
                "Annotations",
                coverage.annotations,
                Form.COUNT,
                many(asked, "outcome", "outcomes"),
            ),
            Headline(
                "Without an answer",
                problems,
                Form.COUNT,
                f"{problems / asked:.1%} of the outcomes" if asked else "",
                more_is_better=False,
            ),
        ),
        absent="Classes: nothing has been labeled yet.",
    )


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
