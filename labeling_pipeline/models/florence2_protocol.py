"""How Florence-2 is asked and how its answers are read, as pure functions.

Source: the prompts and the output formats of ``Florence2Processor`` in transformers, which go with
florence-community/Florence-2-base.

Coordinates are the 1000 tokens ``<loc_0>`` .. ``<loc_999>``, relative to the frame: a bin b stands
for the pixel ``(b + 0.5) / 1000 * size``, a pixel x for the bin ``floor(x / size * 1000)``.

Answers are words followed by locations: ``label<loc><loc><loc><loc>`` for a box, more fours for
more boxes of the label, eight for a quadrangle of text, and for outlines any even number, with
``<sep>`` between outlines. What is not there is not mentioned, so the answer may be empty. Answers
about a region repeat the region after the words.

Some questions take several turns of question and answer: a grounded caption is a caption and then
the grounding of its phrases, and each region is a question of its own. The turns of a
``Generation`` are joined with ``</s>``, which ends every answer, in its prompt and in its tokens.

The published post-processing strips what is not ASCII from labels, cuts coordinates to whole
pixels, and silently loses runs of locations whose number does not fit. The parsers here keep the
first two, list the third in ``ParsedAnswer.dropped``, never raise on any text and never repair.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from labeling_pipeline.annotations import (
    Annotation,
    Box,
    FinishReason,
    Generation,
    LabelAnswer,
    ParsedAnswer,
    State,
    TokenScores,
    box_iou,
)
from labeling_pipeline.models.rex_omni_protocol import DEGENERATE_RUN, DUPLICATE_IOU, LoopWatch
from labeling_pipeline.tasks import RULES, Task

PROTOCOL_VERSION = 1
"""Part of the model key: raise it when prompts or decoding change."""

PARSER_VERSION = 1
"""Stands on every annotation: raise it when the same text would be read differently."""

BINS = 1000
AND, END, SEPARATOR = "<and>", "</s>", "<sep>"

CAPTION_OF: dict[Task, Task] = {
    Task.GROUNDED_CAPTION: Task.CAPTION,
    Task.GROUNDED_DETAILED_CAPTION: Task.DETAILED_CAPTION,
    Task.GROUNDED_MORE_DETAILED_CAPTION: Task.MORE_DETAILED_CAPTION,
}
"""What is asked first, for the tasks that then ground the phrases of the answer."""

_PROMPTS: dict[Task, str] = {
    Task.OCR: "What is the text in the image?",
    Task.OCR_POLYGON: "What is the text in the image, with regions?",
    Task.CAPTION: "What does the image describe?",
    Task.DETAILED_CAPTION: "Describe in detail what is shown in the image.",
    Task.MORE_DETAILED_CAPTION: "Describe with a paragraph what is shown in the image.",
    Task.OBJECT_DETECTION: "Locate the objects with category name in the image.",
    Task.DENSE_REGION_CAPTION: "Locate the objects in the image, with their descriptions.",
    Task.REGION_PROPOSAL: "Locate the region proposals in the image.",
    Task.DETECTION: "Locate {labels} in the image.",
    Task.PHRASE_GROUNDING: "Locate the phrases in the caption: {labels}",
    Task.REFERRING_SEGMENTATION: "Locate {labels} in the image with mask",
    Task.REGION_TO_SEGMENTATION: "What is the polygon mask of region {region}",
    Task.REGION_TO_CATEGORY: "What is the region {region}?",
    Task.REGION_TO_DESCRIPTION: "What does the region {region} describe?",
    Task.REGION_TO_OCR: "What text is in the region {region}?",
}

TASKS = (*_PROMPTS, *CAPTION_OF)

_LOCATION = re.compile(r"<loc_([0-9]{1,3})>")
_CONTROL = re.compile(r"<(?:s|/s|pad|sep|and|loc_[0-9]+|/?[a-z]+)>")


def prompt(task: Task, labels: Sequence[str], region: Sequence[int] | None = None) -> str:
    """What the model reads after the image, exactly as the published processor spells it; of a
    grounded caption the first question.

    region: x0, y0, x1, y1 in bins, for the tasks about a region.
    """
    spelled = "".join(f"<loc_{b}>" for b in region) if region is not None else "{region}"
    text = _PROMPTS[CAPTION_OF.get(task, task)]
    return text.format(labels=AND.join(labels), region=spelled)


def prompts(
    task: Task, labels: Sequence[str], regions_px: Sequence[Box], frame_size_px: tuple[int, int]
) -> tuple[str, ...]:
    """The prompts of all turns that do not depend on an answer: one, or one a region.

    frame_size_px: (width, height).

    Raises:
        ValueError: a task about regions came without any.
    """
    if not RULES[task].needs_references:
        return (prompt(task, labels),)
    if not regions_px:
        raise ValueError(f"{task} asks about regions, got none")
    regions = [
        [to_bin(value, size) for value, size in zip(box, frame_size_px * 2, strict=True)]
        for box in regions_px
    ]
    return tuple(prompt(task, labels, region) for region in regions)


def why_unsupported(label: str) -> str | None:
    """Why this label cannot be put into a prompt, with the fix; ``None`` if it can."""
    if found := _CONTROL.search(label):
        return f"the label {label!r} holds the control token {found[0]}: rename it in `ask`"
    return None


def to_bin(value_px: float, size_px: float) -> int:
    """The bin of a pixel coordinate: ``floor(x / size * 1000)``, at most 999."""
    return int(min(max(value_px / size_px, 0.0) * BINS, BINS - 1))


def from_bin(value: int, size_px: float) -> float:
    """The pixel coordinate of a bin: ``(bin + 0.5) / 1000 * size``."""
    return (value + 0.5) / BINS * size_px


@dataclass(frozen=True)
class _Location:
    bin: int
    logprob: float
    mass: float


@dataclass
class _Run:
    """Words, and the locations that follow them. ``outlines``: the locations, cut at ``<sep>``."""

    words: str = ""
    logprobs: list[float] = field(default_factory=list)
    outlines: list[list[_Location]] = field(default_factory=list)

    @property
    def locations(self) -> list[_Location]:
        return [location for outline in self.outlines for location in outline]

    @property
    def text(self) -> str:
        return self.words.strip()

    def __str__(self) -> str:
        spelled = SEPARATOR.join(
            "".join(f"<loc_{at.bin}>" for at in outline) for outline in self.outlines
        )
        return f"{self.text}{spelled}"


def parse(
    generation: Generation,
    task: Task,
    labels: Sequence[str],
    image_size_px: tuple[int, int],
) -> ParsedAnswer:
    """Read an answer.

    labels: everything that was asked, distractors included.
    image_size_px: (width, height) of the upright image; shapes are cut at its borders, which
        matters where the frame was padded.
    """
    reader = _Reader(generation, task, labels, image_size_px)
    turns = _turns(generation)
    if task in CAPTION_OF:
        _read_text(reader, turns[0], None)
        if len(turns) > 1:
            _read_boxes(reader, turns[1], None)
        elif not reader.cut:
            reader.unsound("no_grounding", generation.raw_text)
    else:
        regions = [_region(part) for part in generation.prompt.split(END)]
        for number, turn in enumerate(turns):
            _READERS[task](reader, turn, regions[number] if number < len(regions) else None)
    return reader.result()


def _turns(generation: Generation) -> list[list[_Run]]:
    """The runs of every turn."""
    turns: list[list[_Run]] = [[]]
    pieces = zip(
        generation.tokens, generation.token_logprobs, generation.token_window_mass, strict=True
    )
    for token, logprob, mass in pieces:
        runs = turns[-1]
        if token == END:
            turns.append([])
        elif at := _LOCATION.fullmatch(token):
            if not runs:
                runs.append(_Run())
            if not runs[-1].outlines:
                runs[-1].outlines.append([])
            runs[-1].outlines[-1].append(_Location(int(at[1]), logprob, mass))
        elif token == SEPARATOR and runs:
            runs[-1].outlines.append([])
        else:
            if not runs or runs[-1].outlines:
                runs.append(_Run())
            runs[-1].words += token
            runs[-1].logprobs.append(logprob)
    return turns


def _region(prompt: str) -> list[int] | None:
    """The bins of the region that a prompt speaks of."""
    bins = [int(b) for b in _LOCATION.findall(prompt)]
    return bins if len(bins) == 4 else None


class _Reader:
    """One answer on its way to a ``ParsedAnswer``: collects annotations, drops and states."""

    def __init__(
        self,
        generation: Generation,
        task: Task,
        labels: Sequence[str],
        image_size_px: tuple[int, int],
    ) -> None:
        self.rule = RULES[task]
        self.task = task
        self.generation = generation
        self.image_size_px = image_size_px
        self.cut = generation.finish_reason is not FinishReason.STOP
        self.first_label = next(iter(labels))
        self.annotations: dict[str, list[Annotation]] = {label: [] for label in labels}
        self.dropped: list[str] = []
        self._unsound: set[str] = set()
        self._repeats = dict.fromkeys(labels, 0)
        self._by_folded = {label.casefold(): label for label in labels}

    def asked(self, answered: str) -> str | None:
        """The asked label that an answered one means, but for case; ``None``: none does. Where
        only one thing is asked, the words are text, and all belongs to it."""
        if self.task is not Task.DETECTION:
            return self.first_label
        return (
            answered if answered in self.annotations else self._by_folded.get(answered.casefold())
        )

    def drop(self, reason: str, what: str) -> None:
        self.dropped.append(f"{reason}: {what[:200]}")

    def unsound(self, reason: str, what: str, *labels: str) -> None:
        """Part of what was said of these labels, of the first one if none is given, is not
        understood."""
        self.drop(reason, what)
        self._unsound.update(labels or (self.first_label,))

    def point(self, x: _Location, y: _Location) -> tuple[float, float]:
        """In pixels, inside the image."""
        frame, image = self.generation.frame_size_px, self.image_size_px
        return (
            min(from_bin(x.bin, frame[0]), float(image[0])),
            min(from_bin(y.bin, frame[1]), float(image[1])),
        )

    def box(self, locations: Sequence[_Location], what: str) -> Box | None:
        """Four locations as a box; corners may come in either order."""
        (xa, ya), (xb, yb) = self.point(*locations[:2]), self.point(*locations[2:4])
        if xa == xb or ya == yb:
            self.drop("empty_box", what)
            return None
        return min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)

    def add(self, label: str, annotation: Annotation) -> None:
        """Keep an annotation, unless it says again what an earlier one said."""
        earlier = self.annotations[label]
        if annotation.bbox is not None and any(
            other.bbox is not None
            and other.text == annotation.text
            and box_iou(other.bbox, annotation.bbox) > DUPLICATE_IOU
            for other in earlier
        ):
            self._repeats[label] += 1
            self.drop("duplicate", f"{annotation.text or label} {annotation.bbox}")
            return
        earlier.append(annotation)

    def result(self) -> ParsedAnswer:
        """Silence is how this model says that something is not there."""
        watch = LoopWatch(Task.DETECTION)
        watch.add(self.generation.tokens)
        presence = None
        if len(self.annotations) == len(self.generation.none_probs) == 1:
            presence = 1.0 - self.generation.none_probs[0]
        answers = {}
        for label, found in self.annotations.items():
            if watch.looping or self._repeats[label] >= DEGENERATE_RUN:
                state = State.DEGENERATE
            elif self.cut:
                state = State.TRUNCATED
            elif label in self._unsound:
                state = State.UNPARSED
            else:
                state = State.FOUND if found else State.ABSENT
            answers[label] = LabelAnswer(state, presence, tuple(found))
        complete = not self.cut and not self._unsound
        return ParsedAnswer(answers, tuple(self.dropped), complete)


_Read = Callable[[_Reader, Sequence[_Run], list[int] | None], None]


def _read_text(reader: _Reader, runs: Sequence[_Run], region: list[int] | None) -> None:
    """Words for the whole image."""
    label = reader.first_label
    for run in runs:
        if run.outlines:
            reader.unsound("stray", str(run))
        elif run.text:
            reader.add(label, Annotation(label, text=run.text, score=_probability(run.logprobs)))


def _read_boxes(reader: _Reader, runs: Sequence[_Run], region: list[int] | None) -> None:
    """Words, each with one box or more; or boxes alone, where no words are asked."""
    has_words = reader.rule.reads_text or reader.task is Task.DETECTION
    for run in runs:
        if bool(run.text) != has_words:
            reader.unsound("no_words" if has_words else "stray", str(run), *reader.annotations)
            continue
        label = reader.asked(run.text)
        if label is None:
            reader.drop("not_asked", str(run))
            continue
        locations = run.locations
        if len(run.outlines) > 1 or len(locations) % 4 or not locations:
            reader.unsound("half_box" if locations else "no_boxes", str(run), label)
        for start in range(0, len(locations) - 3, 4):
            four = locations[start : start + 4]
            box = reader.box(four, str(run))
            if box is not None:
                scores = _scores(four)
                text = run.text if reader.rule.reads_text else None
                reader.add(
                    label,
                    Annotation(
                        label, box, text=text, score=scores.window_mass, token_scores=scores
                    ),
                )


def _read_outlines(reader: _Reader, runs: Sequence[_Run], region: list[int] | None) -> None:
    """Outlines; where text is read, the four corners of each piece of it."""
    label = reader.first_label
    for run in runs:
        if bool(run.text) != reader.rule.reads_text:
            reader.unsound("no_words" if reader.rule.reads_text else "stray", str(run))
            continue
        outlines = run.outlines or [[]]
        for outline in outlines:
            odd = len(outline) != 8 if reader.rule.reads_text else len(outline) % 2
            if odd or len(outline) < 6:
                reader.unsound("half_polygon", str(run))
                continue
            points = tuple(
                reader.point(*outline[start : start + 2]) for start in range(0, len(outline), 2)
            )
            xs, ys = zip(*points, strict=True)
            scores = _scores(outline)
            reader.add(
                label,
                Annotation(
                    label,
                    (min(xs), min(ys), max(xs), max(ys)),
                    polygon=points,
                    text=run.text if reader.rule.reads_text else None,
                    score=scores.window_mass,
                    token_scores=scores,
                ),
            )


def _read_region(reader: _Reader, runs: Sequence[_Run], region: list[int] | None) -> None:
    """Words for a region, which the answer usually repeats. The words are what is new, so it is
    they that are scored."""
    label = reader.first_label
    for run in runs:
        said = run.locations or [_Location(b, 0.0, 1.0) for b in region or ()]
        if not run.text or len(said) != 4:
            reader.unsound("half_box" if run.text else "no_words", str(run))
            continue
        box = reader.box(said, str(run))
        if box is not None:
            reader.add(
                label, Annotation(label, box, text=run.text, score=_probability(run.logprobs))
            )


_READERS: dict[Task, _Read] = {
    Task.OCR: _read_text,
    Task.CAPTION: _read_text,
    Task.DETAILED_CAPTION: _read_text,
    Task.MORE_DETAILED_CAPTION: _read_text,
    Task.OBJECT_DETECTION: _read_boxes,
    Task.DENSE_REGION_CAPTION: _read_boxes,
    Task.REGION_PROPOSAL: _read_boxes,
    Task.DETECTION: _read_boxes,
    Task.PHRASE_GROUNDING: _read_boxes,
    Task.OCR_POLYGON: _read_outlines,
    Task.REFERRING_SEGMENTATION: _read_outlines,
    Task.REGION_TO_SEGMENTATION: _read_outlines,
    Task.REGION_TO_CATEGORY: _read_region,
    Task.REGION_TO_DESCRIPTION: _read_region,
    Task.REGION_TO_OCR: _read_region,
}


def _probability(logprobs: Sequence[float]) -> float:
    """Geometric mean of the probabilities of some tokens."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0


def _scores(locations: Sequence[_Location]) -> TokenScores:
    masses = [at.mass for at in locations]
    positive = all(mass > 0 for mass in masses)
    return TokenScores(
        geometric_mean=_probability([at.logprob for at in locations]),
        window_mass=_probability([math.log(mass) for mass in masses]) if positive else 0.0,
    )
