"""Large images in overlapping tiles: where the tiles lie, and how what they show is put together.

A model sees a resized image, so what is small in a large image is lost to it. Asked tile by tile it
sees everything at full size, but things near a seam twice, or in parts.

Every point of the image belongs to the tile whose centre is nearest. A thing no larger than the
overlap is seen whole by the tile that its middle belongs to, and the part of it that another tile
shows has its middle outside of what belongs to that other tile. So what a tile says of its own
comes first, and what it says of others' counts only where they say nothing: a part is often taken
for another thing altogether. Larger things are taken from the whole image, or joined from parts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from labeling_pipeline.annotations import Annotation, Box, box_area, box_iou, shared_area
from labeling_pipeline.asking.questions import Crop, Sourced, gathered
from labeling_pipeline.plan import Tiling
from labeling_pipeline.tasks import RULES, Geometry, Task

_SAME_IOU = 0.5
_TOUCHED_SHARE = 0.25
_PART_SHARE = 0.6
_JOIN_IOU = 0.7
_SEAM_SHARE = 0.02


def tiles(image_size_px: tuple[int, int], tiling: Tiling) -> list[Crop]:
    """Crops that cover the image row by row, evenly spread; none where one would hold it all.

    image_size_px: (width, height).
    """
    width, height = image_size_px
    columns, rows = (_spans(size, tiling) for size in (width, height))
    if len(columns) * len(rows) == 1:
        return []
    return [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]


def _spans(size: int, tiling: Tiling) -> list[tuple[int, int]]:
    side = min(size, tiling.size_px)
    step = tiling.size_px * (1 - tiling.overlap)
    count = 1 + math.ceil(max(0, size - tiling.size_px) / step)
    starts = [round(i * (size - side) / max(1, count - 1)) for i in range(count)]
    return [(start, start + side) for start in starts]


@dataclass(frozen=True)
class _Found:
    """An annotation, with the answer and the tile it comes from.

    is_own: its middle belongs to its tile. is_cut: it ends where its tile ends.
    """

    label: str
    source: int
    crop: Crop
    annotation: Annotation
    is_own: bool
    is_cut: bool

    @property
    def box(self) -> Box:
        assert self.annotation.bbox is not None
        return self.annotation.bbox


def put_together(
    task: Task,
    labels: Sequence[str],
    parts: Sequence[tuple[Crop | None, Mapping[str, Sourced]]],
    image_size_px: tuple[int, int],
) -> tuple[dict[str, Sourced], list[str]]:
    """One answer about every label out of those about the tiles, and what was left out of it.

    parts: what was said of each tile, and of the whole image (crop ``None``), by label.
    """
    whole: Crop = (0, 0, *image_size_px)
    crops = [crop for crop, _ in parts if crop is not None]
    found = [
        _found(label, one, source, crop, crops, whole)
        for crop, said in parts
        for label in labels
        for one, source in zip(said[label].answer.annotations, said[label].sources, strict=True)
    ]
    if RULES[task].geometry is Geometry.POINT:
        kept = [one for one in found if one.is_own]
        repeats = [one for one in found if not one.is_own]
    else:
        can_join = RULES[task].geometry is Geometry.BOX and not RULES[task].reads_text
        kept, repeats = _without_repeats(found, can_join)
    answers = {}
    for label in labels:
        own = [one for one in kept if one.label == label]
        answers[label] = gathered(
            [said[label].answer for _, said in parts],
            [(one.source, one.annotation) for one in own],
        )
    return answers, [f"seam: {one.label} {_place(one.annotation)}" for one in repeats]


def _found(
    label: str,
    annotation: Annotation,
    source: int,
    crop: Crop | None,
    crops: Sequence[Crop],
    whole: Crop,
) -> _Found:
    if crop is None:
        return _Found(label, source, whole, annotation, is_own=True, is_cut=False)
    if annotation.bbox is None:
        middle = annotation.point
    else:
        x0, y0, x1, y1 = annotation.bbox
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    is_own = middle is None or min(crops, key=lambda other: _distance(middle, other)) == crop
    is_cut = annotation.bbox is not None and _is_cut(annotation.bbox, crop, whole)
    return _Found(label, source, crop, annotation, is_own, is_cut)


def _distance(point: tuple[float, float], crop: Crop) -> float:
    return math.dist(point, ((crop[0] + crop[2]) / 2, (crop[1] + crop[3]) / 2))


def _place(annotation: Annotation) -> object:
    return annotation.bbox or annotation.point


def _without_repeats(found: Sequence[_Found], can_join: bool) -> tuple[list[_Found], list[_Found]]:
    """What is left when each thing counts once, and what was left out."""
    kept: list[_Found] = []
    repeats: list[_Found] = []

    def sort_out(some: Iterable[_Found]) -> list[_Found]:
        """Those that nobody has said before, as far as is known."""
        fresh = []
        for one in some:
            if any(_says_again(one, other) for other in kept):
                repeats.append(one)
            else:
                fresh.append(one)
        return fresh

    for one in sorted((one for one in found if not one.is_cut), key=_rank, reverse=True):
        kept += sort_out([one])
    parts = sort_out(one for one in found if one.is_cut)
    for one in sorted(_joined(parts) if can_join else parts, key=_area, reverse=True):
        kept += sort_out([one])
    return kept, repeats


def _says_again(one: _Found, other: _Found) -> bool:
    """Whether something speaks of a thing that another tile has told of already."""
    if one.crop == other.crop or one.annotation.bbox is None or other.annotation.bbox is None:
        return False
    shared = shared_area(one.box, other.box)
    if not one.is_own:
        return shared > _TOUCHED_SHARE * min(_area(one), _area(other))
    if one.label != other.label:
        return False
    if one.is_cut:
        return shared > _PART_SHARE * _area(one)
    return box_iou(one.box, other.box) > _SAME_IOU


def _joined(parts: list[_Found]) -> list[_Found]:
    """Parts of one thing that lie side by side in neighbouring tiles, as one."""
    waiting = sorted(parts, key=_area, reverse=True)
    done: list[_Found] = []
    while waiting:
        one = waiting.pop(0)
        fitting = next((other for other in waiting if _continues(one, other)), None)
        if fitting is None:
            done.append(one)
            continue
        waiting.remove(fitting)
        waiting.insert(0, _union(one, fitting))
    return done


def _continues(one: _Found, other: _Found) -> bool:
    """Whether two parts overlap and have the same extent along the seam between them."""
    if one.crop == other.crop or one.label != other.label:
        return False
    if not shared_area(one.box, other.box):
        return False
    extents = (
        _interval_iou(one.box[axis], one.box[axis + 2], other.box[axis], other.box[axis + 2])
        for axis in (0, 1)
    )
    return max(extents) >= _JOIN_IOU


def _union(one: _Found, other: _Found) -> _Found:
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = one.box, other.box
    crops = zip(one.crop, other.crop, (min, min, max, max), strict=True)
    x0, y0, x1, y1 = (choose(a, b) for a, b, choose in crops)
    annotation = replace(
        one.annotation,
        bbox=(min(ax0, bx0), min(ay0, by0), max(ax1, bx1), max(ay1, by1)),
        # No surer of the whole than of its less certain part.
        score=min(_score(one), _score(other)),
    )
    return _Found(one.label, one.source, (x0, y0, x1, y1), annotation, is_own=True, is_cut=True)


def _is_cut(box: Box, crop: Crop, whole: Crop) -> bool:
    """Whether a box ends where its tile ends and the image goes on."""
    margin_x, margin_y = (_SEAM_SHARE * (crop[2 + axis] - crop[axis]) for axis in (0, 1))
    return (
        (crop[0] > whole[0] and box[0] <= crop[0] + margin_x)
        or (crop[1] > whole[1] and box[1] <= crop[1] + margin_y)
        or (crop[2] < whole[2] and box[2] >= crop[2] - margin_x)
        or (crop[3] < whole[3] and box[3] >= crop[3] - margin_y)
    )


def _score(one: _Found) -> float:
    return one.annotation.score or 0.0


def _rank(one: _Found) -> tuple[bool, float]:
    return one.is_own, _score(one)


def _area(one: _Found) -> float:
    return box_area(one.box)


def _interval_iou(a0: float, a1: float, b0: float, b1: float) -> float:
    return max(0.0, min(a1, b1) - max(a0, b0)) / (max(a1, b1) - min(a0, b0))
