"""``raw_images`` and ``clean_images``: what lies under the image root and which of it is usable.

Both are unpartitioned, because duplicates cross classes, and incremental.
"""

from collections.abc import Mapping, Sequence

import dagster as dg
import numpy as np

from assets.metadata import MAX_ROWS, picture, table
from assets.partitions import (
    CLASSES,
    classes_in_flight,
    partition_changes,
    registered_classes,
)
from assets.progress import Reporter
from labeling_pipeline.asks import class_names
from labeling_pipeline.cleaning import clean, clusters_sheet, rejects_sheet
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.inventory import FileReport, InventorySummary, update_inventory
from labeling_pipeline.plan import Plan
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource

RAW_IMAGES = dg.AssetKey("raw_images")
CLEAN_IMAGES = dg.AssetKey("clean_images")

INGESTION_POOL = "ingestion"
"""One run at a time looks at the files: a second one would read them all over."""


def build_ingestion_assets(plan: Plan) -> list[dg.AssetsDefinition]:
    """The two assets that every entry stands on."""

    @dg.asset(
        key=RAW_IMAGES,
        pool=INGESTION_POOL,
        group_name="ingestion",
        kinds={"duckdb"},
        description=(
            "Inventory of the images: every file by path, size and time, skipped ones with the "
            "reason; none is opened. Registers one partition per class."
        ),
    )
    def raw_images(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
    ) -> None:
        source = image_source.open()
        annotation_store.at().claim(source)
        store = annotation_store.open()
        in_flight = classes_in_flight(context.instance)
        summary = update_inventory(
            store, source, plan.class_names, plan.source, in_flight, plan.actions.test_folder
        )
        classes = class_names(store)
        changes = partition_changes(registered_classes(context.instance), list(classes), in_flight)
        context.instance.add_dynamic_partitions(str(CLASSES.name), changes.added)
        for key in changes.deleted:
            context.instance.delete_dynamic_partition(str(CLASSES.name), key)
        context.add_output_metadata(
            {
                "images": _place(source),
                "files": summary.files.total,
                "added": summary.added,
                "changed": summary.changed,
                "removed": summary.removed,
                "new": summary.files.statuses.get("new", 0),
                "classes": table([{"class": s, "display_name": n} for s, n in classes.items()]),
                "classes_affected": _listed(summary.classes_affected),
                "classes_retired": _listed(summary.classes_retired),
                "skipped_by_reason": _by_reason(summary.files.skipped),
                "skipped": _notes(summary.files, "skipped"),
            }
            | _missing(summary)
        )

    @dg.asset(
        key=CLEAN_IMAGES,
        deps=[RAW_IMAGES],
        pool=INGESTION_POOL,
        group_name="ingestion",
        kinds={"pillow", "duckdb"},
        description=(
            "Every new file read and decoded once, every image judged: accepted, or rejected with "
            "a reason (damaged, too small, blank, duplicate, ...)."
        ),
    )
    def clean_images(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
    ) -> None:
        store, source = annotation_store.open(), image_source.open()
        summary = clean(store, source, plan.cleaning, Reporter(context).of("clean_images"))
        context.add_output_metadata(
            {
                "accepted": summary.files.statuses.get("accepted", 0),
                "rejected": summary.files.statuses.get("rejected", 0),
                "decoded": summary.decoded,
                "judged_anew": summary.judged_anew,
                "could_not_be_read": summary.unread,
                "near_duplicate_clusters": summary.clusters,
                "rejects_by_reason": _by_reason(summary.files.rejected),
                "rejected_files": _notes(summary.files, "rejected"),
                "flags": table([{"check": c, "images": n} for c, n in summary.flags.items()]),
            }
            | _pictures(
                rejects=rejects_sheet(store, source), clusters=clusters_sheet(store, source)
            )
        )

    return [raw_images, clean_images]


def _place(source: ImageSource) -> dg.MetadataValue:
    return (
        dg.MetadataValue.path(source.folder)
        if source.folder
        else dg.MetadataValue.text(source.root)
    )


def _pictures(**sheets: np.ndarray | None) -> dict[str, dg.MetadataValue]:
    """Those of the contact sheets that there are."""
    return {name: picture(sheet) for name, sheet in sheets.items() if sheet is not None}


def _missing(summary: InventorySummary) -> dict[str, dg.MetadataValue]:
    """What the manifest names and nobody has."""
    if not summary.missing:
        return {}
    rows = [{"file": path} for path in summary.first_missing]
    return {
        "missing": dg.MetadataValue.int(summary.missing),
        "in_manifest_without_file": table(rows),
    }


def _listed(names: Sequence[str]) -> dg.MetadataValue:
    more = f" and {len(names) - MAX_ROWS} more" if len(names) > MAX_ROWS else ""
    return dg.MetadataValue.text(", ".join(names[:MAX_ROWS]) + more or "none")


def _by_reason(reasons: Mapping[str, int]) -> dg.MetadataValue:
    return table([{"reason": reason, "files": files} for reason, files in reasons.items()])


def _notes(files: FileReport, status: str) -> dg.MetadataValue:
    notes = [note for note in files.not_accepted if note.status == status]
    return table([{"reason": n.reason, "file": n.path, "detail": n.detail or ""} for n in notes])
