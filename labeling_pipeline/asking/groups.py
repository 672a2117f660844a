"""Labels without a sound end are asked again, once, in smaller groups."""

import math
from collections.abc import Mapping, Sequence

from labeling_pipeline.annotations import LabelAnswer, State
from labeling_pipeline.asking.questions import Answered, Sourced
from labeling_pipeline.plan import Group

SETTLED = (State.FOUND, State.ABSENT, State.NOT_MENTIONED)
_PENDING = (State.DEGENERATE, State.TRUNCATED)


def smaller_groups(group: Group, answers: Mapping[str, LabelAnswer]) -> list[tuple[str, ...]]:
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


def best_settled(label: str, answered: Sequence[tuple[int, Answered]]) -> Sourced:
    """The first answer, or the second one where that came to an end or holds more.

    answered: answers about the same pixels with their positions, in the order of asking.
    """
    (source, first), *again = answered
    best = first.answer.labels[label]
    for position, one in again:
        other = one.answer.labels.get(label)
        if other is not None and (
            other.state in SETTLED or len(other.annotations) > len(best.annotations)
        ):
            best, source = other, position
    return Sourced(best, (source,) * len(best.annotations))
