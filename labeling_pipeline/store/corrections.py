"""What people changed, laid over what models answered. Pure: rows in, rows out.

A correction outlives the answer that it was made on. In another answer, of another model, another
attempt or another parser, the corrected thing is known again by its label and its place.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from labeling_pipeline.annotations import Box, box_iou

Row = dict[str, Any]

SAME_THING = 0.5
"""Annotations of one label that are at least so alike are one thing, see ``likeness``."""

SAME_POINT_DISTANCE = 0.05
"""Points that are so far apart, as a share of the image's diagonal, may just be one thing."""

SHAPE = (
    *("label", "x0_px", "y0_px", "x1_px", "y1_px"),
    *("point", "polygon", "text", "keypoints"),
)
"""The columns of table ``annotations`` that a person can change."""

_MODELS_OWN = ("generation_id", "answered_in", "score", "geometric_mean", "window_mass")


class Kind(StrEnum):
    """What a person did."""

    ADD = "add"
    CHANGE = "change"
    DELETE = "delete"


@dataclass(frozen=True)
class Correction:
    """A row of table ``corrections``.

    target: what is corrected, as it was then: ``SHAPE`` and where it came from, ``generation_id``
        and ``parser_version``. values: ``SHAPE`` of what a person says instead, complete.
    """

    correction_id: str
    image_id: str
    entry: str
    label: str
    kind: Kind
    annotation_id: str | None
    target: Row | None
    values: Row | None
    author: str
    created_at: datetime

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Correction":
        """From a stored row."""
        parsed = {
            name: json.loads(row[name]) if row[name] else None for name in ("target", "values")
        }
        return cls(**{**row, **parsed, "kind": Kind(row["kind"])})

    def row(self) -> Row:
        """As it is stored."""
        return asdict(self) | {
            name: json.dumps(value, ensure_ascii=False) if value else None
            for name, value in (("target", self.target), ("values", self.values))
        }


def likeness(
    one: Mapping[str, Any], other: Mapping[str, Any], image_size_px: Sequence[int]
) -> float:
    """How surely two annotations of one label are the same thing, 0..1.

    The intersection over union of their boxes; of points, how near they are; what speaks of the
    whole image is one thing. image_size_px: (width, height).
    """
    box, other_box = place(one), place(other)
    if box and other_box:
        # A box without an area overlaps nothing, not even itself.
        return 1.0 if box == other_box else box_iou(box, other_box)
    point, other_point = one["point"], other["point"]
    if point and other_point:
        apart_px = math.dist(tuple(point.values()), tuple(other_point.values()))
        most_px = SAME_POINT_DISTANCE * math.hypot(*image_size_px)
        return max(0.0, 1 - (1 - SAME_THING) * apart_px / most_px)
    return float(not (box or other_box or point or other_point))


def place(row: Mapping[str, Any]) -> Box | None:
    """The box of an annotation, or of its outline."""
    if row["x0_px"] is not None:
        return row["x0_px"], row["y0_px"], row["x1_px"], row["y1_px"]
    return bounds([(p["x_px"], p["y_px"]) for p in row["polygon"]]) if row["polygon"] else None


def bounds(corners: Sequence[tuple[float, float]]) -> Box:
    """The box around some points."""
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def apply_corrections(
    annotations: Sequence[Row], corrections: Sequence[Correction], image_size_px: Sequence[int]
) -> list[Row]:
    """What holds of one image and entry.

    A deletion takes its target away. A change takes it away and puts the person's version there,
    also where no model finds the target any more. What models found of the same thing gives way to
    what a person gave, so nothing stands there twice. A person's annotation bears the id of its
    correction and ``corrected_by``, has no score, and follows the models' in the order of time.

    Args:
        annotations: visible ones of models, rows of table ``annotations``.
        corrections: all of this image and entry, in order of time.
        image_size_px: (width, height).
    """
    known_again = _targets(annotations, corrections, image_size_px)
    held = {row["annotation_id"]: row for row in annotations}
    last = max((row["position"] for row in annotations), default=-1)
    # Id -> what stands there now, for an edit of what was edited before: None where nothing does.
    became: dict[str, str | None] = {}
    for number, correction in enumerate(corrections, 1):
        given = correction.correction_id if correction.values else None
        current = correction.annotation_id
        while current in became:
            previous, current = current, became[current]
            if current is None:
                became[previous] = given
        if current is not None:
            held.pop(known_again.get(current, current), None)
            became[current] = given
        if correction.values:
            version = _version(correction, last + number)
            same = [
                row["annotation_id"]
                for row in held.values()
                if row["corrected_by"] is None
                and row["label"] == version["label"]
                and likeness(row, version, image_size_px) >= SAME_THING
            ]
            for annotation_id in same:
                del held[annotation_id]
            held[correction.correction_id] = version
    return list(held.values())


def _targets(
    annotations: Sequence[Row], corrections: Sequence[Correction], image_size_px: Sequence[int]
) -> dict[str, str]:
    """Id of what was corrected -> id of the same thing among these, one to one, best match first.

    An annotation of the very answer that holds the target would be the target only if it had its
    id: it is another thing that stands close by.
    """
    ids = {row["annotation_id"] for row in annotations}
    persons = {correction.correction_id for correction in corrections}
    about = {
        c.annotation_id: (c.label, c.target)
        for c in corrections
        if c.annotation_id and c.target and c.annotation_id not in persons
    }
    found = {target_id: target_id for target_id in about if target_id in ids}
    pairs = sorted(
        (-alike, order, row["position"], target_id, row["annotation_id"])
        for order, (target_id, (label, target)) in enumerate(about.items())
        if target_id not in found
        for row in annotations
        if row["label"] == label
        and row["annotation_id"] not in found
        and not _of_one_answer(row, target)
        and (alike := likeness(row, target, image_size_px)) >= SAME_THING
    )
    taken: set[str] = set()
    for *_, target_id, annotation_id in pairs:
        if target_id not in found and annotation_id not in taken:
            found[target_id] = annotation_id
            taken.add(annotation_id)
    return found


def _of_one_answer(row: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
    return (row["generation_id"], row["parser_version"]) == (
        target["generation_id"],
        target["parser_version"],
    )


def _version(correction: Correction, position: int) -> Row:
    """What a person gave, as a row of table ``annotations``."""
    return {
        **dict.fromkeys(_MODELS_OWN),
        **{name: correction.values[name] for name in SHAPE},  # type: ignore[index]
        "annotation_id": correction.correction_id,
        "image_id": correction.image_id,
        "entry": correction.entry,
        "parser_version": 0,
        "position": position,
        "corrected_by": correction.author,
    }
