"""Training batches: scenes on image grids, prompts about them, answers in the published format.

All pictures of a batch share one grid; many grids occur across batches. Each picture is asked two
questions, so that the vision part runs once for both: one of detection, and one of keypoints or of
detection again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from labeling_pipeline.models.rex_omni_protocol import SYSTEM_PROMPT, prompt
from labeling_pipeline.sample.scenes import (
    MIN_SIDE_PX,
    PERSON_KEYPOINTS,
    POSTURE_LABELS,
    POSTURES,
    SHAPES,
    Scene,
    SceneObject,
    draw_scene,
)
from labeling_pipeline.tasks import PERSON, Task
from training.rex_omni.architecture import CELL_PX, Grid, to_patches
from training.rex_omni.tokenizer import BASE_LABELS, LABELS

# Coordinates are taught in steps of 12 bins, 84 values over a side: 2 px of 168. Sharper token
# distributions are worth more to a model this small than the half step that rounding costs.
BIN_STEP = 12

KINDS = (*SHAPES, *POSTURES)  # what an image cell can show, for the auxiliary heads
BACKGROUND = len(KINDS)

# Grids with their shares. The image rules bring 320 x 320 to (7, 7), 4:3 to (6, 8), 16:9 to (5, 9).
_GRIDS: dict[Grid, float] = {
    (7, 7): 0.24,
    (6, 6): 0.16,
    (6, 8): 0.09,
    (8, 6): 0.09,
    (5, 9): 0.03,
    (9, 5): 0.03,
    (6, 7): 0.03,
    (7, 6): 0.03,
    (5, 7): 0.04,
    (7, 5): 0.04,
    (5, 8): 0.02,
    (8, 5): 0.02,
    (4, 7): 0.03,
    (7, 4): 0.03,
    (5, 6): 0.02,
    (6, 5): 0.02,
    (4, 6): 0.02,
    (6, 4): 0.02,
    (5, 5): 0.02,
    (4, 8): 0.01,
    (8, 4): 0.01,
}

# People to be asked for keypoints: the hard postures more often. Where postures were equally
# likely, lying people had a PCK of 0.42 and standing ones of 0.97.
_ASKED_POSTURES = {
    "lying": 0.40,
    "running": 0.20,
    "sitting": 0.16,
    "standing": 0.12,
    "arms_raised": 0.12,
}

# Scenes with several shapes of one kind: nine of ten misses were in such scenes.
_REPEATED_SHARE = 0.35

_RESIZED_SHARE = 0.40
_PADDED_SHARE = 0.10  # of square grids
_LENGTH_GROUPS = 3


@dataclass(frozen=True)
class Prompts:
    """Tokenized questions of similar length, with their answers."""

    picture: Tensor  # (n,) int64, index of the picture
    tokens: Tensor  # (n, length) int64, padded on the right
    answer: Tensor  # (n, length) bool, tokens to be learned
    decision: Tensor  # (n, length) bool, answer tokens that decide how an answer goes on
    first: Tensor  # (n,) bool, whether this is the first detection question about its picture


@dataclass(frozen=True)
class CellTargets:
    """What the auxiliary heads are to read off every cell."""

    kind: Tensor  # (n, cells) int64, index into KINDS, or BACKGROUND
    corners: Tensor  # (n, cells, 4) float32, x0 y0 x1 y1 from the cell's centre, unit 3 cells
    corner_bins: Tensor  # (n, cells, 4) int64, x0 y0 x1 y1
    has_keypoint: Tensor  # (n, cells, 17) float32, 1 where the keypoint lies in the cell
    keypoint_offset: Tensor  # (n, cells, 17, 2) float32, x y from the cell's centre, unit 1 cell
    center: Tensor  # (cells, 2) float32, x y of the cell's centre, unit 1 picture


@dataclass(frozen=True)
class Batch:
    grid: Grid
    patches: Tensor  # (n, cells * 4, 588) float32
    detection: tuple[Prompts, ...]  # in groups from short to long, which saves padding
    keypoint: tuple[Prompts, ...]
    cells: CellTargets


def coordinate_bin(value_px: float, size_px: float) -> int:
    """The bin to be taught for a coordinate: a multiple of 12, at most 996.

    An answer's bin is read as ``bin / 999 * size``.
    """
    steps = round(value_px / size_px * 999 / BIN_STEP)
    return BIN_STEP * max(0, min(999 // BIN_STEP, steps))


def detection_answer(scene: Scene, labels: Sequence[str]) -> str:
    """The answer to a detection prompt: every label in the prompt's order, boxes left to right."""
    groups = []
    for label in labels:
        boxes = sorted(_box_bins(scene, o) for o in scene.objects if is_called(o, label))
        spelled = ", ".join("".join(f"<{v}>" for v in box) for box in boxes) or "None"
        groups.append(
            f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>{spelled}<|box_end|>"
        )
    return ", ".join(groups)


def keypoint_answer(scene: Scene) -> str:
    """The answer to a keypoint prompt for people, left to right; an empty object without people."""
    height, width, _ = scene.image.shape
    entries = []
    for number, person in enumerate(people(scene), 1):
        box = " ".join(f"<{v}>" for v in _box_bins(scene, person))
        keypoints = ", ".join(
            f'"{name}": " <{coordinate_bin(x, width)}> <{coordinate_bin(y, height)}> "'
            for name, (x, y) in zip(PERSON_KEYPOINTS, person.keypoints_px, strict=True)
        )
        entries.append(f'"person{number}": {{"bbox": " {box} ", "keypoints": {{{keypoints}}}}}')
    return "```json\n{" + ", ".join(entries) + "}\n```"


def people(scene: Scene) -> list[SceneObject]:
    """The people in a scene, left to right."""
    found = [o for o in scene.objects if o.keypoints_px is not None]
    return sorted(found, key=lambda o: float(o.bbox_px[0]))


def is_called(thing: SceneObject, label: str) -> bool:
    """Whether a label names an object; people answer to "person" and to their posture's label."""
    return thing.label == label or POSTURE_LABELS.get(thing.posture or "") == label


def _box_bins(scene: Scene, thing: SceneObject) -> list[int]:
    height, width, _ = scene.image.shape
    return [coordinate_bin(v, s) for v, s in zip(thing.bbox_px, (width, height) * 2, strict=True)]


def resize_scene(scene: Scene, width_px: int, height_px: int) -> Scene:
    """The scene as the image processor would resize it."""
    height, width, _ = scene.image.shape
    image = Image.fromarray(scene.image).resize((width_px, height_px), Image.Resampling.BICUBIC)
    factor = np.array([width_px / width, height_px / height])
    return Scene(
        np.asarray(image),
        tuple(
            SceneObject(
                o.label,
                o.bbox_px * np.tile(factor, 2),
                None if o.keypoints_px is None else o.keypoints_px * factor,
                o.posture,
            )
            for o in scene.objects
        ),
    )


def pad_to_square(scene: Scene) -> Scene:
    """The scene with its last row or column repeated until it is square, as odd frames are fed."""
    height, width, _ = scene.image.shape
    side = max(height, width)
    missing = ((0, side - height), (0, side - width), (0, 0))
    return Scene(np.pad(scene.image, missing, mode="edge"), scene.objects)


class _Question(NamedTuple):
    picture: int
    first: bool
    tokens: list[int]  # the whole conversation
    asked: int  # number of tokens before the answer


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
        self._image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._box_start = tokenizer.convert_tokens_to_ids("<|box_start|>")
        self._first_coordinate = tokenizer.convert_tokens_to_ids("<0>")
        self._encoded: dict[str, list[int]] = {}
        self._person_marks = np.array(
            [tokenizer.convert_tokens_to_ids(t) for t in ('{"', "{}Ċ", 'Ġ"}},', 'Ġ"}}}Ċ')]
        )
        self._prefix = self._encode(
            f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        )

    @property
    def prefix_length(self) -> int:
        """Number of tokens before the first image token."""
        return len(self._prefix)

    @property
    def random_state(self) -> dict:
        """State of the random source, to be kept and set again."""
        return self._rng.bit_generator.state

    @random_state.setter
    def random_state(self, state: dict) -> None:
        self._rng.bit_generator.state = state

    def batch(self) -> Batch:
        """The next batch. Answers about one person and about two do not meet: less padding."""
        rng = self._rng
        grids = list(_GRIDS)
        shares = np.array(list(_GRIDS.values()))
        grid = grids[int(rng.choice(len(grids), p=shares / shares.sum()))]
        crowd = 1 if rng.random() < 0.45 else 2
        asked = self._pictures // 2
        scenes: list[Scene] = []
        detection: list[_Question] = []
        keypoint: list[_Question] = []
        for index in range(self._pictures):
            about_keypoints = index < asked
            scene = self._scene(grid, crowd if about_keypoints else None)
            scenes.append(scene)
            for number in range(1 if about_keypoints else 2):
                detection.append(_Question(index, number == 0, *self._detection(scene, grid)))
            if about_keypoints:
                keypoint.append(_Question(index, False, *self._keypoint(scene, grid)))
        return Batch(
            grid=grid,
            patches=to_patches(np.stack([s.image for s in scenes])),
            detection=self._grouped(detection),
            keypoint=(self._prompts(keypoint, self._keypoint_decisions),),
            cells=cell_targets(scenes, grid),
        )

    def _scene(self, grid: Grid, crowd: int | None) -> Scene:
        """A scene on a grid: with `crowd` people to be asked for keypoints, or any scene."""
        rng = self._rng
        while True:
            kinds = self._kinds(crowd)
            scene = draw_on_grid(rng, grid, kinds)
            # What found no place is left out of a scene; its people must all be there.
            if scene.objects and (
                kinds is None or len(people(scene)) == sum(k not in SHAPES for k in kinds)
            ):
                return scene

    def _kinds(self, crowd: int | None) -> list[str] | None:
        rng = self._rng
        shapes = [str(rng.choice(SHAPES)) for _ in range(int(rng.integers(1, 3)))]
        if crowd is not None:
            # Scenes without people teach the empty keypoint answer.
            if crowd == 1 and rng.random() < 0.12:
                return shapes
            postures = rng.choice(
                list(_ASKED_POSTURES), size=crowd, p=list(_ASKED_POSTURES.values())
            )
            return [*postures.tolist(), *(shapes if rng.random() < 0.5 else [])]
        choice = rng.random()
        if choice < 0.35:
            return None
        if choice < 0.35 + _REPEATED_SHARE:
            # The first shape again, and perhaps once more.
            return [*shapes, *shapes[:1] * int(rng.integers(1, 3))]
        return ["person"] * int(rng.integers(1, 3)) + (shapes if rng.random() < 0.6 else [])

    def _detection(self, scene: Scene, grid: Grid) -> tuple[list[int], int]:
        labels = pick_labels(self._rng, scene)
        return self._conversation(
            prompt(Task.DETECTION, labels), detection_answer(scene, labels), grid
        )

    def _keypoint(self, scene: Scene, grid: Grid) -> tuple[list[int], int]:
        return self._conversation(
            prompt(Task.KEYPOINT, ["person"], PERSON), keypoint_answer(scene), grid
        )

    def _conversation(self, question: str, answer: str, grid: Grid) -> tuple[list[int], int]:
        """Tokens of the whole conversation, and how many of them come before the answer."""
        asked = (
            self._prefix
            + [self._image_token] * (grid[0] * grid[1])
            + self._encode(f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n")
        )
        return asked + self._tokenizer(f"{answer}<|im_end|>").input_ids, len(asked)

    def _encode(self, text: str) -> list[int]:
        if text not in self._encoded:
            self._encoded[text] = self._tokenizer(text).input_ids
        return self._encoded[text]

    def _detection_decisions(self, tokens: np.ndarray) -> np.ndarray:
        """Where an answer says None or names a box, and where it ends a box list or goes on."""
        previous = np.roll(tokens, 1, axis=1)
        after_box = (previous >= self._first_coordinate) & (tokens < self._first_coordinate)
        return (previous == self._box_start) | after_box

    def _keypoint_decisions(self, tokens: np.ndarray) -> np.ndarray:
        """Where an answer says whether anybody is there, and whether somebody else is."""
        return np.isin(tokens, self._person_marks)

    def _grouped(self, questions: list[_Question]) -> tuple[Prompts, ...]:
        by_length = sorted(questions, key=lambda question: len(question.tokens))
        size = math.ceil(len(by_length) / _LENGTH_GROUPS)
        return tuple(
            self._prompts(by_length[start : start + size], self._detection_decisions)
            for start in range(0, len(by_length), size)
        )

    def _prompts(
        self, questions: list[_Question], decisions: Callable[[np.ndarray], np.ndarray]
    ) -> Prompts:
        length = max(len(question.tokens) for question in questions)
        tokens = np.full((len(questions), length), self._tokenizer.pad_token_id, np.int64)
        answer = np.zeros(tokens.shape, bool)
        for row, question in enumerate(questions):
            tokens[row, : len(question.tokens)] = question.tokens
            answer[row, question.asked : len(question.tokens)] = True
        return Prompts(
            picture=torch.tensor([question.picture for question in questions]),
            tokens=torch.from_numpy(tokens),
            answer=torch.from_numpy(answer),
            decision=torch.from_numpy(decisions(tokens) & answer),
            first=torch.tensor([question.first for question in questions]),
        )


def draw_on_grid(rng: np.random.Generator, grid: Grid, kinds: Sequence[str] | None) -> Scene:
    """A scene of exactly the grid's size.

    Some are drawn larger and at a slightly other aspect, and resized as the processor resizes; on
    square grids, some are long pictures padded to a square.
    """
    height, width = CELL_PX * grid[0], CELL_PX * grid[1]
    choice = rng.random()
    if grid[0] == grid[1] and choice < _PADDED_SHARE:
        long_side = round(width * rng.uniform(1.0, 1.8))
        short_side = max(MIN_SIDE_PX, round(long_side / rng.uniform(1.6, 2.6)))
        sides = (long_side, short_side) if rng.random() < 0.5 else (short_side, long_side)
        return resize_scene(pad_to_square(draw_scene(rng, *sides, kinds)), width, height)
    if choice < _PADDED_SHARE + _RESIZED_SHARE:
        scale = rng.uniform(1.0, 2.0)
        stretch = math.exp(rng.uniform(-0.12, 0.12))
        sides = (round(width * scale * stretch), round(height * scale / stretch))
        return resize_scene(draw_scene(rng, *sides, kinds), width, height)
    return draw_scene(rng, width, height, kinds)


def pick_labels(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Labels for a detection prompt: one, a usual group, all ten, or any mixture.

    Groups come in their usual order as often as in a random one, and absent labels are common:
    their answer is None.
    """
    present = [label for label in LABELS if any(is_called(o, label) for o in scene.objects)]
    choice = rng.random()
    if choice < 0.18:
        return [str(rng.choice(present if rng.random() < 0.5 else LABELS))]
    for bound, group in ((0.36, POSTURE_LABELS.values()), (0.58, BASE_LABELS), (0.72, LABELS)):
        if choice < bound:
            return list(group) if rng.random() < 0.5 else _shuffled(rng, group)
    mixture = _shuffled(rng, LABELS)[: int(rng.integers(2, 7))]
    if rng.random() < 0.5:
        mixture += [p for p in present if p not in mixture and rng.random() < 0.7]
    return _shuffled(rng, mixture)


def _shuffled(rng: np.random.Generator, labels: Sequence[str]) -> list[str]:
    return [str(label) for label in rng.permutation(list(labels))]


def cell_targets(scenes: Sequence[Scene], grid: Grid) -> CellTargets:
    """What the cells of a batch of pictures show."""
    rows, columns = grid
    n, cells = len(scenes), rows * columns
    size = np.array([columns, rows]) * CELL_PX
    y, x = np.mgrid[0:rows, 0:columns].reshape(2, -1) + 0.5
    center = np.stack([x, y], axis=1) * CELL_PX
    kind = np.full((n, cells), BACKGROUND)
    box = np.zeros((n, cells, 4), np.float32)
    has_keypoint = np.zeros((n, cells, 17), np.float32)
    keypoint_offset = np.zeros((n, cells, 17, 2), np.float32)
    for index, scene in enumerate(scenes):
        # Small boxes last, so that they win the cells that they share with large ones.
        for thing in sorted(scene.objects, key=lambda o: -np.prod(o.bbox_px[2:] - o.bbox_px[:2])):
            low, high = thing.bbox_px[:2], thing.bbox_px[2:]
            inside = ((center > low) & (center < high)).all(axis=1)
            inside[np.argmin(((center - (low + high) / 2) ** 2).sum(axis=1))] = True
            kind[index, inside] = KINDS.index(thing.posture or thing.label)
            box[index, inside] = thing.bbox_px
            if thing.keypoints_px is not None:
                column, row = np.floor(thing.keypoints_px / CELL_PX).astype(int).T
                cell = np.clip(row, 0, rows - 1) * columns + np.clip(column, 0, columns - 1)
                has_keypoint[index, cell, np.arange(17)] = 1
                offset = (thing.keypoints_px - center[cell]) / CELL_PX
                keypoint_offset[index, cell, np.arange(17)] = offset
    corners = (box - np.tile(center, 2)) / CELL_PX / 3
    corner_bins = (box / np.tile(size, 2) * 999).clip(0, 999).astype(np.int64)
    return CellTargets(
        kind=torch.from_numpy(kind),
        corners=torch.from_numpy(corners.astype(np.float32)),
        corner_bins=torch.from_numpy(corner_bins),
        has_keypoint=torch.from_numpy(has_keypoint),
        keypoint_offset=torch.from_numpy(keypoint_offset),
        center=torch.from_numpy((center / size).astype(np.float32)),
    )
