"""Requests of many clients, gathered for a few milliseconds and answered in batches.

Each model has a lane: requests are made ready in threads, wait in the order in which they are, and
go through the model in batches, one after the other in one thread. A batch begins with the request
that has waited longest, so none is passed over for ever; the others in it are of its task and of
like size, because a batch costs what its longest prompt and its longest answer cost. While a batch
runs the next one gathers.

What is asked of the models by somebody else in this process is no business of this module.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from labeling_pipeline.annotations import Generation
from labeling_pipeline.errors import ModelError, RequestError
from labeling_pipeline.labeling import ask
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.batching import BatchLimit
from labeling_pipeline.tasks import Request, Task

PREPARERS = 2
"""Threads that decode images and make requests ready, beside one thread for every model."""

LOADING_S = 5
"""When to come again while a model loads."""

_Value = TypeVar("_Value")

_COMPANY_S = 0.2
_LIKE_SIZE = 2.0
_PACE_WEIGHT = 0.2


@dataclass(frozen=True)
class QueueLimits:
    """When the service is full, and how long it tries.

    images: admitted at once, waiting or being answered. pixels: of all these images; one image
    alone is admitted whatever its size. timeout_s: from admission to the answer. gather_s: how long
    a model that has nothing to do waits for company.
    """

    images: int = 64
    pixels: int = 200_000_000
    timeout_s: float = 60.0
    gather_s: float = 0.005


class Batcher:
    """The models of this process behind a bounded queue.

    depth: images admitted and not answered yet. All methods belong to one event loop.
    """

    def __init__(self, models: Mapping[str, Model], limits: QueueLimits) -> None:
        self.limits = limits
        self.depth = 0
        self.preparers = ThreadPoolExecutor(PREPARERS, "prepare")
        self._pixels = 0
        self._lanes = {
            name: _Lane(name, model, self.preparers, limits.gather_s)
            for name, model in models.items()
        }

    async def ask(self, model_name: str, requests: Sequence[Request]) -> list[Generation]:
        """Raw answers to requests about images that are ``admitted``, in order; nothing is parsed.

        Raises:
            RequestError: the model is still loading; status 503.
            ModelError: the model cannot answer at all.
            KeyError: no model is called that.
            Exception: what the model raised on one of these requests, the first that failed.
        """
        lane = self._lanes[model_name]
        if not lane.is_loaded:
            raise RequestError(
                503,
                f"{model_name} is being loaded: send the request again after the time in "
                "Retry-After, or wait until /health says that it is ready",
                retry_after_s=LOADING_S,
            )
        return await all_of(lane.answer(request) for request in requests)

    @asynccontextmanager
    async def admitted(self, images: int, pixels: int) -> AsyncIterator[None]:
        """Places in the queue for so many images, of so many pixels together; what happens within
        must be over in time.

        Raises:
            RequestError: the queue is full, or time is up; status 503, with when to come again.
                More images than the queue is long; status 413.
        """
        if images > self.limits.images:
            raise RequestError(
                413,
                f"expected at most {self.limits.images} images in a request, got {images}: send "
                "them in several requests",
            )
        beyond_pixels = self.depth > 0 and self._pixels + pixels > self.limits.pixels
        if self.depth + images > self.limits.images or beyond_pixels:
            raise RequestError(
                503,
                f"the queue is full, {self.depth} images are being worked on: send the request "
                "again after the time in Retry-After",
                retry_after_s=self._clear_in_s(),
            )
        self.depth += images
        self._pixels += pixels
        try:
            async with asyncio.timeout(self.limits.timeout_s) as timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise RequestError(
                503,
                f"no answer within {self.limits.timeout_s:g} s: send the request again after the "
                "time in Retry-After, or ask for less at once",
                retry_after_s=self._clear_in_s(),
            ) from None
        finally:
            self.depth -= images
            self._pixels -= pixels

    def _clear_in_s(self) -> int:
        """About when what waits now will be answered, in whole seconds, at least one."""
        pace_s = max((lane.pace_s for lane in self._lanes.values()), default=0.0)
        return min(60, max(1, math.ceil(self.depth * pace_s)))

    async def load(self, model_name: str) -> None:
        """Load a model's weights; from then on it answers.

        Raises:
            ModelError, ConfigurationError: it could not be loaded.
        """
        await self._lanes[model_name].load()

    def is_loaded(self, model_name: str) -> bool:
        return self._lanes[model_name].is_loaded

    async def close(self) -> None:
        """Stop when the batches that run now are done; what waits is not answered."""
        for lane in self._lanes.values():
            await lane.close()
        self.preparers.shutdown(cancel_futures=True)


@dataclass(eq=False)
class _Waiting:
    """A request on its way to the model. cost: input tokens of its image."""

    task: Task
    cost: int
    prepared: Any
    answer: asyncio.Future[Generation] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class _Lane:
    """One model: what waits for it, and the thread that runs it.

    pace_s: what an image takes of late.
    """

    def __init__(self, name: str, model: Model, preparers: Executor, gather_s: float) -> None:
        self.pace_s = 0.0
        self._model = model
        self._preparers = preparers
        self._gather_s = gather_s
        self._thread = ThreadPoolExecutor(1, f"model-{name}")
        self._limit: BatchLimit | None = None
        self._waiting: list[_Waiting] = []
        self._preparing = 0
        self._arrival = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    @property
    def is_loaded(self) -> bool:
        return self._runner is not None

    async def load(self) -> None:
        loop = asyncio.get_running_loop()
        # Of an empty batch nothing is asked, but the weights are there afterwards.
        await loop.run_in_executor(self._thread, self._model.forward, [])
        self._limit = await loop.run_in_executor(self._thread, lambda: self._model.batch_limit)
        self._runner = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def answer(self, request: Request) -> Generation:
        """Wait in line; whoever stops waiting leaves it."""
        loop = asyncio.get_running_loop()
        self._preparing += 1
        try:
            prepared = await loop.run_in_executor(self._preparers, self._model.prepare, request)
        finally:
            self._preparing -= 1
            self._arrival.set()
        waiting = _Waiting(request.task, self._model.input_tokens(request.size_px), prepared)
        self._waiting.append(waiting)
        try:
            return await waiting.answer
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    async def _run(self) -> None:
        while True:
            await self._arrival.wait()
            await asyncio.sleep(self._gather_s)
            while self._waiting:
                await self._company()
                if self._waiting:
                    await self._answer(self._next_batch())
            self._arrival.clear()

    async def _company(self) -> None:
        """Wait a little for those who are being made ready, unless a batch is full without them: it
        costs hardly more than one request."""
        assert self._limit is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(_COMPANY_S):
                while self._preparing and len(self._waiting) < self._limit.images:
                    self._arrival.clear()
                    await self._arrival.wait()

    def _next_batch(self) -> list[_Waiting]:
        """Whoever waits longest, and as many of its task and like size as go with it."""
        first = self._waiting[0]
        alike = [
            one
            for one in self._waiting
            if one.task is first.task
            and max(one.cost, first.cost) <= _LIKE_SIZE * min(one.cost, first.cost)
        ]
        assert self._limit is not None
        batch = alike[: self._limit.fitting([one.cost for one in alike])]
        self._waiting = [one for one in self._waiting if one not in batch]
        return batch

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        prepared = [one.prepared for one in batch]
        answers: Sequence[Generation | Exception]
        try:
            answers = await loop.run_in_executor(self._thread, ask, self._model, prepared)
            self._limit = self._model.batch_limit
        except Exception as error:  # nothing can be asked at all
            answers = [error] * len(batch)
        if len(answers) != len(batch):
            # Nobody knows which answer is whose; and the lane must go on.
            wrong = ModelError(f"expected {len(batch)} answers of the model, got {len(answers)}")
            answers = [wrong] * len(batch)
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():
                continue
            if isinstance(answer, Exception):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)
        pace_s = (loop.time() - started) / len(batch)
        self.pace_s += _PACE_WEIGHT * (pace_s - self.pace_s)


async def all_of(work: Iterable[Coroutine[Any, Any, _Value]]) -> list[_Value]:
    """Results of what is done side by side, in order; where one fails, the others are stopped."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
