"""Training batches: pictures, two questions about each, answers in the published formats.

A picture is a scene squeezed into a square, as the image processor squeezes any frame, or a page:
capital letters on a scene with few objects. Each picture is asked two questions, so that the vision
part runs once for both.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from labeling_pipeline.models.florence2_protocol import prompt
from labeling_pipeline.sample.scenes import SHAPES, SceneObject, draw_scene
from labeling_pipeline.tasks import Task
from training.florence_2.architecture import normalize
from training.florence_2.tokenizer import GRID, IMAGE_SIDE_PX
from training.florence_2.wording import (
    BASE_LABELS,
    BIN_STEP,
    CAPTIONS,
    KINDS,
    LABELS,
    Phrase,
    Picture,
    Word,
    caption,
    caption_phrases,
    dense_caption_answer,
    description,
    detailed_caption,
    detection_answer,
    grounding_answer,
    kind_of,
    listing,
    more_detailed_caption,
    outline_px,
    proposal_answer,
    region_bins,
    segmentation_answer,
    spell_box,
    spell_points,
    text_answer,
    text_regions_answer,
)
from training.rex_omni.data import pick_labels, resize_scene

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST_OBJECTS = 6
BACKGROUND = len(KINDS)
NO_LETTER = len(LETTERS)
QUESTIONS = 2  # about each picture

_PAGE_SHARE = 0.30
# Boxes are learned sooner than words.
_BOXES_SHARE = 0.6
_RESIZED_SHARE = 0.5
_REPEATED_SHARE = 0.25
_LENGTH_GROUPS = 3
_PLACEMENT_TRIES = 20


@dataclass(frozen=True)
class Prompts:
    """Tokenized questions with answers of similar length."""

    picture: Tensor  # (n,) int64, index of the picture
    tokens: Tensor  # (n, length) int64, padded on the right
    is_prompt: Tensor  # (n, length) bool
    said: Tensor  # (n, steps) int64, what the decoder has said before each step
    wanted: Tensor  # (n, steps) int64, what it should say; -100 on padding
    first: Tensor  # (n,) bool, whether this is the first question about its picture


@dataclass(frozen=True)
class CellTargets:
    """What the auxiliary heads are to read off every cell."""

    kind: Tensor  # (n, cells) int64, index into KINDS, or BACKGROUND
    letter: Tensor  # (n, cells) int64, index into LETTERS, or NO_LETTER
    corners: Tensor  # (n, cells, 4) float32, x0 y0 x1 y1 from the cell's centre, unit half a side
    corner_bins: Tensor  # (n, cells, 4) int64
    boxed: Tensor  # (n, cells) bool, whether an object or a word covers the cell


@dataclass(frozen=True)
class Batch:
    pixels: Tensor  # (n, 160, 160, 3) float32
    groups: tuple[Prompts, ...]  # from short answers to long ones, which saves padding
    cells: CellTargets


class Question(NamedTuple):
    """What the model reads and what it should say."""

    prompt: str
    answer: str


def draw_picture(rng: np.random.Generator) -> Picture:
    """A scene or a page at the model's own size."""
    while True:
        page = rng.random() < _PAGE_SHARE
        picture = draw_page(rng) if page else _squeezed(rng, _kinds(rng))
        if picture.objects or picture.words:
            return picture


def _kinds(rng: np.random.Generator) -> list[str] | None:
    """What to draw: anything, or one shape several times among others."""
    if rng.random() >= _REPEATED_SHARE:
        return None
    shapes = [str(rng.choice(SHAPES)) for _ in range(int(rng.integers(1, 4)))]
    return [*shapes, *shapes[:1] * int(rng.integers(1, 4))]


def _squeezed(rng: np.random.Generator, kinds: Sequence[str] | None) -> Picture:
    """A scene, half of the time drawn at another size and aspect and squeezed into the square."""
    sides = (IMAGE_SIDE_PX, IMAGE_SIDE_PX)
    resized = rng.random() < _RESIZED_SHARE
    if resized:
        scale, stretch = rng.triangular(1.0, 1.0, 2.2), math.exp(rng.triangular(-0.3, 0, 0.3))
        sides = (
            round(IMAGE_SIDE_PX * scale * stretch),
            round(IMAGE_SIDE_PX * scale / stretch),
        )
    scene = draw_scene(rng, *sides, kinds, MOST_OBJECTS)
    if resized:
        scene = resize_scene(scene, IMAGE_SIDE_PX, IMAGE_SIDE_PX)
    return Picture(scene.image, scene.objects)


def draw_page(
    rng: np.random.Generator, side_px: int = IMAGE_SIDE_PX, most_words: int = 2
) -> Picture:
    """One or more words of two to four random capital letters beside at most one shape.

    Words keep clear of each other and of the shape; what finds no place is left out.
    """
    shapes = [str(rng.choice(SHAPES))] if rng.random() < 0.4 else []
    scene = draw_scene(rng, side_px, side_px, shapes)
    image = Image.fromarray(scene.image)
    words: list[Word] = []
    for _ in range(int(rng.integers(1, most_words + 1))):
        word = _place_word(rng, image, [o.bbox_px for o in (*scene.objects, *words)])
        if word is not None:
            words.append(word)
    return Picture(np.asarray(image), scene.objects, tuple(words))


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size_px)  # the one that ships with Pillow, the same everywhere
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _place_word(
    rng: np.random.Generator, image: Image.Image, taken_px: Sequence[np.ndarray]
) -> Word | None:
    """Draw a word where nothing is, in a colour that stands out there."""
    side = image.width
    for _ in range(_PLACEMENT_TRIES):
        text = "".join(rng.choice(list(LETTERS), int(rng.integers(2, 5))))
        font = _font(round(side * rng.uniform(0.18, 0.30)))
        ink = np.array(font.getbbox(text))
        free = side - 2 - (ink[2:] - ink[:2])
        if (free <= 2).any():
            continue
        corner = rng.uniform(2, free).round()
        origin = corner - ink[:2]
        bbox = np.concatenate([corner, corner + ink[2:] - ink[:2]])
        if any((bbox[:2] < t[2:] + 2).all() and (bbox[2:] > t[:2] - 2).all() for t in taken_px):
            continue
        area = np.asarray(image.crop(tuple(bbox.astype(int)))).reshape(-1, 3).mean(0)
        color = rng.integers(0, 256, 3)
        if np.abs(color - area).sum() < 260:
            color = np.where(area > 127, 0, 255)
        ImageDraw.Draw(image).text(tuple(origin), text, fill=tuple(map(int, color)), font=font)
        letters = []
        for index, letter in enumerate(text):
            start = origin[0] + font.getlength(text[:index])
            letter_ink = font.getbbox(letter)
            letters.append([start + letter_ink[0], bbox[1], start + letter_ink[2], bbox[3]])
        return Word(text, bbox, np.array(letters))
    return None


def ask_scene(rng: np.random.Generator, picture: Picture) -> list[Question]:
    """Two questions about objects: words for them or single ones, and often boxes of them all."""
    first = _pick(rng, _ABOUT_ALL if rng.random() < _BOXES_SHARE else _ABOUT_SOME)
    second = _pick(rng, _ABOUT_SOME)
    return [first(rng, picture), second(rng, picture)]


def ask_page(rng: np.random.Generator, picture: Picture) -> list[Question]:
    """Two questions about a page: what stands where, and about a word or the rest."""
    return [_pick(rng, _ABOUT_PAGE)(rng, picture), _pick(rng, _ABOUT_WORDS)(rng, picture)]


def ask(rng: np.random.Generator, picture: Picture) -> list[Question]:
    """Two questions about a picture."""
    return (ask_page if picture.words else ask_scene)(rng, picture)


Ask = Callable[[np.random.Generator, Picture], Question]


def _pick(rng: np.random.Generator, shares: dict[Ask, float]) -> Ask:
    asks = list(shares)
    weights = np.array(list(shares.values()))
    return asks[int(rng.choice(len(asks), p=weights / weights.sum()))]


def _plain(task: Task, answer: Callable[[Picture], str]) -> Ask:
    """A question that takes no input."""
    return lambda rng, picture: Question(prompt(task, ()), answer(picture))


def _open_vocabulary(rng: np.random.Generator, picture: Picture) -> Question:
    labels = pick_labels(rng, picture) if picture.objects else [str(rng.choice(LABELS))]
    return Question(prompt(Task.DETECTION, labels), detection_answer(picture, labels))


def _grounding(rng: np.random.Generator, picture: Picture) -> Question:
    """Phrases of a caption; some captions are partial, some name what is not there, also alone."""
    absent = absent_shapes(picture)
    if absent and rng.random() < 0.05:
        return Question(prompt(Task.PHRASE_GROUNDING, [f"a {rng.choice(absent)}"]), "")
    if rng.random() < 0.35:
        says = list(CAPTIONS)[int(rng.integers(1, len(CAPTIONS)))]
        text, phrases = says(picture), CAPTIONS[says](picture)
    else:
        phrases = caption_phrases(picture)
        if rng.random() < 0.35:
            kept = [phrase for phrase in phrases if rng.random() < 0.55]
            phrases = kept or phrases[:1]
        texts = [phrase.text for phrase in phrases]
        if absent and rng.random() < 0.2:
            texts.insert(int(rng.integers(len(texts) + 1)), f"a {rng.choice(absent)}")
        text = listing(texts)
    return Question(prompt(Task.PHRASE_GROUNDING, [text]), grounding_answer(picture, phrases))


def _expression(rng: np.random.Generator, picture: Picture) -> Question:
    """The outlines of the shapes that a phrase names; at times there are none."""
    absent = absent_shapes(picture)
    phrases = [
        phrase
        for phrase in caption_phrases(picture)
        if phrase.objects[0].label in SHAPES and len(phrase.objects) <= 3
    ]
    if not phrases or (absent and rng.random() < 0.2):
        return Question(prompt(Task.REFERRING_SEGMENTATION, [f"a {rng.choice(absent)}"]), "")
    phrase: Phrase = phrases[int(rng.integers(len(phrases)))]
    return Question(
        prompt(Task.REFERRING_SEGMENTATION, [phrase.text]),
        segmentation_answer(picture, phrase.objects),
    )


def absent_shapes(picture: Picture) -> list[str]:
    """Kinds of shapes that a picture does not show."""
    return [shape for shape in SHAPES if not any(o.label == shape for o in picture.objects)]


def _outline_of_region(rng: np.random.Generator, picture: Picture) -> Question:
    shapes = [o for o in picture.objects if o.label in SHAPES]
    if not shapes:
        return _category_of_region(rng, picture)
    thing = shapes[int(rng.integers(len(shapes)))]
    return Question(
        prompt(Task.REGION_TO_SEGMENTATION, (), _about(rng, picture, thing)),
        spell_points(picture, outline_px(thing)),
    )


def _category_of_region(rng: np.random.Generator, picture: Picture) -> Question:
    thing = picture.objects[int(rng.integers(len(picture.objects)))]
    return Question(
        prompt(Task.REGION_TO_CATEGORY, (), _about(rng, picture, thing)),
        thing.label + spell_box(picture, thing),
    )


def _description_of_region(rng: np.random.Generator, picture: Picture) -> Question:
    thing = picture.objects[int(rng.integers(len(picture.objects)))]
    return Question(
        prompt(Task.REGION_TO_DESCRIPTION, (), _about(rng, picture, thing)),
        description(picture, thing) + spell_box(picture, thing),
    )


def _text_of_region(rng: np.random.Generator, picture: Picture) -> Question:
    word = picture.words[int(rng.integers(len(picture.words)))]
    return Question(
        prompt(Task.REGION_TO_OCR, (), _about(rng, picture, word)),
        word.text + spell_box(picture, word),
    )


def _about(
    rng: np.random.Generator, picture: Picture, thing: SceneObject | Word
) -> tuple[int, ...]:
    """A region in a prompt: somebody's box, not quite exact."""
    slack_px = BIN_STEP / 1000 * picture.side_px
    return region_bins(picture, thing.bbox_px + rng.uniform(-slack_px, slack_px, 4))


_object_detection = _plain(
    Task.OBJECT_DETECTION, lambda picture: detection_answer(picture, BASE_LABELS)
)
_read_text = _plain(Task.OCR, text_answer)
_read_text_regions = _plain(Task.OCR_POLYGON, text_regions_answer)

_ABOUT_ALL: dict[Ask, float] = {
    _object_detection: 0.22,
    _open_vocabulary: 0.44,
    _plain(Task.REGION_PROPOSAL, proposal_answer): 0.09,
    _plain(Task.DENSE_REGION_CAPTION, dense_caption_answer): 0.25,
}
_ABOUT_SOME: dict[Ask, float] = {
    _plain(Task.CAPTION, caption): 0.19,
    _plain(Task.DETAILED_CAPTION, detailed_caption): 0.09,
    _plain(Task.MORE_DETAILED_CAPTION, more_detailed_caption): 0.09,
    _grounding: 0.19,
    _expression: 0.13,
    _outline_of_region: 0.09,
    _category_of_region: 0.09,
    _description_of_region: 0.09,
    # Nothing is written on a scene: the answer is empty.
    _read_text: 0.02,
    _read_text_regions: 0.02,
}
_ABOUT_PAGE: dict[Ask, float] = {_read_text: 0.45, _read_text_regions: 0.55}
_ABOUT_WORDS: dict[Ask, float] = {
    _text_of_region: 0.6,
    _open_vocabulary: 0.2,
    _object_detection: 0.2,
}


class BatchSource:
    """An endless, seeded stream of batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator, pictures: int):
        """
        Args:
            tokenizer: from `build_tokenizer`.
            rng: source of everything random.
            pictures: number of pictures in a batch.
        """
        self._tokenizer = tokenizer
        self._rng = rng
        self._pictures = pictures
        self._start, self._end, self._pad = tokenizer.convert_tokens_to_ids(
            ["<s>", "</s>", "<pad>"]
        )

    @property
    def random_state(self) -> dict:
        """State of the random source, to be kept and set again."""
        return self._rng.bit_generator.state

    @random_state.setter
    def random_state(self, state: dict) -> None:
        self._rng.bit_generator.state = state

    def batch(self) -> Batch:
        """The next batch."""
        pictures = [draw_picture(self._rng) for _ in range(self._pictures)]
        asked = [
            (index, number == 0, self._encode(f"<s>{one.prompt}</s>"), self._encode(one.answer))
            for index, picture in enumerate(pictures)
            for number, one in enumerate(ask(self._rng, picture))
        ]
        asked.sort(key=lambda one: len(one[3]))
        size = math.ceil(len(asked) / _LENGTH_GROUPS)
        return Batch(
            pixels=normalize(np.stack([picture.image for picture in pictures])),
            groups=tuple(
                self._prompts(asked[start : start + size]) for start in range(0, len(asked), size)
            ),
            cells=cell_targets(pictures),
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def _prompts(self, asked: Sequence[tuple[int, bool, list[int], list[int]]]) -> Prompts:
        """Pad questions and answers; the decoder starts with ``</s><s>``."""
        length = max(len(question) for _, _, question, _ in asked)
        steps = max(len(answer) for *_, answer in asked) + 2
        tokens = np.full((len(asked), length), self._pad)
        said = np.full((len(asked), steps), self._pad)
        wanted = np.full((len(asked), steps), -100)
        for row, (_, _, question, answer) in enumerate(asked):
            tokens[row, : len(question)] = question
            said[row, : len(answer) + 2] = [self._end, self._start, *answer]
            wanted[row, : len(answer) + 2] = [self._start, *answer, self._end]
        return Prompts(
            picture=torch.tensor([picture for picture, *_ in asked]),
            tokens=torch.from_numpy(tokens),
            is_prompt=torch.from_numpy(tokens != self._pad),
            said=torch.from_numpy(said),
            wanted=torch.from_numpy(wanted),
            first=torch.tensor([first for _, first, *_ in asked]),
        )


_CELL_PX = IMAGE_SIDE_PX / GRID
_CENTERS = (np.stack(np.mgrid[0:GRID, 0:GRID][::-1], axis=-1).reshape(-1, 2) + 0.5) * _CELL_PX


def cell_targets(pictures: Sequence[Picture]) -> CellTargets:
    """What the cells of a batch of pictures show."""
    shape = (len(pictures), GRID * GRID)
    kind = np.full(shape, BACKGROUND)
    letter = np.full(shape, NO_LETTER)
    box = np.zeros((*shape, 4))
    boxed = np.zeros(shape, bool)
    for index, picture in enumerate(pictures):
        # Small boxes last, so that they win the cells that they share with large ones.
        things = sorted(
            (*picture.objects, *picture.words),
            key=lambda o: -float(np.prod(o.bbox_px[2:] - o.bbox_px[:2])),
        )
        for thing in things:
            covered = _cells_in(thing.bbox_px)
            box[index, covered], boxed[index, covered] = thing.bbox_px, True
            if isinstance(thing, Word):
                kind[index, covered] = BACKGROUND
                for name, letter_box in zip(thing.text, thing.letter_boxes_px, strict=True):
                    letter[index, _cells_in(letter_box)] = LETTERS.index(name)
            else:
                kind[index, covered] = KINDS.index(kind_of(thing))
    corners = (box - np.tile(_CENTERS, 2)) / IMAGE_SIDE_PX * 2
    bins = (box / IMAGE_SIDE_PX * 1000).clip(0, 999).astype(np.int64)
    return CellTargets(
        kind=torch.from_numpy(kind),
        letter=torch.from_numpy(letter),
        corners=torch.from_numpy(corners.astype(np.float32)),
        corner_bins=torch.from_numpy(bins),
        boxed=torch.from_numpy(boxed),
    )


def _cells_in(bbox_px: np.ndarray) -> np.ndarray:
    """(cells,) bool: whose centre lies in the box; at least the nearest one."""
    inside = ((bbox_px[:2] < _CENTERS) & (bbox_px[2:] > _CENTERS)).all(axis=1)
    middle = (bbox_px[:2] + bbox_px[2:]) / 2
    inside[np.argmin(((_CENTERS - middle) ** 2).sum(axis=1))] = True
    return inside
