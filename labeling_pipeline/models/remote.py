"""A model that a running service has, asked over HTTP.

It is the same model: card and model key are the service's own, prompts are written and answers
read here by the adapter that the card names, and what comes back is the raw answer. So a pipeline
that goes from a model in its own process to the same one behind a service asks nothing again.

- Nothing is asked before something must be known: definitions load while the service is down.
- What the service said of itself first holds for the process. Answers under another model key, of
  a service that was started again with another model, end the run: labels are never mixed.
- Images travel as lossless WebP, which keeps every pixel: a fifth smaller than PNG, and no slower.
  Longer sides than it has room for travel as PNG.
- A service that is away is waited for, once; until it is back, later questions fail at once.
"""

import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urldefrag

from PIL import Image
from pydantic import BaseModel, TypeAdapter, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from labeling_pipeline.annotations import Generation, ParsedAnswer
from labeling_pipeline.errors import (
    ConfigurationError,
    ImageError,
    MissingDependencyError,
    ModelError,
)
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.batching import BatchLimit
from labeling_pipeline.models.cards import FOLDER, ModelCard, ModelSettings
from labeling_pipeline.models.registry import registered_adapter
from labeling_pipeline.models.remote_protocol import (
    Answers,
    Failed,
    Health,
    Question,
    ServedModel,
)
from labeling_pipeline.tasks import Request, Skeleton, Task

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger(__name__)

API_KEY = "LABELING_API_KEY"
"""The variable that holds the key of a service that wants one."""

PATIENCE_S = 120.0
"""How long a service may be away: a restart takes less."""

_FORGET_S = 300.0
_CONNECT_S, _ANSWER_S = 5.0, 300.0
_PAUSE = wait_random_exponential(multiplier=0.5, max=5.0)

BATCH = 32
"""Questions that are handed over at once, in several requests side by side."""

_PIXELS_AT_ONCE = 1 << 26

_PER_REQUEST = 8
_BYTES_PER_REQUEST = 16 << 20
_IN_FLIGHT = 4

# Higher levels cost more time than they save on a local network.
_WEBP: dict[str, Any] = {"format": "WEBP", "lossless": True, "quality": 0, "method": 0}
_WEBP_MAX_SIDE_PX = 16383
_PNG: dict[str, Any] = {"format": "PNG", "compress_level": 1}

_REFUSED_KEY = (401, 403)
_REFUSED_REQUEST = (400, 413, 415, 422)
_BUSY = (408, 429)

_Said = TypeVar("_Said", bound=BaseModel)


@dataclass
class _Asked:
    """A question ready to be sent, and what came of it.

    It is kept here because a batch in which one image fails is asked again in halves: what is
    answered already is not sent a second time.
    """

    question: Question
    file: bytes
    answer: Generation | Exception | None = None


@dataclass(frozen=True)
class _Known:
    """What the service said of the model, and the adapter that speaks for it here."""

    served: ServedModel
    adapter: Model


class RemoteModel:
    """A model of a service.

    Of the settings, ``batch_size`` bounds what is handed over at once; those that are part of the
    model key must be what the service was started with; the others say how weights are loaded, and
    none are here.

    Raises:
        MissingDependencyError: the HTTP client is not installed.
    """

    def __init__(self, card: ModelCard, settings: ModelSettings) -> None:
        self.settings = settings
        address, self._name = urldefrag(card.checkpoint)
        self._service = _Service(address)
        self._lock = Lock()
        self._known: _Known | None = None

    @property
    def card(self) -> ModelCard:
        """What the service says of the model.

        Raises:
            ModelError: the service does not answer, or not as one of this version would.
            ConfigurationError: it has no such model, or not with these settings.
        """
        return self._know().served.card

    @property
    def parameters(self) -> dict:
        """What can change an answer. Raises as ``card``."""
        return self._know().served.parameters

    @property
    def model_key(self) -> str:
        """That of the same model in any other process. Raises as ``card``."""
        return self._know().served.model_key

    @property
    def protocol_version(self) -> int:
        """Of the adapter. Raises as ``card``."""
        return self._know().adapter.protocol_version

    @property
    def parser_version(self) -> int:
        """Of the adapter. Raises as ``card``."""
        return self._know().adapter.parser_version

    @property
    def batch_limit(self) -> BatchLimit:
        """What keeps a service busy; it cuts batches to its memory itself."""
        return BatchLimit(self.settings.batch_size or BATCH, tokens=_PIXELS_AT_ONCE)

    def input_tokens(self, size_px: tuple[int, int]) -> int:
        """Pixels: whole images wait here and travel, whatever the model makes of them there."""
        return size_px[0] * size_px[1]

    def prompt(self, task: Task, labels: Sequence[str], skeleton: Skeleton | None = None) -> str:
        """What the service asks the model."""
        return self._know().adapter.prompt(task, labels, skeleton)

    def why_unsupported(self, label: str, task: Task = Task.DETECTION) -> str | None:
        """Why this label must not be asked, with the fix; ``None`` if it may."""
        return self._know().adapter.why_unsupported(label, task)

    def parse(
        self,
        generation: Generation,
        task: Task,
        labels: Sequence[str],
        image_size_px: tuple[int, int],
        skeleton: Skeleton | None = None,
    ) -> ParsedAnswer:
        """Read an answer; asks nothing of the service."""
        return self._know().adapter.parse(generation, task, labels, image_size_px, skeleton)

    def prepare(self, request: Request) -> _Asked:
        """Pack the pixels for the way."""
        packed = io.BytesIO()
        form = _WEBP if max(request.size_px) <= _WEBP_MAX_SIDE_PX else _PNG
        Image.fromarray(request.image).save(packed, **form)
        question = Question(
            file=0,
            task=request.task,
            labels=request.labels,
            skeleton=request.skeleton,
            reference_boxes=request.reference_boxes,
        )
        return _Asked(question, packed.getvalue())

    def forward(self, prepared: Sequence[_Asked]) -> list[Generation]:
        """Answer a batch, in order: a few requests at a time, each of a few questions.

        Raises:
            ModelError: the service is away, or it answers with another model.
            ConfigurationError: it refuses the key.
            ImageError: what came of one image. The answers of the others are kept, so that asking
                them again, without this one, sends nothing.
        """
        self._know()
        given_up = Event()
        pool = ThreadPoolExecutor(_IN_FLIGHT, "remote-model")
        try:
            unanswered = [one for one in prepared if one.answer is None]
            futures = [pool.submit(self._ask, few, given_up) for few in _requests(unanswered)]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            refused = [error for future in done if (error := future.result())]
        finally:
            # After an error, or Ctrl-C, nobody waits for what is still being asked.
            given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if refused:
            raise refused[0]
        answers: list[Generation] = []
        for one in prepared:
            if isinstance(one.answer, Exception):
                raise one.answer
            assert one.answer is not None
            answers.append(one.answer)
        return answers

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Prepare and answer a batch, in order."""
        return self.forward([self.prepare(request) for request in requests])

    def _ask(self, asked: Sequence[_Asked], given_up: Event) -> ImageError | None:
        """Send some questions and keep their answers. Returns why all of them were refused
        together, where one alone may be to blame."""
        key = self.model_key
        files: dict[bytes, int] = {}
        questions = [
            one.question.model_copy(update={"file": files.setdefault(one.file, len(files))})
            for one in asked
        ]
        form = {"requests": _QUESTIONS.dump_json(questions).decode()}
        if self._name:
            form["model"] = self._name
        try:
            said = self._service.post("/generations", form, list(files), Answers, given_up)
        except ImageError as error:
            if len(asked) > 1:
                return error
            asked[0].answer = error
            return None
        if said.model_key != key:
            raise ModelError(
                f"{self._service.address} answers with the model key {said.model_key} now, and "
                f"this run began with {key}: it was started again with another model. What was "
                "answered is kept; run again to go on with the model that is there now"
            )
        if len(said.answers) != len(asked):
            raise ModelError(
                f"{self._service.address}: expected {len(asked)} answers, got {len(said.answers)}"
            )
        for one, answer in zip(asked, said.answers, strict=True):
            if isinstance(answer, Failed):
                one.answer = ImageError(answer.error.reason, answer.error.detail)
            else:
                one.answer = answer.generation()
        return None

    def _know(self) -> _Known:
        with self._lock:
            if self._known is None:
                served = self._served(self._service.get("/health", Health, Event()))
                self._check_settings(served)
                self._known = _Known(served, self._speaker(served))
            return self._known

    def _served(self, health: Health) -> ServedModel:
        address = self._service.address
        names = ", ".join(health.models)
        if self._name:
            if self._name not in health.models:
                raise ConfigurationError(
                    f"{address} has no model called {self._name!r}: expected one of {names}"
                )
            return health.models[self._name]
        if len(health.models) != 1:
            raise ConfigurationError(
                f"{address} has several models, {names}: say which, as remote:{address}#"
                f"{next(iter(health.models), 'model-name')}"
            )
        return next(iter(health.models.values()))

    def _check_settings(self, served: ServedModel) -> None:
        """What can change an answer is there as the plan asks for it."""
        for name, value in self.settings.model_dump(exclude_none=True).items():
            of_no_effect = name == "revision" and served.card.revision == FOLDER
            if name in served.parameters and value != served.parameters[name] and not of_no_effect:
                raise ConfigurationError(
                    f"{name} is {served.parameters[name]} at {self._service.address} and {value} "
                    "in the plan or the environment here: start the service with "
                    f"LABELING_{name.upper()}={value}, or leave {name} out"
                )

    def _speaker(self, served: ServedModel) -> Model:
        """The half of an adapter that needs no weights, and no file of the machine that has them:
        it stands on the card alone."""
        adapter = registered_adapter(served.card)
        if adapter.protocol_version != served.protocol_version:
            raise ConfigurationError(
                f"{self._service.address} speaks version {served.protocol_version} of the protocol "
                f"of {served.card.name}, here it is version {adapter.protocol_version}: install "
                "the same version of labeling-pipeline on both sides"
            )
        speaker = adapter.__new__(adapter)
        speaker.card = served.card
        return speaker


_QUESTIONS = TypeAdapter(list[Question])


def _requests(asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    """Cut questions into requests of a few, and of few bytes."""
    few: list[_Asked] = []
    size = 0
    for one in asked:
        if few and (len(few) == _PER_REQUEST or size + len(one.file) > _BYTES_PER_REQUEST):
            yield few
            few, size = [], 0
        few.append(one)
        size += len(one.file)
    if few:
        yield few


class _AwayError(Exception):
    """No answer, for a reason that may pass by itself. retry_after_s: when to ask again, where the
    service says so."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class _Service:
    """A service at an address; asks patiently. Threads share it.

    Raises:
        MissingDependencyError: the HTTP client is not installed.
    """

    def __init__(self, address: str) -> None:
        if find_spec("httpx") is None:
            raise MissingDependencyError(
                "a remote model needs httpx, which is not installed: "
                "pip install 'labeling-pipeline[service]'"
            )
        self.address = address.rstrip("/")
        self._waited_in_vain_at: float | None = None

    def get(self, path: str, expected: type[_Said], given_up: Event) -> _Said:
        """Raises as ``post``, but no ImageError."""
        response = self._patiently(lambda: self._client.get(path), given_up)
        return self._read(response, expected)

    def post(
        self,
        path: str,
        form: dict[str, str],
        images: Sequence[bytes],
        expected: type[_Said],
        given_up: Event,
    ) -> _Said:
        """Send a form with images; what is said in return.

        given_up: set when nobody waits for the answer any more.

        Raises:
            ModelError: the service is away for too long, or it is none.
            ConfigurationError: it refuses the key.
            ImageError: it refuses the request.
        """
        files = [("file", (str(number), image)) for number, image in enumerate(images)]
        response = self._patiently(
            lambda: self._client.post(path, data=form, files=files), given_up
        )
        return self._read(response, expected)

    @cached_property
    def _client(self) -> "httpx.Client":
        import httpx

        key = os.environ.get(API_KEY, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigurationError(f"{API_KEY}: expected printable ASCII characters only")
        return httpx.Client(
            base_url=self.address,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
        )

    def _patiently(self, send: Callable[[], "httpx.Response"], given_up: Event) -> "httpx.Response":
        patience = _Patience(self._patience_s())
        retrying = Retrying(
            retry=retry_if_exception_type(_AwayError),
            wait=_pause,
            stop=stop_any(patience, stop_when_event_set(given_up)),
            sleep=sleep_using_event(given_up),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            response = retrying(self._once, send)
        except _AwayError as error:
            self._waited_in_vain_at = time.monotonic()
            raise ModelError(
                f"{self.address} gave no answer, after {patience.waited_s:.0f} s of waiting: "
                f"{error}. Start the service there, or see its log, then run again what failed"
            ) from error
        self._waited_in_vain_at = None
        return response

    def _patience_s(self) -> float:
        """A service that was waited for in vain is not waited for again by every class that comes
        next."""
        at = self._waited_in_vain_at
        return 0.0 if at is not None and time.monotonic() - at < _FORGET_S else PATIENCE_S

    def _once(self, send: Callable[[], "httpx.Response"]) -> "httpx.Response":
        import httpx

        try:
            response = send()
        except httpx.TransportError as error:
            raise _AwayError(f"{type(error).__name__}: {error}") from error
        if response.status_code in _BUSY or response.status_code >= 500:
            after = response.headers.get("Retry-After", "")
            raise _AwayError(_problem(response), float(after) if after.isdecimal() else None)
        return response

    def _tell(self, state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            _log.warning(
                "%s gave no answer and is asked again for up to %.0f s: %s",
                *(self.address, PATIENCE_S, state.outcome.exception()),
            )

    def _read(self, response: "httpx.Response", expected: type[_Said]) -> _Said:
        status = response.status_code
        if status in _REFUSED_KEY:
            raise ConfigurationError(
                f"{self.address} refuses the key ({_problem(response)}): set {API_KEY} to the one "
                "that it was started with"
            )
        if status in _REFUSED_REQUEST:
            raise ImageError("refused", f"{self.address}: {_problem(response)}")
        try:
            if status == 200:
                return expected.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        else:
            why = _problem(response)
        raise ModelError(
            f"expected a labeling service of this version at {self.address}, got for "
            f"{response.request.method} {response.request.url.path}: {why}"
        )


class _Patience(stop_base):
    """When to stop asking. The time runs from the first failure: an answer may take longer than a
    service may be away."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first_failure: float | None = None
        self.waited_s = 0.0

    def __call__(self, state: RetryCallState) -> bool:
        now = time.monotonic()
        self._first_failure = self._first_failure or now
        self.waited_s = now - self._first_failure
        return self.waited_s + state.upcoming_sleep >= self._seconds


def _pause(state: RetryCallState) -> float:
    """Longer each time, and at least as long as the service says; by chance, so that not all come
    back at once."""
    error = state.outcome.exception() if state.outcome else None
    after = error.retry_after_s if isinstance(error, _AwayError) else None
    return _PAUSE(state) + (after or 0.0)


def _problem(response: "httpx.Response") -> str:
    """What an answer that is none says of itself, in a line."""
    said: Any = None
    if response.headers.get("Content-Type", "").startswith("application/"):
        try:
            said = response.json()
        except ValueError:
            said = None
    words = ("detail", "title", "status")
    detail = next((said[w] for w in words if said.get(w)), None) if isinstance(said, dict) else None
    return f"{response.status_code} {str(detail or response.reason_phrase)[:300]}"
