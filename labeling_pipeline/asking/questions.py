"""Questions about one image, their answers, and what all of them come to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from labeling_pipeline.annotations import Annotation, Box, LabelAnswer, ParsedAnswer, State
from labeling_pipeline.tasks import Task

Crop = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels of the upright image, x1 and y1 exclusive."""

CROP_MARGIN = 0.25
"""What a crop shows around an instance, as a share of the instance's width and height."""

SAME_INSTANCE_IOU = 0.5
"""Boxes of two answers that overlap so much may be of one instance."""

SAID_TWICE_IOU = 0.9
"""Boxes that overlap more than this are one thing said twice."""

_MIN_CROP_PX = 32


@dataclass(frozen=True)
class Region:
    """What another entry found. box: in pixels of the image. name: what it was called, if that was
    the model's own word for it."""

    annotation_id: str
    box: Box
    name: str | None = None


@dataclass(frozen=True)
class Question:
    """One prompt about an image, or about a part of it; about a region, where one is given."""

    task: Task
    labels: tuple[str, ...]
    crop_px: Crop | None = None
    region: Region | None = None


@dataclass(frozen=True)
class Answered:
    """A question and what was read out of its answer, in pixels of the whole image."""

    question: Question
    answer: ParsedAnswer


@dataclass(frozen=True)
class Sourced:
    """What the answers say of one label.

    sources: for each annotation, the position of the answer that it stands in.
    """

    answer: LabelAnswer
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Conclusion:
    """What all answers about one image come to.

    labels: one entry for every label of the group.
    dropped: what stood in any of the answers and is in no annotation, each with the reason.
    """

    labels: dict[str, Sourced]
    dropped: tuple[str, ...]


def gathered(said: Sequence[LabelAnswer], found: Sequence[tuple[int, Annotation]]) -> Sourced:
    """One answer out of those about several parts of an image.

    said: what came of each part, never empty. found: what is kept of it, with its sources.
    """
    presences = [answer.presence for answer in said if answer.presence is not None]
    return Sourced(
        LabelAnswer(
            State.least_settled(answer.state for answer in said),
            max(presences, default=None),
            tuple(annotation for _, annotation in found),
        ),
        tuple(source for source, _ in found),
    )


def crop_around(box: Box, image_size_px: tuple[int, int]) -> Crop:
    """A box with its margin, inside the image and not too small to show anything."""

    def span(low: float, high: float, size: int) -> tuple[int, int]:
        margin = max(CROP_MARGIN * (high - low), (_MIN_CROP_PX - (high - low)) / 2)
        return max(0, math.floor(low - margin)), min(size, math.ceil(high + margin))

    width, height = image_size_px
    x0, x1 = span(box[0], box[2], width)
    y0, y1 = span(box[1], box[3], height)
    return x0, y0, x1, y1
