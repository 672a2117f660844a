"""One asset per plan entry: ``<name>_annotations``, partitioned by class."""

import dagster as dg

from assets.classes import Metadata, each_class
from assets.ingestion import CLEAN_IMAGES
from assets.metadata import class_metadata
from assets.partitions import CLASSES
from assets.progress import Reporter
from labeling_pipeline.labeling import label_class
from labeling_pipeline.models.registry import find_card
from labeling_pipeline.plan import Entry, Plan
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource

GPU_POOL = "gpu"


class LabelingConfig(dg.Config):
    """``force`` asks again what is settled; every answer is kept as a further attempt."""

    force: bool = False


def build_annotation_asset(plan: Plan, entry: Entry) -> dg.AssetsDefinition:
    """The asset of one entry."""
    source = plan.source_of(entry)
    card = find_card(plan.model_of(entry))

    @dg.asset(
        name=entry.asset,
        partitions_def=CLASSES,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[CLEAN_IMAGES, *([source.asset] if source else [])],
        pool=GPU_POOL if card.engine == "pytorch" else None,
        group_name="annotations",
        kinds={card.engine, "duckdb"},
        description=(
            f"{entry.task} by {card.name}: what the model answers for each image of a "
            "class. Asks only what is due."
        ),
    )
    def annotations(
        context: dg.AssetExecutionContext,
        config: LabelingConfig,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        report = Reporter(context)
        effective = vision_model.applied_to(plan)

        def label(class_slug: str) -> Metadata:
            summary = label_class(
                annotation_store.open(),
                effective,
                effective.entry(entry.name),
                class_slug,
                image_source.open(),
                context.run_id,
                force=config.force,
                progress=report.of(f"{entry.asset}[{class_slug}]"),
            )
            return class_metadata(summary)

        each_class(context, label)

    return annotations
