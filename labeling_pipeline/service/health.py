"""What the service says of itself: whether it can answer, with which models, and to what."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Response

from labeling_pipeline.models.base import Model
from labeling_pipeline.models.registry import models_for
from labeling_pipeline.service.batching import LOADING_S
from labeling_pipeline.service.forms import ServiceOf
from labeling_pipeline.service.problems import problem_answers
from labeling_pipeline.service.schemas import Health, ModelOut, QueueOut, TaskOut
from labeling_pipeline.service.serving import public_card, public_settings
from labeling_pipeline.tasks import Task

router = APIRouter(tags=["The service"])

_LOADING: dict[int | str, dict[str, Any]] = {
    503: {
        "model": Health,
        "description": "The models are being loaded.",
        "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
    }
}


@router.get("/tasks", summary="What can be asked", responses=problem_answers(401))
async def tasks(service: ServiceOf) -> list[TaskOut]:
    """Every task: what it yields, what it wants to be asked, which models can do it."""
    return [
        TaskOut.of(
            task,
            [name for name, model in service.models.items() if task in model.card.tasks],
            list(models_for(task)),
        )
        for task in Task
    ]


@router.get("/health", summary="Whether it is ready", responses=problem_answers(401) | _LOADING)
async def health(service: ServiceOf, response: Response) -> Health:
    """Readiness, the queue, and the models with their keys and vocabularies (in `card`). While
    models load the status is 503 and the answer is the same."""
    if not service.is_ready:
        response.status_code = 503
        response.headers["Retry-After"] = str(LOADING_S)

    def describe(name: str, model: Model) -> ModelOut:
        return ModelOut(
            model_key=model.model_key,
            protocol_version=model.protocol_version,
            parser_version=model.parser_version,
            loaded=service.batcher.is_loaded(name),
            card=public_card(model),
            parameters=model.parameters,
            settings=public_settings(model),
        )

    return Health(
        status="ready" if service.is_ready else "loading",
        version=version("labeling-pipeline"),
        uptime_s=round(service.uptime_s, 3),
        queue=QueueOut(depth=service.batcher.depth, limit=service.batcher.limits.images),
        models={name: describe(name, model) for name, model in service.models.items()},
    )
