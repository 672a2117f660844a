"""``raw_images`` and ``clean_images``: what lies under the image root and which of it is usable.

Both are unpartitioned, because duplicates cross classes, and incremental.
"""

from collections import Counter

import dagster as dg

from assets.metadata import table
from assets.partitions import CLASSES
from assets.progress import reporter
from labeling_pipeline.asks import class_names
from labeling_pipeline.inventory import FileReport, clean, update_inventory
from labeling_pipeline.plan import Plan
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource

RAW_IMAGES = dg.AssetKey("raw_images")
CLEAN_IMAGES = dg.AssetKey("clean_images")


def build_ingestion_assets(plan: Plan) -> list[dg.AssetsDefinition]:
    """The two assets that every entry stands on."""

    @dg.asset(
        key=RAW_IMAGES,
        group_name="ingestion",
        kinds={"duckdb"},
        description=(
            "Inventory of the image root: every file with its content hash, skipped ones with the "
            "reason. Registers one partition per class."
        ),
    )
    def raw_images(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
    ) -> None:
        root = image_source.path()
        annotation_store.at().claim(root)
        store = annotation_store.open()
        summary = update_inventory(store, root, plan.class_names, reporter(context, "raw_images"))
        classes = class_names(store)
        context.instance.add_dynamic_partitions(str(CLASSES.name), list(classes))
        context.add_output_metadata(
            {
                "image_root": dg.MetadataValue.path(root),
                "files": summary.files.total,
                "added": summary.added,
                "changed": summary.changed,
                "removed": summary.removed,
                "read": summary.read,
                "classes": table([{"class": s, "display_name": n} for s, n in classes.items()]),
                "classes_retired": dg.MetadataValue.text(
                    ", ".join(summary.classes_retired) or "none"
                ),
                "skipped": _notes(summary.files, "skipped"),
            }
        )

    @dg.asset(
        key=CLEAN_IMAGES,
        deps=[RAW_IMAGES],
        group_name="ingestion",
        kinds={"pillow", "duckdb"},
        description=(
            "Every image decoded once and judged: accepted, or rejected with a reason (damaged, "
            "too small, blank, duplicate, ...)."
        ),
    )
    def clean_images(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
    ) -> None:
        summary = clean(
            annotation_store.open(),
            image_source.path(),
            plan.cleaning,
            reporter(context, "clean_images"),
        )
        context.add_output_metadata(
            {
                "accepted": summary.files.statuses.get("accepted", 0),
                "rejected": summary.files.statuses.get("rejected", 0),
                "decoded": summary.decoded,
                "judged_anew": summary.judged_anew,
                "rejects_by_reason": table(_rejects_by_reason(summary.files)),
                "rejected_files": _notes(summary.files, "rejected"),
            }
        )

    return [raw_images, clean_images]


def _rejects_by_reason(files: FileReport) -> list[dict[str, str | int]]:
    counts = Counter(n.reason for n in files.not_accepted if n.status == "rejected")
    return [{"reason": reason, "files": count} for reason, count in counts.most_common()]


def _notes(files: FileReport, status: str) -> dg.MetadataValue:
    notes = [note for note in files.not_accepted if note.status == status]
    return table([{"reason": n.reason, "file": n.path, "detail": n.detail or ""} for n in notes])
