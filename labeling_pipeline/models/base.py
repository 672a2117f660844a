"""The protocol every model adapter follows: prepare -> forward -> parse, of which only the middle
needs the weights."""

from collections.abc import Sequence
from typing import Any, Protocol

from labeling_pipeline.annotations import Generation, ParsedAnswer
from labeling_pipeline.models.batching import BatchLimit
from labeling_pipeline.models.cards import ModelCard, ModelSettings
from labeling_pipeline.tasks import Request, Skeleton, Task


class Model(Protocol):
    """A model that answers requests. Constructing one is cheap; weights load at first use.

    ``prompt``, ``why_unsupported``, ``input_tokens`` and ``parse`` need nothing but the card: where
    the model runs in another process, an adapter that was never constructed has only that.
    """

    protocol_version: int
    parser_version: int
    card: ModelCard
    settings: ModelSettings
    parameters: dict
    model_key: str

    def __init__(self, card: ModelCard, settings: ModelSettings) -> None: ...

    @property
    def batch_limit(self) -> BatchLimit:
        """How large a batch may be just now; shrinks when memory ran out.

        Raises:
            ModelError: the device that was asked for is not there.
        """
        ...

    def input_tokens(self, size_px: tuple[int, int]) -> int:
        """About how many tokens an image of this (width, height) costs; needs no weights."""
        ...

    def prompt(
        self, task: Task, labels: Sequence[str], skeleton: Skeleton | None = None
    ) -> str: ...

    def why_unsupported(self, label: str, task: Task = Task.DETECTION) -> str | None:
        """Why this label must not be asked, with the fix; ``None`` if it may."""
        ...

    def prepare(self, request: Request) -> Any:
        """Make one request ready for the forward pass; runs in threads beside it.

        Raises:
            ModelError: the model could not be loaded.
            Exception: whatever this image does to a processor; costs this image.
        """
        ...

    def forward(self, prepared: Sequence[Any]) -> list[Generation]:
        """Answer a batch of prepared requests, in order.

        A batch that is too large for memory is answered in pieces.

        Raises:
            ModelError: the model could not be loaded.
            Exception: whatever the forward pass raised; the caller bisects the batch.
        """
        ...

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Prepare and answer a batch, in order."""
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
