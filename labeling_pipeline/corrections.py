"""What people changed, between JSON files and the store.

A file is read in the light of what holds: what it corrects is looked up in the current view, and
what it says is checked against the plan and the image. All of it is imported, or nothing.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from labeling_pipeline.asks import EntryAsks, class_names, current_view
from labeling_pipeline.errors import CorrectionsError
from labeling_pipeline.export.corrections_json import (
    EDGES,
    Corner,
    Item,
    Values,
    bbox_of,
    keypoint,
    listed,
    read_items,
    row_of,
    to_json,
    xy,
)
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.corrections import (
    SAME_THING,
    SHAPE,
    Correction,
    Kind,
    Row,
    apply_corrections,
    bounds,
    likeness,
    place,
)
from labeling_pipeline.store.ledger import answered_annotations, stored_corrections
from labeling_pipeline.tasks import RULES, Geometry

_NEIGHBOURS_TOLD = 3
_TICK = timedelta(microseconds=1)

_FIELDS: dict[Geometry, tuple[str, ...]] = {
    Geometry.BOX: ("bbox",),
    Geometry.POINT: ("point",),
    Geometry.POLYGON: ("polygon",),
    Geometry.KEYPOINTS: ("bbox", "keypoints"),
    Geometry.NONE: (),
}
"""What a person can say of the place of a thing."""


@dataclass(frozen=True)
class ImportSummary:
    """What an import came to.

    added: kind -> corrections. known: those that the store had, or the file says twice.
    classes: display names of the classes whose images were corrected, sorted.
    notes: what else the corrections did to the current view.
    """

    added: Counter[Kind] = field(default_factory=Counter)
    known: int = 0
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def import_corrections(
    store: AnnotationStore,
    plan: Plan,
    path: Path,
    source: ImageSource,
    *,
    author: str | None = None,
) -> ImportSummary:
    """Read corrections from a file into the store: all of them, or none if anything is wrong.

    What the store has already is left alone, so a file can be imported twice.

    author: of corrections that name none.

    Raises:
        CorrectionsError: names the file, the positions, what was expected and what came.
        ConfigurationError: the plan asks for a model that does not exist.
        StoreError: the store cannot be read or written.
    """
    items = read_items(path)
    reader = _Reader(store, plan, items, source, author)
    problems: list[str] = []
    for number, item in enumerate(items):
        try:
            reader.read(item)
        except _Wrong as wrong:
            problems += [f"{path}: corrections[{number}]{problem}" for problem in wrong.problems]
    if problems:
        raise CorrectionsError(listed(problems))
    if reader.added:
        with store.transaction() as tx:
            tx.insert("corrections", [one.row() for one in reader.added], skip_existing=True)
    return ImportSummary(
        Counter(one.kind for one in reader.added),
        reader.known,
        reader.touched_classes(),
        tuple(reader.notes),
    )


def export_corrections(store: AnnotationStore) -> tuple[str, int]:
    """All corrections as JSON, which restores them in any home of these images; and how many.

    Raises:
        StoreError: the store cannot be read.
    """
    paths = store.query(
        "SELECT image_id, min(path) AS path FROM dataset_files SEMI JOIN corrections "
        "USING (image_id) GROUP BY image_id"
    ).to_pylist()
    corrections = stored_corrections(store)
    path_of = {row["image_id"]: row["path"] for row in paths}
    return to_json(corrections, path_of), len(corrections)


class _Wrong(Exception):
    """Why a correction cannot be imported; each problem begins with the field, as ``.values``."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems


def _expect(holds: object, expected: str, got: object) -> None:
    if not holds:
        raise _Wrong(f"{expected}, got {got}")


@dataclass
class _Image:
    """classes: slugs of the folders that hold it; ``None`` for the image root itself."""

    image_id: str
    path: str
    size_px: tuple[int, int]
    classes: set[str | None] = field(default_factory=set)


class _Reader:
    """Turns the items of one file, one after the other, into corrections.

    added: those that are new. known: how many were not. notes: as in ``ImportSummary``.
    """

    def __init__(
        self,
        store: AnnotationStore,
        plan: Plan,
        items: Sequence[Item],
        source: ImageSource,
        author: str | None,
    ) -> None:
        self.added: list[Correction] = []
        self.known = 0
        self.notes: list[str] = []
        self._store = store
        self._plan = plan
        self._root = source.locate("_").removesuffix("_")
        self._author = author
        self._now = datetime.now(UTC).replace(tzinfo=None)
        self._names = class_names(store)
        self._images = self._find_images(items)
        self._asks: dict[str, EntryAsks] = {}
        self._answered: dict[tuple[str, str], dict[str, Row]] = {}
        found = sorted({image.image_id for image in self._images.values()})
        for row in answered_annotations(store, current_view(plan), image_ids=found).to_pylist():
            own = self._answered.setdefault((row["image_id"], row["entry"]), {})
            own[row["annotation_id"]] = row
        self._items: dict[str, Item] = {}
        self._corrections: dict[str, Correction] = {}
        self._edits: dict[tuple[str, str], list[Correction]] = {}
        for one in stored_corrections(store):
            self._keep(one)
        self._times = {one.created_at for one in self._corrections.values()}

    def read(self, item: Item) -> None:
        """Raises _Wrong if that cannot be."""
        image = self._image(item)
        correction_id = item.id or _content_hash(item, image.image_id)
        if self._is_known(item, correction_id, image):
            self.known += 1
            return
        entry = self._entry(item)
        labels = self._labels(entry, image)
        if item.label not in labels:
            raise _Wrong(f".label: expected {_one_of(labels)}, got {item.label!r}")
        author = item.author or self._author
        if author is None:
            raise _Wrong(".author: expected a name here, or one for the whole file, got none")
        before = self._view(image, item)
        target = self._target(item, image, before)
        correction = Correction(
            correction_id=correction_id,
            image_id=image.image_id,
            entry=entry.name,
            label=item.label,
            kind=item.kind,
            annotation_id=target["annotation_id"] if target else None,
            target=_remembered(target) if target else None,
            values=_shape(item, item.values, target, entry, image, labels) if item.values else None,
            author=author,
            created_at=self._time(item, image, target),
        )
        self._items[correction_id] = item
        self._times.add(correction.created_at)
        self._keep(correction)
        self.added.append(correction)
        if item.id is None:
            self._note(correction, image, before, self._view(image, item))

    def touched_classes(self) -> tuple[str, ...]:
        """Display names of the classes of the corrected images, sorted."""
        corrected = {one.image_id for one in self.added}
        slugs = {
            slug
            for image in self._images.values()
            if image.image_id in corrected
            for slug in self._slugs(image)
        }
        return tuple(sorted(self._names[slug] for slug in slugs))

    def _find_images(self, items: Sequence[Item]) -> dict[str, _Image]:
        """The images that are named, by each of their paths and by their id."""
        rows = self._store.query(
            """
            WITH named AS (SELECT unnest($1::VARCHAR[]))
            SELECT f.path, f.class, f.image_id, i.width_px, i.height_px
            FROM dataset_files f JOIN images i USING (image_id)
            WHERE i.width_px IS NOT NULL AND f.image_id IN (
                SELECT image_id FROM dataset_files
                WHERE path IN (FROM named) OR image_id IN (FROM named)
            )
            ORDER BY f.path
            """,
            (sorted({self._name(item) for item in items}),),
        ).to_pylist()
        images: dict[str, _Image] = {}
        for row in rows:
            fresh = _Image(row["image_id"], row["path"], (row["width_px"], row["height_px"]))
            image = images.setdefault(row["image_id"], fresh)
            image.classes.add(row["class"])
            images[row["path"]] = image
        return images

    def _name(self, item: Item) -> str:
        """Image id, or path as the store knows it."""
        return item.image_id or item.image.removeprefix(self._root)

    def _image(self, item: Item) -> _Image:
        name = self._name(item)
        if name in self._images:
            return self._images[name]
        near = self._store.query(
            "SELECT path FROM dataset_files JOIN images USING (image_id) "
            "WHERE width_px IS NOT NULL ORDER BY jaro_winkler_similarity(path, $1) DESC, path "
            f"LIMIT {_NEIGHBOURS_TOLD}",
            (item.image.removeprefix(self._root),),
        )["path"].to_pylist()
        raise _Wrong(
            f".image: expected an image of this dataset, by path or id, got {name!r}; the nearest "
            f"are {_joined(near)}; a new one counts once clean_images has seen it"
        )

    def _is_known(self, item: Item, correction_id: str, image: _Image) -> bool:
        """Whether it is in the store, or was read from this file already."""
        known = self._corrections.get(correction_id)
        if known is None or item.id is None:
            return known is not None
        said = (item.kind, image.image_id, item.entry, item.label)
        if (known.kind, known.image_id, known.entry, known.label) != said or (
            self._items.get(correction_id, item) != item
        ):
            raise _Wrong(f".id: expected one of its own, got {item.id!r}, which is another's")
        return True

    def _entry(self, item: Item) -> Entry:
        names = [entry.name for entry in self._plan.entries]
        if item.entry not in names:
            raise _Wrong(f".entry: expected {_one_of(names)}, got {item.entry!r}")
        return self._plan.entry(item.entry)

    def _slugs(self, image: _Image) -> list[str]:
        """The classes of an image; one that lies in no folder is of all."""
        return [slug for slug in self._names if None in image.classes or slug in image.classes]

    def _labels(self, entry: Entry, image: _Image) -> list[str]:
        """What the entry asks of the image: the labels of its classes and of their groups."""
        asks = self._asks.get(entry.name)
        if asks is None:
            asks = self._asks[entry.name] = EntryAsks(self._store, self._plan, entry)
        labels: dict[str, None] = {}
        for slug in self._slugs(image):
            if slug in asks.classes:
                group = asks.requests.group_of(slug)
                labels[entry.label_for(self._names[slug])] = None
                labels.update(dict.fromkeys(group.classes.values() if group else ()))
        if not labels:
            names = [self._names[slug] for slug in self._slugs(image)]
            fitting = [e.name for e in self._plan.entries if any(map(e.covers, names))]
            raise _Wrong(
                f".entry: expected {_one_of(fitting)}, for {image.path} is labeled by no other, "
                f"got {entry.name!r}"
            )
        return list(labels)

    def _view(self, image: _Image, item: Item) -> list[Row]:
        """What holds of an image, with what was read of the file so far."""
        key = (image.image_id, item.entry)
        answered = list(self._answered.get(key, {}).values())
        return apply_corrections(answered, self._edits.get(key, ()), image.size_px)

    def _keep(self, correction: Correction) -> None:
        self._corrections[correction.correction_id] = correction
        edits = self._edits.setdefault((correction.image_id, correction.entry), [])
        edits.append(correction)
        edits.sort(key=lambda one: (one.created_at, one.correction_id))

    def _target(self, item: Item, image: _Image, view: Sequence[Row]) -> Row | None:
        """What is corrected: given in full, or found in the current view."""
        if item.kind is Kind.ADD:
            return None
        if item.target is not None:
            if item.target.label != item.label:
                raise _Wrong(
                    f".target.label: expected the label that is corrected, {item.label!r}, "
                    f"got {item.target.label!r}"
                )
            origin = item.target.model_dump(include={"generation_id", "parser_version", "score"})
            return row_of(item.target) | origin | {"annotation_id": item.annotation_id}
        here = [row for row in view if row["label"] == item.label]
        named = row_of(Values(bbox=item.bbox, point=item.point))
        if item.annotation_id:
            field_, got = "annotation_id", repr(item.annotation_id)
            found = [row for row in here if row["annotation_id"] == item.annotation_id]
        elif item.bbox or item.point:
            field_, got = ("bbox" if item.bbox else "point"), str(list(item.bbox or item.point))  # type: ignore[arg-type]
            alike = [(likeness(row, named, image.size_px), row) for row in here]
            best = max(alike, key=lambda pair: pair[0], default=(0.0, {}))
            found = [best[1]] if best[0] >= SAME_THING else []
        else:
            field_, got = "bbox", "none"
            found = [row for row in here if not place(row) and not row["point"]]
        if len(found) == 1:
            return found[0]
        there = _nearest_first(view, item.label, named, image)[:_NEIGHBOURS_TOLD]
        raise _Wrong(
            f".{field_}: expected that of a {item.label} on {image.path}, got {got}; there is "
            + ("; ".join(map(_described, there)) or "nothing")
        )

    def _time(self, item: Item, image: _Image, target: Row | None) -> datetime:
        """When it was made. No two corrections bear one time, so that their order is certain."""
        if item.created_at is None:
            self._now += _TICK
            earlier = self._edits.get((image.image_id, item.entry))
            at = max(self._now, earlier[-1].created_at + _TICK) if earlier else self._now
        else:
            at = item.created_at.replace(tzinfo=None)
        while at in self._times:
            at += _TICK
        edited = self._corrections.get(target["annotation_id"]) if target else None
        if edited is not None and edited.created_at >= at:
            raise _Wrong(
                f".created_at: expected a time after {edited.created_at}, when what it corrects "
                f"was made, got {at}"
            )
        return at

    def _note(
        self, correction: Correction, image: _Image, before: Sequence[Row], after: Sequence[Row]
    ) -> None:
        """Remember what a person may not have meant."""
        left = {row["annotation_id"] for row in after}
        for row in before:
            if row["annotation_id"] == correction.annotation_id:
                continue
            if row["annotation_id"] not in left:
                self.notes.append(f"{image.path}: gave way, as the same thing: {_described(row)}")
            elif (
                row["corrected_by"]
                and correction.values
                and row["label"] == correction.values["label"]
                and likeness(row, correction.values, image.size_px) >= SAME_THING
            ):
                self.notes.append(f"{image.path}: stood there already: {_described(row)}")


def _content_hash(item: Item, image_id: str) -> str:
    """Id of a correction that has none: of what it says, whoever says it."""
    without = {"image", "image_id", "author", "id"}
    said = item.model_dump(mode="json", exclude_unset=True, exclude=without)
    identity = json.dumps([image_id, said], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:24]


def _remembered(target: Row) -> Row:
    """What is kept of a corrected annotation."""
    keypoints = target["keypoints"]
    score = target["score"]
    return {name: target[name] for name in SHAPE} | {
        "keypoints": [point | {"score": None} for point in keypoints] if keypoints else None,
        "generation_id": target["generation_id"],
        "parser_version": target["parser_version"],
        "score": None if score is None or math.isnan(score) else score,
    }


def _shape(
    item: Item,
    values: Values,
    target: Row | None,
    entry: Entry,
    image: _Image,
    labels: Sequence[str],
) -> Row:
    """What a person says, complete: what they say nothing of is as it was.

    Raises _Wrong with everything that cannot be.
    """
    rule = RULES[entry.task]
    # What a step finds in a region without a place of its own stands in that region.
    in_region = rule.geometry is Geometry.NONE and entry.regions
    fields = [*_FIELDS[rule.geometry], *(["bbox"] if in_region else [])]
    fields += ["text"] if rule.reads_text or entry.describes else []
    names = entry.skeleton.keypoints if entry.skeleton else ()
    label = values.label or item.label
    problems = [
        f".values.{name}: expected {_joined(['label', *fields])} only, for {entry.name} yields "
        f"{rule.geometry}, got a value"
        for name in values.given()
        if name not in ("label", *fields)
    ]
    if label not in labels:
        problems.append(f".values.label: expected {_one_of(labels)}, got {label!r}")
    if names and (unknown := [name for name in values.keypoints or () if name not in names]):
        problems.append(f".values.keypoints: expected {_one_of(names)}, got {_joined(unknown)}")
    before = target or dict.fromkeys(SHAPE)
    said = row_of(values)
    shape = {name: before[name] if said[name] is None else said[name] for name in SHAPE}
    shape["label"] = label
    if names and (target is None or values.keypoints or before["keypoints"]):
        placed = {point["name"]: point for point in before["keypoints"] or ()}
        placed |= {point["name"]: point for point in said["keypoints"] or ()}
        points = (placed.get(name) or keypoint(name, None) for name in names)
        shape["keypoints"] = [point | {"score": None} for point in points]
    if values.polygon and said["polygon"] != before["polygon"]:
        shape |= dict(zip(EDGES, bounds(values.polygon), strict=True))
    there = {**shape, "bbox": bbox_of(shape)}
    problems += [
        f".values.{name}: expected a value here, got none"
        for name in fields
        if name != "keypoints" and not there[name]
    ]
    problems += _misplaced(shape, before, image)
    if problems:
        raise _Wrong(*problems)
    return shape


def _misplaced(shape: Row, before: Row, image: _Image) -> Iterator[str]:
    """What of the geometry cannot be. What a person left as it was is taken as it came."""
    width, height = image.size_px

    def outside(points: Iterable[Corner]) -> list[Corner]:
        return [(x, y) for x, y in points if not (0 <= x <= width and 0 <= y <= height)]

    def expected(what: str, got: object) -> str:
        return f".values.{what}: expected a place inside the image, {width} x {height} px, {got}"

    box, corners = bbox_of(shape), [xy(corner) for corner in shape["polygon"] or ()]
    if corners and shape["polygon"] != before["polygon"] and outside(corners):
        yield expected("polygon", f"got {list(outside(corners)[0])}")
    if box and not corners and box != bbox_of(before):
        if not (box[0] < box[2] and box[1] < box[3]):
            yield f".values.bbox: expected [x0, y0, x1, y1], x0 < x1 and y0 < y1, got {list(box)}"
        if outside([box[:2], box[2:]]):
            yield expected("bbox", f"got {list(box)}")
    if shape["point"] and shape["point"] != before["point"] and outside([xy(shape["point"])]):
        yield expected("point", f"got {list(xy(shape['point']))}")
    was = {point["name"]: xy(point) for point in before["keypoints"] or ()}
    for point in shape["keypoints"] or ():
        at = xy(point)
        if at[0] is not None and at != was.get(point["name"]) and outside([at]):
            yield expected("keypoints", f"got {list(at)} for {point['name']}")


def _nearest_first(view: Sequence[Row], label: str, named: Row, image: _Image) -> list[Row]:
    """What stands on an image, from what is named outwards; of its own label before others."""

    def distance(row: Row) -> tuple[bool, float]:
        return row["label"] != label, math.dist(_centre(named, image), _centre(row, image))

    return sorted(view, key=distance)


def _centre(row: Row, image: _Image) -> Corner:
    if row["point"]:
        return xy(row["point"])
    x0, y0, x1, y1 = place(row) or (0, 0, *image.size_px)
    return (x0 + x1) / 2, (y0 + y1) / 2


def _described(row: Row) -> str:
    """One annotation, in the words of a file."""
    numbers = xy(row["point"]) if row["point"] else place(row) or ()
    parts = [
        row["label"],
        str([round(number, 2) for number in numbers]) if numbers else "",
        repr(row["text"][:40]) if row["text"] else "",
        f"({row['annotation_id']})",
    ]
    return " ".join(part for part in parts if part)


def _one_of(names: Iterable[str]) -> str:
    return f"one of {_joined(names)}"


def _joined(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
