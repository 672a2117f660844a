"""Stored answers, read again with today's parser: no image is opened and no model is loaded.

An answer is read again if it answers what the plan asks today; its request hash says so. That of an
entry that goes on from another one holds what it was asked about, too. It is computed from what the
stored questions say, so that an answer about boxes or names of an earlier reading counts as well:
what another parser finds there makes new questions due, and no old answer wrong.

Outcomes are appended with the new parser version, those of the earlier reading stay. Batches are
written in transactions of their own, and what is left is what a batch has not reached: whoever is
interrupted goes on from there.
"""

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter

import pyarrow as pa
import pyarrow.compute as pc

from labeling_pipeline.annotations import FinishReason, Generation
from labeling_pipeline.asking.questions import Question, Region
from labeling_pipeline.asking.rounds import conclude
from labeling_pipeline.asks import class_names, model_keys, models_of, short_hash
from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.labeling import Progress, read_answer
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import load_model
from labeling_pipeline.plan import Entry, Group, Plan, entry_requests
from labeling_pipeline.records import Asked, Row
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.readings import (
    answers_read_before,
    boxes_of,
    count_answers,
    count_current_read_before,
    stored_answers,
)
from labeling_pipeline.tasks import Task

BATCH = 8000
"""The answers of at most so many generations are written in one transaction, and of one answer at
least. Writing looks through all that is stored for what is there already: few large batches cost
less than many small ones."""

_AT_ONCE = 2000
"""So many generations are in memory at a time: their tokens take more room than what is written."""

_PLACES = ["outcome_rows", "generation_rows"]

NOTHING_LEFT = "Nothing is left to read: all other answers were read by today's parsers."
NO_MODEL = "no row of table models says what their model key stands for"
NOT_IN_PLAN = "the plan has no such entry any more"
OTHER_PROMPT = "the plan asks something else today"
NO_ORDER = "in which order its generations were asked is not known"


@dataclass
class Reread:
    """What became of the answers that an entry got from a model.

    read: answers read again. changed: (state before, state now) -> outcomes, where they differ.
    annotations_before, annotations: of what was read again, by the last reading and by this one.
    left_alone: why -> answers that an older parser read, or that no parser can be found for.
    """

    entry: str
    model: str
    model_key: str
    read: int = 0
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)
    annotations_before: int = 0
    annotations: int = 0
    left_alone: Counter[str] = field(default_factory=Counter)

    def row(self) -> dict[str, str | int]:
        """The same for a table."""
        changed = [f"{old} -> {new}: {n}" for (old, new), n in self.changed.most_common()]
        return {
            "entry": self.entry,
            "model": self.model,
            "model_key": self.model_key,
            "read": self.read,
            "states_changed": ", ".join(changed),
            "annotations_before": self.annotations_before,
            "annotations": self.annotations,
            "left_alone": "; ".join(f"{n}: {why}" for why, n in self.left_alone.most_common()),
        }


@dataclass(frozen=True)
class RederivationSummary:
    """What one re-derivation did, for every entry and model key that has answers."""

    rereads: tuple[Reread, ...]
    seconds: float

    @property
    def read(self) -> int:
        """Answers read again."""
        return sum(one.read for one in self.rereads)

    @property
    def changed(self) -> int:
        """Outcomes that have another state than before."""
        return sum(one.changed.total() for one in self.rereads)

    @property
    def left_alone(self) -> int:
        """Answers left alone."""
        return sum(one.left_alone.total() for one in self.rereads)

    @property
    def worth_telling(self) -> list[Reread]:
        """Where something was read, or left alone."""
        return [one for one in self.rereads if one.read or one.left_alone]


def rederive(
    store: AnnotationStore,
    plan: Plan,
    run_id: str,
    *,
    progress: Progress = lambda done, total: None,
    batch: int = BATCH,
) -> RederivationSummary:
    """Read every answer again that an older parser read and that the plan asks for today.

    Answers of other entries and prompts, and of models that are not known here any more, are left
    alone.

    Raises:
        ConfigurationError: the plan names a model that does not exist.
        StoreError: the store could not be written; everything written before stays.
    """
    started = time.perf_counter()
    adapters = _adapters(store, plan)
    order = {entry.name: number for number, entry in enumerate(plan.entries)}
    counts = count_answers(store, _parser_versions(adapters)).to_pylist()
    counts.sort(key=lambda row: order.get(row["entry"], len(order)))
    total = sum(row["read_before"] for row in counts if row["entry"] in order)
    done = 0
    progress(done, total)
    rereads = []
    for row in counts:
        reread = Reread(row["entry"], row["model"] or "unknown", row["model_key"])
        rereads.append(reread)
        model = adapters.get(reread.model_key, NO_MODEL)
        if isinstance(model, str):
            reread.left_alone[model] = row["answers"]
        elif not row["read_before"]:
            continue
        elif reread.entry not in order:
            reread.left_alone[NOT_IN_PLAN] = row["read_before"]
        else:
            reader = _Reader(store, plan, model, reread, run_id)
            for read in reader.run(batch):
                done += read
                progress(done, total)
    return RederivationSummary(tuple(rereads), time.perf_counter() - started)


def stale_readings(store: AnnotationStore, plan: Plan) -> dict[str, dict[str, int]]:
    """Entry -> display name of a class -> outcomes of the current view that an older parser than
    today's read, of the images of the class itself. Once nothing is due, re-derivation reads them
    all. Never 0."""
    return count_current_read_before(
        store, model_keys(plan), _parser_versions(_adapters(store, plan))
    )


def _parser_versions(adapters: Mapping[str, Model | str]) -> dict[str, int]:
    return {key: one.parser_version for key, one in adapters.items() if not isinstance(one, str)}


def _adapters(store: AnnotationStore, plan: Plan) -> dict[str, Model | str]:
    """Model key -> what reads the model's answers, or why there is nothing that could."""
    adapters: dict[str, Model | str] = {m.model_key: m for m in models_of(plan).values()}
    models = store.query("SELECT model_key, name, checkpoint FROM models ORDER BY ALL").to_pylist()
    for row in models:
        if row["model_key"] not in adapters:
            adapters[row["model_key"]] = _adapter(row["name"], row["checkpoint"])
    return adapters


def _adapter(name: str, checkpoint: str) -> Model | str:
    # Settings are for asking. A folder is known by its path too, where its name has gone.
    for reference in (name, checkpoint):
        with suppress(ConfigurationError):
            return load_model(reference, ModelSettings())  # type: ignore[call-arg]
    return "the model is not there any more: put it back, or install the package it came with"


@dataclass(frozen=True)
class _Answer:
    """All that is stored of one answer.

    questions, generations: in the order of asking. outcomes: by the last reading.
    size_px: (width, height) of the image. annotations: how many the last reading found.
    """

    asked: Asked
    questions: tuple[Question, ...]
    generations: tuple[Generation, ...]
    outcomes: list[Row]
    size_px: tuple[int, int]
    annotations: int

    def asked_px(self, question: Question) -> tuple[int, int]:
        """(width, height) of the part of the image that a question is about."""
        if question.crop_px is None:
            return self.size_px
        x0, y0, x1, y1 = question.crop_px
        return x1 - x0, y1 - y0


class _Reader:
    """Reads the answers of one entry and model key again."""

    def __init__(
        self, store: AnnotationStore, plan: Plan, model: Model, reread: Reread, run_id: str
    ) -> None:
        self.store = store
        self.entry = plan.entry(reread.entry)
        self.model = model
        self.reread = reread
        self.run_id = run_id
        self.groups = _groups(store, plan, self.entry, model)

    def run(self, batch: int) -> Iterator[int]:
        """Yields how many answers were read since the last time; some may not be written yet."""
        answers = answers_read_before(
            self.store, self.entry.name, self.reread.model_key, self.model.parser_version
        )
        for few in _cut(answers, batch):
            outcomes: list[Row] = []
            annotations: list[Row] = []
            for fewer in _cut(few, _AT_ONCE):
                for answer in self._stored(fewer):
                    if answer is None:
                        self.reread.left_alone[NO_ORDER] += 1
                    elif (group := self._group(answer)) is None:
                        self.reread.left_alone[OTHER_PROMPT] += 1
                    else:
                        said, found = self._read(answer, group)
                        outcomes += said
                        annotations += found
                yield fewer.num_rows
            if outcomes:
                with self.store.transaction() as tx:
                    tx.insert("outcomes", outcomes, skip_existing=True)
                    tx.insert("annotations", annotations, skip_existing=True)

    def _stored(self, answers: pa.Table) -> Iterator[_Answer | None]:
        """The answers one by one; ``None`` where the order of asking cannot be told."""
        generations, outcomes = stored_answers(self.store, answers)
        about = [key for key in generations["region"].to_pylist() if key is not None]
        boxes = _boxes(self.store, about) if about else {}
        facts = {row["generation_id"]: row for row in answers.drop_columns(_PLACES).to_pylist()}
        for (answer, asked_rows), (_, outcome_rows) in zip(
            _by_answer(generations.to_pylist()), _by_answer(outcomes.to_pylist()), strict=True
        ):
            first = asked_rows[0]
            asked = Asked(
                first["image_id"],
                first["attempt"],
                self.entry.name,
                self.reread.model_key,
                first["request_hash"],
                self.run_id,
            )
            by_id = {row["generation_id"]: row for row in asked_rows}
            ids = [asked.generation_id(position) for position in range(len(asked_rows))]
            if by_id.keys() != set(ids):
                yield None
                continue
            fact = facts[answer]
            yield _Answer(
                asked,
                tuple(_question(by_id[one], boxes) for one in ids),
                tuple(_generation(by_id[one]) for one in ids),
                outcome_rows,
                (fact["width_px"], fact["height_px"]),
                fact["annotations"],
            )

    def _group(self, answer: _Answer) -> Group | None:
        """The group of today's plan whose prompt was answered."""
        return next(
            (
                group
                for group in self.groups
                if answer.asked.request_hash in _request_hashes(self.entry, group, answer.questions)
            ),
            None,
        )

    def _read(self, answer: _Answer, group: Group) -> tuple[list[Row], list[Row]]:
        """Outcomes, one for each earlier one, and annotations."""
        answered = [
            read_answer(self.model, self.entry, question, said, answer.asked_px(question))
            for question, said in zip(answer.questions, answer.generations, strict=True)
        ]
        conclusion = conclude(self.entry, group, answered, answer.size_px)
        version = self.model.parser_version
        # An answer that holds again, see `restore_earlier_answers`, has outcomes of its own.
        outcomes = [
            answer.asked.concluded(row["class"], row["label"], conclusion, version)
            | {"attempt": row["attempt"], "created_at": row["created_at"]}
            for row in answer.outcomes
        ]
        annotations = answer.asked.annotations(conclusion, version)
        self.reread.read += 1
        self.reread.annotations_before += answer.annotations
        self.reread.annotations += len(annotations)
        for before, now in zip(answer.outcomes, outcomes, strict=True):
            if before["state"] != now["state"]:
                self.reread.changed[before["state"], str(now["state"])] += 1
        return outcomes, annotations


def _groups(store: AnnotationStore, plan: Plan, entry: Entry, model: Model) -> tuple[Group, ...]:
    """What the plan would ask of a model today, be it the entry's own or an earlier one."""
    if not set(entry.tasks) <= set(model.card.tasks):
        return ()
    everyone = class_names(store, with_retired=True)
    return entry_requests(entry, everyone, model, plan.source_of(entry)).groups


def _request_hashes(entry: Entry, group: Group, questions: Sequence[Question]) -> list[str]:
    """Under which hash a group may have asked these questions."""
    if entry.source is None:
        return [group.request_hash]
    if entry.regions:
        if any(question.region is None for question in questions):
            return []
        about: list[list] = [[question.region.box for question in questions if question.region]]
    else:
        # Distractors that are names too are not said twice, so their number is not known.
        about = [
            [name for one in questions for name in one.labels[: len(one.labels) - distractors]]
            for distractors in range(len(entry.distractors) + 1)
        ]
    return [short_hash([group.request_hash, gist]) for gist in about]


def _cut(answers: pa.Table, most: int) -> Iterator[pa.Table]:
    """Slices with at most so many generations, of one answer at least."""
    start = held = 0
    for row, size in enumerate(pc.list_value_length(answers["generation_rows"]).to_pylist()):
        if held and held + size > most:
            yield answers.slice(start, row - start)
            start, held = row, 0
        held += size
    if held:
        yield answers.slice(start)


def _by_answer(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows that are sorted by ``answer``, answer by answer."""
    for answer, own in itertools.groupby(rows, key=itemgetter("answer")):
        yield answer, list(own)


def _boxes(store: AnnotationStore, annotation_ids: list[str]) -> dict[str, Region]:
    rows = boxes_of(store, annotation_ids).to_pylist()
    return {
        row["annotation_id"]: Region(
            row["annotation_id"], (row["x0_px"], row["y0_px"], row["x1_px"], row["y1_px"])
        )
        for row in rows
    }


def _question(row: Row, regions: Mapping[str, Region]) -> Question:
    return Question(
        Task(row["task"]),
        tuple(row["labels"]),
        tuple(row["crop_px"]) if row["crop_px"] else None,  # type: ignore[arg-type]
        regions.get(row["region"]),
    )


def _generation(row: Row) -> Generation:
    return Generation(
        row["prompt"],
        tuple(row["tokens"]),
        tuple(row["token_logprobs"]),
        tuple(row["token_window_mass"]),
        tuple(row["none_probs"]),
        FinishReason(row["finish_reason"]),
        tuple(row["frame_size_px"]),  # type: ignore[arg-type]
        row["latency_s"],
    )
