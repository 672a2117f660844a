"""What a remote model and the HTTP service say to each other, as JSON.

``GET /health`` tells which models there are. ``POST /generations`` takes image files and one field
that says what is asked of which; raw answers come back, in order, and whoever asked reads them.
"""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, WithJsonSchema

from labeling_pipeline.annotations import FinishReason, Generation
from labeling_pipeline.models.cards import ModelCard
from labeling_pipeline.tasks import Skeleton, Task

# JSON has no NaN: null stands for it.
_Measured = Annotated[
    float,
    Field(allow_inf_nan=True),
    BeforeValidator(lambda v: math.nan if v is None else v),
    WithJsonSchema({"type": ["number", "null"]}),
]
_Label = Annotated[str, Field(min_length=1, max_length=1000)]
_Box = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


class Question(BaseModel):
    """One question about one of the files that came with it; what a ``Request`` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Annotated[int, Field(ge=0, description="which of the files, counted from 0")]
    task: Task
    labels: Annotated[tuple[_Label, ...], Field(min_length=1, max_length=1000)]
    skeleton: Skeleton | None = Field(None, description="for the task keypoint")
    reference_boxes: Annotated[tuple[_Box, ...], Field(max_length=1000)] = Field(
        (), description="xyxy in pixels of the image, for tasks that need them"
    )


class RawAnswer(BaseModel):
    """A ``Generation``; see there. ``null`` is a probability that was not measured."""

    prompt: str
    tokens: tuple[str, ...]
    token_logprobs: tuple[_Measured, ...]
    token_window_mass: tuple[_Measured, ...]
    none_probs: tuple[float, ...]
    finish_reason: FinishReason
    frame_size_px: tuple[int, int]
    latency_s: float

    @classmethod
    def of(cls, generation: Generation) -> "RawAnswer":
        """The same, to be sent."""
        return cls.model_construct(**vars(generation))

    def generation(self) -> Generation:
        """The same, as it was before it was sent."""
        return Generation(**self.model_dump())


class Problem(BaseModel):
    """Why one question has no answer. reason: a short stable word; detail says more."""

    reason: str
    detail: str


class Failed(BaseModel):
    """What stands where an answer would."""

    error: Problem


class Answers(BaseModel):
    """One answer for every question, in order, and the key of the model that gave them."""

    model_key: str
    answers: tuple[RawAnswer | Failed, ...]


class ServedModel(BaseModel):
    """A model of the service: what its adapter knows without weights."""

    model_key: str
    protocol_version: int
    card: ModelCard
    parameters: dict[str, Any]


class Health(BaseModel):
    """What the service says of itself, as far as a remote model needs it."""

    version: str
    models: dict[str, ServedModel]
