"""Large images in overlapping tiles: where the tiles lie, and how what they show is put together.

A model sees a resized image, so what is small in a large image is lost to it. Asked tile by tile it
sees everything at full size, but things near a seam twice, or in parts. What stands whole in one
tile counts once; a part of it, cut by the side of another tile, is dropped; two parts that no tile
shows whole are joined.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from labeling_pipeline.annotations import Annotation, Box, LabelAnswer, State, box_iou
from labeling_pipeline.asking.questions import Crop, Sourced
from labeling_pipeline.plan import Tiling
from labeling_pipeline.tasks import RULES, Geometry, Task

_SAME_IOU = 0.5
_PART_SHARE = 0.7
_JOIN_IOU = 0.7
_SEAM_SHARE = 0.01


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
    """An annotation, the answer and the tile it comes from, and whether a seam cuts it."""

    source: int
    crop: Crop
    annotation: Annotation
    is_cut: bool

    @property
    def box(self) -> Box:
        assert self.annotation.bbox is not None
        return self.annotation.bbox


def put_together(
    label: str,
    task: Task,
    parts: Sequence[tuple[Crop | None, Sourced]],
    image_size_px: tuple[int, int],
) -> tuple[Sourced, list[str]]:
    """One answer about a label out of those about the tiles, and what was left out of it.

    parts: what was said of each tile, and of the whole image (crop ``None``).
    """
    whole: Crop = (0, 0, *image_size_px)
    found = [
        _Found(source, crop or whole, one, one.bbox is not None and _is_cut(one.bbox, crop, whole))
        for crop, said in parts
        for one, source in zip(said.answer.annotations, said.sources, strict=True)
    ]
    if RULES[task].geometry is Geometry.POINT:
        crops = [crop or whole for crop, _ in parts]
        kept = [one for one in found if _is_in_its_own_tile(one, crops)]
        repeats = [one for one in found if one not in kept]
    else:
        can_join = RULES[task].geometry is Geometry.BOX and not RULES[task].reads_text
        kept, repeats = _without_repeats(found, can_join)
    presences = [p for _, said in parts if (p := said.answer.presence) is not None]
    answer = LabelAnswer(
        State.least_settled(said.answer.state for _, said in parts),
        max(presences, default=None),
        tuple(one.annotation for one in kept),
    )
    return (
        Sourced(answer, tuple(one.source for one in kept)),
        [f"seam: {label} {one.annotation.bbox or one.annotation.point}" for one in repeats],
    )


def _without_repeats(found: Sequence[_Found], can_join: bool) -> tuple[list[_Found], list[_Found]]:
    """What is left when each thing counts once, and what was left out."""
    kept: list[_Found] = []
    repeats: list[_Found] = []
    whole = sorted((one for one in found if not one.is_cut), key=_score, reverse=True)
    for one in whole:
        is_repeat = any(
            other.crop != one.crop and box_iou(one.box, other.box) > _SAME_IOU for other in kept
        )
        (repeats if is_repeat else kept).append(one)
    parts: list[_Found] = []
    for one in (one for one in found if one.is_cut):
        (repeats if _is_part_of_any(one, kept) else parts).append(one)
    for one in sorted(_joined(parts) if can_join else parts, key=_area, reverse=True):
        (repeats if _is_part_of_any(one, kept) else kept).append(one)
    return kept, repeats


def _is_part_of_any(one: _Found, others: Sequence[_Found]) -> bool:
    return any(
        other.crop != one.crop and _share_inside(one.box, other.box) > _PART_SHARE
        for other in others
    )


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
    if one.crop == other.crop or box_iou(one.box, other.box) == 0:
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
    return _Found(one.source, (x0, y0, x1, y1), annotation, is_cut=True)


def _is_cut(box: Box, crop: Crop | None, whole: Crop) -> bool:
    """Whether a box ends where its tile ends and the image goes on."""
    if crop is None:
        return False
    margin_x, margin_y = (_SEAM_SHARE * (crop[2 + axis] - crop[axis]) for axis in (0, 1))
    return (
        (crop[0] > whole[0] and box[0] <= crop[0] + margin_x)
        or (crop[1] > whole[1] and box[1] <= crop[1] + margin_y)
        or (crop[2] < whole[2] and box[2] >= crop[2] - margin_x)
        or (crop[3] < whole[3] and box[3] >= crop[3] - margin_y)
    )


def _is_in_its_own_tile(one: _Found, crops: Sequence[Crop]) -> bool:
    """Whether no other tile's centre is nearer: each point of an overlap belongs to one tile."""
    point = one.annotation.point
    assert point is not None

    def distance(crop: Crop) -> float:
        return math.dist(point, ((crop[0] + crop[2]) / 2, (crop[1] + crop[3]) / 2))

    return min(crops, key=distance) == one.crop


def _score(one: _Found) -> float:
    return one.annotation.score or 0.0


def _area(one: _Found) -> float:
    x0, y0, x1, y1 = one.box
    return (x1 - x0) * (y1 - y0)


def _share_inside(box: Box, other: Box) -> float:
    """The share of a box that lies inside another one."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(0.0, width) * max(0.0, height) / area


def _interval_iou(a0: float, a1: float, b0: float, b1: float) -> float:
    return max(0.0, min(a1, b1) - max(a0, b0)) / (max(a1, b1) - min(a0, b0))
