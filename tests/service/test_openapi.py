"""Requests made out of the OpenAPI document, against a service that listens."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema

from labeling_pipeline.service.app import create_app
from labeling_pipeline.service.config import ServiceConfig
from tests.service.conftest import BOXES, image_bytes, listening

EXAMPLES = 25
OPERATIONS = [
    ("POST", "/detection"),
    ("POST", "/keypoint"),
    ("POST", "/ocr"),
    ("POST", "/visual_prompting"),
    ("POST", "/vision"),
    ("POST", "/generations"),
    ("GET", "/tasks"),
    ("GET", "/health"),
]
CHECKS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
SENSE = {
    "visual_prompt_boxes": "[[10, 20, 60, 70]]",
    "requests": '[{"file": 0, "task": "detection", "labels": ["cat"]}]',
}


@pytest.fixture
def schema(script) -> Iterator[OpenApiSchema]:
    app = create_app(ServiceConfig(models=(script(boxes=BOXES),)))
    with listening(app) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_every_operation_of_the_document_is_tried(schema):
    assert {(one.ok().method.upper(), one.ok().path) for one in schema.get_all_operations()} == set(
        OPERATIONS
    )


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        (method, path, mode)
        for method, path in OPERATIONS
        for mode in GenerationMode
        # In a request without fields there is nothing to get wrong.
        if method == "POST" or mode is GenerationMode.POSITIVE
    ],
)
def test_whatever_is_asked_gets_what_the_document_says_and_breaks_nothing(
    schema, method, path, mode
):
    answered = []

    @seed(8)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def check(case: Case) -> None:
        if mode is GenerationMode.POSITIVE:
            put_sense_into(case)
        response = case.call()
        answered.append(response.status_code)
        # Nobody else asks, and the model is loaded: not even a 503 is called for.
        assert response.status_code < 500
        case.validate_response(response, checks=CHECKS)

    check()
    if mode is GenerationMode.POSITIVE:
        assert 200 in answered


def put_sense_into(case: Case) -> None:
    """Every other generated file becomes an image, and texts that hold JSON get some, or nothing
    behind the decoder and the parser is reached."""
    if not isinstance(case.body, dict):
        return
    for name in {"file", "files"} & case.body.keys():
        files = case.body[name]
        files[::2] = [image_bytes()] * len(files[::2])
    case.body |= {name: text for name, text in SENSE.items() if name in case.body}
