"""What can be asked of a model: tasks, keypoint skeletons and the request that carries them."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Task(StrEnum):
    """What kind of answer is wanted."""

    DETECTION = "detection"
    FACE = "face"
    REFERRING = "referring"
    LAYOUT = "layout"
    VISUAL_PROMPTING = "visual_prompting"
    POINTING = "pointing"
    KEYPOINT = "keypoint"
    OCR_BOX = "ocr_box"
    OCR_POLYGON = "ocr_polygon"
    GUI_BOX = "gui_box"
    GUI_POINT = "gui_point"
    OCR = "ocr"
    OBJECT_DETECTION = "object_detection"
    REGION_PROPOSAL = "region_proposal"
    DENSE_REGION_CAPTION = "dense_region_caption"
    CAPTION = "caption"
    DETAILED_CAPTION = "detailed_caption"
    MORE_DETAILED_CAPTION = "more_detailed_caption"
    GROUNDED_CAPTION = "grounded_caption"
    GROUNDED_DETAILED_CAPTION = "grounded_detailed_caption"
    GROUNDED_MORE_DETAILED_CAPTION = "grounded_more_detailed_caption"
    PHRASE_GROUNDING = "phrase_grounding"
    REFERRING_SEGMENTATION = "referring_segmentation"
    REGION_TO_SEGMENTATION = "region_to_segmentation"
    REGION_TO_CATEGORY = "region_to_category"
    REGION_TO_DESCRIPTION = "region_to_description"
    REGION_TO_OCR = "region_to_ocr"


class Geometry(StrEnum):
    """What an annotation of a task is drawn with; ``NONE``: it speaks of the whole image."""

    BOX = "box"
    POINT = "point"
    POLYGON = "polygon"
    KEYPOINTS = "keypoints"
    NONE = "none"


class Asks(StrEnum):
    """What a label is to a task: the name of a thing to look for, a phrase about things, or the
    unit of the answer: a word, a caption, a region."""

    NAME = "name"
    PHRASE = "phrase"
    UNIT = "unit"


@dataclass(frozen=True)
class TaskRule:
    """What holds for a task whatever the model.

    default_label: what is asked where the plan says nothing; ``None``: the class's name.
    labels_per_prompt: at most so many labels share a prompt; ``None``: the plan decides.
    reads_text: annotations carry words of the model's own.
    describes: these words name or describe a thing; otherwise they stand on it and were read.
    needs_references: it is asked about boxes that are given, and of no image without any.
    of_whole_image: what it says of an image does not follow from what it says of parts.
    """

    geometry: Geometry
    about: str
    default_label: str | None = None
    labels_per_prompt: int | None = None
    reads_text: bool = False
    describes: bool = False
    asks: Asks = Asks.NAME
    needs_references: bool = False
    of_whole_image: bool = False

    @property
    def can_be_tiled(self) -> bool:
        """Whether it can be asked of one part of an image after the other."""
        return not (self.needs_references or self.of_whole_image)


def _unit_rule(
    geometry: Geometry, about: str, unit: str, reads_text: bool = True, about_regions: bool = False
) -> TaskRule:
    """The rule of a task that is asked for no name."""
    return TaskRule(
        geometry,
        about,
        default_label=unit,
        labels_per_prompt=1,
        reads_text=reads_text,
        describes=reads_text and unit not in ("word", "text"),
        asks=Asks.UNIT,
        needs_references=about_regions,
        of_whole_image=geometry is Geometry.NONE or unit == "caption",
    )


RULES: dict[Task, TaskRule] = {
    Task.DETECTION: TaskRule(Geometry.BOX, "boxes of things by name"),
    Task.FACE: TaskRule(Geometry.BOX, "boxes of faces", default_label="human face"),
    Task.REFERRING: TaskRule(Geometry.BOX, "boxes of what a phrase describes"),
    Task.LAYOUT: TaskRule(Geometry.BOX, "boxes of the parts of a page"),
    Task.VISUAL_PROMPTING: TaskRule(
        Geometry.BOX,
        "boxes of what looks like the reference boxes",
        labels_per_prompt=1,
        needs_references=True,
    ),
    Task.POINTING: TaskRule(Geometry.POINT, "a point on each thing by name"),
    Task.KEYPOINT: TaskRule(
        Geometry.KEYPOINTS, "boxes and the keypoints of a skeleton", of_whole_image=True
    ),
    Task.OCR_BOX: _unit_rule(Geometry.BOX, "text with its boxes, by word or text line", "word"),
    Task.OCR_POLYGON: _unit_rule(
        Geometry.POLYGON, "text with its outlines, by word or text line", "word"
    ),
    Task.GUI_BOX: TaskRule(Geometry.BOX, "the box of a control on a screen", labels_per_prompt=1),
    Task.GUI_POINT: TaskRule(
        Geometry.POINT, "where to click for a control on a screen", labels_per_prompt=1
    ),
    Task.OCR: _unit_rule(Geometry.NONE, "all text of an image, without places", "text"),
    Task.OBJECT_DETECTION: _unit_rule(
        Geometry.BOX, "boxes of everything the model knows, with its names for them", "object"
    ),
    Task.REGION_PROPOSAL: _unit_rule(
        Geometry.BOX, "boxes of whatever stands out, without names", "region", reads_text=False
    ),
    Task.DENSE_REGION_CAPTION: _unit_rule(
        Geometry.BOX, "boxes of whatever stands out, with descriptions", "region"
    ),
    Task.CAPTION: _unit_rule(Geometry.NONE, "what an image shows, in a sentence", "caption"),
    Task.DETAILED_CAPTION: _unit_rule(
        Geometry.NONE, "what an image shows, in more detail", "caption"
    ),
    Task.MORE_DETAILED_CAPTION: _unit_rule(
        Geometry.NONE, "what an image shows, in a paragraph", "caption"
    ),
    Task.GROUNDED_CAPTION: _unit_rule(
        Geometry.BOX, "a caption, and boxes of what its phrases speak of", "caption"
    ),
    Task.GROUNDED_DETAILED_CAPTION: _unit_rule(
        Geometry.BOX, "a detailed caption, and boxes of what its phrases speak of", "caption"
    ),
    Task.GROUNDED_MORE_DETAILED_CAPTION: _unit_rule(
        Geometry.BOX, "a paragraph, and boxes of what its phrases speak of", "caption"
    ),
    Task.PHRASE_GROUNDING: TaskRule(
        Geometry.BOX,
        "boxes of what the phrases of a given caption speak of",
        labels_per_prompt=1,
        reads_text=True,
        describes=True,
        asks=Asks.PHRASE,
    ),
    Task.REFERRING_SEGMENTATION: TaskRule(
        Geometry.POLYGON,
        "outlines of what a phrase describes",
        labels_per_prompt=1,
        asks=Asks.PHRASE,
    ),
    Task.REGION_TO_SEGMENTATION: _unit_rule(
        Geometry.POLYGON,
        "the outline of what a reference box holds",
        "region",
        reads_text=False,
        about_regions=True,
    ),
    Task.REGION_TO_CATEGORY: _unit_rule(
        Geometry.BOX, "what a reference box holds, by name", "region", about_regions=True
    ),
    Task.REGION_TO_DESCRIPTION: _unit_rule(
        Geometry.BOX, "what a reference box holds, described", "region", about_regions=True
    ),
    Task.REGION_TO_OCR: _unit_rule(
        Geometry.BOX, "the text in a reference box", "text", about_regions=True
    ),
}


@dataclass(frozen=True)
class Skeleton:
    """Named keypoints and the pairs that are drawn as limbs.

    ``edges`` holds index pairs into ``keypoints``, counted from 0.
    """

    name: str
    keypoints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]


# The 17 keypoints of COCO in COCO's order, spelled with spaces as Rex-Omni was trained.
PERSON = Skeleton(
    name="person",
    keypoints=(
        "nose",
        "left eye",
        "right eye",
        "left ear",
        "right ear",
        "left shoulder",
        "right shoulder",
        "left elbow",
        "right elbow",
        "left wrist",
        "right wrist",
        "left hip",
        "right hip",
        "left knee",
        "right knee",
        "left ankle",
        "right ankle",
    ),
    edges=(
        *((0, 1), (0, 2), (1, 3), (2, 4)),
        *((5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
        *((5, 11), (6, 12), (11, 12)),
        *((11, 13), (13, 15), (12, 14), (14, 16)),
    ),
)

ANIMAL = Skeleton(
    name="animal",
    keypoints=(
        "left eye",
        "right eye",
        "nose",
        "neck",
        "root of tail",
        "left shoulder",
        "left elbow",
        "left front paw",
        "right shoulder",
        "right elbow",
        "right front paw",
        "left hip",
        "left knee",
        "left back paw",
        "right hip",
        "right knee",
        "right back paw",
    ),
    edges=(
        *((0, 1), (0, 2), (1, 2), (2, 3), (3, 4)),
        *((3, 5), (5, 6), (6, 7), (3, 8), (8, 9), (9, 10)),
        *((4, 11), (11, 12), (12, 13), (4, 14), (14, 15), (15, 16)),
    ),
)

_FINGERS = ("thumb", "index finger", "middle finger", "ring finger", "pinky finger")

HAND = Skeleton(
    name="hand",
    keypoints=("wrist", *(f"{finger} joint {i}" for finger in _FINGERS for i in range(1, 5))),
    edges=tuple(
        (0 if joint == 1 else 4 * finger + joint - 1, 4 * finger + joint)
        for finger in range(5)
        for joint in range(1, 5)
    ),
)

# No list of face keypoints is published with the models: these are the five of common detectors.
FACE = Skeleton(
    name="face",
    keypoints=("left eye", "right eye", "nose", "left mouth corner", "right mouth corner"),
    edges=((0, 2), (1, 2), (3, 4), (2, 3), (2, 4)),
)

SKELETONS: dict[str, Skeleton] = {s.name: s for s in (PERSON, ANIMAL, HAND, FACE)}


@dataclass(frozen=True)
class Request:
    """One question about one image.

    image: ``(height, width, 3)`` uint8 RGB, EXIF-upright.
    labels: what is asked for, in the order of the prompt.
    skeleton: for ``Task.KEYPOINT`` only.
    reference_boxes: for tasks that need them: xyxy in pixels of the image.
    """

    image: np.ndarray
    task: Task
    labels: tuple[str, ...]
    skeleton: Skeleton | None = None
    reference_boxes: tuple[tuple[float, float, float, float], ...] = ()

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of the image."""
        return self.image.shape[1], self.image.shape[0]
