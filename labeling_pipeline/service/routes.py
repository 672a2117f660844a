"""The endpoints that label images."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Form, Request, UploadFile
from fastapi.responses import PlainTextResponse, Response
from pydantic import TypeAdapter

from labeling_pipeline.drawing import draw_annotations, encode_jpeg
from labeling_pipeline.errors import ImageError, LabelingError, RequestError
from labeling_pipeline.service.answering import Query, Reply, answer_image, make_query
from labeling_pipeline.service.batching import all_of
from labeling_pipeline.service.examples import EXAMPLES
from labeling_pipeline.service.forms import (
    Boxes,
    Categories,
    Files,
    Granularity,
    Keypoints,
    KeypointType,
    ModelName,
    OutputFormat,
    ServiceOf,
    read_boxes,
    split_categories,
)
from labeling_pipeline.service.problems import problem_answers, problem_of
from labeling_pipeline.service.schemas import (
    AnnotationOut,
    Answer,
    HeaderTooLong,
    ImageSize,
    LabelOut,
    NotAnswered,
)
from labeling_pipeline.service.serving import Service
from labeling_pipeline.service.uploads import Upload, accept
from labeling_pipeline.tasks import RULES, Task

router = APIRouter(tags=["Label images"])

HEADER = "X-Rex-Detections"
MAX_HEADER_BYTES = 7 << 10
"""Proxies and clients take 8 KiB of headers; a little is left for the others."""

_KEYPOINT_LABELS = {"face": "human face"}
_UNITS = {Granularity.WORD: "word", Granularity.LINE: "text line"}
_READING = {
    OutputFormat.BOX: Task.OCR_BOX,
    OutputFormat.POLYGON: Task.OCR_POLYGON,
    OutputFormat.TEXT: Task.OCR_BOX,
}
_ERRORS = problem_answers(400, 401, 408, 413, 422, 503)
_JSON: TypeAdapter[Any] = TypeAdapter(Answer | NotAnswered | list[Answer | NotAnswered])


@dataclass(frozen=True)
class _Seen:
    """What came of one image. size_px: (width, height). jpeg: with what was found, if asked for."""

    size_px: tuple[int, int]
    reply: Reply
    jpeg: bytes | None
    latency_s: float


def _documented(name: str, *media_types: str) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of an endpoint's answers. media_types: beside JSON."""
    answer: dict[str, Any] = {
        "description": "What was found on the image; of several images, a list.",
        "model": Answer | list[Answer | NotAnswered],
        "content": {
            **({"application/json": {"example": EXAMPLES[name]}} if name in EXAMPLES else {}),
            **{kind: {"schema": {"type": "string"}} for kind in media_types},
        },
    }
    if "image/jpeg" in media_types:
        answer["description"] = (
            "The picture with what was found drawn on it. With `Accept: application/json`, and "
            "always for several images, JSON."
        )
        answer["headers"] = {
            HEADER: {
                "description": "Beside a picture, the JSON answer in ASCII; where that is over "
                f"{MAX_HEADER_BYTES} bytes, how many annotations there are.",
                "schema": {"type": "string"},
            }
        }
    return {200: answer, **_ERRORS}


@router.post(
    "/detection",
    summary="Boxes of things by name",
    responses=_documented("detection", "image/jpeg"),
)
async def detection(
    request: Request,
    service: ServiceOf,
    file: Files,
    categories: Categories,
    model: ModelName = "",
) -> Response:
    """Find everything of the named categories."""
    names = split_categories(categories)
    query = make_query(service, Task.DETECTION, model=model, categories=names)
    return await _picture_or_json(request, service, query, file)


@router.post(
    "/keypoint",
    summary="Boxes and the keypoints of a skeleton",
    responses=_documented("keypoint", "image/jpeg"),
)
async def keypoint(
    request: Request,
    service: ServiceOf,
    file: Files,
    keypoint_type: Keypoints = KeypointType.PERSON,
    categories: Categories = "",
    model: ModelName = "",
) -> Response:
    """Find people, hands, faces or animals and their keypoints. `categories` says what to call
    them, `cat` for an animal, say; by default what `keypoint_type` says."""
    names = split_categories(categories) or [_KEYPOINT_LABELS.get(keypoint_type, keypoint_type)]
    query = make_query(
        service, Task.KEYPOINT, model=model, categories=names, keypoints=keypoint_type
    )
    return await _picture_or_json(request, service, query, file)


@router.post(
    "/ocr",
    summary="Text, with its places or without",
    responses=_documented("ocr", "image/jpeg", "text/plain"),
)
async def ocr(
    request: Request,
    service: ServiceOf,
    file: Files,
    output_format: Annotated[
        OutputFormat, Form(description="boxes or outlines on the picture, or the text alone")
    ] = OutputFormat.BOX,
    granularity: Annotated[Granularity, Form(description="what is one text")] = Granularity.WORD,
    model: ModelName = "",
) -> Response:
    """Read what is written on an image, by word or by line. `Text` is all of it, one text a line,
    without a picture."""
    task = _READING[output_format]
    query = make_query(service, task, model=model, categories=[_UNITS[granularity]])
    if output_format is not OutputFormat.TEXT:
        return await _picture_or_json(request, service, query, file)
    seen = await _see(service, query, file)
    answers = [_answer_or_problem(query, one, reads=True) for one in seen]
    if len(file) > 1 or _wants_json(request):
        return _as_json(answers, file)
    return PlainTextResponse(getattr(answers[0], "text", ""))


@router.post(
    "/visual_prompting",
    summary="Boxes of what looks like the boxes that are given",
    responses=_documented("visual_prompting", "image/jpeg"),
)
async def visual_prompting(
    request: Request,
    service: ServiceOf,
    file: Files,
    visual_prompt_boxes: Boxes,
    model: ModelName = "",
) -> Response:
    """Find everything on the image that looks like what is in the boxes. One image at a time."""
    boxes = read_boxes(visual_prompt_boxes)
    query = make_query(service, Task.VISUAL_PROMPTING, model=model, boxes=boxes)
    return await _picture_or_json(request, service, query, file)


@router.post("/vision", summary="Any task of any model", responses=_documented("vision"))
async def vision(
    service: ServiceOf,
    file: Files,
    task: Annotated[Task, Form(description="a task of `/tasks`", examples=["detection"])],
    categories: Categories = "",
    model: ModelName = "",
    keypoint_type: Keypoints = KeypointType.PERSON,
    visual_prompt_boxes: Boxes = "",
    visualize: Annotated[bool, Form(description="whether to add the picture")] = False,
) -> Response:
    """Ask anything that `/tasks` lists. The answer is JSON, with the picture in it if asked for."""
    query = make_query(
        service,
        task,
        model=model,
        categories=split_categories(categories),
        keypoints=keypoint_type,
        boxes=read_boxes(visual_prompt_boxes),
    )
    seen = await _see(service, query, file, draw=visualize)
    return _as_json([_answer_or_problem(query, one) for one in seen], file)


async def _picture_or_json(
    request: Request, service: Service, query: Query, files: Sequence[UploadFile]
) -> Response:
    if len(files) > 1 or _wants_json(request):
        seen = await _see(service, query, files)
        return _as_json([_answer_or_problem(query, one) for one in seen], files)
    (one,) = await _see(service, query, files, draw=True)
    assert isinstance(one, _Seen)
    told = _answer(query, replace(one, jpeg=None))
    return Response(one.jpeg, media_type="image/jpeg", headers={HEADER: _header(told)})


async def _see(
    service: Service, query: Query, files: Sequence[UploadFile], *, draw: bool = False
) -> list[_Seen | LabelingError]:
    """What came of each file; of several, also why one of them cannot be used.

    Raises:
        LabelingError: why a single file cannot be used, or why none of several was asked about.
    """
    if len(files) > 1 and RULES[query.entry.task].needs_references:
        raise RequestError(
            422, f"boxes are of one image: send one file for {query.entry.task}, got {len(files)}"
        )
    batcher = service.batcher
    loop = asyncio.get_running_loop()

    async def see(upload: Upload) -> _Seen:
        started = loop.time()
        pixels = await loop.run_in_executor(batcher.preparers, upload.read)
        reply = await answer_image(batcher, query, pixels)
        jpeg = None
        if draw:
            jpeg = await loop.run_in_executor(batcher.preparers, _draw, pixels, reply)
        size_px = (pixels.shape[1], pixels.shape[0])
        return _Seen(size_px, reply, jpeg, loop.time() - started)

    accepting = [
        loop.run_in_executor(batcher.preparers, accept, file, service.config) for file in files
    ]
    uploads = await all_of(_or_why_not(one) for one in accepting)
    sound = [upload for upload in uploads if isinstance(upload, Upload)]
    async with batcher.admitted(len(files), sum(upload.pixels for upload in sound)):
        seen = iter(await all_of(_or_why_not(see(upload)) for upload in sound))
    outcomes = [next(seen) if isinstance(upload, Upload) else upload for upload in uploads]
    if len(outcomes) == 1 and isinstance(outcomes[0], LabelingError):
        raise outcomes[0]
    return outcomes


_Value = TypeVar("_Value")


async def _or_why_not(work: Awaitable[_Value]) -> _Value | LabelingError:
    """What came of one image, or why it cannot be used; what concerns them all is raised."""
    try:
        return await work
    except ImageError as error:
        return error
    except RequestError as error:
        if error.status >= 500:
            raise
        return error


def _draw(pixels: np.ndarray, reply: Reply) -> bytes:
    found = [one for said in reply.labels.values() for one in said.annotations]
    return encode_jpeg(draw_annotations(pixels, found))


def _answer_or_problem(
    query: Query, one: _Seen | LabelingError, *, reads: bool = False
) -> Answer | NotAnswered:
    if isinstance(one, LabelingError):
        return NotAnswered(problem=problem_of(one))
    return _answer(query, one, reads=reads)


def _answer(query: Query, one: _Seen, *, reads: bool = False) -> Answer:
    """reads: put together all text that was found."""
    width, height = one.size_px
    labels = {
        label: LabelOut(
            state=said.state,
            presence=said.presence,
            reason=query.unsupported.get(label),
            annotations=[AnnotationOut.of(annotation) for annotation in said.annotations],
        )
        for label, said in one.reply.labels.items()
    }
    texts = [found.text for said in labels.values() for found in said.annotations if found.text]
    picture = None
    if one.jpeg is not None:
        picture = f"data:image/jpeg;base64,{base64.b64encode(one.jpeg).decode()}"
    return Answer(
        task=query.entry.task,
        model=query.model_name,
        model_key=query.model.model_key,
        image=ImageSize(width_px=width, height_px=height),
        labels=labels,
        dropped=list(one.reply.dropped),
        text="\n".join(texts) if reads else None,
        picture=picture,
        latency_s=round(one.latency_s, 4),
    )


def _as_json(answers: Sequence[Answer | NotAnswered], files: Sequence[UploadFile]) -> Response:
    """The answer about one image, or a list of those about several."""
    whole = answers if len(files) > 1 else answers[0]
    return Response(_JSON.dump_json(whole, exclude_none=True), media_type="application/json")


def _wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "").lower()


def _header(answer: Answer) -> str:
    """The answer as a header, which is ASCII and not long."""
    text = json.dumps(json.loads(answer.model_dump_json(exclude_none=True)))
    if len(text) <= MAX_HEADER_BYTES:
        return text
    count = sum(len(said.annotations) for said in answer.labels.values())
    return HeaderTooLong(task=answer.task, model=answer.model, annotations=count).model_dump_json()
