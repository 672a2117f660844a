"""Rex-Omni behind the model protocol. Light: torch and the weights come with the first answer."""

import math
import time
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from labeling_pipeline.annotations import Generation, ParsedAnswer
from labeling_pipeline.errors import ModelError
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.batching import BatchLimit, BatchSizer
from labeling_pipeline.models.cards import ModelCard, ModelSettings, key_of, model_parameters
from labeling_pipeline.tasks import Request, Skeleton, Task

if TYPE_CHECKING:
    from labeling_pipeline.models.rex_omni_runtime import RexOmniRuntime

_RELOAD_AFTER_S = 300.0

GPU_LIMIT = BatchLimit(images=64, tokens=1 << 17)
"""Where a batch starts on a GPU: large, to be halved where it does not fit. 64 images may have
2,048 tokens (1.6 megapixels) each; keys and values of so many fill 5 GB in the published model."""
CPU_LIMIT = BatchLimit(images=8, tokens=1 << 15)

_MERGED_PATCH_PX = 28


class RexOmni:
    """``IDEA-Research/Rex-Omni`` and checkpoints of the same architecture and protocol."""

    protocol_version = protocol.PROTOCOL_VERSION
    parser_version = protocol.PARSER_VERSION

    def __init__(self, card: ModelCard, settings: ModelSettings) -> None:
        self.card = card.with_settings(settings)
        self.settings = settings
        self.parameters = model_parameters(card, settings, self.protocol_version)
        self.model_key = key_of(self.parameters)
        self._runtime: RexOmniRuntime | None = None
        self._batches: BatchSizer | None = None
        self._load_lock = Lock()
        self._forward_lock = Lock()
        self._failure: tuple[float, ModelError | None] = (0.0, None)

    def prompt(self, task: Task, labels: Sequence[str], skeleton: Skeleton | None = None) -> str:
        """The text of the user turn."""
        return protocol.prompt(task, labels, skeleton)

    def why_unsupported(self, label: str) -> str | None:
        """Why this label must not be asked, with the fix; ``None`` if it may."""
        return protocol.why_unsupported(label) or self.card.why_not_in_vocabulary(label)

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
        from labeling_pipeline.models.rex_omni_runtime import choose_device

        return CPU_LIMIT if choose_device(self.settings.device).type == "cpu" else GPU_LIMIT

    def input_tokens(self, size_px: tuple[int, int]) -> int:
        """Tokens of an image of this (width, height); the prompt's come on top.

        Qwen2-VL's resizing: both sides rounded to multiples of 28 px, scaled to lie within the
        pixel limits; every square of 28 px is a token. Odd aspects are padded to a square first.
        """
        width, height = size_px
        limit, unit = self.card.max_aspect, _MERGED_PATCH_PX
        if limit is not None and max(size_px) > limit * min(size_px):
            width = height = max(size_px)
        columns, rows = max(1, round(width / unit)), max(1, round(height / unit))
        if columns * rows * unit**2 > self.card.max_pixels:
            shrink = math.sqrt(width * height / self.card.max_pixels)
            columns = max(1, math.floor(width / shrink / unit))
            rows = max(1, math.floor(height / shrink / unit))
        elif columns * rows * unit**2 < self.card.min_pixels:
            grow = math.sqrt(self.card.min_pixels / (width * height))
            columns = math.ceil(width * grow / unit)
            rows = math.ceil(height * grow / unit)
        return columns * rows

    def prepare(self, request: Request) -> Any:
        """Resize and cut the image into patches and write the prompt.

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
            lengths = [len(one.input_ids) for one in prepared]
            return self._sizer().run(prepared, lengths, runtime.forward, runtime.free_memory)

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
