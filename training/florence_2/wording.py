"""What is said of a picture: labels, phrases, captions, and answers in Florence-2's formats.

Every wording is a function of the picture alone, so that captions can be scored by exact match.
People are named as their posture's label names them: "a sitting person", "two people with raised
arms". Sides are thirds of the picture's width; a thing is large if the geometric mean of its
box's relative sides is at least 0.33.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from labeling_pipeline.models.florence2_protocol import to_bin
from labeling_pipeline.sample.scenes import POSTURE_LABELS, SHAPES, SceneObject
from training.rex_omni.data import is_called

LABELS = (*SHAPES, "person", *POSTURE_LABELS.values())
BASE_LABELS = (*SHAPES, "person")
KINDS = (*SHAPES, *POSTURE_LABELS)
"""What an object is, down to its posture; in the order in which captions name them."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")

# Coordinates are taught in steps of 12 bins, 84 values over a side: 2 px of 160. Sharper token
# distributions are worth more to a model this small than the half step that rounding costs.
BIN_STEP = 12

_LARGE_SHARE = 0.33
_CIRCLE_CORNERS = 8


@dataclass(frozen=True)
class Word:
    """Capital letters on a picture. bbox_px: (4,) float64, x0 y0 x1 y1, tight around the ink.

    letter_boxes_px: (letters, 4) float64, the same for each letter.
    """

    text: str
    bbox_px: np.ndarray
    letter_boxes_px: np.ndarray


@dataclass(frozen=True)
class Picture:
    """A square picture and what is on it."""

    image: np.ndarray  # (side, side, 3) uint8, RGB
    objects: tuple[SceneObject, ...]
    words: tuple[Word, ...] = ()

    @property
    def side_px(self) -> int:
        return self.image.shape[0]


class Phrase(NamedTuple):
    """Words that stand for some objects, the objects from left to right."""

    text: str
    objects: tuple[SceneObject, ...]


def kind_of(thing: SceneObject) -> str:
    """One of KINDS."""
    return thing.posture or thing.label


def noun(thing: SceneObject, plural: bool = False) -> str:
    """The most exact label of an object: "star", "sitting person"."""
    name = POSTURE_LABELS.get(thing.posture or "", thing.label)
    if not plural:
        return name
    return name.replace("person", "people") if thing.posture else f"{name}s"


def side_of(picture: Picture, thing: SceneObject) -> str:
    """On which third of the picture an object's centre lies."""
    third = int((thing.bbox_px[0] + thing.bbox_px[2]) / 2 / picture.side_px * 3)
    return ("on the left", "in the middle", "on the right")[min(third, 2)]


def description(picture: Picture, thing: SceneObject) -> str:
    """Size and noun: "large star"."""
    share = math.sqrt(float(np.prod(thing.bbox_px[2:] - thing.bbox_px[:2]))) / picture.side_px
    return f"{'large' if share >= _LARGE_SHARE else 'small'} {noun(thing)}"


def left_to_right(objects: Iterable[SceneObject]) -> tuple[SceneObject, ...]:
    """Objects by the left edges of their boxes."""
    return tuple(sorted(objects, key=lambda o: (float(o.bbox_px[0]), float(o.bbox_px[1]))))


def reading_order(words: Iterable[Word]) -> tuple[Word, ...]:
    """Words from top to bottom."""
    return tuple(sorted(words, key=lambda w: (float(w.bbox_px[1]), float(w.bbox_px[0]))))


def caption_phrases(picture: Picture) -> list[Phrase]:
    """One phrase a kind: "two circles", "a sitting person"."""
    phrases = []
    for kind in KINDS:
        alike = left_to_right(o for o in picture.objects if kind_of(o) == kind)
        if alike:
            many = len(alike) > 1
            number = NUMBERS[len(alike)] if many else "a"
            phrases.append(Phrase(f"{number} {noun(alike[0], many)}", alike))
    return phrases


def detailed_phrases(picture: Picture) -> list[Phrase]:
    """One phrase an object, left to right: "a star on the left"."""
    return [
        Phrase(f"a {noun(o)} {side_of(picture, o)}", (o,)) for o in left_to_right(picture.objects)
    ]


def more_detailed_phrases(picture: Picture) -> list[Phrase]:
    """One phrase an object, left to right: "a large star"."""
    return [Phrase(f"a {description(picture, o)}", (o,)) for o in left_to_right(picture.objects)]


def listing(texts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def caption(picture: Picture) -> str:
    """ "two circles and a sitting person"."""
    return listing([phrase.text for phrase in caption_phrases(picture)])


def detailed_caption(picture: Picture) -> str:
    """ "The image shows a circle on the left and a star in the middle."."""
    return f"The image shows {listing([phrase.text for phrase in detailed_phrases(picture)])}."


def more_detailed_caption(picture: Picture) -> str:
    """ "The image shows two objects. There is a large circle on the left. There is ..."."""
    count = len(picture.objects)
    sentences = [f"The image shows {NUMBERS[count]} object{'s' if count != 1 else ''}."]
    for phrase in more_detailed_phrases(picture):
        sentences.append(f"There is {phrase.text} {side_of(picture, phrase.objects[0])}.")
    return " ".join(sentences)


CAPTIONS: dict[Callable[[Picture], str], Callable[[Picture], list[Phrase]]] = {
    caption: caption_phrases,
    detailed_caption: detailed_phrases,
    more_detailed_caption: more_detailed_phrases,
}
"""Each caption with the phrases that its grounding names, in the caption's order."""


def taught_bin(value_px: float, size_px: float) -> int:
    """The bin to be taught for a coordinate: a multiple of 12, at most 996."""
    return BIN_STEP * max(0, min(999 // BIN_STEP, round(value_px / size_px * 1000 / BIN_STEP)))


def spell(bins: Iterable[int]) -> str:
    """Bins as location tokens."""
    return "".join(f"<loc_{b}>" for b in bins)


def spell_points(picture: Picture, points_px: np.ndarray) -> str:
    """Points (n, 2) x y as location tokens."""
    return spell(taught_bin(v, picture.side_px) for v in points_px.ravel())


def spell_box(picture: Picture, thing: SceneObject | Word) -> str:
    """The box of an object or word as four location tokens."""
    return spell_points(picture, thing.bbox_px)


def detection_answer(picture: Picture, labels: Sequence[str]) -> str:
    """Every asked label with its boxes, left to right; what is absent is not named."""
    return "".join(
        label + spell_box(picture, o)
        for label in LABELS
        if label in labels
        for o in left_to_right(o for o in picture.objects if is_called(o, label))
    )


def proposal_answer(picture: Picture) -> str:
    """The boxes of all objects, left to right."""
    return "".join(spell_box(picture, o) for o in left_to_right(picture.objects))


def dense_caption_answer(picture: Picture) -> str:
    """Every object's description and box, left to right."""
    return "".join(
        description(picture, o) + spell_box(picture, o) for o in left_to_right(picture.objects)
    )


def grounding_answer(picture: Picture, phrases: Sequence[Phrase]) -> str:
    """Every phrase with the boxes of its objects."""
    return "".join(
        phrase.text + "".join(spell_box(picture, o) for o in phrase.objects) for phrase in phrases
    )


def outline_px(thing: SceneObject) -> np.ndarray:
    """Corners (n, 2) x y of a shape, from the top clockwise; a circle has eight.

    Raises:
        ValueError: the object is a person; people have no outlines here.
    """
    low, size = thing.bbox_px[:2], thing.bbox_px[2:] - thing.bbox_px[:2]
    unit = _OUTLINES.get(thing.label)
    if unit is None:
        raise ValueError(f"expected a shape, got a {thing.label}")
    return low + unit * size


def _star() -> np.ndarray:
    angle = np.arange(10) * math.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    corners = np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)
    low, high = corners.min(0), corners.max(0)
    return (corners - low) / (high - low)


def _circle() -> np.ndarray:
    angle = np.arange(_CIRCLE_CORNERS) * 2 * math.pi / _CIRCLE_CORNERS
    return 0.5 + 0.5 * np.stack([np.sin(angle), -np.cos(angle)], axis=1)


# Corners in units of the box.
_OUTLINES = {
    "circle": _circle(),
    "square": np.array([[0, 0], [1, 0], [1, 1], [0, 1]]),
    "triangle": np.array([[0.5, 0], [1, 1], [0, 1]]),
    "star": _star(),
}


def segmentation_answer(picture: Picture, objects: Sequence[SceneObject]) -> str:
    """Outlines of shapes, separated by ``<sep>``."""
    return "<sep>".join(spell_points(picture, outline_px(o)) for o in objects)


def text_answer(picture: Picture) -> str:
    """All words, top to bottom."""
    return " ".join(word.text for word in reading_order(picture.words))


def text_regions_answer(picture: Picture) -> str:
    """Every word with the corners of its box, clockwise from the top left."""
    answer = ""
    for word in reading_order(picture.words):
        x0, y0, x1, y1 = word.bbox_px
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        answer += word.text + spell_points(picture, corners)
    return answer


def region_bins(picture: Picture, bbox_px: np.ndarray) -> tuple[int, ...]:
    """A box as it is told in a prompt: exact bins, not steps."""
    return tuple(to_bin(v, picture.side_px) for v in bbox_px)
