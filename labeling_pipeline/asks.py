"""What the entries of a plan ask of a dataset, class by class, and how much of it is due.

The plan says what is asked, the store which classes there are; entries that go on from what another
one found ask each image something of its own.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labeling_pipeline.asking.names import names_of
from labeling_pipeline.asking.questions import Region
from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.export.thresholds_yaml import Thresholds, read_thresholds
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.registry import load_model, require_task
from labeling_pipeline.plan import Entry, Group, Plan, entry_requests
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import Ask, View, count_due, current_regions

Regions = dict[str, tuple[Region, ...]]
"""image_id -> what another entry found, for every image that it was asked of."""


def models_of(plan: Plan) -> dict[str, Model]:
    """Entry name -> its model; no weights are loaded."""
    return {e.name: load_model(plan.model_of(e), plan.runtime) for e in plan.entries}


def model_keys(plan: Plan) -> dict[str, str]:
    """Entry name -> the model key that the plan asks for."""
    return {name: model.model_key for name, model in models_of(plan).items()}


def current_view(plan: Plan) -> View:
    """What of the stored answers the plan shows.

    Raises:
        ThresholdsError: the plan names a thresholds file that cannot be read.
    """
    fitted = fitted_thresholds(plan)
    return View(
        model_keys(plan),
        {entry.name: entry.threshold for entry in plan.entries},
        {
            (one.entry, one.model_key, one.label): one.threshold
            for one in (fitted.thresholds if fitted else ())
            if one.threshold is not None
        },
        {
            (entry.name, one.model_key): one.score_map
            for one in (fitted.calibrations if fitted else ())
            for entry in plan.entries
            if entry.task == one.task and one.score_map is not None
        },
    )


def fitted_thresholds(plan: Plan) -> Thresholds | None:
    """The thresholds file that the plan names, if it names one.

    Raises:
        ThresholdsError: it cannot be read.
    """
    path = plan.thresholds_path
    if path is None:
        return None
    return _thresholds_as_of(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=4)
def _thresholds_as_of(path: Path, mtime_ns: int) -> Thresholds:
    """The file is asked for with every class; it is parsed once for each time it changed."""
    return read_thresholds(path)


def thresholds_of_others(plan: Plan) -> dict[str, str]:
    """Entry name -> a sentence, for the entries of which the thresholds file knows other models
    only: nothing of it holds for the one that the plan asks.

    Raises:
        ThresholdsError: the file cannot be read.
    """
    fitted = fitted_thresholds(plan)
    if fitted is None:
        return {}
    notes = {}
    for entry, key in model_keys(plan).items():
        known = {one.model_key for one in fitted.thresholds if one.entry == entry}
        if known and key not in known:
            notes[entry] = (
                f"{plan.thresholds} knows {entry} of model key {', '.join(sorted(known))} only, "
                f"not of {key}, which the plan asks: its thresholds and calibration are not "
                "applied; materialize calibration and name the file that it writes"
            )
    return notes


def class_names(store: AnnotationStore, *, with_retired: bool = False) -> dict[str, str]:
    """Slug -> display name of the classes, in order of registration."""
    rows = store.query(
        "SELECT class, display_name FROM classes WHERE NOT retired OR ? ORDER BY class_number",
        (with_retired,),
    )
    return dict(zip(rows["class"].to_pylist(), rows["display_name"].to_pylist(), strict=True))


@dataclass(frozen=True)
class ClassAsk:
    """All that an entry asks of a class.

    group: the prompt that answers it; ``None`` if its label is never asked, for ``unsupported``.
    regions: what the questions are about, where that is what another entry found.
    notes: what a person should know of, with the fix.
    """

    ask: Ask
    label: str
    group: Group | None
    unsupported: str | None = None
    regions: Regions | None = None
    notes: tuple[str, ...] = ()


class EntryAsks:
    """What one entry asks of each class of a dataset.

    Raises:
        ConfigurationError: the model cannot do the task.
        ModelError: a service that has the model does not answer.
    """

    def __init__(self, store: AnnotationStore, plan: Plan, entry: Entry) -> None:
        self.store = store
        self.plan = plan
        self.entry = entry
        self.model = load_model(plan.model_of(entry), plan.runtime)
        # A plan is checked when it is loaded, but for models of which only a service knows more.
        for task in entry.tasks:
            require_task(self.model.card, task)
        self.source = plan.source_of(entry)
        self.names = class_names(store)
        # A retired class keeps its place: were the labels after it to move up, every image would
        # be asked for them again.
        everyone = class_names(store, with_retired=True)
        self.requests = entry_requests(entry, everyone, self.model, self.source)

    @property
    def classes(self) -> list[str]:
        """Slugs of the classes that the entry covers and that are not retired."""
        return [slug for slug, name in self.names.items() if self.entry.covers(name)]

    def of(self, class_slug: str) -> ClassAsk:
        """What is asked of one of ``classes``.

        Raises:
            ConfigurationError: the entry does not ask that class anything.
        """
        if class_slug not in self.classes:
            raise ConfigurationError(
                f"{self.entry.name} labels no class called {class_slug!r}: expected one of "
                f"{', '.join(self.classes) or 'none'}"
            )
        label = self.entry.label_for(self.names[class_slug])
        group = self.requests.group_of(class_slug)
        if group is None:
            _, reason = self.requests.unsupported[class_slug]
            request_hash = short_hash([self.entry.name, label, reason])
            return ClassAsk(self._ask(class_slug, request_hash), label, None, reason)
        if self.source is None:
            return ClassAsk(self._ask(class_slug, group.request_hash), label, group)
        regions = self._regions(self.source, class_slug)
        notes = self._still_waiting(self.source, class_slug, regions)
        if self.entry.labels_from:
            regions, unasked = _askable(self.model, regions)
            notes += unasked
        hashes = {
            image_id: short_hash([group.request_hash, self._gist(found)])
            for image_id, found in regions.items()
        }
        ask = self._ask(class_slug, hashes)
        return ClassAsk(ask, label, group, regions=regions, notes=notes)

    def _ask(self, class_slug: str, request_hash: str | Mapping[str, str]) -> Ask:
        return Ask(self.entry.name, class_slug, self.model.model_key, request_hash)

    def _gist(self, found: Sequence[Region]) -> list:
        """What of the regions goes into the questions."""
        return list(names_of(found)) if self.entry.labels_from else [one.box for one in found]

    def _regions(self, source: Entry, class_slug: str) -> Regions:
        label = source.label_for(self.names[class_slug])
        rows = current_regions(self.store, current_view(self.plan), source.name, label).to_pylist()
        regions: dict[str, list[Region]] = {row["image_id"]: [] for row in rows}
        for row in rows:
            if row["annotation_id"] is not None:
                box = (row["x0_px"], row["y0_px"], row["x1_px"], row["y1_px"])
                name = (row["text"] or "").strip() or None
                regions[row["image_id"]].append(Region(row["annotation_id"], box, name))
        return {image_id: tuple(found) for image_id, found in regions.items()}

    def _still_waiting(
        self, source: Entry, class_slug: str, regions: Mapping[str, object]
    ) -> tuple[str, ...]:
        rows = self.store.query("SELECT image_id FROM class_images WHERE class = ?", (class_slug,))
        waiting = set(rows["image_id"].to_pylist()) - regions.keys()
        if not waiting:
            return ()
        return (f"{len(waiting)} images wait for {source.asset}: materialize it first",)


@dataclass
class DueWork:
    """What is due of a plan. Both counts: (entry name, class slug) -> images.

    held: failed too often to be asked again unless it is forced.
    """

    due: Counter[tuple[str, str]] = field(default_factory=Counter)
    held: Counter[tuple[str, str]] = field(default_factory=Counter)


def due_work(store: AnnotationStore, plan: Plan) -> DueWork:
    """What a run over every entry and class would ask just now; one query.

    What an entry that goes on from another one will ask once that one is done is not in it yet.
    """
    rows = count_due(store, list(_all_asks(store, plan))).to_pylist()
    return DueWork(
        due=Counter({(row["entry"], row["class"]): row["due"] for row in rows if row["due"]}),
        held=Counter({(row["entry"], row["class"]): row["held"] for row in rows if row["held"]}),
    )


def _all_asks(store: AnnotationStore, plan: Plan) -> Iterator[Ask]:
    for entry in plan.entries:
        asks = EntryAsks(store, plan, entry)
        for class_slug in asks.classes:
            yield asks.of(class_slug).ask


def _askable(model: Model, regions: Regions) -> tuple[Regions, tuple[str, ...]]:
    """The regions whose names a model may be asked, and a note on the other names."""
    named = {name for found in regions.values() for one in found if (name := one.name)}
    reasons = {name: reason for name in sorted(named) if (reason := model.why_unsupported(name))}
    kept = {
        image_id: tuple(one for one in found if one.name not in reasons)
        for image_id, found in regions.items()
    }
    if not reasons:
        return kept, ()
    first = next(iter(reasons.values()))
    return kept, (f"{len(reasons)} names were not asked for, {', '.join(reasons)[:200]}: {first}",)


def short_hash(identity: list) -> str:
    """Of plain values."""
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
