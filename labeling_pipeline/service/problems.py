"""Errors as RFC 9457 has them: what was expected, what came, what to do.

Nothing of the server gets into one but what its caller may know: no path, no trace.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from labeling_pipeline.errors import ImageError, LabelingError, RequestError

MEDIA_TYPE = "application/problem+json"

# What the framework leaves unsaid.
_ADVICE: dict[int, tuple[str]] = {
    400: ("send multipart/form-data, as `curl -F file=@photo.jpg` does",),
    404: ("there is no such page: /docs shows what there is",),
    405: ("this page takes another method, see the header Allow",),
}
_RELOAD_S = 300

_log = logging.getLogger(__name__)


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    field: str
    problem: str


class ProblemDetails(BaseModel):
    """Why a request was not answered, and what to do. ``reason`` is a short stable word, where the
    image is what cannot be used."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str | None = None
    errors: list[FieldProblem] | None = None

    @classmethod
    def of(cls, status: int, detail: str, **more: Any) -> "ProblemDetails":
        return cls(title=HTTPStatus(status).phrase, status=status, detail=detail, **more)


def problem_of(error: Exception) -> ProblemDetails:
    """What a caller is told of an error."""
    if isinstance(error, RequestError):
        return ProblemDetails.of(error.status, error.detail)
    if isinstance(error, ImageError):
        status = 413 if error.reason == "too_large" else 422
        return ProblemDetails.of(
            status, f"the image cannot be used: {error.detail}", reason=error.reason
        )
    _log.error("a request failed", exc_info=error)
    if isinstance(error, LabelingError):
        return ProblemDetails.of(
            503,
            "the model cannot answer just now; the log of the service says why",
        )
    return ProblemDetails.of(500, "this is a fault of the service; its log says more")


def problem_response(problem: ProblemDetails, headers: Mapping[str, str] | None = None) -> Response:
    """A problem on its way out."""
    return JSONResponse(
        problem.model_dump(exclude_none=True), problem.status, headers, media_type=MEDIA_TYPE
    )


def error_response(error: Exception) -> Response:
    """An error on its way out; of what may pass by itself it says when."""
    problem = problem_of(error)
    headers = {}
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        wait_s = error.retry_after_s if isinstance(error, RequestError) else None
        headers["Retry-After"] = str(wait_s or _RELOAD_S)
    return problem_response(problem, headers)


def answer_with_problems(app: FastAPI) -> None:
    """Make every error of an application a problem."""

    async def on_error(request: Request, error: Exception) -> Response:
        return error_response(error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problems = [
            FieldProblem(field=_field(one["loc"]), problem=_words(one["msg"]))
            for one in error.errors()
        ]
        detail = "; ".join(f"{one.field}: {one.problem}" for one in problems)
        return problem_response(ProblemDetails.of(422, detail[:2000], errors=problems[:20]))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        phrase = HTTPStatus(error.status_code).phrase
        said = [] if error.detail == phrase else [error.detail.rstrip(".")]
        detail = "; ".join([*said, *_ADVICE.get(error.status_code, ())])
        return problem_response(ProblemDetails.of(error.status_code, detail), error.headers)

    app.add_exception_handler(LabelingError, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_error)


def _words(message: str) -> str:
    """What pydantic says, without the names of classes."""
    return "expected a file" if "UploadFile" in message else message


def _field(location: tuple[Any, ...]) -> str:
    """Where in the request, without the word ``body``."""
    return ".".join(str(part) for part in location if part != "body") or "body"


def problem_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of answers that are problems."""
    meanings = {
        400: "The request is not well-formed.",
        401: "The API key is missing or wrong.",
        408: "The request did not arrive in time.",
        413: "A file, the request or an image is too large.",
        422: "A field is missing or wrong, or the file is no image that can be read.",
        503: "The service is full or loading; come again after `Retry-After`.",
    }
    answers: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        schema = {"$ref": "#/components/schemas/ProblemDetails"}
        answers[status] = {
            "description": meanings[status],
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
    if 503 in answers:
        answers[503]["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
        }
    return answers
