"""The sample dataset: drawn scenes in nine class folders and pages of text in a tenth, with exact
ground truth.

Between the good pictures lies what real folders hold: duplicates, photos in odd formats, damaged
files, files that are no images. Everything follows from the seed; the first number of every seed
sequence is 3, a namespace that no training picture comes from.

Layout: ``images/<class>/...`` is the image root, ``ground_truth.json`` is COCO with an
``action`` for each image and the ``text`` of each text line, and a hidden marker file names what
was written, so that a second run knows the folder for its own.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.sample.documents import (
    CHINESE,
    JAPANESE,
    LATIN,
    TEXT_LINE,
    Page,
    TextLine,
    draw_page,
)
from labeling_pipeline.sample.scenes import POSTURES, SHAPES, Scene, SceneObject, draw_scene
from labeling_pipeline.tasks import PERSON

DEFAULT_SEED = 20
MARKER = ".labeling-sample.json"
GROUND_TRUTH = "ground_truth.json"
IMAGES = "images"

_GENERATOR = "labeling_pipeline.sample.dataset"
_SEED_NAMESPACE = 3
_MIN_IMAGES_PER_CLASS = 3
_CLASSES = (*POSTURES, *SHAPES)
_CATEGORIES = ("person", *SHAPES, TEXT_LINE)
_SUPERCATEGORIES = {"person": "person", TEXT_LINE: "text"}  # else: shape
DOCUMENTS = "documents"
# What the pages are written in, in turn.
_LANGUAGES = (LATIN, CHINESE, JAPANESE, LATIN, (*CHINESE, *LATIN))
_JPEG_QUALITY = 92

_SIZES_PX = (
    *((320, 240), (240, 320), (320, 320), (384, 216), (216, 384)),
    *((360, 270), (300, 200), (288, 352), (300, 300), (336, 224)),
)
_LONG_SIZE_PX = (440, 200)
_LONG_PICTURES = {("running", 2), ("square", 2)}


@dataclass(frozen=True)
class SampleSummary:
    """What `write_sample` did."""

    folder: Path
    image_root: Path
    ground_truth: Path
    files: int  # under the image root
    good_images: int  # with ground truth
    annotations: int
    written: int
    unchanged: int
    removed: int  # files of an earlier, other sample


@dataclass(frozen=True)
class _File:
    """A file to be. `picture` is what a reader sees in it; None where it is no good one."""

    path: str  # relative to the image root
    data: bytes
    picture: Scene | Page | None = None

    @property
    def action(self) -> str | None:
        class_name = PurePosixPath(self.path).parts[0]
        return class_name if class_name in POSTURES else None


def write_sample(
    folder: Path, images_per_class: int = 14, seed: int = DEFAULT_SEED
) -> SampleSummary:
    """Write the sample dataset into a folder of its own.

    The same arguments give the same bytes. Files that already hold them are left alone.

    Args:
        folder: created if missing; otherwise empty or written by this function before.
        images_per_class: ordinary pictures in each class; the odd ones come on top.
        seed: 0 or more; another seed draws other pictures.

    Raises:
        ConfigurationError: the folder holds something else, there are too few images a class to
            derive the odd ones from, or the seed is negative.
    """
    if images_per_class < _MIN_IMAGES_PER_CLASS:
        raise ConfigurationError(
            f"the sample needs at least {_MIN_IMAGES_PER_CLASS} images a class, got "
            f"{images_per_class}"
        )
    if seed < 0:
        raise ConfigurationError(f"the seed of the sample is 0 or more, got {seed}")
    earlier = _earlier_files(folder)
    files = sorted(_files(images_per_class, seed), key=lambda file: file.path)
    truth = _ground_truth(files, seed)
    contents = {f"{IMAGES}/{file.path}": file.data for file in files}
    contents[GROUND_TRUTH] = _json(truth)
    marker = {
        "generator": _GENERATOR,
        "seed": seed,
        "images_per_class": images_per_class,
        "files": list(contents),
    }

    folder.mkdir(parents=True, exist_ok=True)
    removed = sum(_remove(folder, path) for path in earlier if path not in contents)
    # Before the files: a run that was cut short must find the folder to be its own.
    write_if_changed(folder / MARKER, _json(marker))
    written = sum(write_if_changed(folder / path, data) for path, data in contents.items())
    return SampleSummary(
        folder=folder,
        image_root=folder / IMAGES,
        ground_truth=folder / GROUND_TRUTH,
        files=len(files),
        good_images=len(truth["images"]),
        annotations=len(truth["annotations"]),
        written=written,
        unchanged=len(contents) - written,
        removed=removed,
    )


def _earlier_files(folder: Path) -> list[str]:
    """What an earlier run has written into the folder.

    Raises:
        ConfigurationError: somebody else has.
    """
    fix = "name an empty or a new folder for the sample, or move this one away"
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file; {fix}")
    marker = folder / MARKER
    if marker.is_file():
        try:
            listed = json.loads(marker.read_bytes())["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{marker} is damaged; {fix}") from error
        return [str(path) for path in listed]
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder} holds files that are not the sample's; {fix}")
    return []


def _remove(folder: Path, path: str) -> bool:
    target = folder / path
    if ".." in PurePosixPath(path).parts or not target.is_file():
        return False
    target.unlink()
    return True


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


# What is drawn ----------------------------------------------------------------------------------


def _files(images_per_class: int, seed: int) -> Iterator[_File]:
    pictures: dict[str, _File] = {}
    for class_name in _CLASSES:
        for number in range(images_per_class):
            scene = _class_scene(class_name, seed, number)
            path = f"{class_name}/{class_name}_{number:03d}.jpg"
            pictures[path] = _File(path, _jpeg(scene.image), scene)
    yield from pictures.values()
    yield from _pages(images_per_class, seed)
    yield from _duplicates(pictures, seed)
    yield from _odd_formats(seed)
    yield from _no_pictures(pictures)


def _pages(count: int, seed: int) -> Iterator[_File]:
    for number in range(count):
        rng = _generator(seed, DOCUMENTS, number)
        page = draw_page(rng, _LANGUAGES[number % len(_LANGUAGES)])
        yield _File(f"{DOCUMENTS}/{DOCUMENTS}_{number:03d}.jpg", _jpeg(page.image), page)


def _duplicates(pictures: dict[str, _File], seed: int) -> Iterator[_File]:
    yield replace(pictures["circle/circle_001.jpg"], path="circle/circle_001_copy.jpg")
    both = _scene(("circle", "square"), seed, "circle_and_square", required=("circle", "square"))
    for class_name in ("circle", "square"):
        yield _File(f"{class_name}/circle_and_square.jpg", _jpeg(both.image), both)
    for name in ("standing", "triangle"):
        original = _drawn(pictures[f"{name}/{name}_001.jpg"])
        yield _File(f"{name}/{name}_001_recompressed.jpg", _jpeg(original.image, 45), original)
    smaller = _resized(_drawn(pictures["star/star_001.jpg"]), 0.9)
    yield _File("star/star_001_resized.jpg", _jpeg(smaller.image), smaller)


def _odd_formats(seed: int) -> Iterator[_File]:
    """Good pictures, stored as few tools store them."""
    makers: tuple[tuple[str, Callable[[np.ndarray], bytes]], ...] = (
        ("standing/rotated_photo.jpg", _rotated_jpeg),
        ("arms_raised/transparent.png", _transparent_png),
        ("running/animated.gif", _animated_gif),
        ("sitting/second_folder/sitting_in_subfolder.jpg", _jpeg),
        ("triangle/cmyk_photo.jpg", _cmyk_jpeg),
        ("square/grey_16bit.png", _grey_16bit_png),
        ("star/palette.png", _palette_png),
    )
    for path, encode in makers:
        scene = _class_scene(path.split("/")[0], seed, path)
        yield _File(path, encode(scene.image), scene)


def _no_pictures(pictures: dict[str, _File]) -> Iterator[_File]:
    """What lies in real folders and is of no use."""
    whole = pictures["lying/lying_002.jpg"].data
    blank = np.full((240, 320, 3), 128, np.uint8)
    yield _File("lying/empty.jpg", b"")
    yield _File("lying/truncated.jpg", whole[: len(whole) // 2])
    yield _File("arms_raised/notes.jpg", b"Shot on Tuesday, the ones with the red jacket.\n")
    yield _File("sitting/blank.jpg", _jpeg(blank))
    yield _File("star/icon.png", _encoded(Image.fromarray(blank[:8, :8]), "PNG"))
    yield _File(
        "running/._running_001.jpg", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" + bytes(66)
    )
    yield _File("circle/.DS_Store", b"\x00\x00\x00\x01Bud1" + bytes(56))
    yield _File("square/Thumbs.db", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(56))


def _class_scene(class_name: str, seed: int, key: int | str) -> Scene:
    """A picture that belongs into a class; `key` tells the pictures of one class apart."""
    rng = _generator(seed, class_name, key)
    extra = int(rng.integers(0, 3))
    if class_name in POSTURES:
        # Every third person has company, of one shape or two.
        extra = int(rng.integers(1, 3)) if isinstance(key, int) and key % 3 == 0 else 0
    kinds = (class_name, *(str(shape) for shape in rng.choice(SHAPES, extra)))
    long_one = (class_name, key) in _LONG_PICTURES
    size = _LONG_SIZE_PX if long_one else _SIZES_PX[int(rng.integers(len(_SIZES_PX)))]
    return _drawn_with(rng, kinds, size, required=(class_name,))


def _scene(kinds: Sequence[str], seed: int, key: str, required: Sequence[str]) -> Scene:
    return _drawn_with(_generator(seed, "", key), kinds, _SIZES_PX[0], required)


def _drawn_with(
    rng: np.random.Generator, kinds: Sequence[str], size: tuple[int, int], required: Sequence[str]
) -> Scene:
    """Draw until everything required has found a place; the rest may be missing."""
    while True:
        scene = draw_scene(rng, *size, kinds)
        if set(required) <= {thing.posture or thing.label for thing in scene.objects}:
            return scene


def _generator(seed: int, class_name: str, key: int | str) -> np.random.Generator:
    name = f"{class_name}/{key}".encode()
    return np.random.default_rng(np.random.SeedSequence([_SEED_NAMESPACE, seed, *name]))


def _drawn(file: _File) -> Scene:
    assert isinstance(file.picture, Scene)
    return file.picture


def _resized(scene: Scene, factor: float) -> Scene:
    height, width = scene.image.shape[:2]
    size = round(width * factor), round(height * factor)
    scale = np.array([size[0] / width, size[1] / height])
    image = Image.fromarray(scene.image).resize(size, Image.Resampling.LANCZOS)
    objects = tuple(
        SceneObject(
            thing.label,
            thing.bbox_px * np.tile(scale, 2),
            None if thing.keypoints_px is None else thing.keypoints_px * scale,
            thing.posture,
        )
        for thing in scene.objects
    )
    return Scene(np.asarray(image), objects)


# How it is stored -------------------------------------------------------------------------------


def _encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def _jpeg(image: np.ndarray, quality: int = _JPEG_QUALITY) -> bytes:
    return _encoded(Image.fromarray(image), "JPEG", quality=quality)


def _rotated_jpeg(image: np.ndarray) -> bytes:
    """Turned left, with the note that a viewer has to turn it right again."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = Image.fromarray(np.rot90(image))
    return _encoded(turned, "JPEG", quality=_JPEG_QUALITY, exif=exif)


def _cmyk_jpeg(image: np.ndarray) -> bytes:
    cmyk = Image.fromarray(image).convert("CMYK")
    return _encoded(cmyk, "JPEG", quality=_JPEG_QUALITY)


def _grey_16bit_png(image: np.ndarray) -> bytes:
    luma = np.asarray(Image.fromarray(image).convert("L"), dtype=np.uint16)
    return _encoded(Image.fromarray(luma * 257), "PNG")


def _palette_png(image: np.ndarray) -> bytes:
    return _encoded(Image.fromarray(image).quantize(128), "PNG")


def _transparent_png(image: np.ndarray) -> bytes:
    """Opaque but for a margin of 2 px."""
    alpha = np.zeros(image.shape[:2], np.uint8)
    alpha[2:-2, 2:-2] = 255
    return _encoded(Image.fromarray(np.dstack([image, alpha])), "PNG")


def _animated_gif(image: np.ndarray) -> bytes:
    """The picture, then its mirror image."""
    first, second = Image.fromarray(image), Image.fromarray(image[:, ::-1])
    return _encoded(first, "GIF", save_all=True, append_images=[second], duration=400, loop=0)


# What is known about it -------------------------------------------------------------------------


def _ground_truth(files: Sequence[_File], seed: int) -> dict[str, Any]:
    """COCO, https://cocodataset.org/#format-data; an area is that of the box."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for file in files:
        if file.picture is None:
            continue
        height, width = file.picture.image.shape[:2]
        image_id = len(images) + 1
        images.append(
            {
                "id": image_id,
                "file_name": file.path,
                "width": width,
                "height": height,
                "action": file.action,
            }
        )
        picture = file.picture
        for thing in picture.lines if isinstance(picture, Page) else picture.objects:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, **_annotation(thing)}
            )
    return {
        "info": {
            "description": "Drawn scenes with boxes, keypoints and postures; pages with their text",
            "generator": _GENERATOR,
            "seed": seed,
        },
        "licenses": [],
        "categories": [_category(name) for name in _CATEGORIES],
        "images": images,
        "annotations": annotations,
    }


def _annotation(thing: SceneObject | TextLine) -> dict[str, Any]:
    x0, y0, x1, y1 = (round(float(v), 2) for v in thing.bbox_px)
    width, height = round(x1 - x0, 2), round(y1 - y0, 2)
    label = TEXT_LINE if isinstance(thing, TextLine) else thing.label
    annotation: dict[str, Any] = {
        "category_id": _CATEGORIES.index(label) + 1,
        "bbox": [x0, y0, width, height],
        "area": round(width * height, 2),
        "iscrowd": 0,
    }
    if isinstance(thing, TextLine):
        annotation["text"] = thing.text
    elif thing.keypoints_px is not None:
        points = [(round(float(x), 2), round(float(y), 2), 2) for x, y in thing.keypoints_px]
        annotation["keypoints"] = [value for point in points for value in point]
        annotation["num_keypoints"] = len(points)
    return annotation


def _category(name: str) -> dict[str, Any]:
    category: dict[str, Any] = {
        "id": _CATEGORIES.index(name) + 1,
        "name": name,
        "supercategory": _SUPERCATEGORIES.get(name, "shape"),
    }
    if name == PERSON.name:
        category["keypoints"] = list(PERSON.keypoints)
        category["skeleton"] = [[start + 1, end + 1] for start, end in PERSON.edges]
    return category
