"""Florence-2 behind the model protocol. Light: torch and the weights come with the first answer."""

from collections.abc import Sequence

from labeling_pipeline.annotations import Generation, ParsedAnswer
from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.models import florence2_protocol as protocol
from labeling_pipeline.models.batching import BatchLimit
from labeling_pipeline.models.cards import ModelCard, ModelSettings
from labeling_pipeline.models.local import LocalModel, Runtime
from labeling_pipeline.tasks import Skeleton, Task

IMAGE_TOKENS = 577
"""Of any image in the published models, which see 24 x 24 cells and their mean; in smaller
checkpoints it is less."""


class Florence2(LocalModel):
    """``florence-community/Florence-2-*`` and checkpoints of the same architecture.

    Raises:
        ConfigurationError: pixel limits are set; every image becomes one square of a fixed size.
    """

    protocol_version = protocol.PROTOCOL_VERSION
    parser_version = protocol.PARSER_VERSION
    gpu_limit = BatchLimit(images=128, tokens=1 << 17)
    cpu_limit = BatchLimit(images=8, tokens=1 << 14)

    def __init__(self, card: ModelCard, settings: ModelSettings) -> None:
        if settings.min_pixels or settings.max_pixels:
            raise ConfigurationError(
                f"{card.name} sees every image as a square of {round(card.max_pixels**0.5)} px: "
                "expected no min_pixels and max_pixels; cut large images into tiles instead"
            )
        super().__init__(card, settings)

    def prompt(self, task: Task, labels: Sequence[str], skeleton: Skeleton | None = None) -> str:
        """What the model reads after the image. Where it asks about a region, or about an answer
        that it has yet to give, that part is left open."""
        return protocol.prompt(task, labels)

    def input_tokens(self, size_px: tuple[int, int]) -> int:
        """The same for every size; the prompt's come on top."""
        return IMAGE_TOKENS

    def parse(
        self,
        generation: Generation,
        task: Task,
        labels: Sequence[str],
        image_size_px: tuple[int, int],
        skeleton: Skeleton | None = None,
    ) -> ParsedAnswer:
        """Read an answer; needs no weights."""
        return protocol.parse(generation, task, labels, image_size_px)

    def _why_unspeakable(self, label: str) -> str | None:
        return protocol.why_unsupported(label)

    def _load(self) -> Runtime:
        from labeling_pipeline.models.florence2_runtime import Florence2Runtime

        return Florence2Runtime(self.card, self.settings)
