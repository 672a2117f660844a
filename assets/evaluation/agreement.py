"""``model_agreement``: what different models say of the same classes."""

import dagster as dg

from assets.evaluation.upstream import EVALUATION, WHEN_LABELS_ARE_IN, labels_of
from assets.metadata import fixed, frame_table, picture
from labeling_pipeline.evaluation.agreement import NO_PAIR
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.agreement import (
    draw_disagreements,
    measure_agreement,
    write_agreement,
)
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource


def build_agreement_asset(plan: Plan) -> dg.AssetsDefinition:
    """The asset."""

    @dg.asset(
        deps=labels_of(plan.entries),
        group_name=EVALUATION,
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"scipy", "csv"},
        description=(
            "Where entries with different models label the same class: which boxes both found, "
            "which only one did, and the images that a person should look at first."
        ),
    )
    def model_agreement(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        agreement = measure_agreement(annotation_store.open(), vision_model.applied_to(plan))
        folder = annotation_store.at().reports / "agreement"
        write_agreement(folder, agreement)
        if agreement.per_class.empty:
            context.add_output_metadata({"note": NO_PAIR})
            return
        worst = draw_disagreements(agreement, image_source.open())
        context.add_output_metadata(
            {
                "agreement": fixed(agreement.mean),
                "images": len(agreement.per_image),
                "classes": frame_table(agreement.per_class),
                "most_disagreeing": frame_table(agreement.disagreements.drop(columns="image_id")),
                "not_compared": frame_table(agreement.not_compared),
                "tables": dg.MetadataValue.path(folder.resolve()),
                **({"pictures": picture(worst)} if worst is not None else {}),
            }
        )

    return model_agreement
