"""``detection_evaluation``: what was found against the ground truth."""

import dagster as dg

from assets.evaluation.upstream import EVALUATION, WHEN_LABELS_ARE_IN, labels_of
from assets.metadata import fixed, frame_table, png
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.detection import detection_figures, evaluate_entries, write_errors
from labeling_pipeline.reporting.figures import write_figures
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource


def build_detection_asset(plan: Plan) -> dg.AssetsDefinition:
    """The asset."""

    @dg.asset(
        deps=labels_of(plan.entries),
        group_name=EVALUATION,
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"supervision", "matplotlib"},
        description="Boxes and keypoints of every entry against the plan's ground truth.",
    )
    def detection_evaluation(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        evaluations = evaluate_entries(
            annotation_store.open(), vision_model.applied_to(plan), image_source.open()
        )
        if not evaluations:
            context.add_output_metadata(
                {"note": "the plan names no ground_truth, so there is nothing to compare with"}
            )
            return
        metadata: dict[str, dg.MetadataValue] = {}
        for entry, evaluation in evaluations.items():
            figures = detection_figures(entry, evaluation.boxes)
            folder = annotation_store.at().reports / "detection"
            write_figures(folder, figures)
            errors = write_errors(folder, entry, evaluation.errors)
            metadata[f"{entry}_errors"] = dg.MetadataValue.path(errors.resolve())
            metadata[f"{entry}_f1_at_iou_50"] = fixed(evaluation.boxes.overall.f1)
            metadata[f"{entry}_mean_f1_50_to_95"] = fixed(evaluation.boxes.mean_f1)
            if evaluation.keypoints is not None:
                metadata[f"{entry}_pck"] = fixed(evaluation.keypoints.pck)
            metadata[f"{entry}_per_label"] = frame_table(evaluation.boxes.per_label)
            metadata |= {name: png(data) for name, data in figures.items()}
        context.add_output_metadata(metadata)

    return detection_evaluation
