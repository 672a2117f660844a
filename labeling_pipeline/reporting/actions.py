"""Action recognition over the store: predictions are made, kept and judged."""

import json
import math
from typing import TYPE_CHECKING

import pandas as pd

from labeling_pipeline.asks import class_names, current_view, model_keys
from labeling_pipeline.evaluation.actions import ActionEvaluation, evaluate_actions, predict_actions
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.plots import actions as plots
from labeling_pipeline.evaluation.plots.frame import png_bytes
from labeling_pipeline.plan import Plan
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_annotations

if TYPE_CHECKING:
    from matplotlib.figure import Figure


KEYPOINT_METHOD = "keypoints"


def predict_and_store_actions(store: AnnotationStore, plan: Plan) -> pd.DataFrame:
    """Predict the action of every image of the action entry's classes from its keypoints.

    Out of fold; the folder is the true action; near duplicates share a fold. Replaces what table
    ``action_predictions`` held for this method. Returns the rows of ``predict_actions``; empty if
    the plan has no keypoint entry.
    """
    entry = plan.action_entry()
    if entry is None:
        nothing = pd.DataFrame(columns=["image_id", "true_action", "predicted_action", "reason"])
        _replace_predictions(store, nothing, None)
        return nothing
    keys = model_keys(plan)
    names = {slug: name for slug, name in class_names(store).items() if entry.covers(name)}
    # A file that lies in no class folder belongs to every class and has no true action.
    images = store.query(
        """
        SELECT i.image_id, i.class, display_name AS true_action,
               coalesce(cluster, i.image_id) AS "group"
        FROM class_images i JOIN files f ON f.path = i.path AND f.class = i.class
        ORDER BY i.path
        """
    ).to_pandas()
    images = images[images["class"].isin(list(names))]
    people = current_annotations(store, current_view(plan).measured)
    people = people[(people["entry"] == entry.name) & people["belongs"]]
    best = best_of_each_image(people)
    best = best.assign(bbox=list(best[BOX_COLUMNS].to_numpy()))[["image_id", "keypoints", "bbox"]]
    rows = images.merge(best, on="image_id", how="left")
    rows = rows.astype({"keypoints": object, "bbox": object})
    rows = rows.where(rows.notna(), None)
    predictions = predict_actions(rows, folds=plan.actions.folds, seed=plan.actions.seed)
    _replace_predictions(store, predictions, keys[entry.name])
    return predictions


def best_of_each_image(annotations: pd.DataFrame) -> pd.DataFrame:
    """The best-scored row of each image; what a person gave has no score and is the best."""
    ranked = annotations.assign(by_model=annotations["corrected_by"].isna()).sort_values(
        ["by_model", "score"], ascending=[True, False], kind="stable"
    )
    return ranked.drop(columns="by_model").drop_duplicates("image_id")


def _replace_predictions(
    store: AnnotationStore, predictions: pd.DataFrame, model_key: str | None
) -> None:
    """Make these the predictions of the keypoint method, in place of all earlier ones."""
    with store.transaction() as tx:
        tx.execute("DELETE FROM action_predictions WHERE method = $1", (KEYPOINT_METHOD,))
        tx.insert(
            "action_predictions",
            [
                {
                    "image_id": row.image_id,
                    "method": KEYPOINT_METHOD,
                    "model_key": model_key,
                    "true_action": row.true_action,
                    "predicted_action": row.predicted_action,
                    "probabilities": json.dumps(row.probabilities) if row.probabilities else None,
                    "fold": None if pd.isna(row.fold) else int(row.fold),
                    "reason": row.reason,
                }
                for row in predictions.itertuples()
            ],
        )


def stored_action_predictions(store: AnnotationStore) -> pd.DataFrame:
    """Table ``action_predictions`` with its probabilities as dicts and ``top_probability``."""
    rows = store.query(
        "SELECT * FROM action_predictions WHERE method = $1 ORDER BY image_id", (KEYPOINT_METHOD,)
    ).to_pandas()
    probabilities = [
        json.loads(text) if isinstance(text, str) else None for text in rows["probabilities"]
    ]
    rows["probabilities"] = pd.Series(probabilities, index=rows.index, dtype=object)
    rows["top_probability"] = [max(p.values()) if p else math.nan for p in probabilities]
    return rows


def evaluate_stored_actions(store: AnnotationStore) -> ActionEvaluation:
    """How well the stored predictions tell the actions apart."""
    return evaluate_actions(stored_action_predictions(store))


def action_figures(predictions: pd.DataFrame, evaluation: ActionEvaluation) -> dict[str, bytes]:
    """The four figures of human-action recognition: name -> PNG."""
    figures: dict[str, Figure] = {
        "confusion_matrix": plots.confusion_matrix(evaluation.confusion),
        "class_scores": plots.class_scores(evaluation.per_class),
        "top_probabilities": plots.top_probabilities(predictions),
        "true_versus_predicted": plots.true_versus_predicted(predictions),
    }
    return {name: png_bytes(figure) for name, figure in figures.items()}


def why_not_predicted(actions: ActionEvaluation) -> str:
    """Why images have no predicted action, and how many; empty if all have one."""
    return "; ".join(f"{reason} ({images} images)" for reason, images in actions.reasons.items())
