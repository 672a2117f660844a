"""Section of the report: what was found and read, against what is known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from labeling_pipeline.evaluation.detection import ratio
from labeling_pipeline.evaluation.detection_errors import ErrorKind
from labeling_pipeline.evaluation.entry import EntryEvaluation, Origin
from labeling_pipeline.evaluation.report.data import Form, Headline, Picture, Section, many

MOST_IMAGES = 10
"""Images with errors, and lines that were misread, that are listed."""

KINDS = {
    ErrorKind.MISSED: "missed objects",
    ErrorKind.FALSE_ON_ABSENT: "boxes of a label that is not there",
    ErrorKind.WRONG: "boxes where there is no such object",
    ErrorKind.DUPLICATE: "second boxes on one object",
    ErrorKind.MISPLACED: "boxes too far off",
}
"""What errors are called here."""


@dataclass(frozen=True)
class EntryDetection:
    """How one entry of the plan compares with the truth, and figures of it.

    examples: pictures of images with errors, see `error_in_words`.
    """

    measured: EntryEvaluation
    figures: tuple[Picture, ...] = ()
    examples: tuple[Picture, ...] = ()

    @property
    def title(self) -> str:
        """Of its part of the section."""
        return _called(self.measured)

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """(what is wrong, how often), what occurs."""
        kinds = self.measured.kinds
        return [
            (KINDS[kind], boxes) for kind, boxes in zip(kinds["kind"], kinds["boxes"], strict=True)
        ]

    @property
    def worst(self) -> list[tuple[str, str]]:
        """(path, what is wrong there) of the images with most errors."""
        errors = self.measured.errors
        rows = []
        for path in errors["path"].drop_duplicates().head(MOST_IMAGES):
            counts = errors[errors["path"] == path].value_counts(["kind", "label"], sort=False)
            told = [
                f"{count} {kind.replace('_', ' ')}: {label}"
                for (kind, label), count in counts.items()  # type: ignore[misc]
            ]
            rows.append((str(path), ", ".join(told)))
        return rows

    @property
    def misread(self) -> list[dict[str, object]]:
        """The lines that were read worst."""
        return self.measured.misread.head(MOST_IMAGES).to_dict("records")


def error_in_words(label: str, kind: str, true_label: str | None) -> str:
    """What stands on a picture beside what is wrong."""
    beneath = f", but {true_label}" if true_label else ""
    return {
        ErrorKind.MISSED: f"missed {label}",
        ErrorKind.DUPLICATE: f"{label} again{beneath}",
        ErrorKind.MISPLACED: f"{label}, too far off",
    }.get(ErrorKind(kind), f"no {label}{beneath}")


def detection_section(parts: Sequence[EntryDetection]) -> Section:
    """The section."""
    judged = [part for part in parts if part.measured.judged_images]
    notes = [f"{part.title}: {note}" for part in parts for note in part.measured.notes]
    return Section(
        "detection",
        "Detection",
        "detection.html.j2",
        {"parts": judged, "notes": notes} if judged else None,
        headlines=tuple(headline for part in judged for headline in _headlines(part.measured)),
        absent="Detection: "
        + ("; ".join(notes) or "there is no ground truth to compare with, and no correction."),
    )


def _called(measured: EntryEvaluation) -> str:
    """The entry, and which truth it is held against if it is not the files."""
    where = "" if measured.origin is Origin.FILES else " where corrected"
    return measured.entry + where


def _headlines(measured: EntryEvaluation) -> Iterator[Headline]:
    name = _called(measured)
    images = many(measured.judged_images, "image", "images")
    if boxes := measured.boxes:
        yield Headline(
            f"F1 of {name}",
            boxes.overall.f1,
            Form.NUMBER,
            f"at IoU {boxes.iou_threshold:g}, {images}",
            boxes.f1_interval,
            more_is_better=True,
        )
        if measured.ranking and not measured.keypoints and not measured.text:
            yield Headline(
                f"AP of {name}",
                measured.ranking.ap,
                Form.NUMBER,
                "COCO's, mean over IoU 0.5 to 0.95",
                more_is_better=True,
            )
        if boxes.absent:
            yield Headline(
                f"False alarms of {name}",
                ratio(boxes.absent_with_boxes, boxes.absent),
                Form.SHARE,
                f"boxes of absent labels, {many(boxes.absent, 'question', 'questions')}",
                boxes.absent_interval,
                more_is_better=False,
            )
    if points := measured.keypoints:
        yield Headline(
            f"Keypoints of {name}",
            points.pck,
            Form.SHARE,
            f"PCK@{points.alpha:g}, " + many(points.matched, "person", "persons"),
            points.pck_interval,
            more_is_better=True,
        )
    if text := measured.text:
        yield Headline(
            f"Misread characters of {name}",
            text.pages.characters.rate,
            Form.SHARE,
            f"error rate of {text.pages.characters.length:,} on "
            + many(len(text.judged_images), "page", "pages"),
            text.pages.characters.interval,
            more_is_better=False,
        )
