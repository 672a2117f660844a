"""Section of the report: human-action recognition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from labeling_pipeline.evaluation.actions import KEYPOINTS, ZERO_SHOT, Recognition
from labeling_pipeline.evaluation.report.data import Form, Headline, Picture, Section, many


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


_NAMES = {KEYPOINTS: "Keypoint", ZERO_SHOT: "Zero-shot"}


def _headlines(reports: Sequence[ActionReport]) -> Iterator[Headline]:
    for report in reports:
        one = report.recognition
        scores = one.evaluation.scores
        missing = one.evaluation.without_prediction
        yield Headline(
            f"{_NAMES[one.method]} {'test' if one.is_test else 'action'} accuracy",
            scores.accuracy.value,
            Form.SHARE,
            many(scores.images, "image", "images")
            + (f", {missing:,} not predicted" if missing else ""),
            interval=scores.accuracy.interval,
            more_is_better=True,
        )
