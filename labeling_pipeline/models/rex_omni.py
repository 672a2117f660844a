"""Rex-Omni behind the model protocol. Light: torch and the weights come with the first answer."""

import math
from collections.abc import Sequence

from labeling_pipeline.annotations import Generation, ParsedAnswer
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.batching import BatchLimit
from labeling_pipeline.models.local import LocalModel, Runtime
from labeling_pipeline.tasks import Skeleton, Task

GPU_LIMIT = BatchLimit(images=64, tokens=1 << 17)
"""Where a batch starts on a GPU: large, to be halved where it does not fit. 64 images may have
2,048 tokens (1.6 megapixels) each; keys and values of so many fill 5 GB in the published model."""
CPU_LIMIT = BatchLimit(images=8, tokens=1 << 15)

_MERGED_PATCH_PX = 28


class RexOmni(LocalModel):
    """``IDEA-Research/Rex-Omni`` and checkpoints of the same architecture and protocol."""

    protocol_version = protocol.PROTOCOL_VERSION
    parser_version = protocol.PARSER_VERSION
    gpu_limit = GPU_LIMIT
    cpu_limit = CPU_LIMIT

    def prompt(self, task: Task, labels: Sequence[str], skeleton: Skeleton | None = None) -> str:
        """The text of the user turn."""
        return protocol.prompt(task, labels, skeleton)

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

    def _why_unspeakable(self, label: str) -> str | None:
        return protocol.why_unsupported(label)

    def _load(self) -> Runtime:
        from labeling_pipeline.models.rex_omni_runtime import RexOmniRuntime

        return RexOmniRuntime(self.card, self.settings)

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
