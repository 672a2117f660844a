"""How Rex-Omni is asked and how its answers are read, as pure functions.

Source: the prompts and the output format published with IDEA-Research/Rex-Omni.

Coordinates are the 1000 tokens ``<0>`` .. ``<999>``, relative to the frame the model saw: a bin b
stands for the pixel ``b / 999 * size``, a pixel x for the bin ``int(clamp(x / size) * 999)``.

Answers are runs of
``<|object_ref_start|>label<|object_ref_end|><|box_start|><x0><y0><x1><y1>, ...<|box_end|>``
with two numbers for a point, four for a box and more for a polygon; a label that is not there has
``None`` in place of them. Where text is read, the text stands in the label's place, and it may hold
a ``<``. Keypoint answers are JSON, usually fenced:
``{"person1": {"bbox": " <x0> <y0> <x1> <y1> ", "keypoints": {"nose": " <x> <y> ", "left eye":
"unvisible"}}}``. Categories are joined with a comma, so a comma inside a label would split it.

The parsers never raise on any text and never repair silently: what is not understood is listed in
``ParsedAnswer.dropped``.

What goes wrong with greedy decoding: one box said again and again, boxes that march on by one and
the same step, JSON that starts over, and one box over the whole image. ``LoopWatch`` sees the first
three while the answer is being written, so that it can be stopped; the parser asks the same watch,
so an answer reads the same whether or not it was stopped.
"""

import json
import math
import re
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np

from labeling_pipeline.annotations import (
    Annotation,
    Box,
    FinishReason,
    Generation,
    Keypoint,
    LabelAnswer,
    ParsedAnswer,
    State,
    TokenScores,
    box_iou,
)
from labeling_pipeline.tasks import RULES, Geometry, Skeleton, Task

PROTOCOL_VERSION = 2
"""Part of the model key: raise it when prompts or decoding change."""

PARSER_VERSION = 2
"""Stands on every annotation: raise it when the same text would be read differently."""

SYSTEM_PROMPT = "You are a helpful assistant"
BINS = 1000
WINDOW_BINS = 24
"""Half width of the window whose probability mass scores a coordinate."""

DUPLICATE_IOU = 0.9
"""Boxes of one label that overlap more than this are one thing said twice."""

DEGENERATE_RUN = 5
"""A thing said so many times again, or so many things in a row that had all been said, is no answer
but a loop; so are so many equal steps from box to box at the end of an answer that was cut."""

LADDER_RUN = 32
"""So many equal steps from box to box are a loop even before the answer ends.

Windows in a row step equally too, so this must be longer than a row can be: a pitch of whole pixels
is seldom one of whole bins, so rounding breaks the step of a longer row, as the ends of the rows do
that of a grid. A ladder costs some 160 tokens before it is seen, out of thousands."""

PERIODIC_REPEATS, PERIODIC_TOKENS = 5, 40
"""Text that says the same so many times, over at least so many tokens, is a loop. Shorter runs are
found in print: dotted lines, rows of stars."""

LONGEST_PERIOD = 512
"""In tokens; a person with all keypoints takes about 200."""

GIANT_SHARE = 0.95
"""A box over so much of the image may be the whole scene instead of a thing in it."""

REF_START, REF_END = "<|object_ref_start|>", "<|object_ref_end|>"
BOX_START, BOX_END = "<|box_start|>", "<|box_end|>"
ABSENT = "None"

_COORDINATE = re.compile(r"<([0-9]{1,3})>")
_POINT = r"\s*(?:<[0-9]{1,3}>\s*){2}"
_SHAPES = {
    Geometry.POINT: re.compile(_POINT),
    Geometry.BOX: re.compile(rf"(?:{_POINT}){{2}}"),
    Geometry.POLYGON: re.compile(rf"(?:{_POINT}){{3,}}"),
}
_SEPARATOR = re.compile(r"[\s,]*")
_PARTS = re.compile(r"<\|[a-z_]+\|>|<[0-9]{1,3}>|[^<]+|<")
_INSTANCE_OR_BOX = re.compile(r'"([^"]*)"\s*:\s*\{|"bbox"\s*:\s*"([^"]*)"')
_PLURALS = (("", "s"), ("", "es"), ("y", "ies"))
_MARK_CHARS = 200
"""Enough of the text to hold the name of an instance, or its box."""
_FENCE = re.compile(r"```(?:json)?\s*")


def prompt(
    task: Task,
    labels: Sequence[str],
    skeleton: Skeleton | None = None,
    references: Sequence[Sequence[int]] = (),
) -> str:
    """The text of the user turn, exactly as trained.

    references: for visual prompting, boxes as four bins each.

    Raises:
        ValueError: a keypoint prompt without a skeleton.
    """
    if task is Task.KEYPOINT:
        if skeleton is None:
            raise ValueError("a keypoint prompt needs a skeleton, got none")
        return (
            f"Can you detect each {', '.join(labels)} in the image using a [x0, y0, x1, y1] box "
            f"format, and then provide the coordinates of its {', '.join(skeleton.keypoints)} as "
            "[x0, y0]? Output the answer in JSON format."
        )
    boxes = {REFERENCE_NAME: ["".join(f"<{b}>" for b in box) for box in references]}
    return _PROMPTS[task].format(categories=", ".join(labels), references=json.dumps(boxes))


REFERENCE_NAME = "object_1"
"""What reference boxes are called in the prompt, and their likes in the answer."""

_DETECT = "Detect {categories}. Output the bounding box coordinates in [x0, y0, x1, y1] format."

_PROMPTS: dict[Task, str] = {
    Task.DETECTION: _DETECT,
    Task.FACE: _DETECT,
    Task.REFERRING: _DETECT,
    Task.LAYOUT: _DETECT,
    Task.POINTING: "Point to {categories}.",
    Task.VISUAL_PROMPTING: (
        "Given reference boxes {references} indicating one or more objects, find all similar "
        "objects in the image and output their bounding boxes."
    ),
    Task.OCR_BOX: "Detect all {categories} and recognize them.",
    Task.OCR_POLYGON: (
        "Can you detect all {categories} in this image in polygon format like "
        "[x0, y0, x1, y1, x2, y2 ...] and then recognize them?"
    ),
    # The doubled quote is how it was trained.
    Task.GUI_BOX: 'Detect element "{categories}"" in the image.',
    Task.GUI_POINT: 'Point to element "{categories}".',
}

TASKS = (*_PROMPTS, Task.KEYPOINT)


def why_unsupported(label: str) -> str | None:
    """Why this label cannot be put into a prompt, with the fix; ``None`` if it can."""
    if not label.strip():
        return "an empty label asks for nothing: give the class a label under `ask` in the plan"
    if "," in label:
        return (
            f"the label {label!r} holds a comma, which would split it in the prompt: give the "
            "class another label under `ask` in the plan"
        )
    if "<|" in label:
        return f"the label {label!r} holds '<|', the start of a control token: rename it in `ask`"
    return None


def to_bin(value_px: float, size_px: float) -> int:
    """The bin of a pixel coordinate, as the model was trained: ``int(clamp(x / size) * 999)``."""
    return int(min(max(value_px / size_px, 0.0), 1.0) * (BINS - 1))


def from_bin(value: int, size_px: float) -> float:
    """The pixel coordinate of a bin: ``bin / 999 * size``."""
    return value / (BINS - 1) * size_px


class _Heard:
    """The things said so far under one label. A thing is its bounds, xyxy in any one unit, and the
    text that was read there; a point's bounds are the point twice."""

    def __init__(self) -> None:
        self._things: list[tuple[Box, str | None]] = []  # sorted
        self._again: dict[tuple[Box, str | None], int] = {}

    def again(self, bounds: Box, text: str | None = None) -> int:
        """Hear a thing; returns how many times it is now said again, 0 for a new one."""
        thing = self._find(bounds, text)
        if thing is None:
            insort(self._things, (bounds, text))
            self._again[bounds, text] = 0
            return 0
        self._again[thing] += 1
        return self._again[thing]

    def _find(self, bounds: Box, text: str | None) -> tuple[Box, str | None] | None:
        if (bounds, text) in self._again:
            return bounds, text
        # Boxes that overlap so much begin within so much of their width.
        reach = (1 - DUPLICATE_IOU) * (bounds[2] - bounds[0])
        first = bisect_left(self._things, ((bounds[0] - reach,),))
        end = bisect_left(self._things, ((bounds[0] + reach + 1e-9,),))
        return next(
            (
                (other, said)
                for other, said in self._things[first:end]
                if said == text and box_iou(other, bounds) > DUPLICATE_IOU
            ),
            None,
        )


class _Course:
    """The course that the things of one label take: whether it goes in circles, or up a ladder.

    steps: so many equal steps led to the last thing.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._heard = _Heard()
        self._nothing_new = 0
        self._last: tuple[Sequence[int], str | None] = ((), None)
        self._step: list[int] | None = None

    def add(self, bins: Sequence[int], text: str | None) -> bool:
        """Take the next thing; returns whether the course is a loop."""
        again = self._heard.again(_bounds(bins), text)
        self._nothing_new = self._nothing_new + 1 if again else 0
        step = None
        if self._last[1] == text and len(self._last[0]) == len(bins):
            step = [b - a for a, b in zip(self._last[0], bins, strict=True)]
        if step is None:
            self.steps = 0
        else:
            self.steps = self.steps + 1 if step == self._step else 1
        self._step, self._last = step, (bins, text)
        return max(again, self._nothing_new) >= DEGENERATE_RUN or self.steps >= LADDER_RUN


class _Periods:
    """Recognises text that repeats, for all periods at once.

    For each period p of 1..LONGEST_PERIOD tokens it counts how many tokens on end equal the one p
    tokens before: small vector operations a token, however long the text.
    """

    def __init__(self) -> None:
        periods = np.arange(1, LONGEST_PERIOD + 1)
        self._needed = np.maximum((PERIODIC_REPEATS - 1) * periods, PERIODIC_TOKENS - periods)
        self._equal = np.zeros(LONGEST_PERIOD, int)
        self._newest_first = np.full(LONGEST_PERIOD, -1)
        self._codes: dict[str, int] = {}

    def add(self, token: str) -> bool:
        """Take the next token; returns whether the text ends in a loop."""
        code = self._codes.setdefault(token, len(self._codes))
        self._equal = (self._equal + 1) * (self._newest_first == code)
        self._newest_first[1:] = self._newest_first[:-1]
        self._newest_first[0] = code
        return bool((self._equal >= self._needed).any())


class LoopWatch:
    """Watches one answer being written, and says when it goes in circles.

    It never fires on an answer that says a new thing each time, whatever its length, unless things
    follow each other by one and the same step ``LADDER_RUN`` times.

    label: what the answer speaks of just now, as it says it. looped: the labels, as the answer says
    them, under which it went in circles.
    """

    def __init__(self, task: Task) -> None:
        self.label = ""
        self.looped: set[str] = set()
        self._rule = RULES[task]
        self._courses: dict[str, _Course] = {}
        self._periods = _Periods()
        self._is_label = self._is_body = False
        self._bins: list[int] = []
        self._recent = ""

    @property
    def looping(self) -> bool:
        """Whether it is time to stop."""
        return bool(self.looped)

    @property
    def ends_in_ladder(self) -> bool:
        """Whether the last things follow each other by one and the same step. A row of windows does
        so too: it says something only of an answer without an end."""
        return self._course().steps >= DEGENERATE_RUN

    def add(self, pieces: Sequence[str]) -> None:
        """Take the next tokens, as text. A mark like ``<12>`` must not be cut in two."""
        take = self._take_json if self._rule.geometry is Geometry.KEYPOINTS else self._take_marked
        for piece in pieces:
            for part in _PARTS.findall(piece):
                take(part)
                if self._periods.add(part):
                    self.looped.add(self.label)

    def _take_marked(self, part: str) -> None:
        if part in _MARKS:
            self._say(self._bins)
            self._bins = []
            self._is_label, self._is_body = part == REF_START, part == BOX_START
            if self._is_label:
                self.label = ""
        elif self._is_label:
            self.label += part
        elif self._is_body and (coordinate := _COORDINATE.fullmatch(part)):
            self._bins.append(int(coordinate[1]))
        elif self._is_body and "," in part:
            self._say(self._bins)
            self._bins = []

    def _take_json(self, part: str) -> None:
        self._recent += part
        if '"' not in part and "{" not in part:
            return
        end = 0
        for match in _INSTANCE_OR_BOX.finditer(self._recent):
            name, box = match.groups()
            if box is not None:
                self._say([int(b) for b in _COORDINATE.findall(box)])
            elif name != "keypoints":
                self.label = name
            end = match.end()
        self._recent = self._recent[end:][-_MARK_CHARS:]

    def _say(self, bins: Sequence[int]) -> None:
        text = self.label if self._rule.reads_text else None
        if bins and self._course().add(bins, text):
            self.looped.add(self.label)

    def _course(self) -> _Course:
        """Of what is spoken of just now. All text that is read is one list, and so are all
        numbered instances of one thing."""
        key = self.label
        if self._rule.reads_text:
            key = ""
        elif self._rule.geometry is Geometry.KEYPOINTS:
            key = _without_number(key)
        return self._courses.setdefault(key, _Course())


_MARKS = (REF_START, REF_END, BOX_START, BOX_END)


def _bounds(numbers: Sequence[float]) -> Box:
    """x and y in turns; half a point, which only a garbled answer holds, lies on the diagonal."""
    xs, ys = numbers[::2], numbers[1::2] or numbers[:1]
    return min(xs), min(ys), max(xs), max(ys)


def _without_number(name: str) -> str:
    """What an instance like ``person12`` is one of."""
    return name.rstrip("0123456789").rstrip(" _")


def parse(
    generation: Generation,
    task: Task,
    labels: Sequence[str],
    image_size_px: tuple[int, int],
    skeleton: Skeleton | None = None,
) -> ParsedAnswer:
    """Read an answer.

    labels: everything that was asked in the prompt, distractors included.
    image_size_px: (width, height) of the upright image; boxes are cut at its borders, which
        matters where the frame was padded.
    """
    reader = _Reader(generation, task, labels, image_size_px, skeleton)
    if RULES[task].geometry is Geometry.KEYPOINTS:
        return _read_keypoints(reader)
    return _read_marked(reader)


class _Reader:
    """One answer on its way to a ``ParsedAnswer``: collects annotations, drops and states."""

    def __init__(
        self,
        generation: Generation,
        task: Task,
        labels: Sequence[str],
        image_size_px: tuple[int, int],
        skeleton: Skeleton | None,
    ) -> None:
        self.task = task
        self.rule = RULES[task]
        self.text = generation.raw_text
        self.cut = generation.finish_reason is not FinishReason.STOP
        self.generation = generation
        self.image_size_px = image_size_px
        self.skeleton = skeleton
        self.complete = not self.cut
        self.dropped: list[str] = []
        self.annotations: dict[str, list[Annotation]] = {label: [] for label in labels}
        self.states: dict[str, State] = {}
        self.heard = {label: _Heard() for label in labels}
        self.presence: dict[str, float] = {}
        self._by_folded = {label.casefold(): label for label in labels}
        self._watch = LoopWatch(task)
        self._watch.add(generation.tokens)
        self._token_at: dict[int, int] = {}
        position = 0
        for index, token in enumerate(generation.tokens):
            # The last one wins: an empty token stands where the next one begins.
            self._token_at[position] = index
            position += len(token)

    def asked(self, label: str) -> str | None:
        """The asked label that an answered one means, or ``None``.

        Case and number may differ. Where there is but one thing to answer, text or what looks like
        the reference, whatever stands in the label's place belongs to it.
        """
        if self.rule.reads_text or self.task is Task.VISUAL_PROMPTING:
            return next(iter(self.annotations))
        if label in self.annotations:
            return label
        folded = label.strip().casefold()
        candidates = [folded]
        for one, many in _PLURALS:
            candidates += [folded.removesuffix(one) + many] if folded.endswith(one) else []
            candidates += [folded.removesuffix(many) + one] if folded.endswith(many) else []
        return next((self._by_folded[c] for c in candidates if c in self._by_folded), None)

    def asked_instance(self, name: str) -> str | None:
        """The same for an instance, which may bear a number."""
        return self.asked(name) or self.asked(_without_number(name))

    def drop(self, reason: str, what: str) -> None:
        self.dropped.append(f"{reason}: {what[:200]}")

    def coordinates(self, start: int, end: int) -> tuple[list[int], TokenScores | None]:
        """Bins written in text[start:end] and what their tokens say, if they were tokens."""
        bins: list[int] = []
        logprobs: list[float] = []
        masses: list[float] = []
        for match in _COORDINATE.finditer(self.text, start, end):
            bins.append(int(match[1]))
            index = self._token_at.get(match.start())
            if index is not None and self.generation.tokens[index] == match[0]:
                logprobs.append(self.generation.token_logprobs[index])
                masses.append(self.generation.token_window_mass[index])
        if not bins or len(logprobs) != len(bins):
            return bins, None
        return bins, TokenScores(
            geometric_mean=math.exp(sum(logprobs) / len(logprobs)),
            window_mass=_geometric_mean(masses),
        )

    def box(self, bins: Sequence[int], what: str) -> Box | None:
        """Four bins as a box inside the image; corners may come in either order."""
        frame_w, frame_h = self.generation.frame_size_px
        image_w, image_h = self.image_size_px
        xs = sorted(min(from_bin(b, frame_w), image_w) for b in (bins[0], bins[2]))
        ys = sorted(min(from_bin(b, frame_h), image_h) for b in (bins[1], bins[3]))
        if xs[0] >= xs[1] or ys[0] >= ys[1]:
            self.drop("empty_box", what)
            return None
        return xs[0], ys[0], xs[1], ys[1]

    def points(self, bins: Sequence[int], what: str) -> tuple[tuple[float, float], ...] | None:
        """Pairs of bins as points inside the image; ``None`` if one lies in the padding."""
        frame_w, frame_h = self.generation.frame_size_px
        points = tuple(
            (from_bin(x, frame_w), from_bin(y, frame_h))
            for x, y in zip(bins[::2], bins[1::2], strict=True)
        )
        width, height = self.image_size_px
        if any(x > width or y > height for x, y in points):
            self.drop("outside_image", what)
            return None
        return points

    def add(self, label: str, annotation: Annotation) -> None:
        """Keep an annotation, unless it says again what an earlier one said."""
        point = annotation.point or ()
        bounds = annotation.bbox or _bounds(point)
        if self.heard[label].again(bounds, annotation.text):
            self.drop("duplicate", f"{label} {annotation.bbox or point}")
        else:
            self.annotations[label].append(annotation)

    def result(self) -> ParsedAnswer:
        """Labels without a state of their own get the one that follows from the whole answer."""
        if self.rule.reads_text and self.cut:
            # Every text is closed by itself, but the list of texts has no end.
            self.states.update(dict.fromkeys(self.annotations, State.TRUNCATED))
        degenerate = self._looped() | self._giant()
        answers = {}
        for label, found in self.annotations.items():
            state = self.states.get(label)
            if label in degenerate:
                state = State.DEGENERATE
            elif state is None:
                if self.cut:
                    state = State.TRUNCATED
                elif self.complete:
                    state = State.NOT_MENTIONED
                else:
                    state = State.UNPARSED
            answers[label] = LabelAnswer(state, self.presence.get(label), tuple(found))
        return ParsedAnswer(answers, tuple(self.dropped), self.complete)

    def _looped(self) -> set[str]:
        """The asked labels in which the answer went in circles."""
        is_json = self.rule.geometry is Geometry.KEYPOINTS
        asked = self.asked_instance if is_json else self.asked
        last = asked(self._watch.label)
        labels = {asked(name) for name in self._watch.looped}
        was_stopped = self.generation.finish_reason is FinishReason.LOOP
        is_open = self.cut and last is not None and self.states.get(last) is State.TRUNCATED
        if (was_stopped and not labels) or (is_open and self._watch.ends_in_ladder):
            labels.add(last)
        looped = {label for label in labels if label is not None}
        if was_stopped and not looped:
            # It went in circles in no asked label: that spoils what it had not come to.
            return {x for x in self.annotations if x not in self.states} or set(self.annotations)
        return looped

    def _giant(self) -> set[str]:
        """The labels that took the whole scene for a thing.

        Beside boxes that lie in it, a giant box is dropped. Where it is all that a label has, it
        may be right, but hardly for several labels of one answer: these keep it and are degenerate.
        """
        if self.rule.geometry is not Geometry.BOX:
            return set()
        degenerate, lone = set(), set()
        for label, found in self.annotations.items():
            for giant in filter(self._is_giant, list(found)):
                if sum(_lies_in(other, giant) for other in found if other is not giant) >= 2:
                    found.remove(giant)
                    self.drop("giant_box", f"{label} {giant.bbox}")
                    degenerate.add(label)
            if len(found) == 1 and self._is_giant(found[0]):
                lone.add(label)
        return degenerate | lone if len(lone) > 1 else degenerate

    def _is_giant(self, annotation: Annotation) -> bool:
        width, height = self.image_size_px
        box = annotation.bbox
        if box is None:
            return False
        return (box[2] - box[0]) * (box[3] - box[1]) >= GIANT_SHARE * width * height


def _lies_in(inner: Annotation, outer: Annotation) -> bool:
    if inner.bbox is None or outer.bbox is None:
        return False
    x0, y0, x1, y1 = inner.bbox
    return (
        outer.bbox[0] <= x0 and outer.bbox[1] <= y0 and x1 <= outer.bbox[2] and y1 <= outer.bbox[3]
    )


def _read_marked(reader: _Reader) -> ParsedAnswer:
    text = reader.text
    none_probs = reader.generation.none_probs
    position = 0
    while (start := text.find(REF_START, position)) >= 0:
        _note_stray(reader, text[position:start])
        # A segment ends where the next one begins: it never takes the boxes of its neighbour.
        following = text.find(REF_START, start + len(REF_START))
        limit = following if following >= 0 else len(text)
        label_end = text.find(REF_END, start, limit)
        box_start = text.find(BOX_START, start, limit)
        if label_end < 0 or box_start < label_end:
            reader.complete = False
            position = limit
            is_cut = following < 0 and reader.cut
            reader.drop("cut" if is_cut else "garbled", text[start:position])
            if label_end >= 0:
                label = reader.asked(text[start + len(REF_START) : label_end])
                if label is not None:
                    reader.states.setdefault(label, State.TRUNCATED if is_cut else State.UNPARSED)
            continue
        answered = text[start + len(REF_START) : label_end]
        _note_stray(reader, text[label_end + len(REF_END) : box_start])
        body_start = box_start + len(BOX_START)
        nth = text.count(BOX_START, 0, box_start)
        closing = text.find(BOX_END, body_start, limit)
        closed = closing >= 0
        body_end = closing if closed else limit
        position = body_end + len(BOX_END) if closed else body_end
        label = reader.asked(answered)
        if label is None:
            reader.drop("not_asked", f"{answered}: {text[body_start:body_end]}")
            continue
        if nth < len(none_probs):
            reader.presence.setdefault(label, 1.0 - none_probs[nth])
        read = answered if reader.rule.reads_text else None
        _read_shapes(reader, label, body_start, body_end, closed, read)
    _note_stray(reader, text[position:])
    if reader.rule.reads_text and not text and not reader.cut:
        reader.states.update(dict.fromkeys(reader.annotations, State.ABSENT))
    return reader.result()


def _note_stray(reader: _Reader, text: str) -> None:
    if text.strip(" ,\n\t."):
        reader.complete = False
        reader.drop("stray", text)


def _read_shapes(
    reader: _Reader, label: str, start: int, end: int, closed: bool, read: str | None
) -> None:
    """The boxes, points or polygons of one label, written in text[start:end].

    read: the text that was read there, where text is read.
    """
    text = reader.text
    if text[start:end].strip() == ABSENT:
        reader.states.setdefault(label, State.ABSENT)
        return
    sound = closed
    if closed and not text[start:end].strip():
        sound = False
        reader.drop("no_boxes", label)
    position = start
    while position < end:
        position = _SEPARATOR.match(text, position, end).end()  # type: ignore[union-attr]
        if position >= end:
            break
        stop = text.find(",", position, end)
        stop = stop if stop >= 0 else end
        piece = text[position:stop]
        if _SHAPES[reader.rule.geometry].fullmatch(piece):
            bins, scores = reader.coordinates(position, stop)
            shape = _shape(reader, bins, f"{label} {piece}")
            if shape is not None:
                score = scores.window_mass if scores else None
                reader.add(
                    label,
                    Annotation(label, **shape, text=read, score=score, token_scores=scores),
                )
        else:
            sound = False
            reader.drop(f"half_{reader.rule.geometry}", f"{label} {piece}")
        position = stop
    if not sound:
        reader.complete = False
        reader.states[label] = State.TRUNCATED if reader.cut and not closed else State.UNPARSED
    elif reader.states.get(label) in (None, State.ABSENT, State.FOUND):
        found = bool(reader.annotations[label])
        reader.states[label] = State.FOUND if found else State.UNPARSED


def _shape(reader: _Reader, bins: Sequence[int], what: str) -> dict[str, Any] | None:
    """The geometry of an annotation, as its keywords."""
    if reader.rule.geometry is Geometry.BOX:
        box = reader.box(bins, what)
        return None if box is None else {"bbox": box}
    points = reader.points(bins, what)
    if points is None:
        return None
    if reader.rule.geometry is Geometry.POINT:
        return {"point": points[0]}
    xs, ys = zip(*points, strict=True)
    return {"polygon": points, "bbox": (min(xs), min(ys), max(xs), max(ys))}


def _read_keypoints(reader: _Reader) -> ParsedAnswer:
    """Instance by instance, so that a cut answer keeps every instance that is complete."""
    text = reader.text
    decoder = json.JSONDecoder()
    opening = text.find("{")
    if opening < 0:
        reader.complete = False
        if text.strip():
            reader.drop("stray", text)
        return reader.result()
    _note_stray(reader, _FENCE.sub("", text[:opening]))
    position = opening + 1
    closed = False
    while True:
        position = _SEPARATOR.match(text, position).end()  # type: ignore[union-attr]
        if text.startswith("}", position):
            closed = True
            position += 1
            break
        try:
            name, after = decoder.raw_decode(text, position)
            colon = _skip_colon(text, after)
            value, end = decoder.raw_decode(text, colon)
        except (ValueError, RecursionError):
            # Lists nested a thousand deep exhaust the decoder.
            break
        if not isinstance(name, str) or not isinstance(value, dict):
            reader.complete = False
            reader.drop("garbled", text[position:end])
        else:
            _read_instance(reader, name, colon, end)
        position = end
    if closed:
        _note_stray(reader, _FENCE.sub("", text[position:]))
    else:
        reader.complete = False
        if position < len(text):
            reader.drop("cut" if reader.cut else "garbled", text[position:])
    for label, found in reader.annotations.items():
        if not closed:
            reader.states[label] = State.TRUNCATED if reader.cut else State.UNPARSED
        elif found:
            reader.states[label] = State.FOUND
        else:
            reader.states[label] = State.ABSENT if reader.complete else State.UNPARSED
    return reader.result()


def _skip_colon(text: str, position: int) -> int:
    match = re.compile(r"\s*:\s*").match(text, position)
    if match is None:
        raise ValueError("no colon after a key")
    return match.end()


def _read_instance(reader: _Reader, name: str, start: int, end: int) -> None:
    """One ``"person1": {...}`` whose value stands in text[start:end]."""
    label = reader.asked_instance(name)
    if label is None:
        reader.drop("not_asked", f"{name}: {reader.text[start:end]}")
        return
    box_text = _string_value(reader.text, "bbox", start, end)
    bins, scores = reader.coordinates(*box_text) if box_text else ([], None)
    if len(bins) != 4:
        reader.complete = False
        reader.drop("half_box", f"{name}: {reader.text[start:end]}")
        return
    box = reader.box(bins, name)
    if box is None:
        return
    keypoints = []
    for keypoint_name in reader.skeleton.keypoints if reader.skeleton else ():
        keypoints.append(_read_keypoint(reader, keypoint_name, start, end))
    reader.add(
        label,
        Annotation(
            label,
            box,
            keypoints=tuple(keypoints),
            score=scores.window_mass if scores else None,
            token_scores=scores,
        ),
    )


def _read_keypoint(reader: _Reader, name: str, start: int, end: int) -> Keypoint:
    """A keypoint that is called invisible, is not written or lies in the padding has no place."""
    span = _string_value(reader.text, name, start, end)
    bins, scores = reader.coordinates(*span) if span else ([], None)
    if len(bins) != 2:
        if span and bins:
            reader.drop("half_point", f"{name}: {reader.text[span[0] : span[1]]}")
        return Keypoint(name, None, None, None)
    frame_w, frame_h = reader.generation.frame_size_px
    x, y = from_bin(bins[0], frame_w), from_bin(bins[1], frame_h)
    if x > reader.image_size_px[0] or y > reader.image_size_px[1]:
        reader.drop("outside_image", f"{name}: ({x:.1f}, {y:.1f})")
        return Keypoint(name, None, None, None)
    return Keypoint(name, x, y, scores.window_mass if scores else None)


def _string_value(text: str, key: str, start: int, end: int) -> tuple[int, int] | None:
    """Where the string value of a key stands, without its quotes."""
    match = re.compile(rf'"{re.escape(key)}"\s*:\s*"([^"]*)"').search(text, start, end)
    return match.span(1) if match else None


def _geometric_mean(values: Sequence[float]) -> float:
    if any(value <= 0 for value in values):
        return 0.0
    return math.exp(sum(map(math.log, values)) / len(values))
