"""``rederived_annotations``: stored answers, read again with today's parsers."""

import dagster as dg

from assets.metadata import table
from assets.progress import Reporter
from labeling_pipeline.plan import Plan
from labeling_pipeline.rederivation import NOTHING_LEFT, rederive
from resources.annotation_store import AnnotationStoreResource
from resources.vision_model import VisionModelResource


def build_rederivation_asset(plan: Plan) -> dg.AssetsDefinition:
    """The asset stands alone: nothing is made from it, and it takes no turn with a model."""

    @dg.asset(
        group_name="maintenance",
        kinds={"duckdb"},
        description=(
            "Every stored answer as today's parsers read it. Materialize it after an update of "
            "this package that reads answers differently: no model is loaded and nothing is asked. "
            "The earlier readings are kept; what was read already is left as it is. Then "
            "materialize what is drawn, exported and evaluated."
        ),
    )
    def rederived_annotations(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        vision_model: VisionModelResource,
    ) -> None:
        summary = rederive(
            annotation_store.open(),
            vision_model.applied_to(plan),
            context.run_id,
            progress=Reporter(context).of("rederived_annotations"),
        )
        metadata: dict[str, dg.MetadataValue] = {
            "answers_read": dg.MetadataValue.int(summary.read),
            "outcomes_changed": dg.MetadataValue.int(summary.changed),
            "answers_left_alone": dg.MetadataValue.int(summary.left_alone),
            "by_entry_and_model": table([one.row() for one in summary.worth_telling]),
            "seconds": dg.MetadataValue.float(round(summary.seconds, 2)),
        }
        if summary.read:
            rate = summary.read / summary.seconds
            metadata["answers_per_second"] = dg.MetadataValue.float(round(rate, 1))
        else:
            metadata["notes"] = dg.MetadataValue.md(NOTHING_LEFT)
        context.add_output_metadata(metadata)

    return rederived_annotations
