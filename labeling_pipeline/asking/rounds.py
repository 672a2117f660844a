"""What is asked about one image, in at most two rounds, and how the answers make one.

The first round is the group's prompt: about the whole image, and about each tile of a large one; or
about each of the regions that another entry found, or for the names that it gave them. The second
is what its answers call for: labels whose answer went round in circles or was cut are asked again
in smaller groups, and of ``top_down`` keypoints every instance is asked again on a crop. There is
no third.

Pure functions of the entry and the answers, so that stored answers can be read again without a
model.
"""

from collections.abc import Sequence

from labeling_pipeline.asking import names, regions, tiling, top_down
from labeling_pipeline.asking.groups import best_settled, smaller_groups
from labeling_pipeline.asking.questions import (
    Answered,
    Conclusion,
    Crop,
    Question,
    Region,
)
from labeling_pipeline.plan import Entry, Group
from labeling_pipeline.tasks import RULES, Geometry


def first_questions(
    entry: Entry,
    group: Group,
    image_size_px: tuple[int, int],
    found: Sequence[Region] = (),
) -> tuple[Question, ...]:
    """What is asked of an image; the group's own prompt comes first.

    image_size_px: (width, height). found: for an entry that goes on from what another one found.
    """
    if entry.regions is not None:
        return regions.questions(entry, group, found, image_size_px)
    if entry.labels_from is not None:
        return names.questions(entry, found)
    if entry.top_down:
        return top_down.opening(entry, group)
    crops: list[Crop | None] = [None]
    if entry.tiles is not None and (cut := tiling.tiles(image_size_px, entry.tiles)):
        # Large things are seen on the whole; points have no size to be cut.
        is_point = RULES[entry.task].geometry is Geometry.POINT
        crops = [*cut] if is_point else [None, *cut]
    return tuple(Question(entry.task, group.labels, crop) for crop in crops)


def second_questions(
    entry: Entry, group: Group, answered: Sequence[Answered], image_size_px: tuple[int, int]
) -> tuple[Question, ...]:
    """What the first answers call for; often nothing.

    image_size_px: (width, height).
    """
    if entry.source is not None:
        return ()
    if entry.top_down:
        return top_down.crops(entry, group, answered, image_size_px)
    return tuple(
        Question(entry.task, labels, one.question.crop_px)
        for one in answered
        for labels in smaller_groups(group, one.answer.labels)
    )


def conclude(
    entry: Entry, group: Group, answered: Sequence[Answered], image_size_px: tuple[int, int]
) -> Conclusion:
    """One answer out of all.

    image_size_px: (width, height).
    """
    dropped = [what for one in answered for what in one.answer.dropped]
    if entry.regions is not None:
        decide = regions.put_together
    elif entry.labels_from is not None:
        decide = names.put_together
    elif entry.top_down:
        decide = top_down.best_supported
    else:
        return _conclude_parts(entry, group, answered, image_size_px, dropped)
    # What was asked for names stands under the class's label alone, whatever was asked beside them.
    labels = group.classes.values() if entry.labels_from else group.labels
    said = {label: decide(entry, label, answered) for label in labels}
    return Conclusion(said, tuple(dropped))


def _conclude_parts(
    entry: Entry,
    group: Group,
    answered: Sequence[Answered],
    image_size_px: tuple[int, int],
    dropped: Sequence[str],
) -> Conclusion:
    """Of each part of the image what settled it, and of the parts one answer."""
    by_crop: dict[Crop | None, list[tuple[int, Answered]]] = {}
    for position, one in enumerate(answered):
        by_crop.setdefault(one.question.crop_px, []).append((position, one))
    parts = [
        (crop, {label: best_settled(label, answers) for label in group.labels})
        for crop, answers in by_crop.items()
    ]
    if len(parts) == 1:
        return Conclusion(parts[0][1], tuple(dropped))
    labels, repeats = tiling.put_together(entry.task, group.labels, parts, image_size_px)
    return Conclusion(labels, (*dropped, *repeats))
