"""``detection_evaluation``: what was found and read, against what is known."""

import dagster as dg

from assets.evaluation.upstream import EVALUATION, WHEN_LABELS_ARE_IN, labels_of
from assets.metadata import fixed, frame_table, png, table
from labeling_pipeline.evaluation.entry import EntryEvaluation
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.detection import (
    evaluate_all,
    write_detection,
)
from labeling_pipeline.reporting.figures import write_figures
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource

_LABEL_COLUMNS = [
    *("label", "support", "predicted", "precision", "recall", "f1", "f1_low", "f1_high"),
    *("mean_f1", "ap", "duplicates", "absent", "absent_with_boxes"),
]


def build_detection_asset(plan: Plan) -> dg.AssetsDefinition:
    """The asset."""

    @dg.asset(
        deps=labels_of(plan.entries),
        group_name=EVALUATION,
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"matplotlib", "csv"},
        description=(
            "Boxes, outlines, keypoints and text of every entry against the plan's ground truth, "
            "and against what people corrected."
        ),
    )
    def detection_evaluation(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        evaluations = evaluate_all(
            annotation_store.open(), vision_model.applied_to(plan), image_source.open()
        )
        if not evaluations:
            note = (
                "the plan names no ground_truth and nothing was corrected: nothing to compare with"
            )
            context.add_output_metadata({"note": note})
            return
        folder = annotation_store.at().reports / "detection"
        write_detection(folder, evaluations)
        metadata: dict[str, dg.MetadataValue] = {"tables": dg.MetadataValue.path(folder.resolve())}
        for evaluation in evaluations:
            write_figures(folder, evaluation.figures)
            metadata |= _metadata(evaluation)
        context.add_output_metadata(metadata)

    return detection_evaluation


def _metadata(evaluation: EntryEvaluation) -> dict[str, dg.MetadataValue]:
    """What a person wants to see of one entry."""
    name, told = evaluation.name, dict[str, dg.MetadataValue]()
    if evaluation.notes:
        notes = "\n".join(f"- {note}" for note in evaluation.notes)
        told[f"{name}_notes"] = dg.MetadataValue.md(notes)
    if not evaluation.judged_images:
        return told
    measures = evaluation.measures
    intervals = [
        {"measure": measure, "low": round(one.interval.low, 4), "high": round(one.interval.high, 4)}
        for measure, one in measures.items()
        if one.interval is not None
    ]
    told[f"{name}_images"] = dg.MetadataValue.int(evaluation.judged_images)
    told |= {f"{name}_{measure}": fixed(one.value) for measure, one in measures.items()}
    told[f"{name}_intervals"] = table(intervals)
    if evaluation.boxes:
        told[f"{name}_per_label"] = frame_table(evaluation.labels[_LABEL_COLUMNS])
        told[f"{name}_error_kinds"] = frame_table(evaluation.kinds)
    if evaluation.text:
        told[f"{name}_misread"] = frame_table(evaluation.misread.drop(columns="image_id"))
    return told | {figure: png(data) for figure, data in evaluation.figures.items()}
