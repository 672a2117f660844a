"""``calibration``: what scores mean, and from which on they are good enough."""

import dagster as dg

from assets.evaluation.upstream import EVALUATION, WHEN_LABELS_ARE_IN, labels_of
from assets.metadata import frame_table, png
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.calibration import (
    calibrate,
    write_calibration,
)
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource


def build_calibration_asset(plan: Plan) -> dg.AssetsDefinition:
    """The asset."""

    @dg.asset(
        deps=labels_of(plan.entries),
        group_name=EVALUATION,
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"scikitlearn", "yaml"},
        description=(
            "What the scores of each model and task mean, learned from the ground truth, and a "
            "threshold for each label; written to a file that the plan can name."
        ),
    )
    def calibration(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        effective = vision_model.applied_to(plan)
        learned = calibrate(annotation_store.open(), effective, image_source.open())
        if learned is None:
            context.add_output_metadata(
                {"note": "the plan names no ground_truth, so there is nothing to learn from"}
            )
            return
        path = write_calibration(annotation_store.at(), effective, learned)
        context.add_output_metadata(
            {
                "scores": frame_table(learned.table),
                "thresholds": frame_table(
                    learned.thresholds.drop(columns=["recall_of_all", "true", "model_key"])
                ),
                "file": dg.MetadataValue.path(path.resolve()),
                **{name: png(data) for name, data in learned.figures.items()},
            }
        )

    return calibration
