"""``POST /generations``: raw answers, for programs that read them themselves.

It is what a remote model asks. An image or a question that cannot be answered costs nothing but its
own answer.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Form, UploadFile
from fastapi.responses import Response
from pydantic import Json

from labeling_pipeline.annotations import Generation
from labeling_pipeline.errors import ImageError, LabelingError, RequestError
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.remote_protocol import Answers, Failed, Problem, Question, RawAnswer
from labeling_pipeline.service.forms import Files, ModelName, ServiceOf
from labeling_pipeline.service.problems import problem_answers
from labeling_pipeline.service.serving import Service, public_name
from labeling_pipeline.service.uploads import Upload, accept
from labeling_pipeline.tasks import RULES, Request, Task

router = APIRouter(tags=["For programs"])

_log = logging.getLogger(__name__)
_EXAMPLE = '[{"file": 0, "task": "detection", "labels": ["circle", "person"]}]'


@router.post(
    "/generations",
    summary="Raw answers of a model, token by token",
    response_model=Answers,
    responses=problem_answers(400, 401, 408, 413, 422, 503),
)
async def generations(
    service: ServiceOf,
    file: Files,
    requests: Annotated[
        Json[list[Question]],
        Form(description="JSON: what is asked about which file", examples=[_EXAMPLE]),
    ],
    model: ModelName = "",
) -> Response:
    """What the model wrote in answer to every request, in order; nothing is parsed. Where something
    cannot be answered stands an `error` instead."""
    _check(requests, file, service)
    name, asked = service.model_for(requests[0].task, model)
    in_thread = asyncio.get_running_loop().run_in_executor
    preparers = service.batcher.preparers

    def look(sent: UploadFile) -> Upload | ImageError:
        try:
            return accept(sent, service.config)
        except RequestError as error:
            return ImageError("too_large", error.detail)

    def read(upload: Upload | ImageError) -> np.ndarray | ImageError:
        try:
            return upload.read() if isinstance(upload, Upload) else upload
        except ImageError as error:
            return error

    async def answer(question: Question, image: np.ndarray | ImageError) -> Generation:
        if isinstance(image, ImageError):
            raise image
        if reason := _why_unsupported(question, asked):
            raise ImageError("unsupported", reason)
        request = Request(
            image, question.task, question.labels, question.skeleton, question.reference_boxes
        )
        (generation,) = await service.batcher.ask(name, [request])
        return generation

    uploads = await asyncio.gather(*(in_thread(preparers, look, one) for one in file))
    pixels = sum(one.pixels for one in uploads if isinstance(one, Upload))
    async with service.batcher.admitted(len(requests), pixels):
        images = await asyncio.gather(*(in_thread(preparers, read, one) for one in uploads))
        answers = await asyncio.gather(
            *(answer(one, images[one.file]) for one in requests), return_exceptions=True
        )
    said = Answers(model_key=asked.model_key, answers=tuple(_told(one) for one in answers))
    return Response(said.model_dump_json(), media_type="application/json")


def _check(requests: Sequence[Question], files: Sequence[UploadFile], service: Service) -> None:
    most = service.config.max_files
    if len(files) > most:
        raise RequestError(413, f"expected at most {most} files, got {len(files)}: send fewer")
    if not requests:
        raise RequestError(422, f"expected requests as {_EXAMPLE}, got none")
    last = max(question.file for question in requests)
    if last >= len(files):
        raise RequestError(
            422, f"a request is about file {last}, counted from 0, but there are {len(files)}"
        )


def _why_unsupported(question: Question, model: Model) -> str | None:
    """Why this must not be asked, with the fix; ``None`` if it may."""
    task = question.task
    if task not in model.card.tasks:
        return f"the model cannot do {task}: GET /tasks tells which can"
    if task is Task.KEYPOINT and question.skeleton is None:
        return f"{task} wants a skeleton: say which keypoints"
    if RULES[task].needs_references and not question.reference_boxes:
        return f"{task} is about boxes: give some as reference_boxes"
    for label in question.labels:
        if reason := model.why_unsupported(label, task):
            # What the model calls itself may be where it lies.
            return reason.replace(model.card.name, public_name(model))
    return None


def _told(answer: Generation | BaseException) -> RawAnswer | Failed:
    """What came of one question.

    Raises:
        LabelingError: nothing can be asked at all.
    """
    if isinstance(answer, Generation):
        return RawAnswer.of(answer)
    if isinstance(answer, ImageError):
        return Failed(error=Problem(reason=answer.reason, detail=answer.detail))
    if isinstance(answer, LabelingError) or not isinstance(answer, Exception):
        raise answer
    _log.error("the model failed on an image", exc_info=answer)
    # What it says of itself may name a file of this machine.
    kind = type(answer).__name__
    return Failed(error=Problem(reason="failed", detail=f"the model failed on this image ({kind})"))
