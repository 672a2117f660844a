"""One JSON file per class, for tools that expect a class's images and boxes in one place.

Boxes::

    {"task": "detection", "class": "Sitting",
     "images": [{"id": 1, "file_name": "/data/Sitting/a.jpg"}],
     "annotations": [{"image_id": 1, "bbox": [x0, y0, x1, y1], "confidence": 0.9132, "area": 5.0}]}

Postures::

    {"action": "Sitting",
     "images": [...],
     "annotations": [{"image_id": 1, "bbox": [x0, y0, x1, y1],
                      "persons": [{"instance_id": 0, "keypoints": {"nose": [x, y], ...}}],
                      "label": "person", "score": 0.9132, "area": 5.0}]}

Tasks that yield them add ``"point": [x, y]``, ``"polygon": [[x, y], ...]`` and ``"text"``; a point
has no ``bbox`` and no ``area``. What a person gave says so: ``"corrected_by": "Ann"``. A score that
was calibrated says so too, and what was measured: ``"confidence": 0.97, "calibrated": true,
"measured": 0.61``; others are as they were measured.

Unlike COCO, ``bbox`` is two corners. Coordinates are pixels with two decimals, scores have four. A
keypoint that is not visible is ``null``; every name of the skeleton is always there. What has no
score says ``null`` too. Every image of the class is listed, also one without annotations; one that
is held out for testing says ``"split": "test"``.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from labeling_pipeline.annotations import Keypoint
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.tasks import PERSON, Skeleton, Task

_BOX = ["x0_px", "y0_px", "x1_px", "y1_px"]


def export_path(results_dir: Path, class_slug: str, entry: str, first: bool) -> Path:
    """Return where the file of one class and one entry of the plan goes.

    The plan's first entry gets the plain name ``<class>/<class>.json``, further ones
    ``<class>/<class>_<entry>.json``.
    """
    name = class_slug if first else f"{class_slug}_{entry}"
    return results_dir / class_slug / f"{name}.json"


def build_box_document(
    task: Task | str,
    display_name: str,
    images: pd.DataFrame,
    annotations: pd.DataFrame,
    source: ImageSource,
) -> dict[str, Any]:
    """Build the document of a task that yields boxes.

    Args:
        task: goes into the document.
        display_name: of the class.
        images: every image of the class: ``image_id, image_number, path`` (relative), and
            ``is_test`` where some are held out for testing.
        annotations: ``image_id, x0_px, y0_px, x1_px, y1_px, score``, ``corrected_by`` where people
            gave some, and ``measured_score, is_calibrated`` where some scores are calibrated. Those
            of images that are not in ``images`` are left out.
        source: where the paths lead to.
    """
    return {
        "task": str(task),
        "class": display_name,
        "images": _images(images, source),
        "annotations": [
            {
                "image_id": number,
                "bbox": _bbox(row),
                **_score(row, "confidence"),
                "area": _area(row),
                **_extras(row),
                **_author(row),
            }
            for number, row in _in_order(images, annotations)
        ],
    }


def build_posture_document(
    display_name: str,
    images: pd.DataFrame,
    annotations: pd.DataFrame,
    source: ImageSource,
    skeleton: Skeleton = PERSON,
) -> dict[str, Any]:
    """Build the document of a keypoint task: one annotation a person.

    ``instance_id`` counts the people of an image from 0, the best-scored first.

    Args:
        display_name: of the class.
        images, source: as for `build_box_document`.
        annotations: as for `build_box_document`, with ``label`` and ``keypoints``, a sequence of
            `Keypoint` or of mappings with ``name, x_px, y_px``.
        skeleton: which names to list.
    """
    instances: dict[int, int] = {}
    entries = []
    for number, row in _in_order(images, annotations):
        instance = instances.get(number, 0)
        instances[number] = instance + 1
        entries.append(
            {
                "image_id": number,
                "bbox": _bbox(row),
                "persons": [
                    {"instance_id": instance, "keypoints": _keypoints(row.keypoints, skeleton)}
                ],
                "label": row.label,
                **_score(row, "score"),
                "area": _area(row),
                **_author(row),
            }
        )
    return {
        "action": display_name,
        "images": _images(images, source),
        "annotations": entries,
    }


def write_class_json(path: Path, document: Mapping[str, Any]) -> bool:
    """Write the document if it differs from what is there, so that the file's time tells.

    A reader sees the old file or the new one, never half of one. Missing folders are made.

    Returns:
        Whether the file was written.

    Raises:
        OSError: it cannot be written.
        ValueError: the document holds a NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    return write_if_changed(path, text.encode())


def _images(images: pd.DataFrame, source: ImageSource) -> list[dict[str, Any]]:
    rows = images.drop_duplicates("image_id").sort_values("image_number")
    return [
        {"id": int(row.image_number), "file_name": source.locate(str(row.path))}
        | ({"split": "test"} if getattr(row, "is_test", False) else {})
        for row in rows.itertuples()
    ]


def _in_order(images: pd.DataFrame, annotations: pd.DataFrame) -> Iterator[tuple[int, Any]]:
    """Yield (image number, annotation) in an order that their content alone decides."""
    numbers = dict(zip(images["image_id"], images["image_number"], strict=True))
    rows = annotations[annotations["image_id"].isin(list(numbers))]
    # What calibration makes equal stays in the order in which it was measured.
    measured = rows["measured_score" if "measured_score" in rows else "score"]
    rows = rows.assign(_number=rows["image_id"].map(numbers), _score=-_floats(measured))
    keys = ["_number", "_score", *_BOX]
    for row in (
        rows.sort_values(keys, kind="stable").drop(columns=["_number", "_score"]).itertuples()
    ):
        yield int(numbers[row.image_id]), row


def _floats(values: pd.Series) -> pd.Series:
    return pd.to_numeric(values).astype(float)


def _rounded(value: object, digits: int) -> float | None:
    """Round; a missing value stays missing."""
    if value is None or value is pd.NA or not math.isfinite(value):  # type: ignore[arg-type]
        return None
    return round(float(value), digits)  # type: ignore[arg-type]


def _score(row: Any, name: str) -> dict[str, Any]:
    """The score under the name that its document has for it; if calibrated, with the measured."""
    score: dict[str, Any] = {name: _rounded(row.score, 4)}
    if getattr(row, "is_calibrated", False):
        score |= {"calibrated": True, "measured": _rounded(row.measured_score, 4)}
    return score


def _extras(row: Any) -> dict[str, Any]:
    """What only some tasks yield: a point, an outline, the text that was read."""
    extras: dict[str, Any] = {}
    for name in ("point", "polygon", "text"):
        value = getattr(row, name, None)
        if value is None or isinstance(value, float):
            continue
        if name == "point":
            value = [_rounded(value["x_px"], 2), _rounded(value["y_px"], 2)]
        elif name == "polygon":
            value = [[_rounded(c["x_px"], 2), _rounded(c["y_px"], 2)] for c in value]
        extras[name] = value
    return extras


def _author(row: Any) -> dict[str, str]:
    """Who gave an annotation, where a person did."""
    author = getattr(row, "corrected_by", None)
    return {} if author is None or pd.isna(author) else {"corrected_by": author}


def _bbox(row: Any) -> list[float | None] | None:
    if pd.isna(row.x0_px):
        return None
    return [_rounded(getattr(row, column), 2) for column in _BOX]


def _area(row: Any) -> float | None:
    return _rounded((row.x1_px - row.x0_px) * (row.y1_px - row.y0_px), 2)


def _keypoints(value: Any, skeleton: Skeleton) -> dict[str, list[float | None] | None]:
    """Return name -> [x, y] or None, for every name of the skeleton, in its order."""
    points: dict[str, list[float | None] | None] = dict.fromkeys(skeleton.keypoints)
    for keypoint in value if value is not None else ():
        if isinstance(keypoint, Keypoint):
            name, x_px, y_px = keypoint.name, keypoint.x_px, keypoint.y_px
        else:
            name, x_px, y_px = keypoint["name"], keypoint["x_px"], keypoint["y_px"]
        point = [_rounded(x_px, 2), _rounded(y_px, 2)]
        if name in points and None not in point:
            points[name] = point
    return points
