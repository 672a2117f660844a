"""Human-action recognition: predictions, and how good they are."""

import dagster as dg

from assets.evaluation.upstream import EVALUATION, WHEN_LABELS_ARE_IN, labels_of
from assets.metadata import fixed, frame_table, png, table
from labeling_pipeline.evaluation.actions import Recognition, compare_methods
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.actions import (
    evaluate_stored_actions,
    predict_and_store_actions,
    write_action_tables,
)
from labeling_pipeline.reporting.figures import write_figures
from resources.annotation_store import AnnotationStoreResource
from resources.vision_model import VisionModelResource


def build_action_assets(plan: Plan) -> list[dg.AssetsDefinition]:
    """``action_predictions`` and ``har_evaluation``."""

    @dg.asset(
        deps=labels_of(filter(None, (plan.action_entry(), plan.zero_shot_entry()))),
        group_name=EVALUATION,
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"scikitlearn", "duckdb"},
        description=(
            "The action of every image: from its person's keypoints, by a classifier that never "
            "saw the image (out of fold), and zero-shot, from the presence of each action."
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
        is_made = predictions["predicted_action"].notna()
        made = predictions[is_made].groupby("method").size()
        left = predictions[~is_made].groupby(["method", "reason"]).size()
        context.add_output_metadata(
            {
                "predicted": table([{"method": m, "images": int(n)} for m, n in made.items()]),
                "not_predicted": table(
                    [{"method": m, "reason": r, "images": int(n)} for (m, r), n in left.items()]
                ),
            }
        )

    @dg.asset(
        deps=[action_predictions],
        group_name=EVALUATION,
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"scikitlearn", "matplotlib"},
        description=(
            "Human-action recognition, method by method: accuracy and its like with intervals, "
            "scores by action, when to abstain, figures and tables."
        ),
    )
    def har_evaluation(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        vision_model: VisionModelResource,
    ) -> None:
        recognitions = evaluate_stored_actions(
            annotation_store.open(), vision_model.applied_to(plan)
        )
        folder = annotation_store.at().reports / "har"
        write_action_tables(folder, recognitions)
        metadata: dict[str, dg.MetadataValue] = {"files": dg.MetadataValue.path(folder.resolve())}
        metadata["comparison"] = frame_table(compare_methods(recognitions))
        for one in recognitions:
            write_figures(folder, one.figures)
            metadata |= _numbers(one) | {name: png(data) for name, data in one.figures.items()}
        context.add_output_metadata(metadata)

    return [action_predictions, har_evaluation]


def _numbers(one: Recognition) -> dict[str, dg.MetadataValue]:
    """Those whose course over time is worth a plot, and the table of the actions."""
    scores = one.evaluation.scores
    return {
        f"{one.key}_accuracy": fixed(scores.accuracy.value),
        f"{one.key}_balanced_accuracy": fixed(scores.balanced_accuracy.value),
        f"{one.key}_macro_f1": fixed(scores.macro_f1.value),
        f"{one.key}_kappa": fixed(scores.kappa.value),
        f"{one.key}_images": dg.MetadataValue.int(scores.images),
        f"{one.key}_without_prediction": dg.MetadataValue.int(one.evaluation.without_prediction),
        f"{one.key}_per_class": frame_table(scores.per_class),
    }
