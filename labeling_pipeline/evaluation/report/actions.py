"""Section of the report: human-action recognition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from labeling_pipeline.evaluation.actions import Recognition
from labeling_pipeline.evaluation.report.data import (
    Form,
    Headline,
    Picture,
    Section,
    many,
    percent,
)


@dataclass(frozen=True)
class ActionReport:
    """How well one method recognised the actions of one part of the images."""

    recognition: Recognition
    figures: tuple[Picture, ...] = ()


def actions_section(reports: Sequence[ActionReport], why_not: str = "") -> Section:
    """The section. why_not: why there is nothing to show, in the middle of a sentence."""
    has_any = any(report.recognition.evaluation.scores.images for report in reports)
    return Section(
        "actions",
        "Actions",
        "actions.html.j2",
        tuple(reports) if has_any else None,
        headlines=tuple(_headlines(reports)) if has_any else (),
        absent=f"Action recognition: {why_not or 'there are no action predictions'}.",
    )


def _headlines(reports: Sequence[ActionReport]) -> Iterator[Headline]:
    for report in reports:
        one = report.recognition
        scores = one.evaluation.scores
        what = "Test accuracy" if one.is_test else "Action accuracy"
        yield Headline(
            f"{what}, {one.method.replace('_', '-')}",
            scores.accuracy.value,
            Form.SHARE,
            many(scores.images, "image", "images")
            + f", {percent(scores.accuracy_predicted.value)} where predicted",
            interval=scores.accuracy.interval,
            more_is_better=True,
        )
