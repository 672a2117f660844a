"""Entries that look for what another entry named: one model says what there is, another where."""

from collections.abc import Sequence
from dataclasses import replace

from labeling_pipeline.asking.questions import Answered, Question, Region, Sourced, gathered
from labeling_pipeline.plan import Entry


def names_of(regions: Sequence[Region]) -> tuple[str, ...]:
    """What the regions are called, each name once, whatever its case."""
    names: dict[str, str] = {}
    for region in regions:
        if region.name:
            names.setdefault(region.name.casefold(), region.name)
    return tuple(names.values())


def questions(entry: Entry, regions: Sequence[Region]) -> tuple[Question, ...]:
    """The names of an image in groups, with the entry's distractors beside them."""
    names = names_of(regions)
    groups = [names[i : i + entry.group_size] for i in range(0, len(names), entry.group_size)]
    return tuple(
        Question(entry.task, (*group, *(d for d in entry.distractors if d not in names)))
        for group in groups
    )


def put_together(entry: Entry, label: str, answered: Sequence[Answered]) -> Sourced:
    """Everything that was found of any name; the name becomes the annotation's text."""
    said = [
        (position, name, one.answer.labels[name])
        for position, one in enumerate(answered)
        for name in one.question.labels
        if name not in entry.distractors
    ]
    found = [
        (position, replace(annotation, label=label, text=name))
        for position, name, answer in said
        for annotation in answer.annotations
    ]
    return gathered([answer for _, _, answer in said], found)
