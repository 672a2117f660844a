"""Bring the store up to date with the files: which there are, and which of them are new.

No file is opened. One with the size and time it had (or the name that its storage gives to its
content) is left alone; a new or changed one gets a row without an image, which is what cleaning
then reads. So a million files that stayed as they are cost the listing and one join.

A file that was moved or renamed is a new path: it is read once more, found to be an image that is
known, and asked nothing again. Size and time are no proof of that: copying tools set times to
whole seconds or keep them, and uncompressed images of one format all have one size. A wrong guess
would put one picture's labels on another.
"""

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.images.manifests import read_manifest
from labeling_pipeline.images.sources import ImageSource, SourceSettings
from labeling_pipeline.plan import class_slug
from labeling_pipeline.store.annotation_store import AnnotationStore

NOT_IN_MANIFEST = "not_in_manifest"
NOT_IN_CLASS_FOLDER = "not_in_class_folder"

_MOST_NOTES = 200
_MOST_NAMED = 20


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
    skipped: dict[str, int]  # reason -> files, most frequent first
    rejected: dict[str, int]  # the same
    not_accepted: tuple[FileNote, ...]  # sorted by path; of each reason the first 200

    @property
    def total(self) -> int:
        """Number of files."""
        return sum(self.statuses.values())

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> files that are skipped or rejected for it."""
        return self.skipped | self.rejected


@dataclass(frozen=True)
class InventorySummary:
    """What `update_inventory` found. Classes are slugs."""

    files: FileReport
    added: int
    changed: int  # in content, class or in whether they count
    removed: int
    classes_added: tuple[str, ...]
    classes_retired: tuple[str, ...]
    classes_returned: tuple[str, ...]  # had been retired
    classes_affected: tuple[str, ...]  # have files that were added or changed
    missing: int  # files that the manifest names and the source does not have
    first_missing: tuple[str, ...]  # the paths of some of them


_CHANGES = """
WITH compared AS (
    SELECT
        coalesce(f.path, k.path) AS path,
        f.path IS NULL AS removed,
        k.path IS NULL AS added,
        f.class, f.size_bytes, f.mtime_ns, f.etag, f.skipped_reason,
        coalesce(
            f.size_bytes = k.size_bytes AND f.etag IS NOT DISTINCT FROM k.etag
            AND (f.mtime_ns = k.mtime_ns OR f.etag IS NOT NULL), false
        ) AS is_as_it_was,
        f.class IS DISTINCT FROM k.class
            OR f.skipped_reason IS DISTINCT FROM k.skipped_reason AS counts_otherwise,
        f.mtime_ns IS DISTINCT FROM k.mtime_ns AS has_another_time,
        k.image_id, k.unread_reason, k.unread_detail
    FROM found f FULL JOIN dataset_files k ON f.path = k.path
)
SELECT
    path, class, CASE WHEN is_as_it_was AND skipped_reason IS NULL THEN image_id END AS image_id,
    size_bytes, mtime_ns, etag, skipped_reason,
    CASE WHEN is_as_it_was THEN unread_reason END AS unread_reason,
    CASE WHEN is_as_it_was THEN unread_detail END AS unread_detail,
    removed, added, NOT added AND (NOT is_as_it_was OR counts_otherwise) AS changed
FROM compared
WHERE removed OR added OR counts_otherwise OR has_another_time OR NOT is_as_it_was
"""


def update_inventory(
    store: AnnotationStore,
    source: ImageSource,
    plan_classes: Sequence[str] = (),
    settings: SourceSettings | None = None,
    in_use: Collection[str] = (),
    test_folder: str | None = None,
) -> InventorySummary:
    """Bring the tables ``dataset_files`` and ``classes`` up to date with the source.

    Args:
        store: where the tables are.
        source: where the files are.
        plan_classes: display names of the classes that the plan names. With any, a file that
            lies in no sub-folder belongs to no class of its own; without, to the class that is
            named like the source.
        settings: how files come to their classes; default: by their folders.
        in_use: slugs of classes that are not to be retired yet.
        test_folder: name of a top folder whose sub-folders are classes, as top folders are.

    Raises:
        ConfigurationError: the source cannot be listed, the manifest cannot be read, or two class
            names share one slug.
        SourceError: the storage could not be reached.
        StoreBusyError: the store is held by another process.
    """
    settings = settings or SourceSettings()  # type: ignore[call-arg]
    found = source.scan()
    missing: list[str] = []
    if settings.manifest is not None:
        manifest = read_manifest(settings.manifest, source.read_companion(settings.manifest))
        found, missing = _classed_by(manifest, found)
    elif settings.layout == "flat":
        found = _with(found, "class_name", pa.nulls(len(found), pa.string()))
    else:
        if test_folder is not None:
            found = _with_classes_within(found, test_folder)
        if not plan_classes:
            at_root = pc.and_(pc.is_null(found["class_name"]), pc.is_null(found["skipped_reason"]))
            names = pc.if_else(at_root, source.name, found["class_name"])
            found = _with(found, "class_name", names)
    names = _class_names(found, plan_classes)
    found = _with_slugs(found)

    changes = store.query(_CHANGES, tables={"found": found})
    gone = changes.filter(changes["removed"]).select(["path"])
    changes = changes.filter(pc.invert(changes["removed"]))
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

    if len(changes) or len(gone) or added_classes or retired or returned:
        with store.transaction() as tx:
            rows = changes.drop_columns(["removed", "added", "changed"])
            tx.insert("dataset_files", rows, replace=True)
            tx.execute(
                "DELETE FROM dataset_files WHERE path IN (SELECT path FROM gone)",
                tables={"gone": gone},
            )
            new_classes = [{"class": slug, "display_name": names[slug]} for slug in added_classes]
            tx.insert("classes", new_classes)
            for slugs, value in ((retired, True), (returned, False)):
                tx.execute(
                    "UPDATE classes SET retired = ? WHERE class IN (SELECT unnest(?))",
                    [value, slugs],
                )
    added = pc.sum(changes["added"]).as_py() or 0
    return InventorySummary(
        files=report_files(store),
        added=added,
        changed=(pc.sum(changes["changed"]).as_py() or 0),
        removed=len(gone),
        classes_added=tuple(added_classes),
        classes_retired=tuple(retired),
        classes_returned=tuple(returned),
        classes_affected=_affected(changes, names),
        missing=len(missing),
        first_missing=tuple(missing[:_MOST_NAMED]),
    )


def report_files(store: AnnotationStore) -> FileReport:
    """How the files stand now."""
    counted = store.query(
        "SELECT status, reason, count(*) AS files FROM files GROUP BY ALL "
        "ORDER BY files DESC, reason"
    ).to_pylist()
    listed = store.query(
        "SELECT path, status, reason, detail FROM files WHERE status IN ('skipped', 'rejected') "
        f"QUALIFY row_number() OVER (PARTITION BY status, reason ORDER BY path) <= {_MOST_NOTES} "
        "ORDER BY path"
    ).to_pylist()
    statuses: dict[str, int] = {}
    for row in sorted(counted, key=lambda row: row["status"]):
        statuses[row["status"]] = statuses.get(row["status"], 0) + row["files"]
    skipped, rejected = (
        {row["reason"]: row["files"] for row in counted if row["status"] == status}
        for status in ("skipped", "rejected")
    )
    return FileReport(statuses, skipped, rejected, tuple(FileNote(**row) for row in listed))


def held_out_images(store: AnnotationStore, test_folder: str | None) -> pa.Table:
    """The images of which a copy lies in the test folder, and those that look alike.

    Returns columns image_id, is_test (a copy of itself lies there; otherwise of another image of
    its cluster). No rows without a test folder.
    """
    return store.query(
        """
        WITH test AS (
            SELECT DISTINCT image_id FROM dataset_files
            WHERE image_id IS NOT NULL AND skipped_reason IS NULL
                AND starts_with(nfc_normalize(path), $1 || '/')
        ),
        clusters AS (SELECT DISTINCT cluster FROM images SEMI JOIN test USING (image_id))
        SELECT i.image_id, t.image_id IS NOT NULL AS is_test
        FROM images i LEFT JOIN test t USING (image_id)
        WHERE t.image_id IS NOT NULL OR i.cluster IN (FROM clusters)
        """,
        (test_folder,),
    )


# Classes ----------------------------------------------------------------------------------------


def _class_names(found: pa.Table, plan_classes: Sequence[str]) -> dict[str, str]:
    """Slug -> display name of all classes: the plan's first, then those of files by name."""
    counted = found.filter(pc.is_null(found["skipped_reason"]))
    of_files = sorted(pc.unique(counted["class_name"].drop_null()).to_pylist())
    names: dict[str, str] = {}
    for name in [unicodedata.normalize("NFC", n) for n in plan_classes] + of_files:
        other = names.setdefault(class_slug(name), name)
        if other != name:
            raise ConfigurationError(
                f"the classes {other!r} and {name!r} have the same key {class_slug(name)!r}; "
                "rename one of them"
            )
    return names


def _with_classes_within(found: pa.Table, folder: str) -> pa.Table:
    """The files of a top folder with the class of their second one; those in none are skipped."""
    is_inside = pc.fill_null(pc.equal(found["class_name"], folder), False)
    second = pc.struct_field(pc.extract_regex(found["path"], "^[^/]*/(?P<name>[^/]*)/"), "name")
    second = pc.utf8_normalize(second, form="NFC")
    is_homeless = pc.and_(is_inside, pc.is_null(second))
    reason = pc.if_else(is_homeless, NOT_IN_CLASS_FOLDER, pa.scalar(None, pa.string()))
    found = _with(found, "skipped_reason", pc.coalesce(found["skipped_reason"], reason))
    found = _with(found, "class_name", pc.if_else(is_inside, second, found["class_name"]))
    return found


def _with_slugs(found: pa.Table) -> pa.Table:
    """The columns of a scan with the slug of the class in place of its name."""
    encoded = found["class_name"].combine_chunks().dictionary_encode()
    slugs = [class_slug(name) for name in encoded.dictionary.to_pylist()]
    column = pa.array(slugs, pa.string()).take(encoded.indices)
    return found.drop_columns("class_name").append_column("class", column)


def _with(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def _affected(changes: pa.Table, names: dict[str, str]) -> tuple[str, ...]:
    """The classes of the files that count and were added or changed."""
    due = changes.filter(
        pc.and_(pc.is_null(changes["skipped_reason"]), pc.or_(changes["added"], changes["changed"]))
    )
    slugs = set(pc.unique(due["class"]).to_pylist())
    # A file without a class of its own belongs to every one.
    return tuple(slug for slug in names if slug in slugs or None in slugs)


def _classed_by(manifest: pa.Table, found: pa.Table) -> tuple[pa.Table, list[str]]:
    """The files with the classes of a manifest, and the paths of it that are no file."""
    # A manifest written on another system may spell letters in another way than the disk.
    paths = pc.utf8_normalize(found["path"], form="NFC")
    place = pc.index_in(paths, value_set=manifest["path"])
    unlisted = pc.if_else(pc.is_null(place), NOT_IN_MANIFEST, pa.scalar(None, pa.string()))
    found = _with(found, "class_name", manifest["class_name"].take(place))
    found = _with(found, "skipped_reason", pc.coalesce(found["skipped_reason"], unlisted))
    listed = pc.is_in(manifest["path"], value_set=paths)
    return found, manifest["path"].filter(pc.invert(listed)).to_pylist()
