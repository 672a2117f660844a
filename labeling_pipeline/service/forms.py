"""The fields of requests: what they are called, what they may hold, and how the document tells of
them."""

import json
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Depends, File, Form, UploadFile
from pydantic import AfterValidator, Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from labeling_pipeline.annotations import Box
from labeling_pipeline.service.serving import Service, service_of

_MAX_CATEGORIES, _MAX_CATEGORY, _MAX_BOXES = 64, 200, 64


class KeypointType(StrEnum):
    """Whose keypoints; see ``SKELETONS``."""

    PERSON = "person"
    HAND = "hand"
    FACE = "face"
    ANIMAL = "animal"


class OutputFormat(StrEnum):
    """What ``/ocr`` answers with."""

    BOX = "Box"
    TEXT = "Text"
    POLYGON = "Polygon"


class Granularity(StrEnum):
    """What ``/ocr`` takes for one text."""

    WORD = "Word"
    LINE = "Line"


def split_categories(text: str) -> list[str]:
    """Names between commas; or those of a JSON list, which may hold commas.

    Raises:
        PydanticCustomError: it is neither, or too many or too long ones.
    """
    names: Any = text.split(",")
    if text.lstrip().startswith("["):
        try:
            names = json.loads(text)
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise PydanticCustomError(
                "categories", "expected names separated by commas, or a JSON list of names"
            )
    named = [name.strip() for name in names if name.strip()]
    if len(named) > _MAX_CATEGORIES or any(len(name) > _MAX_CATEGORY for name in named):
        raise PydanticCustomError(
            "categories",
            f"expected at most {_MAX_CATEGORIES} names of at most {_MAX_CATEGORY} characters",
        )
    return named


_BOXES = TypeAdapter(
    Annotated[
        list[tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]],
        Field(max_length=_MAX_BOXES),
    ]
)


def read_boxes(text: str) -> list[Box]:
    """Boxes out of JSON; none out of nothing.

    Raises:
        PydanticCustomError: it is something else, or too many.
    """
    if not text.strip():
        return []
    try:
        return _BOXES.validate_json(text)
    except ValidationError:
        raise PydanticCustomError(
            "boxes", f"expected [[x0, y0, x1, y1], ...], at most {_MAX_BOXES} boxes"
        ) from None


# The fields stay texts, so that the document says what is sent.
def _checked_categories(text: str) -> str:
    split_categories(text)
    return text


def _checked_boxes(text: str) -> str:
    read_boxes(text)
    return text


ServiceOf = Annotated[Service, Depends(service_of)]
Files = Annotated[
    list[UploadFile],
    File(
        description="an image; repeat the field for several images",
        # Swagger UI knows a file by its format only.
        json_schema_extra={"items": {"type": "string", "format": "binary"}},
    ),
]
Categories = Annotated[
    str,
    AfterValidator(_checked_categories),
    Form(
        description="what to look for: names separated by commas, or a JSON list of names",
        examples=["circle, square, person"],
    ),
]
ModelName = Annotated[
    str,
    Form(description="a model of `/health`; default: the first that can do the task"),
]
Boxes = Annotated[
    str,
    AfterValidator(_checked_boxes),
    Form(
        description="JSON: boxes of the image in pixels, `[[x0, y0, x1, y1], ...]`",
        examples=["[[10, 20, 120, 140]]"],
    ),
]
Keypoints = Annotated[KeypointType, Form(description="whose keypoints")]
