"""What is asked about one image, in at most two rounds, and how the answers make one.

The first round is the group's prompt. The second is what its answers call for: labels whose answer
went round in circles or was cut are asked again in smaller groups, and of ``top_down`` keypoints
every instance is asked again on a crop. There is no third.

Pure functions of the entry and the answers, so that stored answers can be read again without a
model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from labeling_pipeline.annotations import (
    Annotation,
    Box,
    Keypoint,
    LabelAnswer,
    ParsedAnswer,
    State,
    box_iou,
)
from labeling_pipeline.plan import Entry, Group
from labeling_pipeline.tasks import Task

Crop = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels of the upright image, x1 and y1 exclusive."""

CROP_MARGIN = 0.25
"""What a crop shows around an instance, as a share of the instance's width and height."""

_MIN_CROP_PX = 32
_SAME_INSTANCE_IOU = 0.5
_SAID_TWICE_IOU = 0.9

_PENDING = (State.DEGENERATE, State.TRUNCATED)
_SETTLED = (State.FOUND, State.ABSENT, State.NOT_MENTIONED)


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
class Conclusion:
    """What all answers about one image come to.

    labels: one entry for every label of the group.
    sources: label -> for each of its annotations the index of the answer it stands in.
    dropped: what stood in any of the answers and is in no annotation, each with the reason.
    """

    labels: dict[str, LabelAnswer]
    sources: dict[str, tuple[int, ...]]
    dropped: tuple[str, ...]


def first_questions(entry: Entry, group: Group) -> tuple[Question, ...]:
    """What is asked of every image; the group's own prompt comes first."""
    own = Question(entry.task, group.labels)
    return (own, Question(Task.DETECTION, group.labels)) if entry.top_down else (own,)


def second_questions(
    entry: Entry, group: Group, answered: Sequence[Answered], image_size_px: tuple[int, int]
) -> tuple[Question, ...]:
    """What the first answers call for; often nothing.

    image_size_px: (width, height).
    """
    if entry.top_down:
        crops = [
            Question(entry.task, (label,), crop_around(target.bbox, image_size_px))
            for label in group.labels
            for _, target in _targets(label, answered)
            if target.bbox is not None
        ]
        return tuple(dict.fromkeys(crops))
    (first,) = answered
    return tuple(
        Question(entry.task, labels) for labels in smaller_groups(group, first.answer.labels)
    )


def smaller_groups(group: Group, answers: dict[str, LabelAnswer]) -> list[tuple[str, ...]]:
    """The labels to be asked again: those without a sound end, in groups smaller than theirs was.

    Labels that were settled are left out; where none was, the group is halved. Distractors stay
    beside them, but for one in which the answer itself went round in circles.
    """
    asked = list(dict.fromkeys(group.classes.values()))
    pending = [label for label in asked if answers[label].state in _PENDING]
    if not pending or len(asked) == 1:
        return []
    if len(pending) < len(asked):
        parts = [pending]
    else:
        half = math.ceil(len(pending) / 2)
        parts = [pending[:half], pending[half:]]
    company = [
        label
        for label in group.labels
        if label not in asked and answers[label].state is not State.DEGENERATE
    ]
    return [(*part, *company) for part in parts]


def conclude(entry: Entry, group: Group, answered: Sequence[Answered]) -> Conclusion:
    """One answer out of all."""
    decide = _best_supported if entry.top_down else _best_settled
    labels, sources = {}, {}
    for label in group.labels:
        labels[label], sources[label] = decide(entry, label, answered)
    return Conclusion(labels, sources, tuple(d for a in answered for d in a.answer.dropped))


def crop_around(box: Box, image_size_px: tuple[int, int]) -> Crop:
    """A box with its margin, inside the image and not too small to show anything."""

    def span(low: float, high: float, size: int) -> tuple[int, int]:
        margin = max(CROP_MARGIN * (high - low), (_MIN_CROP_PX - (high - low)) / 2)
        return max(0, math.floor(low - margin)), min(size, math.ceil(high + margin))

    width, height = image_size_px
    x0, x1 = span(box[0], box[2], width)
    y0, y1 = span(box[1], box[3], height)
    return x0, y0, x1, y1


def _best_settled(
    entry: Entry, label: str, answered: Sequence[Answered]
) -> tuple[LabelAnswer, tuple[int, ...]]:
    """The first answer, or the second one where that came to an end or holds more."""
    best, source = answered[0].answer.labels[label], 0
    for index, again in enumerate(answered[1:], 1):
        other = again.answer.labels.get(label)
        if other is not None and (
            other.state in _SETTLED or len(other.annotations) > len(best.annotations)
        ):
            best, source = other, index
    return best, (source,) * len(best.annotations)


def _best_supported(
    entry: Entry, label: str, answered: Sequence[Answered]
) -> tuple[LabelAnswer, tuple[int, ...]]:
    """For every instance, the keypoints from the whole image or from its crop, whichever the
    model was surer of; a detected instance without keypoints is kept as a box."""
    whole, detected, *crops = answered
    candidates = [
        (index, annotation)
        for index, one in ((0, whole), *enumerate(crops, 2))
        if label in one.answer.labels
        for annotation in one.answer.labels[label].annotations
    ]
    found: list[tuple[int, Annotation]] = []
    for source, target in _targets(label, answered):
        fitting = [
            (index, candidate)
            for index, candidate in candidates
            if _iou(candidate, target) >= _SAME_INSTANCE_IOU
        ]
        bare = replace(target, keypoints=_unseen(entry))
        best = max(fitting, key=lambda pair: _support(pair[1]), default=(source, bare))
        if all(_iou(best[1], other) <= _SAID_TWICE_IOU for _, other in found):
            found.append(best)
    by_detection = detected.answer.labels[label]
    state = by_detection.state
    if found and state in _SETTLED:
        state = State.FOUND
    return (
        LabelAnswer(state, by_detection.presence, tuple(annotation for _, annotation in found)),
        tuple(source for source, _ in found),
    )


def _targets(label: str, answered: Sequence[Answered]) -> list[tuple[int, Annotation]]:
    """The instances to look at: detected ones, then those that only the keypoint answer names."""
    targets = [(1, found) for found in answered[1].answer.labels[label].annotations]
    targets += [
        (0, found)
        for found in answered[0].answer.labels[label].annotations
        if all(_iou(found, other) < _SAME_INSTANCE_IOU for _, other in targets)
    ]
    return targets


def _unseen(entry: Entry) -> tuple[Keypoint, ...]:
    names = entry.skeleton.keypoints if entry.skeleton else ()
    return tuple(Keypoint(name, None, None, None) for name in names)


def _support(annotation: Annotation) -> float:
    """Mean score of the keypoints; one without a place counts as 0."""
    scores = [keypoint.score or 0.0 for keypoint in annotation.keypoints]
    return sum(scores) / len(scores) if scores else 0.0


def _iou(one: Annotation, two: Annotation) -> float:
    return box_iou(one.bbox, two.bbox) if one.bbox and two.bbox else 0.0
