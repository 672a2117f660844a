"""Bring the store up to date with the files: which there are, and which are good enough.

Both steps do only what is due. A file with the size and time it had keeps its row and is not
read; an image whose content was measured once is never decoded again, wherever its file lies and
whatever the rules say later. Everything is computed before the store is opened for writing.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.images.cleaning import (
    ACCEPTED,
    NEAR_DUPLICATE,
    REJECTED,
    CleaningRules,
    ImageRecord,
    inspect_image,
    judge,
    near_duplicates,
)
from labeling_pipeline.images.sources import FoundFile, scan
from labeling_pipeline.plan import class_slug
from labeling_pipeline.store.annotation_store import AnnotationStore

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""

UNREADABLE = "unreadable"

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class FileNote(NamedTuple):
    """What became of a file that is not accepted."""

    path: str
    status: str  # skipped, rejected
    reason: str
    detail: str | None


@dataclass(frozen=True)
class FileReport:
    """How the files stand, as the view ``files`` tells."""

    statuses: dict[str, int]  # accepted, new, rejected, skipped -> files
    reasons: dict[str, int]  # reason -> files
    not_accepted: tuple[FileNote, ...]  # sorted by path; without the new ones

    @property
    def total(self) -> int:
        """Number of files."""
        return sum(self.statuses.values())


@dataclass(frozen=True)
class InventorySummary:
    """What `update_inventory` found. Classes are slugs."""

    files: FileReport
    added: int
    changed: int
    removed: int
    read: int  # files whose bytes were read and hashed
    classes_added: tuple[str, ...]
    classes_retired: tuple[str, ...]
    classes_returned: tuple[str, ...]  # had been retired
    classes_affected: tuple[str, ...]  # have files that were added or changed


@dataclass(frozen=True)
class CleaningSummary:
    """What `clean` found."""

    files: FileReport
    images: int  # distinct contents that files of the dataset have
    decoded: int
    judged_anew: int  # known images whose verdict or cluster changed
    unread: int  # images whose files vanished or changed since the inventory; they stay new


@dataclass(frozen=True)
class _FileRow:
    """A row of ``dataset_files``."""

    path: str
    # ``class`` in the table; a keyword here.
    class_slug: str | None
    image_id: str | None
    size_bytes: int
    mtime_ns: int
    skipped_reason: str | None

    def as_row(self) -> dict[str, object]:
        row = asdict(self)
        row["class"] = row.pop("class_slug")
        return row


def update_inventory(
    store: AnnotationStore,
    root: Path,
    plan_classes: Sequence[str] = (),
    progress: Progress | None = None,
    in_use: Collection[str] = (),
) -> InventorySummary:
    """Bring the tables ``dataset_files`` and ``classes`` up to date with the image root.

    Args:
        store: where the tables are.
        root: the image root.
        plan_classes: display names of the classes that the plan names. With any, a file that
            lies in no sub-folder belongs to no class of its own; without, to the class that is
            named like the root.
        progress: told of every file that is read.
        in_use: slugs of classes that are not to be retired yet.

    Raises:
        ConfigurationError: the root cannot be walked, or two class names share one slug.
        StoreBusyError: the store is held by another process.
    """
    found = scan(root)
    root_class = None if plan_classes else _folder_name(root)
    names = _class_names(found, plan_classes, root_class)
    known = {row.path: row for row in _stored_files(store)}

    def class_of(file: FoundFile) -> str | None:
        name = file.class_name or (root_class if file.skipped_reason is None else None)
        return class_slug(name) if name else None

    rows = [
        _FileRow(f.path, class_of(f), None, f.size_bytes, f.mtime_ns, f.skipped_reason)
        for f in found
    ]
    rows = [_with_known_content(row, known.get(row.path)) for row in rows]
    to_read = [row for row in rows if row.skipped_reason is None and row.image_id is None]
    hashes = _parallel(lambda row: _hash_file(root / row.path), to_read, progress)
    read = {row.path: image_id for row, image_id in zip(to_read, hashes, strict=True)}
    rows = [_with_content(row, read[row.path]) if row.path in read else row for row in rows]

    changed = [row for row in rows if known.get(row.path) != row]
    removed = sorted(known.keys() - {row.path for row in rows})
    stored_classes = {
        row["class"]: bool(row["retired"])
        for row in store.query("SELECT class, retired FROM classes").to_pylist()
    }
    added_classes = [slug for slug in names if slug not in stored_classes]
    retired = sorted(
        slug
        for slug, gone in stored_classes.items()
        if not gone and slug not in names and slug not in in_use
    )
    returned = sorted(s for s, gone in stored_classes.items() if gone and s in names)

    if changed or removed or added_classes or retired or returned:
        with store.transaction() as tx:
            tx.insert("dataset_files", [row.as_row() for row in changed], replace=True)
            tx.execute("DELETE FROM dataset_files WHERE path IN (SELECT unnest(?))", [removed])
            new_classes = [{"class": slug, "display_name": names[slug]} for slug in added_classes]
            tx.insert("classes", new_classes)
            for slugs, value in ((retired, True), (returned, False)):
                tx.execute(
                    "UPDATE classes SET retired = ? WHERE class IN (SELECT unnest(?))",
                    [value, slugs],
                )
    added = sum(row.path not in known for row in changed)
    return InventorySummary(
        files=report_files(store),
        added=added,
        changed=len(changed) - added,
        removed=len(removed),
        read=len(to_read),
        classes_added=tuple(added_classes),
        classes_retired=tuple(retired),
        classes_returned=tuple(returned),
        classes_affected=tuple(sorted({row.class_slug for row in changed if row.class_slug})),
    )


def clean(
    store: AnnotationStore,
    root: Path,
    rules: CleaningRules,
    progress: Progress | None = None,
) -> CleaningSummary:
    """Measure the images that are new, and judge all that the dataset has.

    Exact duplicates are one image with several files; the view ``files`` tells them apart.
    Images without a file stay as they were judged last, and stand in nobody's way.

    Args:
        store: its ``dataset_files`` say which images there are.
        root: the image root.
        rules: thresholds; changed ones judge anew without decoding.
        progress: told of every image that is decoded.

    Raises:
        StoreBusyError: the store is held by another process.
    """
    paths: dict[str, list[str]] = {}
    for row in _stored_files(store):
        if row.skipped_reason is None and row.image_id is not None:
            paths.setdefault(row.image_id, []).append(row.path)
    known = {record.image_id: record for record in _stored_images(store)}

    to_decode = [(image_id, where) for image_id, where in paths.items() if image_id not in known]
    inspected = _parallel(lambda item: _inspect_first(root, *item), to_decode, progress)
    new = {record.image_id: record for record in inspected if record is not None}

    present = [
        new.get(image_id) or known[image_id]
        for image_id in paths
        if image_id in new or image_id in known
    ]
    verdicts = _judge_all(present, rules, {image_id: where[0] for image_id, where in paths.items()})
    changed = [v for v in verdicts if v.image_id in known and v != known[v.image_id]]

    if new or changed:
        with store.transaction() as tx:
            measured = [asdict(verdict) for verdict in verdicts if verdict.image_id in new]
            # Another process may have measured the same images in between.
            tx.insert("images", measured, replace=True)
            numbers = {
                row["image_id"]: row["image_number"]
                for row in tx.query("SELECT image_id, image_number FROM images").to_pylist()
            }
            # With its number, an update draws none from the sequence.
            tx.insert(
                "images",
                [{**asdict(v), "image_number": numbers[v.image_id]} for v in changed],
                replace=True,
            )
    return CleaningSummary(
        files=report_files(store),
        images=len(paths),
        decoded=len(new),
        judged_anew=len(changed),
        unread=len(to_decode) - len(new),
    )


def report_files(store: AnnotationStore) -> FileReport:
    """How the files stand now."""
    counted = store.query(
        "SELECT status, reason, count(*) AS files FROM files GROUP BY ALL ORDER BY ALL"
    ).to_pylist()
    listed = store.query(
        "SELECT path, status, reason, detail FROM files "
        "WHERE status IN ('skipped', 'rejected') ORDER BY path"
    ).to_pylist()
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row in counted:
        statuses[row["status"]] += row["files"]
        if row["reason"] is not None:
            reasons[row["reason"]] += row["files"]
    return FileReport(dict(statuses), dict(reasons), tuple(FileNote(**row) for row in listed))


# Files and classes ------------------------------------------------------------------------------


def _stored_files(store: AnnotationStore) -> Iterator[_FileRow]:
    columns = "path, class, image_id, size_bytes, mtime_ns, skipped_reason"
    table = store.query(f"SELECT {columns} FROM dataset_files ORDER BY path")
    return (_FileRow(*row.values()) for row in table.to_pylist())


def _folder_name(root: Path) -> str:
    return unicodedata.normalize("NFC", root.resolve().name) or "images"


def _class_names(
    found: Iterable[FoundFile], plan_classes: Sequence[str], root_class: str | None
) -> dict[str, str]:
    """Slug -> display name of all classes: the plan's first, then folders by name."""
    counted = [file for file in found if file.skipped_reason is None]
    folders = {file.class_name for file in counted if file.class_name is not None}
    if root_class is not None and any(file.class_name is None for file in counted):
        folders.add(root_class)
    names: dict[str, str] = {}
    for name in [unicodedata.normalize("NFC", n) for n in plan_classes] + sorted(folders):
        other = names.setdefault(class_slug(name), name)
        if other != name:
            raise ConfigurationError(
                f"the classes {other!r} and {name!r} have the same key {class_slug(name)!r}; "
                "rename one of the folders"
            )
    return names


def _with_known_content(row: _FileRow, stored: _FileRow | None) -> _FileRow:
    """The row with the stored image_id, if the file is as it was."""
    if stored is None or stored.skipped_reason is not None or row.skipped_reason is not None:
        return row
    if (stored.size_bytes, stored.mtime_ns) != (row.size_bytes, row.mtime_ns):
        return row
    return replace(row, image_id=stored.image_id)


def _with_content(row: _FileRow, image_id: str | None) -> _FileRow:
    # Not being readable may pass without a trace in size or time, so it is tried again each time.
    return replace(row, image_id=image_id, skipped_reason=UNREADABLE if image_id is None else None)


def _hash_file(path: Path) -> str | None:
    """SHA-256 of a file, as `content_hash` of its bytes; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


# Images -----------------------------------------------------------------------------------------


def _stored_images(store: AnnotationStore) -> Iterator[ImageRecord]:
    columns = ", ".join(field.name for field in fields(ImageRecord))
    table = store.query(f"SELECT {columns} FROM images")
    return (ImageRecord(**row) for row in table.to_pylist())


def _inspect_first(root: Path, image_id: str, paths: Sequence[str]) -> ImageRecord | None:
    """Measure an image from the first of its files that still has its content."""
    for path in paths:
        try:
            record = inspect_image((root / path).read_bytes())
        except OSError:
            continue
        if record.image_id == image_id:
            return record
    return None


def _judge_all(
    records: Sequence[ImageRecord], rules: CleaningRules, path_of: dict[str, str]
) -> list[ImageRecord]:
    """The records with their status, reason, detail and cluster under the rules."""
    verdicts: dict[str, ImageRecord] = {}
    good: list[ImageRecord] = []
    for record in records:
        problem = judge(record, rules)
        if problem is None:
            good.append(record)
        else:
            verdicts[record.image_id] = _verdict(record, None, REJECTED, *problem)
    stands_for = near_duplicates(good, rules) if rules.reject_near_duplicates else range(len(good))
    for record, index in zip(good, stands_for, strict=True):
        kept = good[index].image_id
        if kept == record.image_id:
            verdicts[record.image_id] = _verdict(record, kept, ACCEPTED)
        else:
            detail = f"looks like {path_of[kept]}, which is kept"
            verdicts[record.image_id] = _verdict(record, kept, REJECTED, NEAR_DUPLICATE, detail)
    return [verdicts[record.image_id] for record in records]


def _verdict(
    record: ImageRecord,
    cluster: str | None,
    status: str,
    reason: str | None = None,
    detail: str | None = None,
) -> ImageRecord:
    return replace(record, cluster=cluster, status=status, reason=reason, detail=detail)


def _parallel(
    work: Callable[[_Item], _Result], items: Sequence[_Item], progress: Progress | None
) -> list[_Result]:
    """Results in the order of the items. Threads suffice: hashing and decoding free the GIL."""
    results: list[_Result] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(work, items):
            results.append(result)
            if progress is not None:
                progress(len(results), len(items))
    return results
