"""Ground truth in YOLO format as Ultralytics writes it, read strictly.

Format: https://docs.ultralytics.com/datasets/detect and /datasets/pose, /datasets/segment. A
``data.yaml`` names the classes, and each image has a text file with a line an object: the number
of the class, then ``x y w h`` (centre and size of the box), where ``kpt_shape`` says so followed by
``x y`` or ``x y visibility`` of each keypoint; or the corners ``x y x y x y ...`` of its outline.
All are shares of the image's width and height.

A label file lies where Ultralytics looks for it: as the image, with the last folder called
``images`` on its path replaced by ``labels``; without such a folder beside the image. It may also
lie beside the image in any case, or in ``labels/`` beside ``data.yaml`` under the path that the
image has under the image root.

Two departures, both for the sake of what is not known. Ultralytics takes an image without a label
file for one that shows nothing; here nothing is known of it, and an empty file says that it shows
nothing. The image lists ``train``, ``val`` and ``test`` are not read: what has labels is judged.
"""

import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from labeling_pipeline.annotations import Box
from labeling_pipeline.evaluation.ground_truth import GroundTruth, invalid
from labeling_pipeline.tasks import PERSON

# How far a share may lie outside 0..1: rounding, as Ultralytics allows it.
_ROUNDING = 0.01


@dataclass(frozen=True)
class YoloNames:
    """What ``data.yaml`` says.

    path: what errors call it. labels: number of a class -> its name.
    keypoints: how many there are, 0 for none. dimensions: numbers of each, 2 or 3.
    keypoint_names: number of a class -> the names of its keypoints.
    """

    path: str
    labels: Mapping[int, str]
    keypoints: int = 0
    dimensions: int = 3
    keypoint_names: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelFile:
    """The label file of one image. path: what errors call it. size_px: (width, height) of the
    upright image."""

    path: str
    data: bytes
    size_px: tuple[int, int]


def is_yolo(path: str) -> bool:
    """Whether a ground truth is YOLO, by its name."""
    return path.lower().endswith((".yaml", ".yml"))


def read_names(path: str, data: bytes) -> YoloNames:
    """Read ``data.yaml``.

    Raises:
        ConfigurationError: it is not what Ultralytics prescribes; says where.
    """
    try:
        document = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise invalid(path, "the whole file", "YAML", str(error)) from error
    if not isinstance(document, Mapping):
        raise invalid(path, "the whole file", "a mapping with `names`", document)
    labels = _names(path, document)
    shape = document.get("kpt_shape")
    if shape is None:
        return YoloNames(path, labels)
    if not (
        isinstance(shape, list)
        and len(shape) == 2
        and all(isinstance(number, int) for number in shape)
        and shape[0] >= 1
        and shape[1] in (2, 3)
    ):
        raise invalid(path, "kpt_shape", "[number of keypoints, 2 or 3]", shape)
    count, dimensions = shape
    spelled = _keypoint_names(path, document, labels, count)
    return YoloNames(path, labels, count, dimensions, spelled)


def label_files(image: str, root: str, names_file: str) -> Iterator[str]:
    """Where the label file of an image may lie, in the order in which to look.

    Args:
        image: path under the image root.
        root: the image root, as a path within its storage.
        names_file: where ``data.yaml`` lies, relative to the root, absolute or as a URL.

    Returns:
        Paths, relative to the root unless ``names_file`` is not.
    """
    stem = image.rpartition(".")[0]
    top = posixpath.join("/", root)
    before, found, after = posixpath.join(top, stem).rpartition("/images/")
    if found:
        yield f"{posixpath.relpath(f'{before}/labels/{after}', top)}.txt"
    yield f"{stem}.txt"
    yield f"{posixpath.join(posixpath.dirname(names_file), 'labels', stem)}.txt"


def read_yolo(names: YoloNames, files: Mapping[str, LabelFile]) -> GroundTruth:
    """Read the label files of images.

    Args:
        names: of the classes.
        files: path of an image under the image root -> its label file. Exact repetitions of a
            line count once, as Ultralytics counts them.

    Raises:
        ConfigurationError: names file and line, what was expected and what came.
    """
    boxes: list[tuple[Any, ...]] = []
    keypoints: list[tuple[Any, ...]] = []
    for image, file in files.items():
        seen = {""}
        for number, line in enumerate(_text_of(file).splitlines(), 1):
            if line.strip() in seen:
                continue
            seen.add(line.strip())
            thing = _thing(names, file, f"line {number}", line)
            person = (image, len(boxes), thing.label, *thing.box, math.nan)
            boxes.append((image, thing.label, *thing.box, False, math.nan, None, thing.outline))
            keypoints += [(*person, *point) for point in thing.points]
    return GroundTruth.of(boxes, keypoints, frozenset(files), frozenset(names.labels.values()))


@dataclass(frozen=True)
class _Thing:
    """One line. points: name, x_px, y_px, visibility of each keypoint."""

    label: str
    box: Box
    outline: list[list[float]] | None = None
    points: tuple[tuple[str, float, float, int], ...] = ()


def _thing(names: YoloNames, file: LabelFile, where: str, line: str) -> _Thing:
    try:
        number, *values = (float(value) for value in line.split())
    except ValueError:
        raise invalid(file.path, where, "numbers", line) from None
    if number not in names.labels:
        raise invalid(file.path, where, f"the number of a class of {names.path}", line)
    label = names.labels[int(number)]
    scale = file.size_px
    with_points = 4 + names.keypoints * names.dimensions
    if names.keypoints and len(values) == with_points:
        points = _points(names, file, where, values[4:], int(number))
        return _Thing(label, _box(file, where, values[:4]), points=points)
    if not names.keypoints and len(values) == 4:
        return _Thing(label, _box(file, where, values))
    if not names.keypoints and len(values) >= 6 and len(values) % 2 == 0:
        shares = _shares(file, where, values)
        xs = [x * scale[0] for x in shares[0::2]]
        ys = [y * scale[1] for y in shares[1::2]]
        outline = [value for corner in zip(xs, ys, strict=True) for value in corner]
        return _Thing(label, (min(xs), min(ys), max(xs), max(ys)), [outline])
    expected = (
        f"{1 + with_points} numbers: the class, x y w h and {names.keypoints} keypoints"
        if names.keypoints
        else "the class and x y w h, or the class and the corners of an outline"
    )
    raise invalid(file.path, where, expected, f"{1 + len(values)} numbers")


def _box(file: LabelFile, where: str, values: Sequence[float]) -> Box:
    """Kept inside the image: rounding takes corners a little beyond its edges."""
    x, y, width, height = _shares(file, where, values)
    width_px, height_px = file.size_px
    sides = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    x0, y0, x1, y1 = (min(max(side, 0.0), 1.0) for side in sides)
    return x0 * width_px, y0 * height_px, x1 * width_px, y1 * height_px


def _points(
    names: YoloNames, file: LabelFile, where: str, values: Sequence[float], number: int
) -> tuple[tuple[str, float, float, int], ...]:
    points = []
    for place, name in enumerate(names.keypoint_names[number]):
        x, y, *rest = values[names.dimensions * place :][: names.dimensions]
        # Without a visibility a point in the corner is one that nobody set.
        visibility = rest[0] if rest else 2 * float(x > 0 or y > 0)
        if visibility not in (0, 1, 2):
            raise invalid(file.path, f"{where}, {name}", "visibility 0, 1 or 2", visibility)
        if not visibility:
            points.append((name, math.nan, math.nan, 0))
            continue
        x, y = _shares(file, f"{where}, {name}", (x, y))
        points.append((name, x * file.size_px[0], y * file.size_px[1], int(visibility)))
    return tuple(points)


def _shares(file: LabelFile, where: str, values: Sequence[float]) -> list[float]:
    wrong = [v for v in values if not -_ROUNDING <= v <= 1 + _ROUNDING]
    if wrong:
        raise invalid(file.path, where, "shares of the image's width and height, in 0..1", wrong[0])
    return [min(max(value, 0.0), 1.0) for value in values]


def _text_of(file: LabelFile) -> str:
    try:
        return file.data.decode()
    except UnicodeDecodeError as error:
        raise invalid(file.path, "the whole file", "text in UTF-8", error.reason) from error


def _names(path: str, document: Mapping[str, Any]) -> dict[int, str]:
    names = document.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not (
        isinstance(names, Mapping)
        and names
        and all(isinstance(key, int) and isinstance(name, str) for key, name in names.items())
    ):
        raise invalid(path, "names", "a list of names, or number: name", document.get("names"))
    return dict(names)


def _keypoint_names(
    path: str, document: Mapping[str, Any], labels: Mapping[int, str], count: int
) -> dict[int, tuple[str, ...]]:
    spelled = document.get("kpt_names")
    if spelled is None:
        if count != len(PERSON.keypoints):
            raise invalid(
                *(path, "kpt_names", f"the names of the {count} keypoints, for each class", None)
            )
        return dict.fromkeys(labels, PERSON.keypoints)
    if not isinstance(spelled, Mapping) or any(
        not isinstance(spelled.get(number), list) or len(spelled[number]) != count
        for number in labels
    ):
        raise invalid(path, "kpt_names", f"for each class, by number, {count} names", spelled)
    return {
        number: tuple(str(name).replace("_", " ") for name in spelled[number]) for number in labels
    }
