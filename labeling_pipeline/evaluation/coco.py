"""Ground truth in COCO format, read strictly.

Format: https://cocodataset.org/#format-data (object detection and keypoint detection), with one
addition: ``annotations[].text`` is what stands in the box. ``file_name`` is relative to the image
root, ``/`` as separator.

COCO spells keypoints with underscores and so do most tools; ours are spelled with spaces
(`labeling_pipeline.tasks`). Both are read.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from labeling_pipeline.evaluation.ground_truth import GroundTruth, invalid
from labeling_pipeline.tasks import PERSON

_UNLABELLED = (math.nan, math.nan, 0)
_NUMBER = {int, float, bool}


def read_coco(path: str, data: bytes) -> GroundTruth:
    """Read a COCO file.

    Args:
        path: what errors call it.
        data: its bytes, UTF-8.

    Raises:
        ConfigurationError: it is not what COCO prescribes. The message says where, what was
            expected and what came.
    """
    document = _load(path, data)
    images = _by_id(path, document, "images")
    categories = _by_id(path, document, "categories")
    file_names = {
        key: str(PurePosixPath(_text(path, f"images id {key}", image, "file_name")))
        for key, image in images.items()
    }
    labels = {
        key: _text(path, f"categories id {key}", category, "name")
        for key, category in categories.items()
    }

    keypoint_names = {
        key: _keypoint_names(path, f"categories id {key}", category)
        for key, category in categories.items()
    }

    boxes: list[tuple[Any, ...]] = []
    keypoints: list[tuple[Any, ...]] = []
    for position, annotation in enumerate(_list(path, document, "annotations")):
        where = f"annotations[{position}]"
        if not isinstance(annotation, Mapping):
            raise invalid(path, where, "an object", annotation)
        file_name = _reference(path, where, annotation, "image_id", file_names)
        label = _reference(path, where, annotation, "category_id", labels)
        box, area = _box(path, where, annotation), _area(path, where, annotation)
        is_crowd = bool(annotation.get("iscrowd", 0))
        boxes.append(
            (
                *(file_name, label, *box, is_crowd, area),
                None if annotation.get("text") is None else _text(path, where, annotation, "text"),
                _segmentation(path, where, annotation),
            )
        )
        category, points = annotation["category_id"], annotation.get("keypoints")
        if points or categories[category].get("keypoints"):
            names = keypoint_names[category]
            given = _keypoints(path, where, points, names) if points else [(names[0], _UNLABELLED)]
            person = (file_name, position, label, *box, area)
            keypoints += [(*person, name, *point) for name, point in given]

    return GroundTruth.of(
        *(boxes, keypoints),
        frozenset(file_names.values()),
        frozenset(labels.values()),
    )


def _load(path: str, data: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise invalid(
            path, f"the whole file ({error})", "a COCO file in JSON", data[:40]
        ) from error
    if not isinstance(document, Mapping):
        raise invalid(path, "the whole file", "an object with images and annotations", document)
    return document


def _list(path: str, document: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise invalid(path, key, "a list (an empty one is fine)", value)
    return value


def _by_id(path: str, document: Mapping[str, Any], key: str) -> dict[Any, Mapping[str, Any]]:
    found: dict[Any, Mapping[str, Any]] = {}
    for position, row in enumerate(_list(path, document, key)):
        where = f"{key}[{position}]"
        if not isinstance(row, Mapping) or not isinstance(row.get("id"), int | str):
            raise invalid(path, where, "an object with an id", row)
        if row["id"] in found:
            raise invalid(path, where, "an id of its own", row["id"])
        found[row["id"]] = row
    return found


def _text(path: str, where: str, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise invalid(path, f"{where}, {key}", "a text", value)
    return value


def _reference(
    path: str, where: str, annotation: Mapping[str, Any], key: str, known: Mapping[Any, str]
) -> str:
    value = annotation.get(key)
    if not isinstance(value, int | str) or value not in known:
        listed = "images" if key == "image_id" else "categories"
        raise invalid(path, f"{where}, {key}", f"an id listed under {listed}", value)
    return known[value]


def _numbers(value: object) -> list[float] | None:
    """Return the value as floats if it is a list of finite numbers."""
    if not isinstance(value, list):
        return None
    # A truth holds a million of them: asked of all at once it takes a tenth of the time.
    if not set(map(type, value)) <= _NUMBER or not all(map(math.isfinite, value)):
        return None
    return list(map(float, value))


def _box(path: str, where: str, annotation: Mapping[str, Any]) -> tuple[float, float, float, float]:
    values = _numbers(annotation.get("bbox"))
    if values is None or len(values) != 4 or min(values[2:]) < 0:
        raise invalid(
            path,
            f"{where}, bbox",
            "[x, y, width, height] in pixels, width and height not negative",
            annotation.get("bbox"),
        )
    x, y, width, height = values
    return x, y, x + width, y + height


def _keypoint_names(path: str, where: str, category: Mapping[str, Any]) -> list[str]:
    names = category.get("keypoints")
    if names is None:
        return list(PERSON.keypoints)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise invalid(path, f"{where}, keypoints", "a list of names", names)
    return [name.replace("_", " ") for name in names]


def _keypoints(
    path: str, where: str, value: object, names: Sequence[str]
) -> list[tuple[str, tuple[float, float, int]]]:
    numbers = _numbers(value)
    if numbers is None or len(numbers) != 3 * len(names):
        raise invalid(
            path,
            f"{where}, keypoints",
            f"x, y, visibility for each of {len(names)} keypoints",
            f"{len(value)} values" if isinstance(value, list) else value,
        )
    points = []
    for i, name in enumerate(names):
        x_px, y_px, visibility = numbers[3 * i : 3 * i + 3]
        if visibility not in (0, 1, 2):
            raise invalid(path, f"{where}, keypoints, {name}", "visibility 0, 1 or 2", visibility)
        points.append((name, (x_px, y_px, int(visibility)) if visibility else _UNLABELLED))
    return points


def _area(path: str, where: str, annotation: Mapping[str, Any]) -> float:
    value = annotation.get("area")
    if value is None:
        return math.nan
    numbers = _numbers([value])
    if numbers is None or numbers[0] < 0:
        raise invalid(path, f"{where}, area", "square pixels, not negative", value)
    return numbers[0]


def _segmentation(path: str, where: str, annotation: Mapping[str, Any]) -> Any:
    value = annotation.get("segmentation")
    if not value:
        return None
    if isinstance(value, Mapping):
        if "counts" in value and _numbers(value.get("size")) is not None:
            return value
    elif isinstance(value, list) and all(
        (numbers := _numbers(outline)) is not None and len(numbers) >= 6 and len(numbers) % 2 == 0
        for outline in value
    ):
        return value
    raise invalid(
        path,
        f"{where}, segmentation",
        "outlines of at least three corners, [[x, y, x, y, x, y, ...], ...], or a run-length "
        "encoding",
        value,
    )
