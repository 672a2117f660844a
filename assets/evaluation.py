"""What can be said of the labels over all classes: actions, evaluations, the report."""

from datetime import UTC, datetime

import dagster as dg

from assets.metadata import fixed, frame_table, picture, png, table
from labeling_pipeline.evaluation.actions import evaluate_actions
from labeling_pipeline.evaluation.agreement import NO_PAIR
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting import (
    action_figures,
    class_table,
    detection_figures,
    draw_disagreements,
    evaluate_entries,
    measure_agreement,
    predict_and_store_actions,
    stored_action_predictions,
    write_agreement,
    write_figures,
    write_report,
)
from labeling_pipeline.tasks import Task
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource

WHEN_LABELS_ARE_IN = dg.AutomationCondition.eager().without(
    # Classes that are missing never hold an evaluation up.
    ~dg.AutomationCondition.any_deps_missing()
)
"""Anew once labels have come in and nothing upstream is still running."""


def build_evaluation_assets(plan: Plan) -> list[dg.AssetsDefinition]:
    """The assets over all classes. Classes that are missing never hold them up."""
    every_class = dg.AllPartitionMapping()
    entries = [dg.AssetDep(e.asset, partition_mapping=every_class) for e in plan.entries]
    keypoint_entries = [
        dg.AssetDep(e.asset, partition_mapping=every_class)
        for e in plan.entries
        if e.task is Task.KEYPOINT
    ]

    @dg.asset(
        deps=keypoint_entries,
        group_name="evaluation",
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"scikitlearn", "duckdb"},
        description=(
            "The action of every image, predicted from its person's keypoints by a classifier "
            "that never saw the image (out of fold)."
        ),
    )
    def action_predictions(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        vision_model: VisionModelResource,
    ) -> None:
        predictions = predict_and_store_actions(
            annotation_store.open(), vision_model.applied_to(plan)
        )
        reasons = predictions["reason"].dropna().value_counts()
        context.add_output_metadata(
            {
                "images": len(predictions),
                "predicted": int(predictions["predicted_action"].notna().sum()),
                "not_predicted": table(
                    [{"reason": r, "images": int(n)} for r, n in reasons.items()]
                ),
            }
        )

    @dg.asset(
        deps=[action_predictions],
        group_name="evaluation",
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"scikitlearn", "matplotlib"},
        description="Human-action recognition: accuracy, scores by action and four figures.",
    )
    def har_evaluation(
        context: dg.AssetExecutionContext, annotation_store: AnnotationStoreResource
    ) -> None:
        predictions = stored_action_predictions(annotation_store.open())
        evaluation = evaluate_actions(predictions)
        figures = action_figures(predictions, evaluation)
        paths = write_figures(annotation_store.at().reports / "har", figures)
        context.add_output_metadata(
            {
                "accuracy": fixed(evaluation.accuracy_all),
                "accuracy_where_predicted": fixed(evaluation.accuracy_predicted),
                "macro_f1": fixed(evaluation.macro_f1),
                "images": evaluation.images,
                "without_person": evaluation.without_person,
                "per_class": frame_table(evaluation.per_class),
                **{name: png(data) for name, data in figures.items()},
                "figures": dg.MetadataValue.path(next(iter(paths.values())).parent.resolve()),
            }
        )

    @dg.asset(
        deps=entries,
        group_name="evaluation",
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
            write_figures(annotation_store.at().reports / "detection", figures)
            metadata[f"{entry}_f1_at_iou_50"] = fixed(evaluation.boxes.overall.f1)
            metadata[f"{entry}_mean_f1_50_to_95"] = fixed(evaluation.boxes.mean_f1)
            if evaluation.keypoints is not None:
                metadata[f"{entry}_pck"] = fixed(evaluation.keypoints.pck)
            metadata[f"{entry}_per_label"] = frame_table(evaluation.boxes.per_label)
            metadata |= {name: png(data) for name, data in figures.items()}
        context.add_output_metadata(metadata)

    @dg.asset(
        deps=entries,
        group_name="evaluation",
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

    @dg.asset(
        deps=[
            *entries,
            dg.AssetDep("visualizations", partition_mapping=every_class),
            har_evaluation,
            detection_evaluation,
            model_agreement,
        ],
        group_name="evaluation",
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"html"},
        description="One self-contained HTML page over everything: open it in a browser.",
    )
    def annotation_report(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        effective = vision_model.applied_to(plan)
        home = annotation_store.at()
        path = write_report(
            annotation_store.open(), effective, image_source.open(), home, datetime.now(UTC)
        )
        context.add_output_metadata(
            {
                "report": dg.MetadataValue.path(path.resolve()),
                "classes": frame_table(class_table(annotation_store.open(), effective)),
            }
        )

    return [
        action_predictions,
        har_evaluation,
        detection_evaluation,
        model_agreement,
        annotation_report,
    ]
