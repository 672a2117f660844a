"""How many images go through a model at once: as many as fit, found by running out of memory.

What fits depends on the GPU, on who else uses it, on the images and on how long the answers get;
no formula knows all of these. So a model starts with a large limit and halves it where memory
ends.
"""

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

_log = logging.getLogger(__name__)

_SIGNS = ("out of memory", "can't allocate memory", "status_alloc_failed")

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class BatchLimit:
    """How large a batch may be.

    images: at most so many. tokens: at most so many input tokens once every image is padded to the
    longest, which is what memory is spent on.
    """

    images: int
    tokens: int

    def fitting(self, lengths: Sequence[int]) -> int:
        """How many of these, from the first on, fit in one batch; at least one.

        lengths: input tokens of each.
        """
        longest = 0
        for count, length in enumerate(lengths):
            longest = max(longest, length)
            if count and (count >= self.images or (count + 1) * longest > self.tokens):
                return count
        return len(lengths)


class BatchSizer:
    """Runs batches in pieces that fit and remembers what did not. For one thread at a time."""

    def __init__(self, limit: BatchLimit) -> None:
        self.limit = limit

    def run(
        self,
        items: Sequence[Item],
        lengths: Sequence[int],
        forward: Callable[[Sequence[Item]], Sequence[Answer]],
        free: Callable[[], None] = lambda: None,
    ) -> list[Answer]:
        """One answer for every item, in order.

        A piece that runs out of memory is halved, and so is the limit from then on.

        lengths: input tokens of each item.
        free: gives cached memory back before another try.

        Raises:
            Exception: what ``forward`` raised, if it was not memory or if one item alone is too
                large. That says nothing of the others, so the limit is what it was before.
        """
        before = self.limit
        answers: list[Answer] = []
        while len(answers) < len(items):
            start = len(answers)
            count = self.limit.fitting(lengths[start:])
            try:
                answers += forward(items[start : start + count])
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if count == 1:
                    self.limit = before
                    # Whoever keeps the error must not keep the tensors of its frames alive.
                    traceback.clear_frames(error.__traceback__)
                    raise
            # Only here, with the error gone, can what its frames held be freed.
            free()
            self._halve(count, max(lengths[start : start + count]))
        return answers

    def _halve(self, count: int, longest: int) -> None:
        self.limit = BatchLimit(
            images=min(self.limit.images, count // 2),
            tokens=min(self.limit.tokens, count * longest // 2),
        )
        _log.warning(
            "out of memory with %d images of up to %d tokens: from now on at most %d images and %d "
            "tokens at once (batch_size: %d in the plan starts there)",
            *(count, longest, self.limit.images, self.limit.tokens, self.limit.images),
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is memory that ran out, on the host or on a GPU.

    torch raises a RuntimeError with one of several texts, depending on who asked for the memory.
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _SIGNS)
