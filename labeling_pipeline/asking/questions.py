"""Questions about one image, their answers, and what all of them come to."""

from dataclasses import dataclass

from labeling_pipeline.annotations import LabelAnswer, ParsedAnswer
from labeling_pipeline.tasks import Task

Crop = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels of the upright image, x1 and y1 exclusive."""


@dataclass(frozen=True)
class Question:
    """One prompt about an image, or about a part of it."""

    task: Task
    labels: tuple[str, ...]
    crop_px: Crop | None = None


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
