"""Value types: what a model answered and what we read out of the answer.

Coordinates everywhere: xyxy, absolute pixels of the EXIF-upright image, float, x to the right and
y down.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels, x0 <= x1 and y0 <= y1."""


def box_area(box: Box) -> float:
    """In square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def shared_area(one: Box, two: Box) -> float:
    """Area of the intersection of two boxes, square pixels."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    return max(0.0, width) * max(0.0, height)


def box_iou(one: Box, two: Box) -> float:
    """Intersection over union of two boxes, 0..1."""
    shared = shared_area(one, two)
    return shared / (box_area(one) + box_area(two) - shared) if shared else 0.0


class State(StrEnum):
    """What came of asking one model for one label on one image."""

    FOUND = "found"
    ABSENT = "absent"
    NOT_MENTIONED = "not_mentioned"
    TRUNCATED = "truncated"
    UNPARSED = "unparsed"
    DEGENERATE = "degenerate"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"

    @classmethod
    def least_settled(cls, states: Iterable["State"]) -> "State":
        """The state of a label that was asked in several parts of an image: it is only as settled
        as its least settled part, and found if any part has it. There must be one state at least.
        """
        return min(states, key=_BY_WEIGHT.index)


_BY_WEIGHT = (
    State.FAILED,
    State.DEGENERATE,
    State.TRUNCATED,
    State.UNPARSED,
    State.UNSUPPORTED,
    State.FOUND,
    State.ABSENT,
    State.NOT_MENTIONED,
)


class FinishReason(StrEnum):
    """Why a generation ended: the model said so, the token limit was reached, or it was stopped
    because it went round in circles."""

    STOP = "stop"
    LENGTH = "length"
    LOOP = "loop"


@dataclass(frozen=True)
class Keypoint:
    """A named point. Coordinates are ``None`` when the model called it invisible."""

    name: str
    x_px: float | None
    y_px: float | None
    score: float | None

    def moved(self, dx_px: float, dy_px: float) -> "Keypoint":
        """The same, so many pixels to the right and down."""
        if self.x_px is None or self.y_px is None:
            return self
        return replace(self, x_px=self.x_px + dx_px, y_px=self.y_px + dy_px)

    def scaled(self, factor: float) -> "Keypoint":
        """The same in an image that is so many times as large."""
        if self.x_px is None or self.y_px is None:
            return self
        return replace(self, x_px=self.x_px * factor, y_px=self.y_px * factor)


@dataclass(frozen=True)
class TokenScores:
    """What the tokens that spell some coordinates say of them. Both numbers lie in 0..1.

    geometric_mean: geometric mean of the probabilities of the chosen tokens.
    window_mass: geometric mean of the probability mass within a window of bins around them.
    """

    geometric_mean: float
    window_mass: float


@dataclass(frozen=True)
class Annotation:
    """One thing found on an image. Which of the geometries is set depends on the task.

    polygon: corners (x, y) in order, at least three. text: what was read there.
    """

    label: str
    bbox: Box | None = None
    point: tuple[float, float] | None = None
    polygon: tuple[tuple[float, float], ...] = ()
    keypoints: tuple[Keypoint, ...] = ()
    text: str | None = None
    score: float | None = None
    token_scores: TokenScores | None = None

    def iou(self, box: Box | None) -> float:
        """Intersection over union with a box; 0 where either has none."""
        return box_iou(self.bbox, box) if self.bbox and box else 0.0

    def moved(self, dx_px: float, dy_px: float) -> "Annotation":
        """The same, so many pixels to the right and down."""
        x0, y0, x1, y1 = self.bbox or (0.0,) * 4
        return replace(
            self,
            bbox=(x0 + dx_px, y0 + dy_px, x1 + dx_px, y1 + dy_px) if self.bbox else None,
            point=(self.point[0] + dx_px, self.point[1] + dy_px) if self.point else None,
            polygon=tuple((x + dx_px, y + dy_px) for x, y in self.polygon),
            keypoints=tuple(point.moved(dx_px, dy_px) for point in self.keypoints),
        )

    def scaled(self, factor: float) -> "Annotation":
        """The same in an image that is so many times as large."""
        x0, y0, x1, y1 = (factor * edge for edge in self.bbox or (0.0,) * 4)
        return replace(
            self,
            bbox=(x0, y0, x1, y1) if self.bbox else None,
            point=(self.point[0] * factor, self.point[1] * factor) if self.point else None,
            polygon=tuple((x * factor, y * factor) for x, y in self.polygon),
            keypoints=tuple(point.scaled(factor) for point in self.keypoints),
        )


@dataclass(frozen=True)
class Generation:
    """One raw answer of a model, with all that is needed to parse it again without the model.

    tokens: the answer cut into the pieces it was generated in; joined they are the raw text.
    token_logprobs: natural log-probability of each token, from raw logits; NaN where the answer was
        not generated token by token.
    token_window_mass: for coordinate tokens, the probability mass within the window around the
        chosen bin; NaN elsewhere. All three have the same length.
    none_probs: P(None) at the first position after each box start, in order of appearance.
    frame_size_px: (width, height) of the frame that relative coordinates refer to. It differs from
        the image where the model card asks for padding; padding is only to the right and below.
    """

    prompt: str
    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    token_window_mass: tuple[float, ...]
    none_probs: tuple[float, ...]
    finish_reason: FinishReason
    frame_size_px: tuple[int, int]
    latency_s: float

    @property
    def raw_text(self) -> str:
        """The answer as one string, special tokens included, the closing token excluded."""
        return "".join(self.tokens)


@dataclass(frozen=True)
class LabelAnswer:
    """What an answer says of one asked label. ``presence`` is 1 - P(None), where it is known."""

    state: State
    presence: float | None = None
    annotations: tuple[Annotation, ...] = ()


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer read out.

    labels: one entry for every asked label.
    dropped: what stood in the answer and is in no annotation, each with the reason. Labels that
        were answered but not asked land here.
    complete: the whole answer was understood and had not been cut.
    """

    labels: dict[str, LabelAnswer]
    dropped: tuple[str, ...] = field(default=())
    complete: bool = True

    def moved(self, dx_px: float, dy_px: float) -> "ParsedAnswer":
        """The same of a larger image, in which the answered one begins at (dx_px, dy_px)."""
        return replace(
            self,
            labels={
                label: replace(
                    said, annotations=tuple(a.moved(dx_px, dy_px) for a in said.annotations)
                )
                for label, said in self.labels.items()
            },
        )
