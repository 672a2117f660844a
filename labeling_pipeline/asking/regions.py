"""Entries in two steps: what one entry found is looked at closely by another."""

from collections.abc import Sequence
from dataclasses import replace

from labeling_pipeline.annotations import Annotation
from labeling_pipeline.asking.questions import (
    SAID_TWICE_IOU,
    SAME_INSTANCE_IOU,
    Answered,
    Question,
    Region,
    Sourced,
    crop_around,
    gathered,
)
from labeling_pipeline.plan import Entry, Group
from labeling_pipeline.tasks import RULES, Geometry


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
            said = tuple(sorted(said, key=lambda a: a.iou(region.box))[-1:])
            said = tuple(a for a in said if a.iou(region.box) >= SAME_INSTANCE_IOU)
        for annotation in said:
            if annotation.bbox is None and annotation.point is None:
                annotation = replace(annotation, bbox=region.box)
            if not any(_is_repeat(annotation, other) for _, other in found):
                found.append((position, annotation))
    return gathered([one.answer.labels[label] for one in answered], found)


def _is_repeat(one: Annotation, other: Annotation) -> bool:
    return one.text == other.text and one.iou(other.bbox) > SAID_TWICE_IOU
