"""Section of the report: which images to look at first."""

from dataclasses import dataclass

import pandas as pd

from labeling_pipeline.evaluation.report.data import Form, Headline, Picture, Section, many
from labeling_pipeline.evaluation.review import WORTH_A_LOOK, ReviewQueue

MOST_LISTED = 20
"""Images that are listed."""


@dataclass(frozen=True)
class ReviewReport:
    """The queue.

    listed: its first rows: ``rank, path, classes, expected_errors, reasons``.
    examples: pictures of the first ones.
    """

    queue: ReviewQueue
    listed: pd.DataFrame
    examples: tuple[Picture, ...] = ()
    figures: tuple[Picture, ...] = ()

    @property
    def worth_a_look(self) -> float:
        """See ``WORTH_A_LOOK``."""
        return WORTH_A_LOOK


def review_section(report: ReviewReport | None, why_not: str = "") -> Section:
    """The section. why_not: there is no report."""
    headlines: tuple[Headline, ...] = ()
    if report is not None:
        images = many(report.queue.total, "image", "images")
        headlines = (
            Headline(
                "Images to review",
                report.queue.worth_a_look,
                Form.COUNT,
                f"of {images}: at least {WORTH_A_LOOK:g} expected errors",
                more_is_better=False,
            ),
        )
    return Section(
        "review",
        "Review",
        "review.html.j2",
        report,
        headlines=headlines,
        absent=f"Review: {why_not or 'nothing has been labeled yet.'}",
    )
