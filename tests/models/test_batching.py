import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from labeling_pipeline.models.batching import BatchLimit, BatchSizer, is_out_of_memory
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import load_model
from labeling_pipeline.tasks import Request, Task

PLENTY = 1_000_000


class Memory:
    """A forward pass that says its items back, in so much memory. sizes: of every batch tried."""

    def __init__(self, images: int = PLENTY, tokens: int = PLENTY) -> None:
        self.room = BatchLimit(images, tokens)
        self.sizes: list[int] = []
        self.freed = 0

    def forward(self, lengths: Sequence[int]) -> list[int]:
        self.sizes.append(len(lengths))
        if len(lengths) > self.room.images or len(lengths) * max(lengths) > self.room.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return list(lengths)

    def free(self) -> None:
        self.freed += 1


def run(sizer: BatchSizer, lengths: Sequence[int], memory: Memory) -> list[int]:
    return sizer.run(lengths, lengths, memory.forward, memory.free)


@pytest.mark.parametrize(
    ("limit", "lengths", "expected"),
    [
        pytest.param(BatchLimit(8, PLENTY), [1] * 5, 5, id="all fit"),
        pytest.param(BatchLimit(8, PLENTY), [1] * 9, 8, id="more images than allowed"),
        pytest.param(BatchLimit(8, 40), [10] * 5, 4, id="more tokens than allowed"),
        pytest.param(BatchLimit(8, 40), [10, 10, 20, 10], 2, id="padded to the longest"),
        pytest.param(BatchLimit(8, 40), [99, 1], 1, id="one that is too long goes alone"),
    ],
)
def test_a_batch_takes_as_many_as_the_limit_allows(
    limit: BatchLimit, lengths: list[int], expected: int
):
    assert limit.fitting(lengths) == expected


def test_out_of_memory_halves_the_batch_keeps_every_answer_and_is_remembered(
    caplog: pytest.LogCaptureFixture,
):
    sizer, memory = BatchSizer(BatchLimit(16, PLENTY)), Memory(images=8)
    lengths = list(range(100, 116))
    with caplog.at_level(logging.WARNING):
        assert run(sizer, lengths, memory) == lengths
        assert run(sizer, lengths, memory) == lengths
    assert memory.sizes == [16, 8, 8, 8, 8]
    assert memory.freed == 1
    assert sizer.limit == BatchLimit(8, 16 * 115 // 2)
    assert len(caplog.records) == 1
    assert "16 images" in caplog.text
    assert "at most 8 images" in caplog.text


def test_what_ran_out_over_long_images_is_remembered_in_tokens():
    sizer, memory = BatchSizer(BatchLimit(4, PLENTY)), Memory(tokens=1000)
    assert run(sizer, [500] * 4, memory) == [500] * 4
    assert sizer.limit == BatchLimit(2, 1000)
    memory.sizes.clear()
    assert run(sizer, [900, 900], memory) == [900, 900]
    assert memory.sizes == [1, 1]


def test_one_image_that_does_not_fit_alone_raises_and_costs_the_others_nothing():
    sizer, memory = BatchSizer(BatchLimit(8, PLENTY)), Memory(tokens=1000)
    with pytest.raises(torch.OutOfMemoryError):
        run(sizer, [10, 10, 5000, 10], memory)
    assert memory.sizes == [4, 2, 2, 1]
    assert sizer.limit == BatchLimit(8, PLENTY)


def test_an_error_that_is_not_about_memory_is_raised_as_it_is():
    sizer = BatchSizer(BatchLimit(8, PLENTY))

    def broken(lengths: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        sizer.run([1, 2], [1, 2], broken)
    assert sizer.limit == BatchLimit(8, PLENTY)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_told_from_other_errors(error: Exception, expected: bool):
    assert is_out_of_memory(error) is expected


# Through a model


def images(count: int) -> list[Request]:
    """Requests that differ in width, so that answers can be told apart."""
    shapes = [(40, 50 + number, 3) for number in range(count)]
    return [Request(np.zeros(shape, np.uint8), Task.DETECTION, ("cat",)) for shape in shapes]


def test_a_model_without_memory_for_16_answers_all_in_eights_from_then_on(
    script: Callable[..., str], tmp_path: Path
):
    log = tmp_path / "asked.jsonl"
    name = script(out_of_memory_above=8, log=str(log))
    model = load_model(name, ModelSettings(batch_size=16))
    assert model.batch_limit.images == 16
    for _ in range(2):
        answers = model.generate(images(16))
        assert [answer.frame_size_px for answer in answers] == [(50 + n, 40) for n in range(16)]
    assert model.batch_limit.images == 8
    asked = [json.loads(line)["size_px"][0] for line in log.read_text().splitlines()]
    assert asked == [*range(50, 66)] * 2


@pytest.mark.parametrize(("asked", "expected"), [(None, 8), (3, 3), (100, 100)])
def test_the_batch_size_that_was_asked_for_bounds_the_batch(
    script: Callable[..., str], asked: int | None, expected: int
):
    assert load_model(script(), ModelSettings(batch_size=asked)).batch_limit.images == expected
