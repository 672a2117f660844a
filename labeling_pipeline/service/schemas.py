"""What the service says, as JSON."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from labeling_pipeline.annotations import Annotation, State
from labeling_pipeline.service.problems import ProblemDetails
from labeling_pipeline.tasks import RULES, Asks, Geometry, Task

Xy = tuple[float, float]
Xyxy = tuple[float, float, float, float]


class ImageSize(BaseModel):
    """Of the upright image, which all coordinates refer to."""

    width_px: int
    height_px: int


class KeypointOut(BaseModel):
    """A named point. One that is not visible has no place."""

    name: str
    x_px: float | None = None
    y_px: float | None = None
    score: float | None = None


class AnnotationOut(BaseModel):
    """One thing found. Which of the geometries it has depends on the task."""

    bbox: Annotated[Xyxy | None, Field(description="x0, y0, x1, y1 in pixels")] = None
    point: Annotated[Xy | None, Field(description="x, y in pixels")] = None
    polygon: Annotated[list[Xy] | None, Field(description="corners in order, pixels")] = None
    keypoints: list[KeypointOut] | None = None
    text: Annotated[str | None, Field(description="what was read there, or how it is called")] = (
        None
    )
    score: Annotated[float | None, Field(description="0..1, measured, never made up")] = None

    @classmethod
    def of(cls, one: Annotation) -> "AnnotationOut":
        return cls(
            bbox=one.bbox,
            point=one.point,
            polygon=list(one.polygon) or None,
            keypoints=[
                KeypointOut(name=k.name, x_px=k.x_px, y_px=k.y_px, score=k.score)
                for k in one.keypoints
            ]
            or None,
            text=one.text,
            score=one.score,
        )


class LabelOut(BaseModel):
    """What came of one label."""

    state: State
    presence: Annotated[
        float | None, Field(description="how sure the model is that it is there at all, 0..1")
    ] = None
    reason: Annotated[str | None, Field(description="why it was not asked, if it was not")] = None
    annotations: list[AnnotationOut]


class Answer(BaseModel):
    """What came of one image. What is not known, or does not go with the task, is left out."""

    task: Task
    model: str
    model_key: Annotated[str, Field(description="hash of all that can change an answer")]
    image: ImageSize
    labels: dict[str, LabelOut]
    dropped: Annotated[
        list[str], Field(description="what the model said and nobody had asked, with the reason")
    ]
    text: Annotated[str | None, Field(description="of /ocr: all that was read")] = None
    picture: Annotated[
        str | None, Field(description="of /vision with visualize: data URI of a JPEG")
    ] = None
    latency_s: float


class NotAnswered(BaseModel):
    """One of several images that could not be answered; the others were."""

    problem: ProblemDetails


class HeaderTooLong(BaseModel):
    """Stands in the header ``X-Rex-Detections`` instead of an answer that does not fit."""

    task: Task
    model: str
    annotations: int
    more: str = "too long for a header: ask again with `Accept: application/json`"


class TaskOut(BaseModel):
    """A task: what it yields, what it wants to be asked, which models can do it."""

    task: Task
    about: str
    geometry: Geometry
    asks: Annotated[Asks, Field(description="what a category is to this task")]
    default_category: str | None = None
    takes_boxes: Annotated[bool, Field(description="whether it wants visual_prompt_boxes")]
    served_by: Annotated[list[str], Field(description="models of this service that can")]
    models: Annotated[list[str], Field(description="models of the registry that can")]

    @classmethod
    def of(cls, task: Task, served_by: list[str], models: list[str]) -> "TaskOut":
        rule = RULES[task]
        return cls(
            task=task,
            about=rule.about,
            geometry=rule.geometry,
            asks=rule.asks,
            default_category=rule.default_label,
            takes_boxes=rule.needs_references,
            served_by=served_by,
            models=models,
        )


class QueueOut(BaseModel):
    """Images that are being worked on, and how many may be at once."""

    depth: int
    limit: int


class ModelOut(BaseModel):
    """A model that is served: all that another program needs to ask it in its name."""

    model_key: str
    protocol_version: int
    parser_version: int
    loaded: bool
    card: Annotated[dict[str, Any], Field(description="what is known of it beforehand")]
    parameters: Annotated[dict[str, Any], Field(description="what the model key is a hash of")]
    settings: Annotated[dict[str, Any], Field(description="what was set otherwise than usual")]


class Health(BaseModel):
    """Whether the service can answer, and with what."""

    status: Literal["ready", "loading"]
    version: str
    uptime_s: float
    queue: QueueOut
    models: dict[str, ModelOut]
