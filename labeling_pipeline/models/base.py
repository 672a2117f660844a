"""The protocol every model adapter follows: prepare -> forward -> parse, of which only the middle
needs the weights."""

from collections.abc import Sequence
from typing import Protocol

from labeling_pipeline.annotations import Generation, ParsedAnswer
from labeling_pipeline.models.cards import ModelCard, ModelSettings
from labeling_pipeline.tasks import Request, Skeleton, Task


class Model(Protocol):
    """A model that answers requests. Constructing one is cheap; weights load at first use."""

    protocol_version: int
    parser_version: int
    card: ModelCard
    settings: ModelSettings
    parameters: dict
    model_key: str

    def __init__(self, card: ModelCard, settings: ModelSettings) -> None: ...

    def prompt(
        self, task: Task, labels: Sequence[str], skeleton: Skeleton | None = None
    ) -> str: ...

    def why_unsupported(self, label: str) -> str | None:
        """Why this label must not be asked, with the fix; ``None`` if it may."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer a batch, in order.

        Raises:
            ModelError: the model could not be loaded.
            Exception: whatever the forward pass raised; the caller bisects the batch.
        """
        ...

    def parse(
        self,
        generation: Generation,
        task: Task,
        labels: Sequence[str],
        image_size_px: tuple[int, int],
        skeleton: Skeleton | None = None,
    ) -> ParsedAnswer:
        """Read an answer; needs no weights and never raises on any text."""
        ...
