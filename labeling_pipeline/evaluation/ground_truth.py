"""Ground truth in COCO format, read strictly.

Format: https://cocodataset.org/#format-data (object detection and keypoint detection), with one
addition: ``images[].action`` names what the people on the image do. ``file_name`` is relative to
the image root, ``/`` as separator.

COCO spells keypoints with underscores and so do most tools; ours are spelled with spaces
(`labeling_pipeline.tasks`). Both are read.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.tasks import PERSON

BOX_COLUMNS = ["x0_px", "y0_px", "x1_px", "y1_px"]
_FIX = "Correct the file, or leave the ground truth out of the configuration."


@dataclass(frozen=True)
class GroundTruth:
    """What is known about the images.

    boxes: one row a box: ``file_name, label, x0_px, y0_px, x1_px, y1_px, iscrowd``.
    keypoints: one row a keypoint of a person: ``file_name, instance, label``, the person's box
        ``x0_px, y0_px, x1_px, y1_px``, then ``name, x_px, y_px, visibility``. ``instance`` tells
        the people of the whole file apart. ``visibility`` is COCO's: 0 not labelled (then the
        coordinates are NaN), 1 labelled but hidden, 2 visible.
    actions: file name -> action, for the images that have one.
    file_names: the images the truth speaks of, also those without a box.
    labels: the categories the truth speaks of, also those without a box. An image in
        ``file_names`` without a box of such a label is known not to show it; of any other label
        nothing is known.
    """

    boxes: pd.DataFrame
    keypoints: pd.DataFrame
    actions: dict[str, str]
    file_names: frozenset[str]
    labels: frozenset[str]

    def covers(self, file_names: pd.Series, labels: pd.Series) -> pd.Series:
        """Tell, row by row, whether the truth knows if that label is on that image."""
        return file_names.isin(self.file_names) & labels.isin(self.labels)


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
    actions = {
        file_names[key]: _text(path, f"images id {key}", image, "action")
        for key, image in images.items()
        if image.get("action") is not None
    }

    boxes: list[tuple[Any, ...]] = []
    keypoints: list[tuple[Any, ...]] = []
    for position, annotation in enumerate(_list(path, document, "annotations")):
        where = f"annotations[{position}]"
        if not isinstance(annotation, Mapping):
            raise _invalid(path, where, "an object", annotation)
        file_name = _reference(path, where, annotation, "image_id", file_names)
        label = _reference(path, where, annotation, "category_id", labels)
        box = _box(path, where, annotation)
        boxes.append((file_name, label, *box, bool(annotation.get("iscrowd", 0))))
        if annotation.get("keypoints"):
            names = _keypoint_names(path, where, categories[annotation["category_id"]])
            for name, point in _keypoints(path, where, annotation["keypoints"], names):
                keypoints.append((file_name, position, label, *box, name, *point))

    return GroundTruth(
        boxes=pd.DataFrame(boxes, columns=["file_name", "label", *BOX_COLUMNS, "iscrowd"]),
        keypoints=pd.DataFrame(
            keypoints,
            columns=[
                *("file_name", "instance", "label", *BOX_COLUMNS),
                *("name", "x_px", "y_px", "visibility"),
            ],
        ),
        actions=actions,
        file_names=frozenset(file_names.values()),
        labels=frozenset(labels.values()),
    )


def _load(path: str, data: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ConfigurationError(
            f"The ground truth {path} is not valid JSON: {error}. Expected a COCO file. {_FIX}"
        ) from error
    if not isinstance(document, Mapping):
        raise _invalid(path, "the whole file", "an object with images and annotations", document)
    return document


def _invalid(path: str, where: str, expected: str, got: object) -> ConfigurationError:
    shown = repr(got)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return ConfigurationError(
        f"The ground truth {path} is not valid at {where}: expected {expected}, got {shown}. {_FIX}"
    )


def _list(path: str, document: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise _invalid(path, key, "a list (an empty one is fine)", value)
    return value


def _by_id(path: str, document: Mapping[str, Any], key: str) -> dict[Any, Mapping[str, Any]]:
    found: dict[Any, Mapping[str, Any]] = {}
    for position, row in enumerate(_list(path, document, key)):
        where = f"{key}[{position}]"
        if not isinstance(row, Mapping) or not isinstance(row.get("id"), int | str):
            raise _invalid(path, where, "an object with an id", row)
        if row["id"] in found:
            raise _invalid(path, where, "an id of its own", row["id"])
        found[row["id"]] = row
    return found


def _text(path: str, where: str, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise _invalid(path, f"{where}, {key}", "a text", value)
    return value


def _reference(
    path: str, where: str, annotation: Mapping[str, Any], key: str, known: Mapping[Any, str]
) -> str:
    value = annotation.get(key)
    if not isinstance(value, int | str) or value not in known:
        listed = "images" if key == "image_id" else "categories"
        raise _invalid(path, f"{where}, {key}", f"an id listed under {listed}", value)
    return known[value]


def _numbers(value: object) -> list[float] | None:
    """Return the value as floats if it is a list of finite numbers."""
    if not isinstance(value, list):
        return None
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in value):
        return None
    return [float(v) for v in value]


def _box(path: str, where: str, annotation: Mapping[str, Any]) -> tuple[float, float, float, float]:
    values = _numbers(annotation.get("bbox"))
    if values is None or len(values) != 4 or min(values[2:]) < 0:
        raise _invalid(
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
        raise _invalid(path, f"the category of {where}, keypoints", "a list of names", names)
    return [name.replace("_", " ") for name in names]


def _keypoints(
    path: str, where: str, value: object, names: Sequence[str]
) -> list[tuple[str, tuple[float, float, int]]]:
    numbers = _numbers(value)
    if numbers is None or len(numbers) != 3 * len(names):
        raise _invalid(
            path,
            f"{where}, keypoints",
            f"x, y, visibility for each of {len(names)} keypoints",
            f"{len(value)} values" if isinstance(value, list) else value,
        )
    points = []
    for i, name in enumerate(names):
        x_px, y_px, visibility = numbers[3 * i : 3 * i + 3]
        if visibility not in (0, 1, 2):
            raise _invalid(path, f"{where}, keypoints, {name}", "visibility 0, 1 or 2", visibility)
        point = (x_px, y_px) if visibility else (math.nan, math.nan)
        points.append((name, (*point, int(visibility))))
    return points
