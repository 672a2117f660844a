"""What adapters share whose weights are loaded into this process: when they load, how batches are
cut, and who may run them."""

import time
from collections.abc import Sequence
from threading import Lock
from typing import Any, Protocol

from labeling_pipeline.annotations import Generation
from labeling_pipeline.errors import ModelError
from labeling_pipeline.models.batching import BatchLimit, BatchSizer
from labeling_pipeline.models.cards import ModelCard, ModelSettings, key_of, model_parameters
from labeling_pipeline.tasks import Request, Task

_RELOAD_AFTER_S = 300.0


class Runtime(Protocol):
    """Loaded weights."""

    def prepare(self, request: Request) -> Any: ...

    def forward(self, prepared: Sequence[Any]) -> list[Generation]: ...

    def free_memory(self) -> None: ...


class LocalModel:
    """A model in this process. Light: torch and the weights come with the first question."""

    protocol_version: int
    parser_version: int
    gpu_limit: BatchLimit
    cpu_limit: BatchLimit

    def __init__(self, card: ModelCard, settings: ModelSettings) -> None:
        self.card = card.with_settings(settings)
        self.settings = settings
        self.parameters = model_parameters(card, settings, self.protocol_version)
        self.model_key = key_of(self.parameters)
        self._runtime: Runtime | None = None
        self._batches: BatchSizer | None = None
        self._load_lock = Lock()
        self._forward_lock = Lock()
        self._failure: tuple[float, ModelError | None] = (0.0, None)

    def why_unsupported(self, label: str, task: Task = Task.DETECTION) -> str | None:
        """Why this label must not be asked, with the fix; ``None`` if it may."""
        return self._why_unspeakable(label) or self.card.why_not_in_vocabulary(label, task)

    def _why_unspeakable(self, label: str) -> str | None:
        """Why this label cannot be put into a prompt, with the fix; ``None`` if it can."""
        raise NotImplementedError

    def _load(self) -> Runtime:
        """Load the weights.

        Raises:
            ModelError: they could not be loaded.
        """
        raise NotImplementedError

    @property
    def batch_limit(self) -> BatchLimit:
        """How large a batch may be just now.

        Raises:
            ModelError: the device that was asked for is not there.
        """
        return self._sizer().limit

    def _sizer(self) -> BatchSizer:
        with self._load_lock:
            if self._batches is None:
                start = self._start_limit()
                start = BatchLimit(self.settings.batch_size or start.images, start.tokens)
                self._batches = BatchSizer(start)
            return self._batches

    def _start_limit(self) -> BatchLimit:
        from labeling_pipeline.models.generation_runtime import choose_device

        is_cpu = choose_device(self.settings.device).type == "cpu"
        return self.cpu_limit if is_cpu else self.gpu_limit

    def prepare(self, request: Request) -> Any:
        """Make pixels and prompt ready for the forward pass.

        Raises:
            ModelError: the weights could not be loaded.
        """
        return self._loaded().prepare(request)

    def forward(self, prepared: Sequence[Any]) -> list[Generation]:
        """Answer a batch, in order: at once, or in pieces where memory does not suffice. Sizes and
        tasks may differ.

        Raises:
            ModelError: the weights could not be loaded.
        """
        runtime = self._loaded()
        with self._forward_lock:
            lengths = [one.input_length for one in prepared]
            return self._sizer().run(prepared, lengths, runtime.forward, runtime.free_memory)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Prepare and answer a batch, in order."""
        return self.forward([self.prepare(request) for request in requests])

    def _loaded(self) -> Runtime:
        """The weights. A load that failed is not tried again for a while: reaching for a hub that
        does not answer takes minutes, and a run over many classes would pay them for each."""
        with self._load_lock:
            if self._runtime is None:
                failed_at, failure = self._failure
                if failure is not None and time.monotonic() - failed_at < _RELOAD_AFTER_S:
                    raise ModelError(str(failure)) from failure
                try:
                    self._runtime = self._load()
                except ModelError as error:
                    self._failure = (time.monotonic(), error)
                    raise
            return self._runtime
