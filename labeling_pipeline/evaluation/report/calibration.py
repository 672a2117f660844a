"""Section of the report: what scores mean, and the thresholds for a target precision."""

from collections.abc import Iterator
from dataclasses import dataclass

from labeling_pipeline.evaluation.calibration import Calibration
from labeling_pipeline.evaluation.report.data import Form, Headline, Picture, Section, many, number


@dataclass(frozen=True)
class CalibrationReport:
    """What was learned of the scores.

    applied: whether it holds for the labels of the dataset, in sentences.
    """

    calibration: Calibration
    target_precision: float
    applied: tuple[str, ...]
    figures: tuple[Picture, ...] = ()


def calibration_section(report: CalibrationReport | None) -> Section:
    """The section."""
    return Section(
        "calibration",
        "Calibration",
        "calibration.html.j2",
        report,
        headlines=tuple(_headlines(report.calibration)) if report else (),
        absent="Calibration: there is no ground truth to learn from what scores mean.",
    )


def _headlines(calibration: Calibration) -> Iterator[Headline]:
    """Of what could be calibrated: an error that nothing can be done about is no headline."""
    for one in calibration.models:
        scores = one.scores
        if scores.after is None:
            continue
        before, boxes = number(scores.before.ece), many(scores.boxes, "box", "boxes")
        yield Headline(
            f"Calibration error of {one.model} {one.task}",
            scores.after.ece,
            Form.NUMBER,
            f"{before} as measured; {boxes}",
            scores.after_interval,
            more_is_better=False,
        )
