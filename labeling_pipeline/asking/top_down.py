"""Keypoints top-down: detect, look again at every instance on a crop, keep what is better
supported."""

from collections.abc import Sequence
from dataclasses import replace

from labeling_pipeline.annotations import (
    Annotation,
    Keypoint,
    LabelAnswer,
    State,
)
from labeling_pipeline.asking.groups import SETTLED
from labeling_pipeline.asking.questions import (
    SAID_TWICE_IOU,
    SAME_INSTANCE_IOU,
    Answered,
    Question,
    Sourced,
    crop_around,
)
from labeling_pipeline.plan import Entry, Group
from labeling_pipeline.tasks import Task


def opening(entry: Entry, group: Group) -> tuple[Question, Question]:
    """Keypoints and boxes of the whole image."""
    return Question(entry.task, group.labels), Question(Task.DETECTION, group.labels)


def crops(
    entry: Entry, group: Group, answered: Sequence[Answered], image_size_px: tuple[int, int]
) -> tuple[Question, ...]:
    """One question for every instance."""
    asked = [
        Question(entry.task, (label,), crop_around(target.bbox, image_size_px))
        for label in group.labels
        for _, target in _targets(label, answered)
        if target.bbox is not None
    ]
    return tuple(dict.fromkeys(asked))


def best_supported(entry: Entry, label: str, answered: Sequence[Answered]) -> Sourced:
    """For every instance, the keypoints from the whole image or from its crop, whichever the
    model was surer of; a detected instance without keypoints is kept as a box."""
    whole, detected, *closer = answered
    candidates = [
        (index, annotation)
        for index, one in ((0, whole), *enumerate(closer, 2))
        if label in one.answer.labels
        for annotation in one.answer.labels[label].annotations
    ]
    found: list[tuple[int, Annotation]] = []
    for source, target in _targets(label, answered):
        fitting = [
            (index, candidate)
            for index, candidate in candidates
            if candidate.iou(target.bbox) >= SAME_INSTANCE_IOU
        ]
        bare = replace(target, keypoints=_unseen(entry))
        best = max(fitting, key=lambda pair: _support(pair[1]), default=(source, bare))
        if all(best[1].iou(other.bbox) <= SAID_TWICE_IOU for _, other in found):
            found.append(best)
    by_detection = detected.answer.labels[label]
    state = by_detection.state
    if found and state in SETTLED:
        state = State.FOUND
    return Sourced(
        LabelAnswer(state, by_detection.presence, tuple(annotation for _, annotation in found)),
        tuple(source for source, _ in found),
    )


def _targets(label: str, answered: Sequence[Answered]) -> list[tuple[int, Annotation]]:
    """The instances to look at: detected ones, then those that only the keypoint answer names."""
    targets = [(1, found) for found in answered[1].answer.labels[label].annotations]
    targets += [
        (0, found)
        for found in answered[0].answer.labels[label].annotations
        if all(found.iou(other.bbox) < SAME_INSTANCE_IOU for _, other in targets)
    ]
    return targets


def _unseen(entry: Entry) -> tuple[Keypoint, ...]:
    names = entry.skeleton.keypoints if entry.skeleton else ()
    return tuple(Keypoint(name, None, None, None) for name in names)


def _support(annotation: Annotation) -> float:
    """Mean score of the keypoints; one without a place counts as 0."""
    scores = [keypoint.score or 0.0 for keypoint in annotation.keypoints]
    return sum(scores) / len(scores) if scores else 0.0
