"""The models of a service while it runs: their public names, whether they are ready, and the queue
in front of them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Request

from labeling_pipeline.errors import ConfigurationError, RequestError
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.cards import OVERRIDES
from labeling_pipeline.models.registry import load_model, models_for
from labeling_pipeline.service.batching import Batcher, QueueLimits
from labeling_pipeline.service.config import ServiceConfig
from labeling_pipeline.tasks import Task


class Service:
    """What all requests share.

    models: public name -> model, in the order of the configuration. A model that is a folder is
        called by the folder's name: where it lies is nobody's business.
    failure: why a model could not be loaded; the service is of no use then.

    Raises:
        ConfigurationError: there is no such model, or two have one public name.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.models: dict[str, Model] = {}
        for name in config.models:
            model = load_model(name, config.settings)
            public = public_name(model)
            if self.models.setdefault(public, model) is not model:
                raise ConfigurationError(
                    f"two models would be called {public!r}: rename one of the folders"
                )
        limits = QueueLimits(
            config.queue_images, config.queue_pixels, config.timeout_s, config.gather_s
        )
        self.batcher = Batcher(self.models, limits)
        self.failure: Exception | None = None
        self._started = time.monotonic()

    @property
    def is_ready(self) -> bool:
        return all(self.batcher.is_loaded(name) for name in self.models)

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started

    async def load(self, on_failure: Callable[[], None]) -> None:
        """Load all models; why one could not be loaded is noted and told.

        One after the other: model libraries import their parts when they are first used, and two
        threads that do so at once get halves of modules.
        """
        try:
            for name in self.models:
                await self.batcher.load(name)
        except Exception as error:
            self.failure = error
            on_failure()

    def model_for(self, task: Task, name: str | None = None) -> tuple[str, Model]:
        """The model of this name, or the first that can do the task.

        Raises:
            RequestError: there is none, or it cannot; status 422.
        """
        able = [served for served, model in self.models.items() if task in model.card.tasks]
        if name and name not in self.models:
            served = ", ".join(self.models)
            raise RequestError(422, f"expected as model one of {served}, got {name[:100]!r}")
        if not able or (name and name not in able):
            others = ", ".join(able or models_for(task)) or "none"
            raise RequestError(
                422,
                f"{name or ', '.join(self.models)} cannot do {task}; models that can: {others}. "
                "GET /tasks tells which of them are served here",
            )
        chosen = name or able[0]
        return chosen, self.models[chosen]


def public_name(model: Model) -> str:
    """What a model is called outside of this machine."""
    return Path(model.card.name).name


def public_card(model: Model) -> dict[str, Any]:
    """The card of a model without where it lies on this machine."""
    card = model.card.model_dump(mode="json")
    is_here = Path(model.card.checkpoint).exists()
    checkpoint = Path(model.card.checkpoint).name if is_here else model.card.checkpoint
    return card | {"name": public_name(model), "checkpoint": checkpoint}


def public_settings(model: Model) -> dict[str, Any]:
    """Those settings that can change an answer."""
    names = {"quantization", *OVERRIDES}
    return model.settings.model_dump(mode="json", include=names, exclude_none=True)


def service_of(request: Request) -> Service:
    """The service that a request was sent to; for ``Depends``."""
    service: Service = request.app.state.service
    return service
