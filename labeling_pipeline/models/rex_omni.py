"""Rex-Omni behind the model protocol. Light: torch and the weights come with the first answer."""

import time
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from labeling_pipeline.annotations import Generation, ParsedAnswer
from labeling_pipeline.errors import ModelError
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.cards import ModelCard, ModelSettings, key_of, model_parameters
from labeling_pipeline.tasks import Request, Skeleton, Task

if TYPE_CHECKING:
    from labeling_pipeline.models.rex_omni_runtime import RexOmniRuntime

_RELOAD_AFTER_S = 300.0


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
        self._load_lock = Lock()
        self._forward_lock = Lock()
        self._failure: tuple[float, ModelError | None] = (0.0, None)

    def prompt(self, task: Task, labels: Sequence[str], skeleton: Skeleton | None = None) -> str:
        """The text of the user turn."""
        return protocol.prompt(task, labels, skeleton)

    def why_unsupported(self, label: str) -> str | None:
        """Why this label must not be asked, with the fix; ``None`` if it may."""
        return protocol.why_unsupported(label) or self.card.why_not_in_vocabulary(label)

    def prepare(self, request: Request) -> Any:
        """Resize and cut the image into patches and write the prompt.

        Raises:
            ModelError: the weights could not be loaded.
        """
        return self._loaded().prepare(request)

    def forward(self, prepared: Sequence[Any]) -> list[Generation]:
        """Answer a batch in one pass of the model, in order. Sizes and tasks may differ.

        Raises:
            ModelError: the weights could not be loaded.
        """
        runtime = self._loaded()
        with self._forward_lock:
            return runtime.forward(prepared)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Prepare and answer a batch, in order."""
        return self.forward([self.prepare(request) for request in requests])

    def _loaded(self) -> "RexOmniRuntime":
        """The weights. A load that failed is not tried again for a while: reaching for a hub that
        does not answer takes minutes, and a run over many classes would pay them for each."""
        with self._load_lock:
            if self._runtime is None:
                failed_at, failure = self._failure
                if failure is not None and time.monotonic() - failed_at < _RELOAD_AFTER_S:
                    raise ModelError(str(failure)) from failure
                from labeling_pipeline.models.rex_omni_runtime import RexOmniRuntime

                try:
                    self._runtime = RexOmniRuntime(self.card, self.settings)
                except ModelError as error:
                    self._failure = (time.monotonic(), error)
                    raise
            return self._runtime

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
