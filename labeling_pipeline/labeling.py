"""The labeling loop: what is due -> batches -> model -> store.

One class at a time. Its due images are read ahead in threads, asked in batches, and each batch is
written in one transaction while the next one runs. A batch that fails is bisected until the image
that breaks it stands alone; that image gets the outcome ``failed`` and the class goes on.
"""

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from labeling_pipeline.annotations import Annotation, Generation, State
from labeling_pipeline.errors import ConfigurationError, ModelError
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.registry import load_model
from labeling_pipeline.plan import Entry, Group, Plan, entry_requests
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import class_standing, due_images
from labeling_pipeline.tasks import Request, Task

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_READ_AHEAD_BATCHES = 2


@dataclass
class ClassSummary:
    """What one materialization of entry x class did.

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
    generations: int = 0
    tokens: int = 0
    annotations: int = 0
    dropped: int = 0
    seconds: float = 0.0
    states: Counter[str] = field(default_factory=Counter)
    standing: dict[str, tuple[int, int]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def models_of(plan: Plan) -> dict[str, Model]:
    """Entry name -> its model; no weights are loaded."""
    return {e.name: load_model(plan.model_of(e), plan.runtime) for e in plan.entries}


def model_keys(plan: Plan) -> dict[str, str]:
    """Entry name -> the model key that the plan asks for."""
    return {name: model.model_key for name, model in models_of(plan).items()}


def class_names(store: AnnotationStore) -> dict[str, str]:
    """Slug -> display name of the classes that are not retired, in order of registration."""
    rows = store.query(
        "SELECT class, display_name FROM classes WHERE NOT retired ORDER BY class_number"
    )
    return dict(zip(rows["class"].to_pylist(), rows["display_name"].to_pylist(), strict=True))


def label_class(
    store: AnnotationStore,
    plan: Plan,
    entry: Entry,
    class_slug: str,
    image_root: Path,
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
        StoreError: the store could not be written; everything written before stays.
    """
    started = time.perf_counter()
    classes = class_names(store)
    if class_slug not in classes:
        raise ConfigurationError(
            f"no class is called {class_slug!r}: expected one of {', '.join(classes) or 'none'}; "
            "materialize raw_images to register new folders"
        )
    model = load_model(plan.model_of(entry), plan.runtime)
    requests = entry_requests(entry, classes, model)
    label = entry.label_for(classes[class_slug])
    summary = ClassSummary(entry.name, class_slug, label, model.model_key)
    if not entry.covers(classes[class_slug]):
        summary.notes = (f"{entry.name} does not cover this class: nothing was asked",)
        return summary
    group = requests.group_of(class_slug)
    if group is None:
        _record_unsupported(store, model, summary, requests.unsupported[class_slug], run_id)
    else:
        loop = _Loop(store, model, entry, group, Path(image_root), run_id, summary)
        loop.run(force, progress)
        if summary.states[State.FAILED] == summary.due > 0:
            path, error = next(iter(summary.errors.items()))
            raise ModelError(f"all {summary.due} images failed; the first, {path}: {error}")
    rows = class_standing(
        store,
        entry=entry.name,
        class_slug=class_slug,
        model_key=model.model_key,
        threshold=entry.threshold,
    ).to_pylist()
    summary.standing = {row["state"]: (row["images"], row["annotations"]) for row in rows}
    summary.seconds = time.perf_counter() - started
    return summary


def _record_unsupported(
    store: AnnotationStore,
    model: Model,
    summary: ClassSummary,
    unsupported: tuple[str, str],
    run_id: str,
) -> None:
    """Settle every image of a class whose label must not be asked, without asking."""
    label, reason = unsupported
    request_hash = hashlib.sha256(json.dumps([summary.entry, label, reason]).encode()).hexdigest()
    request_hash = request_hash[:16]
    due = due_images(
        store,
        entry=summary.entry,
        class_slug=summary.class_slug,
        model_key=model.model_key,
        request_hash=request_hash,
    ).to_pylist()
    summary.due = len(due)
    summary.notes = (reason,)
    rows = [
        _outcome_row(
            summary.entry,
            model.model_key,
            run_id,
            item,
            summary.class_slug,
            label,
            request_hash,
            State.UNSUPPORTED,
            error=reason,
        )
        for item in due
    ]
    summary.states[State.UNSUPPORTED] += len(rows)
    _write_unasked(store, model, rows)


def _write_unasked(store: AnnotationStore, model: Model, outcomes: Sequence[dict]) -> None:
    """Record outcomes that no answer stands behind."""
    if outcomes:
        with store.transaction() as tx:
            tx.insert("models", [_model_row(model)], replace=True)
            tx.insert("outcomes", outcomes, skip_existing=True)


@dataclass(frozen=True)
class _Ready:
    """An image made ready for the model. image_size_px: (width, height)."""

    image_size_px: tuple[int, int]
    prepared: Any


_Reading: TypeAlias = _Ready | Exception
"""What came of reading an image."""


class _Loop:
    """One pass over the due images of one group."""

    def __init__(
        self,
        store: AnnotationStore,
        model: Model,
        entry: Entry,
        group: Group,
        image_root: Path,
        run_id: str,
        summary: ClassSummary,
    ) -> None:
        self.store = store
        self.model = model
        self.entry = entry
        self.group = group
        self.image_root = image_root
        self.run_id = run_id
        self.summary = summary
        self._model_is_known = False

    def run(self, force: bool, progress: Progress) -> None:
        due = due_images(
            self.store,
            entry=self.entry.name,
            class_slug=self.summary.class_slug,
            model_key=self.model.model_key,
            request_hash=self.group.request_hash,
            force=force,
        ).to_pylist()
        self.summary.due = len(due)
        due = self._settle_without_references(due)
        progress(0, len(due))
        if not due:
            return
        done = 0
        with ThreadPoolExecutor(1, "store-writer") as writer:
            written: Future[None] | None = None
            for items, readings in self._read_ahead(due):
                answers = self._answer(readings)
                if written is not None:
                    written.result()
                written = writer.submit(self._write, items, readings, answers)
                done += len(items)
                progress(done, len(due))
            if written is not None:
                written.result()

    def _settle_without_references(self, due: list[dict]) -> list[dict]:
        """Visual prompting can ask nothing of an image that has no reference boxes."""
        if self.entry.task is not Task.VISUAL_PROMPTING:
            return due
        bare = [item for item in due if item["path"] not in self.entry.references]
        reason = "no reference boxes: give some for this image under `references` in the plan"
        rows = [
            self._outcome(item, slug, label, State.UNSUPPORTED, error=reason)
            for item in bare
            for slug, label in self.group.classes.items()
        ]
        self.summary.states[State.UNSUPPORTED] += len(bare)
        _write_unasked(self.store, self.model, rows)
        return [item for item in due if item["path"] in self.entry.references]

    def _read_ahead(self, due: Sequence[dict]) -> Iterator[tuple[Sequence[dict], list[_Reading]]]:
        """Batches, read, decoded and made ready for the model while it works on earlier ones."""
        size = self.model.settings.batch_size
        batches = [due[i : i + size] for i in range(0, len(due), size)]
        with ThreadPoolExecutor(2, "image-reader") as readers:
            waiting: deque[list[Future[_Reading]]] = deque()
            ahead = iter(batches)

            def submit_next() -> None:
                batch = next(ahead, None)
                if batch is not None:
                    waiting.append([readers.submit(self._read, item) for item in batch])

            for _ in range(_READ_AHEAD_BATCHES):
                submit_next()
            for batch in batches:
                readings = [future.result() for future in waiting.popleft()]
                submit_next()
                yield batch, readings

    def _read(self, item: dict) -> _Reading:
        try:
            request = Request(
                read_image(self.image_root / item["path"]),
                self.entry.task,
                self.group.labels,
                self.entry.skeleton,
                self.entry.references.get(item["path"], ()),
            )
            return _Ready(request.size_px, self.model.prepare(request))
        except (ModelError, ConfigurationError):
            raise
        except Exception as error:  # whatever one image does to a decoder or a processor
            return error

    def _answer(self, readings: Sequence[_Reading]) -> list[Generation | Exception]:
        """One answer or error for every image."""
        ready = [reading.prepared for reading in readings if isinstance(reading, _Ready)]
        answered = iter(ask(self.model, ready))
        return [next(answered) if isinstance(r, _Ready) else r for r in readings]

    def _write(
        self,
        items: Sequence[dict],
        readings: Sequence[_Reading],
        answers: Sequence[Generation | Exception],
    ) -> None:
        generations: list[dict] = []
        outcomes: list[dict] = []
        annotations: list[dict] = []
        for item, reading, answer in zip(items, readings, answers, strict=True):
            if isinstance(answer, Exception) or isinstance(reading, Exception):
                error = f"{type(answer).__name__}: {answer}"
                self.summary.errors[item["path"]] = error
                self.summary.states[State.FAILED] += 1
                outcomes += [
                    self._outcome(item, slug, label, State.FAILED, error=error)
                    for slug, label in self.group.classes.items()
                ]
                continue
            parsed = self.model.parse(
                answer,
                self.entry.task,
                self.group.labels,
                reading.image_size_px,
                self.entry.skeleton,
            )
            generation_id = self._generation_id(item)
            generations.append(self._generation_row(item, generation_id, answer))
            found = [a for label in self.group.labels for a in parsed.labels[label].annotations]
            annotations += [
                _annotation_row(
                    annotation,
                    generation_id,
                    item["image_id"],
                    self.entry.name,
                    self.model.parser_version,
                    position,
                )
                for position, annotation in enumerate(found)
            ]
            for slug, label in self.group.classes.items():
                said = parsed.labels[label]
                outcomes.append(
                    self._outcome(
                        item,
                        slug,
                        label,
                        said.state,
                        presence=said.presence,
                        generation_id=generation_id,
                        dropped=len(parsed.dropped),
                    )
                )
            own = parsed.labels[self.summary.label]
            self.summary.states[own.state] += 1
            self.summary.annotations += len(own.annotations)
            self.summary.generations += 1
            self.summary.tokens += len(answer.tokens)
            self.summary.dropped += len(parsed.dropped)
        with self.store.transaction() as tx:
            if not self._model_is_known:
                tx.insert("models", [_model_row(self.model)], replace=True)
                self._model_is_known = True
            # Another process may have settled the same images since we looked.
            tx.insert("generations", generations, skip_existing=True)
            tx.insert("outcomes", outcomes, skip_existing=True)
            tx.insert("annotations", annotations, skip_existing=True)

    def _generation_id(self, item: dict) -> str:
        identity = [
            item["image_id"],
            self.group.request_hash,
            self.model.model_key,
            item["attempt"],
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]

    def _outcome(self, item: dict, slug: str, label: str, state: State, **values: Any) -> dict:
        return _outcome_row(
            self.entry.name,
            self.model.model_key,
            self.run_id,
            item,
            slug,
            label,
            self.group.request_hash,
            state,
            **values,
        )

    def _generation_row(self, item: dict, generation_id: str, answer: Generation) -> dict:
        return {
            "generation_id": generation_id,
            "image_id": item["image_id"],
            "entry": self.entry.name,
            "request_hash": self.group.request_hash,
            "model_key": self.model.model_key,
            "task": self.entry.task,
            "labels": list(self.group.labels),
            "prompt": answer.prompt,
            "raw_text": answer.raw_text,
            "tokens": list(answer.tokens),
            "token_logprobs": list(answer.token_logprobs),
            "token_window_mass": list(answer.token_window_mass),
            "none_probs": list(answer.none_probs),
            "finish_reason": answer.finish_reason,
            "frame_width_px": answer.frame_size_px[0],
            "frame_height_px": answer.frame_size_px[1],
            "latency_s": answer.latency_s,
            "attempt": item["attempt"],
            "run_id": self.run_id,
            "created_at": _now(),
        }


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


def _outcome_row(
    entry: str,
    model_key: str,
    run_id: str,
    item: dict,
    slug: str,
    label: str,
    request_hash: str,
    state: State,
    *,
    presence: float | None = None,
    error: str | None = None,
    generation_id: str | None = None,
    dropped: int = 0,
) -> dict:
    return {
        "image_id": item["image_id"],
        "entry": entry,
        "class": slug,
        "model_key": model_key,
        "attempt": item["attempt"],
        "label": label,
        "request_hash": request_hash,
        "state": state,
        "presence": presence,
        "error": error,
        "generation_id": generation_id,
        "dropped": dropped,
        "run_id": run_id,
        "created_at": _now(),
    }


def _annotation_row(
    annotation: Annotation,
    generation_id: str,
    image_id: str,
    entry: str,
    parser_version: int,
    position: int,
) -> dict:
    x0, y0, x1, y1 = annotation.bbox or (None,) * 4
    scores = annotation.token_scores
    return {
        "annotation_id": f"{generation_id}-{parser_version}-{position}",
        "generation_id": generation_id,
        "image_id": image_id,
        "entry": entry,
        "label": annotation.label,
        "parser_version": parser_version,
        "position": position,
        "x0_px": x0,
        "y0_px": y0,
        "x1_px": x1,
        "y1_px": y1,
        "point": _xy(annotation.point) if annotation.point else None,
        "polygon": [_xy(corner) for corner in annotation.polygon] or None,
        "text": annotation.text,
        "score": annotation.score,
        "geometric_mean": scores.geometric_mean if scores else None,
        "window_mass": scores.window_mass if scores else None,
        "keypoints": [
            {"name": k.name, "x_px": k.x_px, "y_px": k.y_px, "score": k.score}
            for k in annotation.keypoints
        ]
        or None,
    }


def _xy(point: tuple[float, float]) -> dict[str, float]:
    return {"x_px": point[0], "y_px": point[1]}


def _model_row(model: Model) -> dict:
    return {
        "model_key": model.model_key,
        "name": model.card.name,
        "checkpoint": model.card.checkpoint,
        "revision": str(model.parameters["revision"]),
        "licence": model.card.licence,
        "parameters": json.dumps(model.parameters, sort_keys=True),
    }


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
