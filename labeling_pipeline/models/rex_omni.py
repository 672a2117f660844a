"""Rex-Omni behind the model protocol. Light: torch and the weights come with the first answer."""

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING

from labeling_pipeline.annotations import Generation, ParsedAnswer
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.cards import ModelCard, ModelSettings, key_of, model_parameters
from labeling_pipeline.tasks import Request, Skeleton, Task

if TYPE_CHECKING:
    from labeling_pipeline.models.rex_omni_runtime import RexOmniRuntime


class RexOmni:
    """``IDEA-Research/Rex-Omni`` and checkpoints of the same architecture and protocol."""

    protocol_version = protocol.PROTOCOL_VERSION
    parser_version = protocol.PARSER_VERSION

    def __init__(self, card: ModelCard, settings: ModelSettings) -> None:
        self.card = card
        self.settings = settings
        self.parameters = model_parameters(card, settings, self.protocol_version)
        self.model_key = key_of(self.parameters)
        self._runtime: RexOmniRuntime | None = None
        self._lock = Lock()

    def prompt(self, task: Task, labels: Sequence[str], skeleton: Skeleton | None = None) -> str:
        """The text of the user turn."""
        return protocol.prompt(task, labels, skeleton)

    def why_unsupported(self, label: str) -> str | None:
        """Why this label must not be asked, with the fix; ``None`` if it may."""
        return protocol.why_unsupported(label) or self.card.why_not_in_vocabulary(label)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer a batch in one pass of the model, in order. Shapes may differ.

        Raises:
            ModelError: the weights could not be loaded.
        """
        with self._lock:
            if self._runtime is None:
                from labeling_pipeline.models.rex_omni_runtime import RexOmniRuntime

                self._runtime = RexOmniRuntime(self.card, self.settings)
            return self._runtime.generate(requests)

    def parse(
        self,
        generation: Generation,
        task: Task,
        labels: Sequence[str],
        image_size_px: tuple[int, int],
        skeleton: Skeleton | None = None,
    ) -> ParsedAnswer:
        """Read an answer; needs no weights."""
        return protocol.parse(generation, task, labels, image_size_px, skeleton)
