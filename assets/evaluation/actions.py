"""Human-action recognition: predictions, and how good they are."""

import dagster as dg

from assets.evaluation.upstream import EVALUATION, WHEN_LABELS_ARE_IN, labels_of
from assets.metadata import fixed, frame_table, png, table
from labeling_pipeline.evaluation.actions import evaluate_actions
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.actions import (
    action_figures,
    predict_and_store_actions,
    stored_action_predictions,
)
from labeling_pipeline.reporting.figures import write_figures
from labeling_pipeline.tasks import Task
from resources.annotation_store import AnnotationStoreResource
from resources.vision_model import VisionModelResource


def build_action_assets(plan: Plan) -> list[dg.AssetsDefinition]:
    """``action_predictions`` and ``har_evaluation``."""

    @dg.asset(
        deps=labels_of(e for e in plan.entries if e.task is Task.KEYPOINT),
        group_name=EVALUATION,
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
        group_name=EVALUATION,
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

    return [action_predictions, har_evaluation]
