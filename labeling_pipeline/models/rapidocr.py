"""RapidOCR behind the model protocol: text, where it stands and how sure the engine is, on the CPU.

Source: https://github.com/RapidAI/RapidOCR. Three networks of PP-OCR run in turn: one finds lines,
one turns those that stand on their head, one reads them. They lie inside the package, which would
download them where they are missing; it is given their paths, so it cannot.

The engine takes no prompt: whatever is asked, it reads the whole image, and its answer is kept as
JSON, in pixels of the image, corners clockwise from the top left of the text:

    {"lines": [{"text": "Gate 7", "score": 0.98, "polygon": [[x, y], [x, y], [x, y], [x, y]],
                "words": [{"text": "Gate", "score": 0.99, "polygon": [...]}, ...]}]}

What is asked, ``word`` or ``text line``, only chooses what is read out of it. Words are what spaces
part; in scripts without spaces, Chinese and Japanese, every character counts as one. Lines of any
score are kept: thresholds apply on reading.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Annotated, Any
from unicodedata import east_asian_width

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from labeling_pipeline.annotations import (
    Annotation,
    FinishReason,
    Generation,
    LabelAnswer,
    ParsedAnswer,
    State,
)
from labeling_pipeline.errors import MissingDependencyError, ModelError
from labeling_pipeline.models.batching import BatchLimit
from labeling_pipeline.models.cards import ModelCard, ModelSettings, key_of
from labeling_pipeline.tasks import RULES, Geometry, Request, Skeleton, Task

WORD, TEXT_LINE = "word", "text line"

_BATCH = 4
_LONGEST_PX, _SHORTEST_PX, _CELL_PX = 2000, 736, 32
_MAX_ASPECT = 8

_INSTALL = "pip install 'labeling-pipeline[ocr]'"

# What the engine calls a network -> what its file name holds.
_NETWORKS = {"Det": "_det_", "Cls": "_cls_", "Rec": "_rec_"}

_Point = tuple[FiniteFloat, FiniteFloat]


class _Word(BaseModel):
    text: str
    score: Annotated[float, Field(ge=0, le=1)]
    polygon: tuple[_Point, _Point, _Point, _Point]


class _Line(_Word):
    words: tuple[_Word, ...]


class _Reading(BaseModel):
    """The whole answer about one image."""

    lines: tuple[_Line, ...]


@dataclass(frozen=True)
class _Prepared:
    """An image as the engine wants it. pixels: (height, width, 3) uint8, BGR."""

    prompt: str
    pixels: np.ndarray


class RapidOcr:
    """The engine of the package ``rapidocr`` with the networks inside it.

    The device of the settings is not looked at: this model is for the CPU.

    Raises:
        MissingDependencyError: the extra ``ocr`` is not installed, or carries no networks.
    """

    protocol_version = 1
    parser_version = 1

    def __init__(self, card: ModelCard, settings: ModelSettings) -> None:
        self.card = card
        self.settings = settings
        version, self._files = _package()
        self.parameters = {
            "checkpoint": card.checkpoint,
            "revision": version,
            "networks": {f.name: f.hash.value if f.hash else None for f in self._files.values()},
            "protocol_version": self.protocol_version,
        }
        self.model_key = key_of(self.parameters)
        self._engine: Any = None
        self._lock = Lock()

    @property
    def batch_limit(self) -> BatchLimit:
        """A few images, written together: the engine has one at a time in memory."""
        return BatchLimit(self.settings.batch_size or _BATCH, tokens=1 << 30)

    def input_tokens(self, size_px: tuple[int, int]) -> int:
        """Squares of 32 px in the frame that lines are looked for in.

        The engine pads long strips, shrinks images to a longer side of 2000 px and enlarges them to
        a shorter one of 736.
        """
        width, height = size_px
        frame = max(width, height / _MAX_ASPECT), max(height, width / _MAX_ASPECT)
        scale = max(min(1.0, _LONGEST_PX / max(frame)), _SHORTEST_PX / min(frame))
        columns, rows = (math.ceil(side * scale / _CELL_PX) for side in frame)
        return columns * rows

    def prompt(self, task: Task, labels: Sequence[str], skeleton: Skeleton | None = None) -> str:
        """What is asked, by name: there is no prompt to write."""
        return ", ".join(labels)

    def why_unsupported(self, label: str, task: Task = Task.OCR_BOX) -> str | None:
        """Why this label must not be asked, with the fix; ``None`` if it may."""
        return self.card.why_not_in_vocabulary(label, task)

    def prepare(self, request: Request) -> _Prepared:
        """Turn the colours round, as OpenCV has them, and pad tall strips to the right.

        The engine pads wide strips only; it would enlarge tall ones until memory ends.
        """
        width, height = request.size_px
        missing = max(0, math.ceil(height / _MAX_ASPECT) - width)
        pixels = np.pad(request.image[..., ::-1], ((0, 0), (0, missing), (0, 0)), mode="edge")
        return _Prepared(self.prompt(request.task, request.labels), pixels)

    def forward(self, prepared: Sequence[_Prepared]) -> list[Generation]:
        """Read image after image.

        Raises:
            ModelError: the engine could not be loaded.
        """
        with self._lock:
            if self._engine is None:
                self._engine = _load(self._files)
            return [self._answer(one) for one in prepared]

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Prepare and answer a batch, in order."""
        return self.forward([self.prepare(request) for request in requests])

    def parse(
        self,
        generation: Generation,
        task: Task,
        labels: Sequence[str],
        image_size_px: tuple[int, int],
        skeleton: Skeleton | None = None,
    ) -> ParsedAnswer:
        """Read an answer; needs no engine. Scores are the engine's own."""
        try:
            reading = _Reading.model_validate_json(generation.raw_text)
        except ValidationError:
            unparsed = {label: LabelAnswer(State.UNPARSED) for label in labels}
            return ParsedAnswer(unparsed, (f"garbled: {generation.raw_text[:200]}",), False)
        pieces: dict[str, list[_Word]] = {
            WORD: [word for line in reading.lines for word in line.words],
            TEXT_LINE: [*reading.lines],
        }
        answers: dict[str, LabelAnswer] = {}
        dropped: list[str] = []
        for label in labels:
            found = []
            for piece in pieces[label]:
                annotation = _annotation(piece, label, task, image_size_px)
                if annotation is None:
                    dropped.append(f"empty_box: {label} {piece.text}")
                else:
                    found.append(annotation)
            nothing = State.UNPARSED if pieces[label] else State.ABSENT
            answers[label] = LabelAnswer(State.FOUND if found else nothing, None, tuple(found))
        return ParsedAnswer(answers, tuple(dropped))

    def _answer(self, prepared: _Prepared) -> Generation:
        started = time.perf_counter()
        reading = _Reading(lines=tuple(_read(self._engine, prepared.pixels)))
        height, width = prepared.pixels.shape[:2]
        return Generation(
            prompt=prepared.prompt,
            # One piece: the answer was not generated token by token, so no token has a probability.
            tokens=(reading.model_dump_json(),),
            token_logprobs=(math.nan,),
            token_window_mass=(math.nan,),
            none_probs=(),
            finish_reason=FinishReason.STOP,
            frame_size_px=(width, height),
            latency_s=time.perf_counter() - started,
        )


def _annotation(
    piece: _Word, label: str, task: Task, image_size_px: tuple[int, int]
) -> Annotation | None:
    """A piece of text inside the image; ``None`` if nothing of its box is."""
    width, height = image_size_px
    corners = tuple((min(max(x, 0.0), width), min(max(y, 0.0), height)) for x, y in piece.polygon)
    xs, ys = zip(*corners, strict=True)
    box = min(xs), min(ys), max(xs), max(ys)
    if box[0] >= box[2] or box[1] >= box[3]:
        return None
    is_outline = RULES[task].geometry is Geometry.POLYGON
    return Annotation(
        label, box, polygon=corners if is_outline else (), text=piece.text, score=piece.score
    )


def _package() -> tuple[str, dict[str, metadata.PackagePath]]:
    """The version of the package, and the files of the networks that came with it.

    Raises:
        MissingDependencyError: there is no such package, or it came without networks.
    """
    missing = [name for name in ("rapidocr", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"reading text needs {' and '.join(missing)}, which is not installed: {_INSTALL}"
        )
    package = metadata.distribution("rapidocr")
    # The list of what was installed, not the folder: what others downloaded there is not ours.
    carried = [file for file in package.files or () if file.suffix == ".onnx"]
    files = {}
    for network, part in _NETWORKS.items():
        fitting = [file for file in carried if part in file.name]
        if len(fitting) != 1:
            raise MissingDependencyError(
                f"expected rapidocr {package.version} to carry one network named *{part}*.onnx, "
                f"found {[file.name for file in fitting]}; nothing is downloaded at run time: "
                f"install a version that carries it, {_INSTALL}"
            )
        files[network] = fitting[0]
    return package.version, files


def _load(files: dict[str, metadata.PackagePath]) -> Any:
    """The engine; its networks load when each is first used.

    Raises:
        ModelError: a network is not where the package said.
    """
    paths = {network: Path(str(file.locate())) for network, file in files.items()}
    for path in paths.values():
        if not path.is_file():
            raise ModelError(
                f"expected a network of rapidocr at {path}, found none; nothing is downloaded at "
                "run time: pip install --force-reinstall --no-deps rapidocr"
            )
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            **{f"{network}.model_path": str(path) for network, path in paths.items()},
            "Global.return_word_box": True,
            # It warns of every image without text.
            "Global.log_level": "error",
        }
    )


def _read(engine: Any, pixels: np.ndarray) -> Iterator[_Line]:
    """The lines of an image, in the engine's order: top to bottom, left to right.

    Runs the steps of the engine's ``__call__`` one by one, because its own words are not to be
    trusted: after the first space of a line they bear the confidence of other characters, and in
    lines that do not run from left to right they lie elsewhere.

    pixels: (height, width, 3) uint8, BGR.

    Raises:
        RuntimeError: the engine found lines and did not read them.
    """
    from rapidocr.utils.process_img import map_boxes_to_original

    frame, operations = engine.preprocess_img(pixels)
    found, turned, read, _ = engine.run_ocr_steps(frame, operations)
    if found.boxes is None:
        return
    if read.txts is None:
        raise RuntimeError(f"the engine found {len(found.boxes)} lines of text and read none")
    places = map_boxes_to_original(found.boxes.copy(), operations, *pixels.shape[:2])
    for box, place, (angle, certainty), text, score, seen in zip(
        found.boxes,
        places,
        turned.cls_res,
        read.txts,
        read.scores,
        read.word_results,
        strict=True,
    ):
        if not text.strip():
            continue
        # What the engine did to the line before it read it: tall ones lie down to the left, those
        # on their head are turned round.
        was_turned = "180" in angle and certainty > engine.text_cls.cls_thresh
        corners = np.roll(place.astype(float), -(_is_tall(box) + 2 * was_turned), axis=0)
        columns = [column for word in seen.word_cols for column in word]
        yield _Line(
            text=text,
            score=score,
            polygon=_polygon(corners),
            words=tuple(_words(text, seen.confs, columns, seen.line_txt_len, corners)),
        )


def _is_tall(box: np.ndarray) -> bool:
    """Whether the engine takes a line for one that runs from top to bottom. box: (4, 2)."""
    top, right, bottom, left = np.linalg.norm(box - np.roll(box, -1, axis=0), axis=1).tolist()
    return int(max(left, right)) / max(1, int(max(top, bottom))) >= 1.5


def _words(
    text: str,
    confidences: Sequence[float],
    columns: Sequence[int],
    length: float,
    corners: np.ndarray,
) -> Iterator[_Word]:
    """Put the characters of a line together to words.

    Args:
        text: of the line.
        confidences: one for each character of it, 0..1.
        columns: the step along the line at which each character that is no space was read.
        length: of the line, in steps.
        corners: (4, 2) float, pixels: of the line, clockwise from the top left of its text.
    """
    letters = [character for character in text if not character.isspace()]
    centres = np.clip((np.asarray(columns) + 0.5) / length, 0.0, 1.0)
    gaps = np.diff(centres)
    # A Chinese character is about as wide as two letters.
    widths = np.array([2.0 if _stands_alone(letter) else 1.0 for letter in letters])
    unit = np.median(2 * gaps / (widths[:-1] + widths[1:])) if len(gaps) else 1.0
    # Wide letters reach further than half of their share, but never into their neighbour.
    middles = centres[:-1] + gaps / 2
    starts = np.maximum(centres - 0.75 * unit * widths, [0.0, *middles])
    ends = np.minimum(centres + 0.75 * unit * widths, [*middles, 1.0])

    words: list[list[tuple[str, float, int]]] = []
    begins, position = True, 0
    for character, confidence in zip(text, confidences, strict=True):
        if character.isspace():
            begins = True
            continue
        is_word = _stands_alone(character)
        if begins or is_word:
            words.append([])
        words[-1].append((character, confidence, position))
        begins = is_word
        position += 1

    top_left, top_right, bottom_right, bottom_left = corners
    for word in words:
        characters, scores, positions = zip(*word, strict=True)
        start, end = starts[positions[0]], ends[positions[-1]]
        top, bottom = top_right - top_left, bottom_right - bottom_left
        yield _Word(
            text="".join(characters),
            score=round(sum(scores) / len(scores), 5),
            polygon=_polygon(
                [
                    *(top_left + top * start, top_left + top * end),
                    *(bottom_left + bottom * end, bottom_left + bottom * start),
                ]
            ),
        )


def _stands_alone(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words."""
    return east_asian_width(character) in "WF"


def _polygon(corners: Any) -> Any:
    """(4, 2) as lists of floats with two decimals."""
    return np.round(corners, 2).tolist()
