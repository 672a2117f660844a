"""Which answers of an entry a reviewer is shown, and the pictures of them.

A row is named after all that its picture shows, so that a verdict holds for as long as it is true,
whichever model, threshold or parser the answer comes from.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from labeling_pipeline.annotations import Annotation, State
from labeling_pipeline.asks import current_view
from labeling_pipeline.drawing import draw_annotations, label_colors, write_jpeg
from labeling_pipeline.evaluation.agreement import ANSWERED
from labeling_pipeline.evaluation.audit import draw_sample
from labeling_pipeline.images.reading import decode
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.labeling import Progress
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.reporting.remembered import remembered
from labeling_pipeline.results import annotation_of
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import View, answered_annotations, current_outcomes
from labeling_pipeline.tasks import RULES, Geometry

_LARGE_ENOUGH_PX = 1280

Pair = tuple[str, str]
"""Image id and label."""

Record = dict[str, dict[str, tuple[str, str, float]]]
"""Entry -> name of a row -> image id, label, probability with which it was drawn."""


@dataclass(frozen=True)
class Item:
    """A pair that is in the sample, or was before. shown: in the order of their numbers."""

    name: str
    pair: Pair
    path: str
    stratum: str
    share: float
    place: float
    is_drawn: bool
    shown: tuple[Annotation, ...]


@dataclass(frozen=True)
class Sample:
    """The pairs of one entry. items: those in the sample now, and earlier ones, by name."""

    entry: Entry
    pairs: pd.DataFrame
    items: Mapping[str, Item]


def can_miss(entry: Entry) -> bool:
    """Whether there may be things that an entry shows nothing of."""
    rule = RULES[entry.task]
    return rule.geometry is not Geometry.NONE and not rule.needs_references


def entry_samples(store: AnnotationStore, plan: Plan, record: Record) -> Iterator[Sample]:
    """The sample of every entry that was asked anything."""
    answers, every_pair = _answers(store, plan)
    for entry in plan.entries:
        pairs = every_pair[every_pair["entry"] == entry.name]
        if not can_miss(entry):
            pairs = pairs[pairs["shown"] > 0]
        if len(pairs):
            sample = draw_sample(pairs, plan.audit.per_label, plan.audit.seed)
            known = record.get(entry.name, {})
            yield Sample(entry, sample, dict(_items(entry, sample, answers, known)))


@remembered
def _answers(store: AnnotationStore, plan: Plan) -> tuple[pa.Table, pd.DataFrame]:
    """What models answered, and what they were asked, see `_pairs`."""
    view = current_view(plan)
    answers = answered_annotations(store, view)
    return answers, _pairs(store, view, answers)


def _pairs(store: AnnotationStore, view: View, answers: pa.Table) -> pd.DataFrame:
    """One row each image and label that an entry was asked for: ``entry, label, image_id, path,
    is_answered, shown, score``. A label may have been asked for several classes."""
    key = ["entry", "label", "image_id"]
    outcomes = current_outcomes(store, view.model_keys)
    outcomes = outcomes[outcomes["state"] != State.UNSUPPORTED]
    asked = (
        outcomes.assign(is_answered=outcomes["state"].isin(ANSWERED))
        .groupby(key, sort=False)
        .agg(path=("path", "first"), is_answered=("is_answered", "all"))
    )
    found = answers.select([*key, "annotation_id", "score"]).to_pandas()
    found = found.drop_duplicates("annotation_id").groupby(key)
    asked["shown"] = found.size()
    asked["score"] = found["score"].min()
    return asked.fillna({"shown": 0}).astype({"shown": int}).reset_index()


def _items(
    entry: Entry,
    sample: pd.DataFrame,
    answers: pa.Table,
    known: Mapping[str, tuple[str, str, float]],
) -> Iterator[tuple[str, Item]]:
    """Name -> item, of the pairs that are drawn, and of those that once were."""
    wanted = {(image_id, label) for image_id, label, _ in known.values()}
    keys = zip(sample["image_id"], sample["label"], strict=True)
    rows = sample[np.array([key in wanted for key in keys]) | sample["is_drawn"]]
    contents = _contents(entry, answers, rows["image_id"])
    for row in rows.itertuples():
        pair = (row.image_id, row.label)
        shown = contents.get(pair, ())
        name = _name(entry, pair, shown)
        _, _, share = known.get(name, (*pair, 0.0))
        yield (
            name,
            Item(
                name=name,
                pair=pair,
                path=row.path,
                stratum=row.stratum,
                # Drawn by either of two samples with the same random numbers.
                share=max(share, row.share),
                place=row.place,
                is_drawn=row.is_drawn,
                shown=shown,
            ),
        )


def _contents(
    entry: Entry, answers: pa.Table, image_ids: Iterable[str]
) -> dict[Pair, tuple[Annotation, ...]]:
    """What is shown of some images, from top to bottom, without scores."""
    is_wanted = pc.and_(
        pc.equal(answers["entry"], entry.name),
        pc.is_in(answers["image_id"], pa.array(sorted(set(image_ids)), pa.string())),
    )
    found: dict[Pair, list[Annotation]] = {}
    rows = answers.filter(is_wanted).to_pandas().drop_duplicates("annotation_id")
    for row in rows.itertuples():
        found.setdefault((row.image_id, row.label), []).append(_without_scores(annotation_of(row)))
    return {pair: tuple(sorted(shown, key=_from_the_top)) for pair, shown in found.items()}


def _without_scores(annotation: Annotation) -> Annotation:
    """Scores would sway a reviewer."""
    points = tuple(replace(point, score=None) for point in annotation.keypoints)
    return replace(annotation, score=None, keypoints=points)


def _from_the_top(annotation: Annotation) -> tuple[float, float, str]:
    x, y = annotation.point or (annotation.bbox or (0.0, 0.0))[:2]
    return y, x, _shape(annotation)


def _shape(annotation: Annotation) -> str:
    """All that a picture shows of it, to a hundredth of a pixel."""

    def rounded(*numbers: float | None) -> list[float | None]:
        return [None if number is None else round(number, 2) for number in numbers]

    parts = [
        rounded(*annotation.bbox) if annotation.bbox else None,
        rounded(*annotation.point) if annotation.point else None,
        [rounded(*corner) for corner in annotation.polygon],
        [[point.name, *rounded(point.x_px, point.y_px)] for point in annotation.keypoints],
        annotation.text,
    ]
    return json.dumps(parts)


def _name(entry: Entry, pair: Pair, shown: Sequence[Annotation]) -> str:
    """Of a row. It begins with a letter, for spreadsheet programs."""
    identity = json.dumps([entry.name, *pair, *map(_shape, shown)])
    return f"r{hashlib.sha256(identity.encode()).hexdigest()[:11]}"


def draw_missing(
    folder: Path, samples: Sequence[Sample], source: ImageSource, progress: Progress
) -> None:
    missing = [
        (sample.entry, item)
        for sample in samples
        for item in sample.items.values()
        if item.is_drawn and not (folder / picture_of(item.name)).is_file()
    ]

    def draw(one: tuple[Entry, Item]) -> None:
        entry, item = one
        write_jpeg(folder / picture_of(item.name), _drawn(entry, item, source))

    # Half of the time is spent where Python holds no lock: reading, scaling and writing JPEGs.
    with ThreadPoolExecutor(os.cpu_count()) as painters:
        for done, _ in enumerate(painters.map(draw, missing), 1):
            progress(done, len(missing))


def _drawn(entry: Entry, item: Item, source: ImageSource) -> np.ndarray:
    """The picture of an item: what is shown bears numbers, texts stand below with theirs."""
    image = decode(source.read(item.path), _LARGE_ENOUGH_PX)
    factor = image.pixels.shape[1] / image.width_px
    shown: list[Annotation] = []
    for number, one in enumerate(item.shown, 1):
        placed = replace(one.scaled(factor), label=str(number), text=None)
        shown += [placed] if one.bbox or one.point else []
        if one.text is not None:
            shown.append(Annotation("text", text=f"{number}  {one.text}"))
    title = f"{item.name}  {item.pair[1]}  {Path(item.path).name}"
    numbers = [str(number) for number in range(1, len(item.shown) + 1)]
    return draw_annotations(image.pixels, shown, title=title, colors=label_colors(numbers))


def picture_of(name: str) -> str:
    """The path of an item's picture in the folder of the audit."""
    return f"pictures/{name}.jpg"
