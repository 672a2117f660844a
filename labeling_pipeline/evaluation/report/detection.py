"""Section of the report: what was found against the ground truth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from labeling_pipeline.evaluation.detection import DetectionEvaluation
from labeling_pipeline.evaluation.keypoints import KeypointEvaluation
from labeling_pipeline.evaluation.report.data import Form, Headline, Picture, Section, many


@dataclass(frozen=True)
class EntryDetection:
    """How one entry of the plan compares with the ground truth."""

    entry: str
    boxes: DetectionEvaluation
    keypoints: KeypointEvaluation | None = None
    figures: tuple[Picture, ...] = ()


def detection_section(parts: Sequence[EntryDetection]) -> Section:
    """The section."""
    return Section(
        "detection",
        "Detection",
        "detection.html.j2",
        parts or None,
        headlines=(*map(_boxes, parts), *_keypoints(parts)),
        absent="Detection: there is no ground truth to compare with.",
    )


def _boxes(part: EntryDetection) -> Headline:
    images = many(len(part.boxes.judged_images), "image", "images")
    return Headline(
        f"F1 of {part.entry}",
        part.boxes.overall.f1,
        Form.NUMBER,
        f"at IoU {part.boxes.iou_threshold:g}, {images}",
        more_is_better=True,
    )


def _keypoints(parts: Sequence[EntryDetection]) -> Iterator[Headline]:
    for part in parts:
        if part.keypoints is not None:
            yield Headline(
                f"Keypoints of {part.entry}",
                part.keypoints.pck,
                Form.SHARE,
                f"PCK@{part.keypoints.alpha:g}, "
                + many(part.keypoints.matched, "person", "persons"),
                more_is_better=True,
            )
