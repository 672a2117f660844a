"""The labeling loop: what is due -> batches -> model -> store.

One class at a time. Its due images are read ahead in threads, asked in batches of like size, and
each batch is written in one transaction while the next one runs. A batch that fails is bisected
until the image that breaks it stands alone; that image gets the outcome ``failed`` and the class
goes on.
"""

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from labeling_pipeline.annotations import Box, Generation, State
from labeling_pipeline.asking.questions import Answered, Conclusion, Question, Region
from labeling_pipeline.asking.rounds import conclude, first_questions, second_questions
from labeling_pipeline.asks import (
    EntryAsks,
    Regions,
    class_names,
    current_view,
    thresholds_of_others,
)
from labeling_pipeline.errors import ConfigurationError, ModelError, SourceError
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.images.sources import ImageSource, read_known
from labeling_pipeline.models.base import Model
from labeling_pipeline.plan import Entry, Group, Plan
from labeling_pipeline.records import Asked, Row, model_row
from labeling_pipeline.store.annotation_store import AnnotationStore, one_thread
from labeling_pipeline.store.ledger import class_standing, due_images, restore_earlier_answers
from labeling_pipeline.tasks import RULES, Request, Skeleton, Task

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_ANSWERED = "SELECT image_id FROM generations WHERE generation_id IN (SELECT unnest($1::VARCHAR[]))"
_HANDOVER_S = 0.0005
_READ_AHEAD_BATCHES = 2
_READERS = min(8, max(2, (os.cpu_count() or 2) // 2))


@dataclass
class ClassSummary:
    """What one materialization of entry x class did.

    answered, asked_again: images that got an answer in this run, and those of them whose answer
        called for a second round.
    restored: images for which an earlier answer to the same prompt holds again.
    generations, tokens, annotations, dropped, states: of what was asked in this run, over the
        class's own images.
    standing: state -> (images, annotations) of the whole class after it.
    errors: image path -> why it failed. notes: what a person should know of, with the fix.
    """

    entry: str
    class_slug: str
    label: str
    model_key: str
    due: int = 0
    answered: int = 0
    asked_again: int = 0
    restored: int = 0
    generations: int = 0
    tokens: int = 0
    annotations: int = 0
    dropped: int = 0
    seconds: float = 0.0
    states: Counter[str] = field(default_factory=Counter)
    standing: dict[str, tuple[int, int]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def label_class(
    store: AnnotationStore,
    plan: Plan,
    entry: Entry,
    class_slug: str,
    source: ImageSource,
    run_id: str,
    *,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> ClassSummary:
    """Ask what is due for one entry and class, and record everything that came of it.

    force: ask again what is settled or held; every answer is a further attempt.

    Raises:
        ConfigurationError: no such class, or the model cannot do the task.
        ModelError: the model could not be loaded, or failed on every single image.
        SourceError: the images cannot be reached just now; what was answered before stays.
        StoreError: the store could not be written; everything written before stays.
    """
    started = time.perf_counter()
    asks = EntryAsks(store, plan, entry)
    model = asks.model
    everyone = class_names(store, with_retired=True)
    if class_slug not in everyone:
        raise ConfigurationError(
            f"no class is called {class_slug!r}: expected one of {', '.join(everyone) or 'none'}; "
            "materialize raw_images to register new folders"
        )
    label = entry.label_for(everyone[class_slug])
    summary = ClassSummary(entry.name, class_slug, label, model.model_key)
    if not entry.covers(everyone[class_slug]):
        summary.notes = (f"{entry.name} does not cover this class: nothing was asked",)
        return summary
    if class_slug not in asks.classes:
        summary.notes = ("this class is retired, because its folder is gone: nothing was asked",)
        return summary
    asked = asks.of(class_slug)
    summary.notes = asked.notes
    summary.restored = restore_earlier_answers(store, asked.ask, run_id)
    due = due_images(store, asked.ask, force=force and asked.group is not None).to_pylist()
    summary.due = len(due)
    if asked.group is None:
        _record_unsupported(store, model, due, summary, str(asked.unsupported), run_id)
    else:
        loop = _Loop(store, model, entry, asked.group, source, run_id, summary)
        loop.run(due, asked.regions or {}, progress)
        if summary.states[State.FAILED] == summary.due > 0:
            path, error = next(iter(summary.errors.items()))
            raise ModelError(f"all {summary.due} images failed; the first, {path}: {error}")
    rows = class_standing(
        store,
        current_view(plan),
        entry=entry.name,
        class_slug=class_slug,
        model_key=model.model_key,
    ).to_pylist()
    summary.standing = {row["state"]: (row["images"], row["annotations"]) for row in rows}
    note = thresholds_of_others(plan).get(entry.name)
    summary.notes += (note,) if note else ()
    summary.seconds = time.perf_counter() - started
    return summary


def _record_unsupported(
    store: AnnotationStore,
    model: Model,
    due: Sequence[Row],
    summary: ClassSummary,
    reason: str,
    run_id: str,
) -> None:
    """Settle every image of a class whose label must not be asked, without asking."""
    summary.notes = (reason,)
    rows = [
        _asked(item, summary.entry, model, run_id).outcome(
            summary.class_slug, summary.label, State.UNSUPPORTED, error=reason
        )
        for item in due
    ]
    summary.states[State.UNSUPPORTED] += len(rows)
    _write_unasked(store, model, rows)


def _asked(item: Row, entry: str, model: Model, run_id: str) -> Asked:
    """What all rows about a due image have in common."""
    return Asked(
        item["image_id"],
        item["attempt"],
        entry,
        model.model_key,
        item["request_hash"],
        run_id,
    )


def _write_unasked(store: AnnotationStore, model: Model, outcomes: Sequence[Row]) -> None:
    """Record outcomes that no answer stands behind."""
    if outcomes:
        with store.transaction() as tx:
            tx.insert("models", [model_row(model)], replace=True)
            tx.insert("outcomes", outcomes, skip_existing=True)


class _Image:
    """One due image on its way through the loop.

    size_px: (width, height). first: what is asked of it. generations, answered: in the order of
    asking.
    error: what ended its way early.
    """

    def __init__(self, item: dict, asked: Asked) -> None:
        self.path: str = item["path"]
        self.size_px: tuple[int, int] = (item["width_px"], item["height_px"])
        self.asked = asked
        self.first: tuple[Question, ...] = ()
        self.generations: list[Generation] = []
        self.answered: list[Answered] = []
        self.error: Exception | None = None


@dataclass(frozen=True)
class _Prepared:
    """Questions about one image, made ready for the model."""

    image: _Image
    questions: tuple[Question, ...]
    prepared: list[Any]
    sizes_px: list[tuple[int, int]]


class _Loop:
    """One pass over the due images of one group."""

    def __init__(
        self,
        store: AnnotationStore,
        model: Model,
        entry: Entry,
        group: Group,
        source: ImageSource,
        run_id: str,
        summary: ClassSummary,
    ) -> None:
        self.store = store
        self.model = model
        self.entry = entry
        self.group = group
        self.source = source
        self.run_id = run_id
        self.summary = summary
        self._model_is_known = False

    def run(self, due: Sequence[Row], regions: Regions, progress: Progress) -> None:
        images = self._settle_unasked(
            [self._image(item, regions.get(item["image_id"], ())) for item in due]
        )
        progress(0, len(images))
        if not images:
            return
        done = 0
        readers = ThreadPoolExecutor(_READERS, "image-reader")
        with (
            prompt_handover(),
            one_thread(),
            ThreadPoolExecutor(1, "store-writer") as writer,
        ):
            try:
                written: Future[None] | None = None
                for batch in self._read_ahead(images, readers):
                    self._answer(batch)
                    self._ask_again([one.image for one in batch], readers)
                    if written is not None:
                        written.result()
                    written = writer.submit(self._write, [one.image for one in batch])
                    done += len(batch)
                    progress(done, len(images))
                if written is not None:
                    written.result()
            finally:
                readers.shutdown(cancel_futures=True)

    def _image(self, item: Row, found: Sequence[Region]) -> _Image:
        image = _Image(item, _asked(item, self.entry.name, self.model, self.run_id))
        image.first = first_questions(self.entry, self.group, image.size_px, found)
        return image

    def _settle_unasked(self, images: list[_Image]) -> list[_Image]:
        """Settle the images of which nothing can be asked; returns the others."""
        if RULES[self.entry.task].needs_references and not self.entry.regions:
            has_question = [image.path in self.entry.references for image in images]
            state = State.UNSUPPORTED
            reason = "no reference boxes: give some for this image under `references` in the plan"
        else:
            # No region was found, so there is nothing to look at.
            has_question = [bool(image.first) for image in images]
            state, reason = State.ABSENT, None
        bare = [image for image, has in zip(images, has_question, strict=True) if not has]
        rows = [
            image.asked.outcome(slug, label, state, error=reason)
            for image in bare
            for slug, label in self.group.classes.items()
        ]
        self.summary.states.update([state] * len(bare))
        _write_unasked(self.store, self.model, rows)
        return [image for image, has in zip(images, has_question, strict=True) if has]

    def _read_ahead(self, images: Sequence[_Image], readers: Executor) -> Iterator[list[_Prepared]]:
        """Batches, read, decoded and made ready for the model while it works on earlier ones."""
        waiting: deque[list[Future[_Prepared]]] = deque()
        for batch in self._batches(images):
            waiting.append([readers.submit(self._prepare, one, one.first) for one in batch])
            if len(waiting) > _READ_AHEAD_BATCHES:
                yield [future.result() for future in waiting.popleft()]
        for futures in waiting:
            yield [future.result() for future in futures]

    def _batches(self, images: Sequence[_Image]) -> Iterator[list[_Image]]:
        """Images of like size, as many at once as the model takes just now."""
        cost = {image.path: self.model.input_tokens(image.size_px) for image in images}
        batch: list[_Image] = []
        questions = longest = 0
        # The largest first: what does not fit into memory shows at once.
        for image in sorted(images, key=lambda image: -cost[image.path]):
            limit = self.model.batch_limit
            own = len(image.first)
            most = max(longest, cost[image.path])
            if batch and (
                questions + own > limit.images or (questions + own) * most > limit.tokens
            ):
                yield batch
                batch, questions, most = [], 0, cost[image.path]
            batch.append(image)
            questions += own
            longest = most
        if batch:
            yield batch

    def _prepare(self, image: _Image, questions: tuple[Question, ...]) -> _Prepared:
        """Read an image and make its questions ready; what fails is noted on the image."""
        prepared = _Prepared(image, questions, [], [])
        try:
            pixels = read_image(read_known(self.source, image.path, image.asked.image_id))
            image.size_px = (pixels.shape[1], pixels.shape[0])
            for question in questions:
                references = self.entry.references.get(image.path, ())
                request = request_of(self.entry, question, pixels, references)
                prepared.prepared.append(self.model.prepare(request))
                prepared.sizes_px.append(request.size_px)
        except (ModelError, ConfigurationError, SourceError):
            raise
        except Exception as error:  # whatever one image does to a decoder or a processor
            image.error = error
        return prepared

    def _answer(self, batch: Sequence[_Prepared]) -> None:
        """Ask what was prepared and read the answers; what fails is noted on the image."""
        sound = [one for one in batch if one.image.error is None]
        answers = iter(ask(self.model, [item for one in sound for item in one.prepared]))
        for one in sound:
            image = one.image
            for question, size_px in zip(one.questions, one.sizes_px, strict=True):
                answer = next(answers)
                if isinstance(answer, Exception):
                    image.error = answer
                    continue
                image.generations.append(answer)
                image.answered.append(
                    read_answer(self.model, self.entry, question, answer, size_px)
                )

    def _ask_again(self, images: Sequence[_Image], readers: Executor) -> None:
        """The second round, for those images whose answers call for one."""
        again = [
            (image, questions)
            for image in images
            if image.error is None
            and (
                questions := second_questions(self.entry, self.group, image.answered, image.size_px)
            )
        ]
        if not again:
            return
        self.summary.asked_again += len(again)
        futures = [readers.submit(self._prepare, image, questions) for image, questions in again]
        self._answer([future.result() for future in futures])

    def _write(self, images: Sequence[_Image]) -> None:
        generations: list[Row] = []
        outcomes: list[Row] = []
        annotations: list[Row] = []
        for image in images:
            if image.error is not None:
                error = f"{type(image.error).__name__}: {image.error}"
                self.summary.errors[image.path] = error
                self.summary.states[State.FAILED] += 1
                outcomes += [
                    image.asked.outcome(slug, label, State.FAILED, error=error)
                    for slug, label in self.group.classes.items()
                ]
                continue
            generations += [
                image.asked.generation(position, one.question, answer)
                for position, (one, answer) in enumerate(
                    zip(image.answered, image.generations, strict=True)
                )
            ]
            conclusion = conclude(self.entry, self.group, image.answered, image.size_px)
            annotations += image.asked.annotations(conclusion, self.model.parser_version)
            outcomes += [
                image.asked.concluded(slug, label, conclusion, self.model.parser_version)
                for slug, label in self.group.classes.items()
            ]
            self._count(image, conclusion)
        with self.store.transaction() as tx:
            if not self._model_is_known:
                tx.insert("models", [model_row(self.model)], replace=True)
                self._model_is_known = True
            # Another process may have asked the same since we looked, and got another answer: the
            # one that was written first stands, whole.
            ids = [image.asked.generation_id() for image in images]
            known = set(tx.query(_ANSWERED, [ids])["image_id"].to_pylist())
            for table, rows in (
                ("generations", generations),
                ("outcomes", outcomes),
                ("annotations", annotations),
            ):
                new = [row for row in rows if row["image_id"] not in known]
                tx.insert(table, new, skip_existing=table == "outcomes")

    def _count(self, image: _Image, conclusion: Conclusion) -> None:
        own = conclusion.labels[self.summary.label].answer
        self.summary.answered += 1
        self.summary.states[own.state] += 1
        self.summary.annotations += len(own.annotations)
        self.summary.generations += len(image.generations)
        self.summary.tokens += sum(len(answer.tokens) for answer in image.generations)
        self.summary.dropped += len(conclusion.dropped)


@contextmanager
def prompt_handover() -> Iterator[None]:
    """Threads hand the interpreter over sooner than usual.

    A model's step is hundreds of short calls, and after each the thread that reads or writes may
    have the interpreter; for 5 ms at a time, by default, that would hold the model up.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_HANDOVER_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def request_of(
    entry: Entry, question: Question, pixels: np.ndarray, references: tuple[Box, ...] = ()
) -> Request:
    """A question about an image, or a part of it, as a model takes it.

    pixels: (height, width, 3) uint8 RGB of the whole image. references: what a question about the
        whole image is about, where no region says so.
    """
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = question.crop_px or (0, 0, width, height)
    if question.region is not None and question.crop_px is None:
        references = (question.region.box,)
    return Request(
        np.ascontiguousarray(pixels[y0:y1, x0:x1]),
        question.task,
        question.labels,
        _skeleton(entry, question),
        references,
    )


def read_answer(
    model: Model,
    entry: Entry,
    question: Question,
    generation: Generation,
    asked_size_px: tuple[int, int],
) -> Answered:
    """What a model said to a question, in pixels of the whole image.

    asked_size_px: (width, height) of the part that was asked about.
    """
    skeleton = _skeleton(entry, question)
    read = model.parse(generation, question.task, question.labels, asked_size_px, skeleton)
    return Answered(question, read.moved(*question.crop_px[:2]) if question.crop_px else read)


def _skeleton(entry: Entry, question: Question) -> Skeleton | None:
    return entry.skeleton if question.task is Task.KEYPOINT else None


def ask(model: Model, prepared: Sequence[Any]) -> list[Generation | Exception]:
    """One answer or error for every prepared request; a batch that fails is bisected.

    Raises:
        ModelError, ConfigurationError: nothing can be asked at all, so it is no image's fault.
    """
    if not prepared:
        return []
    try:
        return list(model.forward(prepared))
    except (ModelError, ConfigurationError):
        raise
    except Exception as error:  # whatever one image does to a model library
        if len(prepared) == 1:
            return [error]
        half = len(prepared) // 2
        return ask(model, prepared[:half]) + ask(model, prepared[half:])
