"""What each class leaves for people and other tools: pictures and JSON files."""

import dagster as dg

from assets.classes import Metadata, each_class
from assets.metadata import picture, table
from assets.partitions import CLASSES
from assets.progress import Reporter
from labeling_pipeline.plan import Plan
from labeling_pipeline.results import draw_class, export_class
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource


def build_output_assets(plan: Plan) -> list[dg.AssetsDefinition]:
    """Visualizations and exports over all entries."""
    upstream = [dg.AssetKey(entry.asset) for entry in plan.entries]

    @dg.asset(
        partitions_def=CLASSES,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=upstream,
        group_name="outputs",
        kinds={"jpeg"},
        description=(
            "vis_<id>.jpg for every image of a class: boxes, keypoints and scores drawn; and a "
            "contact sheet of them."
        ),
    )
    def visualizations(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        report = Reporter(context)

        def draw(class_slug: str) -> Metadata:
            summary = draw_class(
                annotation_store.open(),
                vision_model.applied_to(plan),
                class_slug,
                image_source.open(),
                annotation_store.at().results,
                progress=report.of(f"visualizations[{class_slug}]"),
            )
            metadata: Metadata = {
                "folder": dg.MetadataValue.path(summary.folder.resolve()),
                "pictures": dg.MetadataValue.int(summary.pictures),
                "drawn": dg.MetadataValue.int(summary.drawn),
            }
            if summary.sheet is not None:
                metadata["first_pictures"] = picture(summary.sheet)
            return metadata

        each_class(context, draw)

    @dg.asset(
        partitions_def=CLASSES,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=upstream,
        group_name="outputs",
        kinds={"json"},
        description="Per-class JSON: images and annotations of every entry that covers the class.",
    )
    def class_exports(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        def export(class_slug: str) -> Metadata:
            summary = export_class(
                annotation_store.open(),
                vision_model.applied_to(plan),
                class_slug,
                image_source.open(),
                annotation_store.at().results,
            )
            rows = [
                {"file": str(path.resolve()), "images": images, "annotations": annotations}
                for path, (images, annotations) in summary.files.items()
            ]
            return {"files": table(rows), "written": dg.MetadataValue.int(summary.written)}

        each_class(context, export)

    return [visualizations, class_exports]
