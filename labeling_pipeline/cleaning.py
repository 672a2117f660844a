"""Measure the files that are new, and judge all images that the dataset has.

One pass over each new file gives its content, its measurements and its fingerprint; what was
measured is committed every few seconds, so that a crash costs those. Judging and the search for
near duplicates need only what is stored: a changed threshold reads no file again, and where nothing
changed nothing is judged.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from labeling_pipeline.drawing import contact_sheet
from labeling_pipeline.errors import ImageError
from labeling_pipeline.images.duplicates import represent
from labeling_pipeline.images.hashing import FINGERPRINT_SIZE, unpack_fingerprints
from labeling_pipeline.images.inspection import (
    ACCEPTED,
    REJECTED,
    ImageRecord,
    Inspected,
    Job,
    inspect_files,
)
from labeling_pipeline.images.opening import Stamp
from labeling_pipeline.images.quality import CHECKS, NEAR_DUPLICATE, CleaningRules, failed_checks
from labeling_pipeline.images.reading import decode
from labeling_pipeline.images.sources import ImageSource, read_known
from labeling_pipeline.inventory import FileReport, report_files
from labeling_pipeline.store.annotation_store import AnnotationStore

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""

_COMMIT_FILES, _COMMIT_S = 2000, 5.0
_READ_AHEAD, _READ_AHEAD_BYTES = 8, 64 << 20
_BATCH = 10_000


@dataclass(frozen=True)
class CleaningSummary:
    """What `clean` found."""

    files: FileReport
    images: int  # distinct contents that files of the dataset have
    decoded: int  # files that were decoded, or at least tried
    judged_anew: int  # images that had a verdict, and have another one or another cluster
    unread: int  # files that could not be read; they are tried again each time
    flags: dict[str, int]  # check that only flags -> images
    clusters: int  # of more than one image that look alike


def clean(
    store: AnnotationStore,
    source: ImageSource,
    rules: CleaningRules,
    progress: Progress | None = None,
) -> CleaningSummary:
    """Measure the files that are new, and judge all images that the dataset has.

    Exact duplicates are one image with several files; the view ``files`` tells them apart.
    Images without a file stay as they were judged last, and stand in nobody's way.

    Args:
        store: its ``dataset_files`` say which files there are.
        source: where they are.
        rules: thresholds; changed ones judge anew without decoding.
        progress: told of every file that is read.

    Raises:
        ConfigurationError: the processes that decode cannot be started.
        SourceError: the storage could not be reached.
        StoreBusyError: the store is held by another process.
    """
    decoded, unread = _measure(store, source, progress)
    judged_anew = _judge(store, rules)
    flags = store.query(
        f"SELECT flag, count(*) AS images FROM (SELECT unnest(flags) AS flag FROM {_PRESENT}) "
        "GROUP BY flag ORDER BY images DESC, flag"
    ).to_pylist()
    (counted,) = store.query(
        f"""
        SELECT
            (SELECT count(*) FROM {_PRESENT}) AS images,
            (SELECT count(*) FROM (
                SELECT cluster FROM {_PRESENT} GROUP BY cluster
                HAVING cluster IS NOT NULL AND count(*) > 1
            )) AS clusters
        """
    ).to_pylist()
    return CleaningSummary(
        files=report_files(store),
        images=counted["images"],
        decoded=decoded,
        judged_anew=judged_anew,
        unread=unread,
        flags={row["flag"]: row["images"] for row in flags},
        clusters=counted["clusters"],
    )


# Looking ----------------------------------------------------------------------------------------

_SHEET_COLUMNS, _SHEET_CELL_PX = 4, 210
_OF_EACH, _ON_A_SHEET = 3, 16


def rejects_sheet(store: AnnotationStore, source: ImageSource) -> np.ndarray | None:
    """Some of the rejected images with their reasons, of each reason the first.

    Returns:
        (height, width, 3) uint8 RGB; None if no rejected image could be decoded.
    """
    rows = store.query(
        f"""
        SELECT f.path, image_id, f.reason AS title FROM files f JOIN images i USING (image_id)
        WHERE f.status = 'rejected' AND i.width_px IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY f.reason ORDER BY f.path) <= {_OF_EACH}
        ORDER BY f.reason, f.path LIMIT {_ON_A_SHEET}
        """
    )
    return _sheet(source, rows)


def clusters_sheet(store: AnnotationStore, source: ImageSource) -> np.ndarray | None:
    """The largest clusters of near duplicates, each begun by the image that is kept.

    Returns:
        (height, width, 3) uint8 RGB; None if there is no cluster.
    """
    rows = store.query(
        f"""
        WITH clusters AS (
            SELECT cluster, count(*) AS size FROM {_PRESENT} GROUP BY cluster
            HAVING cluster IS NOT NULL AND count(*) > 1 ORDER BY size DESC, cluster LIMIT 4
        )
        SELECT
            path, image_id,
            CASE WHEN image_id = cluster THEN 'kept, of ' || size ELSE 'like it' END AS title
        FROM {_PRESENT} JOIN clusters USING (cluster)
        WINDOW same_cluster AS (PARTITION BY cluster ORDER BY image_id <> cluster, path)
        QUALIFY row_number() OVER same_cluster <= {_SHEET_COLUMNS}
        ORDER BY size DESC, cluster, image_id <> cluster, path
        """
    )
    return _sheet(source, rows)


def _sheet(source: ImageSource, rows: pa.Table) -> np.ndarray | None:
    pictures, titles = [], []
    for row in rows.to_pylist():
        # One that was lost or changed since is no reason to fail.
        with suppress(ImageError):
            data = read_known(source, row["path"], row["image_id"])
            pictures.append(decode(data, _SHEET_CELL_PX).pixels)
            titles.append(f"{row['title']}: {row['path']}")
    if not pictures:
        return None
    return contact_sheet(pictures, titles, _SHEET_COLUMNS, cell_px=_SHEET_CELL_PX)


# Measuring --------------------------------------------------------------------------------------

# With the contents of each file's size, so that one that was moved is known by its bytes. Formats
# without compression give one size to many, and then knowing is not worth listing them.
_DUE = """
WITH known AS (
    SELECT size_bytes, list(image_id) AS image_ids FROM images
    WHERE size_bytes IS NOT NULL GROUP BY size_bytes HAVING count(*) <= 16
)
SELECT f.path, f.size_bytes, f.mtime_ns, f.etag, k.image_ids
FROM dataset_files f
LEFT JOIN images i USING (image_id)
LEFT JOIN known k ON k.size_bytes = f.size_bytes
WHERE f.skipped_reason IS NULL AND i.size_bytes IS NULL
ORDER BY f.path
"""


def _measure(
    store: AnnotationStore, source: ImageSource, progress: Progress | None
) -> tuple[int, int]:
    """Read all files that are due; how many were decoded, how many could not be read."""
    due = store.query(_DUE)
    decoded = unread = 0
    unsaved = _Unsaved(store)
    for done, result in enumerate(_inspected(source, due), 1):
        unsaved.add(result)
        decoded += result.record is not None
        unread += result.problem is not None
        if progress is not None:
            progress(done, len(due))
    unsaved.save()
    return decoded, unread


def _inspected(source: ImageSource, due: pa.Table) -> Iterator[Inspected]:
    rows = (row for batch in due.to_batches(_BATCH) for row in batch.to_pylist())
    folder = source.folder
    if folder is not None:
        yield from inspect_files(
            Job(row["path"], folder / row["path"], _stamp(row), tuple(row["image_ids"] or ()))
            for row in rows
        )
        return
    unread: deque[Inspected] = deque()
    for result in inspect_files(_read_here(source, rows, unread)):
        yield result
        while unread:
            yield unread.popleft()
    yield from unread


def _read_here(
    source: ImageSource, rows: Iterator[dict[str, Any]], unread: deque[Inspected]
) -> Iterator[Job]:
    """Jobs with the bytes of files from elsewhere, read in threads while others are decoded."""
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        reading: deque[tuple[dict[str, Any], Future[bytes]]] = deque()
        try:
            for row in rows:
                while reading and not _has_room([one for one, _ in reading], row):
                    yield from _read(*reading.popleft(), unread)
                reading.append((row, pool.submit(source.read, row["path"], _stamp(row))))
            while reading:
                yield from _read(*reading.popleft(), unread)
        finally:
            pool.shutdown(cancel_futures=True)


def _has_room(ahead: Sequence[dict[str, Any]], row: dict[str, Any]) -> bool:
    size_bytes = sum(one["size_bytes"] for one in ahead) + row["size_bytes"]
    return len(ahead) < _READ_AHEAD and size_bytes <= _READ_AHEAD_BYTES


def _read(row: dict[str, Any], reading: "Future[bytes]", unread: deque[Inspected]) -> Iterator[Job]:
    try:
        yield Job(row["path"], reading.result(), known=tuple(row["image_ids"] or ()))
    except ImageError as error:
        unread.append(Inspected(row["path"], problem=(error.reason, error.detail)))


def _stamp(row: dict[str, Any]) -> Stamp:
    return Stamp(row["size_bytes"], row["mtime_ns"], row["etag"])


@dataclass
class _Unsaved:
    """Results that are not in the store yet."""

    store: AnnotationStore
    files: list[dict[str, Any]] = field(default_factory=list)
    records: dict[str, tuple[str, ImageRecord]] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def add(self, result: Inspected) -> None:
        """Take a result, and save all if there are many or some are old."""
        reason, detail = result.problem or (None, None)
        self.files.append(
            {
                "path": result.key,
                "image_id": result.image_id,
                "unread_reason": reason,
                "unread_detail": detail,
            }
        )
        if result.record is not None:
            path, _ = self.records.get(result.record.image_id, (result.key, None))
            self.records[result.record.image_id] = min(path, result.key), result.record
        if len(self.files) >= _COMMIT_FILES or time.monotonic() - self.since >= _COMMIT_S:
            self.save()

    def save(self) -> None:
        """Write what there is in one transaction."""
        if self.files:
            files = pa.Table.from_pylist(self.files, _FILES)
            # Numbers in the order of paths, whichever process was faster.
            records = sorted(self.records.values(), key=lambda one: one[0])
            with self.store.transaction() as tx:
                tx.insert("images", [asdict(record) for _, record in records], replace=True)
                tx.execute(
                    "UPDATE dataset_files SET image_id = read.image_id, "
                    "unread_reason = read.unread_reason, unread_detail = read.unread_detail "
                    "FROM read WHERE dataset_files.path = read.path",
                    tables={"read": files},
                )
        self.files, self.records, self.since = [], {}, time.monotonic()


_FILES = pa.schema(
    {name: pa.string() for name in ("path", "image_id", "unread_reason", "unread_detail")}
)


# Judging ----------------------------------------------------------------------------------------

# The images that files of the dataset have, with the path that stands for each.
_PRESENT = """(
    SELECT i.*, f.path FROM images i JOIN (
        SELECT image_id, min(path) AS path FROM dataset_files
        WHERE image_id IS NOT NULL AND skipped_reason IS NULL GROUP BY image_id
    ) f USING (image_id)
)"""
# Best first, as near duplicates want them. A fingerprint is hex with a colon.
_TO_JUDGE = f"""
SELECT
    image_id, path, width_px, height_px, brightness, contrast, sharpness, entropy,
    unhex(replace(perceptual_hash, ':', '')) AS fingerprint,
    cluster, status, reason, detail, flags
FROM {_PRESENT}
ORDER BY width_px::BIGINT * height_px DESC NULLS LAST, sharpness DESC, image_id
"""
_VERDICT = ("cluster", "status", "reason", "detail", "flags")
_MEASURED = ("width_px", "height_px", "brightness", "contrast", "sharpness", "entropy")
# Verdicts follow from the rules and from which images there are.
_JUDGED = "judged"
_STATE = f"""
SELECT concat_ws(
    ' ', $1, count(*), bit_xor(hash(image_id, path)), count_if(status = 'new')
) AS state
FROM {_PRESENT}
"""


def _judge(store: AnnotationStore, rules: CleaningRules) -> int:
    """Bring the verdicts up to date; how many images had another one before."""
    (state,) = store.query(_STATE, [rules.model_dump_json()])["state"].to_pylist()
    before = store.query("SELECT value FROM meta WHERE key = $1", [_JUDGED])["value"].to_pylist()
    if before == [state]:
        return 0
    images = store.query(_TO_JUDGE)
    verdicts = _verdicts(images, rules)
    stored = [images[name].to_pylist() for name in _VERDICT]
    changed = [i for i, old in enumerate(zip(*stored, strict=True)) if old != verdicts[i]]
    ids = images["image_id"].take(pa.array(changed, pa.int64())).to_pylist()
    rows = [
        {"image_id": image_id, **dict(zip(_VERDICT, verdicts[i], strict=True))}
        for image_id, i in zip(ids, changed, strict=True)
    ]
    table = pa.Table.from_pylist(rows, _VERDICTS)
    with store.transaction() as tx:
        for update in _UPDATES:
            tx.execute(update, tables={"verdicts": table})
        (state,) = tx.query(_STATE, [rules.model_dump_json()])["state"].to_pylist()
        tx.insert("meta", [{"key": _JUDGED, "value": state}], replace=True)
    statuses = stored[_VERDICT.index("status")]
    return sum(statuses[i] != "new" for i in changed)


# DuckDB writes all of a row anew, its long fingerprint too, where a list in it is set; so flags are
# set only where they are others than before.
_UPDATES = (
    "UPDATE images SET cluster = verdicts.cluster, status = verdicts.status, "
    "reason = verdicts.reason, detail = verdicts.detail "
    "FROM verdicts WHERE images.image_id = verdicts.image_id",
    "UPDATE images SET flags = verdicts.flags FROM verdicts "
    "WHERE images.image_id = verdicts.image_id AND images.flags IS DISTINCT FROM verdicts.flags",
)
_VERDICTS = pa.schema(
    {name: pa.string() for name in ("image_id", "cluster", "status", "reason", "detail")}
    | {"flags": pa.list_(pa.string())}
)


def _verdicts(images: pa.Table, rules: CleaningRules) -> list[tuple[Any, ...]]:
    """What `_VERDICT` names, of each image of `_TO_JUDGE`."""
    count = len(images)
    # Those that could not be decoded come last, and stay rejected for that.
    measured = count - images["width_px"].null_count
    columns = {name: images[name].slice(0, measured).to_numpy() for name in _MEASURED}
    failed = failed_checks(columns, rules)
    reasons = np.full(measured, "", dtype=object)
    for name in reversed(CHECKS):
        if name not in rules.only_flag:
            reasons[failed[name]] = name
    good = np.flatnonzero(reasons == "")
    kept = good[_represented(images, good, columns, rules)]
    kept_by = dict(zip(good.tolist(), kept.tolist(), strict=True))

    ids, paths = images["image_id"].to_pylist(), images["path"].to_pylist()
    flagging = [name for name in CHECKS if name in rules.only_flag]
    verdicts: list[tuple[Any, ...]] = []
    for i in range(measured):
        flags = [name for name in flagging if failed[name][i]]
        reason, detail, cluster = reasons[i] or None, None, None
        if reason is not None:
            one = {name: column[i] for name, column in columns.items()}
            detail = CHECKS[reason].detail(one, rules)
        else:
            cluster = ids[kept_by[i]]
            if kept_by[i] != i and NEAR_DUPLICATE in rules.only_flag:
                flags.append(NEAR_DUPLICATE)
            elif kept_by[i] != i:
                reason = NEAR_DUPLICATE
                detail = f"looks like {paths[kept_by[i]]}, which is kept"
        verdicts.append((cluster, REJECTED if reason else ACCEPTED, reason, detail, flags))
    rest = (images[name].slice(measured).to_pylist() for name in ("reason", "detail"))
    verdicts += [(None, REJECTED, reason, detail, []) for reason, detail in zip(*rest, strict=True)]
    return verdicts


def _represented(
    images: pa.Table, good: np.ndarray, columns: dict[str, np.ndarray], rules: CleaningRules
) -> np.ndarray:
    fingerprints = images["fingerprint"].take(pa.array(good)).combine_chunks()
    packed = memoryview(fingerprints.buffers()[2])[: len(good) * FINGERPRINT_SIZE]
    aspects = columns["width_px"][good] / columns["height_px"][good]
    return represent(*unpack_fingerprints(packed), aspects, rules)
