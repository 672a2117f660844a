"""Measure the images that are new, and judge all that the dataset has.

An image whose content was measured once is never decoded again, wherever its file lies and
whatever the rules say later. Everything is computed before the store is opened for writing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from typing import TypeVar

from labeling_pipeline.errors import ImageError
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
from labeling_pipeline.images.sources import ImageSource, Stamp
from labeling_pipeline.inventory import FileReport, report_files
from labeling_pipeline.store.annotation_store import AnnotationStore

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class CleaningSummary:
    """What `clean` found."""

    files: FileReport
    images: int  # distinct contents that files of the dataset have
    decoded: int
    judged_anew: int  # known images whose verdict or cluster changed
    unread: int  # files that vanished or changed since the inventory; they stay new


def clean(
    store: AnnotationStore,
    source: ImageSource,
    rules: CleaningRules,
    progress: Progress | None = None,
) -> CleaningSummary:
    """Measure the files that are new, and judge all images that the dataset has.

    Raises:
        SourceError: the storage could not be reached.
        StoreBusyError: the store is held by another process.
    """
    due = store.query(
        "SELECT path, size_bytes, mtime_ns, etag FROM dataset_files "
        "WHERE image_id IS NULL AND skipped_reason IS NULL ORDER BY path"
    ).to_pylist()
    inspected = _parallel(lambda row: _inspect(source, row), due, progress)
    read = [(row, one) for row, one in zip(due, inspected, strict=True) if one is not None]
    if read:
        with store.transaction() as tx:
            for row, record in read:
                tx.execute(
                    "UPDATE dataset_files SET image_id = ? WHERE path = ?",
                    [record.image_id, row["path"]],
                )
    paths: dict[str, list[str]] = {}
    for row in store.query(
        "SELECT path, image_id FROM dataset_files WHERE image_id IS NOT NULL ORDER BY path"
    ).to_pylist():
        paths.setdefault(row["image_id"], []).append(row["path"])
    known = {record.image_id: record for record in _stored_images(store)}
    new = {one.image_id: one for _, one in read if one.image_id not in known}

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
        unread=len(due) - len(read),
    )


def _stored_images(store: AnnotationStore) -> Iterator[ImageRecord]:
    columns = ", ".join(field.name for field in fields(ImageRecord))
    table = store.query(f"SELECT {columns} FROM images")
    return (ImageRecord(**row) for row in table.to_pylist())


def _inspect(source: ImageSource, row: dict) -> ImageRecord | None:
    try:
        stamp = Stamp(row["size_bytes"], row["mtime_ns"], row["etag"])
        return inspect_image(source.read(row["path"], stamp))
    except ImageError:
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
