"""Entries in two steps: what one entry found is looked at closely by another."""

from collections.abc import Sequence
from dataclasses import replace

from labeling_pipeline.annotations import Annotation, LabelAnswer, State, box_iou
from labeling_pipeline.asking.questions import (
    Answered,
    Question,
    Region,
    Sourced,
    crop_around,
)
from labeling_pipeline.plan import Entry, Group
from labeling_pipeline.tasks import RULES, Geometry

_SAME_INSTANCE_IOU = 0.5
_SAID_TWICE_IOU = 0.9


def questions(
    entry: Entry, group: Group, regions: Sequence[Region], image_size_px: tuple[int, int]
) -> tuple[Question, ...]:
    """One question for every region: on a crop with a margin around it, or on the whole image where
    the task itself is about a box."""
    takes_boxes = RULES[entry.task].needs_references
    return tuple(
        Question(
            entry.task,
            group.labels,
            None if takes_boxes else crop_around(region.box, image_size_px),
            region,
        )
        for region in regions
    )


def put_together(entry: Entry, label: str, answered: Sequence[Answered]) -> Sourced:
    """What was found in all regions.

    Of keypoints, the instance that the region is about counts and its neighbours in the crop do
    not. What has no place of its own gets the region's.
    """
    found: list[tuple[int, Annotation]] = []
    for position, one in enumerate(answered):
        region = one.question.region
        assert region is not None
        said = one.answer.labels[label].annotations
        if RULES[entry.task].geometry is Geometry.KEYPOINTS:
            said = tuple(sorted(said, key=lambda a: _overlap(a, region))[-1:])
            said = tuple(a for a in said if _overlap(a, region) >= _SAME_INSTANCE_IOU)
        for annotation in said:
            if annotation.bbox is None and annotation.point is None:
                annotation = replace(annotation, bbox=region.box)
            if not any(_is_repeat(annotation, other) for _, other in found):
                found.append((position, annotation))
    presences = [p for one in answered if (p := one.answer.labels[label].presence) is not None]
    return Sourced(
        LabelAnswer(
            State.least_settled(one.answer.labels[label].state for one in answered),
            max(presences, default=None),
            tuple(annotation for _, annotation in found),
        ),
        tuple(position for position, _ in found),
    )


def _overlap(annotation: Annotation, region: Region) -> float:
    return box_iou(annotation.bbox, region.box) if annotation.bbox else 0.0


def _is_repeat(one: Annotation, other: Annotation) -> bool:
    if one.bbox is None or other.bbox is None or one.text != other.text:
        return False
    return box_iou(one.bbox, other.bbox) > _SAID_TWICE_IOU
