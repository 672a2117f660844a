"""Action recognition over the store: predictions are made, kept and judged."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from labeling_pipeline.annotations import State
from labeling_pipeline.asks import EntryAsks, current_view, model_keys
from labeling_pipeline.evaluation.actions import (
    KEYPOINTS,
    NO_ANSWER,
    NO_PERSON,
    NOT_LABELED,
    PREDICTION_COLUMNS,
    ZERO_SHOT,
    Recognition,
    compare_methods,
    evaluate_actions,
    judged_images,
    predict_from_keypoints,
    predict_from_presences,
)
from labeling_pipeline.evaluation.agreement import ANSWERED
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.inventory import held_out_images
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.reporting.figures import write_table
from labeling_pipeline.reporting.remembered import remembered
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_annotations, current_outcomes

# Predicting -------------------------------------------------------------------------------------


def predict_and_store_actions(store: AnnotationStore, plan: Plan) -> pd.DataFrame:
    """Predict the action of every image by each method that the plan has an entry for.

    The folder is the true action. Replaces what table ``action_predictions`` held.

    Returns:
        ``method, model_key`` and ``PREDICTION_COLUMNS``, one row a method and image.

    Raises:
        ModelError: a service that has the model of the zero-shot entry does not answer.
    """
    images = _images(store, plan)
    made = [pd.DataFrame(columns=["method", "model_key", *PREDICTION_COLUMNS])]
    if (entry := plan.action_entry()) is not None:
        made.append(_from_keypoints(store, plan, entry, images).assign(method=KEYPOINTS))
    if (entry := plan.zero_shot_entry()) is not None:
        made.append(_from_presences(store, plan, entry, images).assign(method=ZERO_SHOT))
    predictions = pd.concat(made[1:] or made, ignore_index=True)
    _replace_predictions(store, predictions)
    return predictions


def _images(store: AnnotationStore, plan: Plan) -> pd.DataFrame:
    """``image_id, class, true_action, group, is_test, is_held_out`` of every accepted image."""
    # A file that lies in no class folder belongs to every class and has no true action.
    return store.query(
        """
        SELECT i.image_id, i.class, display_name AS true_action,
            coalesce(cluster, i.image_id) AS "group",
            coalesce(h.is_test, false) AS is_test, h.image_id IS NOT NULL AS is_held_out
        FROM class_images i JOIN files f ON f.path = i.path AND f.class = i.class
        LEFT JOIN held_out h ON h.image_id = i.image_id
        ORDER BY i.path
        """,
        tables={"held_out": held_out_images(store, plan.actions.test_folder)},
    ).to_pandas()


def _from_keypoints(
    store: AnnotationStore, plan: Plan, entry: Entry, images: pd.DataFrame
) -> pd.DataFrame:
    """By what the keypoints of the best-scored person of each image say."""
    images = images[images["true_action"].map(entry.covers).astype(bool)]
    key = model_keys(plan)[entry.name]
    outcomes = current_outcomes(store, {entry.name: key})
    own = outcomes.loc[outcomes["belongs"], ["image_id", "class", "state", "error", "model_key"]]
    rows = images.merge(own, on=["image_id", "class"], how="left")
    reasons = map(_why_nobody, rows["state"], rows["error"])
    view = dataclasses.replace(current_view(plan).measured, model_keys={entry.name: key})
    people = current_annotations(store, view)
    best = best_of_each_image(people[people["belongs"]])
    best = best.assign(bbox=list(best[BOX_COLUMNS].to_numpy()))[["image_id", "keypoints", "bbox"]]
    predictions = predict_from_keypoints(
        rows.assign(reason=list(reasons)).merge(best, on="image_id", how="left"),
        folds=plan.actions.folds,
        seed=plan.actions.seed,
    )
    return predictions.assign(model_key=rows["model_key"].fillna(key))


def _why_nobody(state: str | float, error: str | None) -> str | None:
    """Why there is no person on an image, if there is none; state: missing without an outcome."""
    if pd.isna(state):
        return NOT_LABELED
    return error if state == State.UNSUPPORTED else NO_PERSON if state in ANSWERED else NO_ANSWER


def best_of_each_image(annotations: pd.DataFrame) -> pd.DataFrame:
    """The best-scored row of each image; what a person gave has no score and is the best."""
    ranked = annotations.assign(by_model=annotations["corrected_by"].isna()).sort_values(
        ["by_model", "score"], ascending=[True, False], kind="stable"
    )
    return ranked.drop(columns="by_model").drop_duplicates("image_id")


def _from_presences(
    store: AnnotationStore, plan: Plan, entry: Entry, images: pd.DataFrame
) -> pd.DataFrame:
    """By what the model said of each action on each image."""
    asks = EntryAsks(store, plan, entry)
    names = {slug: asks.names[slug] for slug in asks.classes}
    images = images[images["class"].isin(list(names))].reset_index(drop=True)
    asked_now = {group.request_hash for group in asks.requests.groups}
    answers = current_outcomes(store, {entry.name: asks.model.model_key})
    answers = answers[answers["class"].isin(list(names)) & answers["request_hash"].isin(asked_now)]
    answers = answers.assign(action=answers["class"].map(names))
    predictions = predict_from_presences(
        images, answers, list(names.values()), _why_no_zero_shot(asks)
    )
    keys = answers.drop_duplicates("image_id").set_index("image_id")["model_key"]
    found = images["image_id"].map(keys).fillna(asks.model.model_key)
    return predictions.assign(model_key=found)


def _why_no_zero_shot(asks: EntryAsks) -> str | None:
    """Why presences of an entry cannot be compared, and what to change in the plan."""
    name, classes = asks.entry.name, asks.classes
    groups = [asks.requests.group_of(slug) for slug in classes]
    labels = Counter(asks.entry.label_for(asks.names[slug]).casefold() for slug in classes)
    if len(classes) < 2:
        return f"{name} asks for one action only: nothing to tell it from"
    if None in groups:
        slug = classes[groups.index(None)]
        return asks.requests.unsupported[slug][1]
    label, times = labels.most_common(1)[0]
    if times > 1:
        return (
            f"{name} asks for {times} actions by the same label {label!r}: give each one of its "
            "own under `ask`"
        )
    if len({group.request_hash for group in groups if group}) > 1:
        needed = len({label for group in asks.requests.groups for label in group.classes.values()})
        needed += len({label for label, _ in asks.requests.unsupported.values()})
        return (
            f"{name} asks for the actions in several prompts: set its group_size to at least "
            f"{needed}, or name the `classes` that are actions"
        )
    return None


def _replace_predictions(store: AnnotationStore, predictions: pd.DataFrame) -> None:
    """Make these the predictions, in place of all earlier ones."""
    rows = [
        {
            "image_id": row.image_id,
            "method": row.method,
            "model_key": row.model_key,
            "true_action": row.true_action,
            "predicted_action": row.predicted_action,
            "probabilities": json.dumps(row.probabilities) if row.probabilities else None,
            "fold": None if pd.isna(row.fold) else int(row.fold),
            "reason": row.reason,
        }
        for row in predictions.itertuples()
    ]
    with store.transaction() as tx:
        tx.execute("DELETE FROM action_predictions")
        tx.insert("action_predictions", rows)


# Judging ----------------------------------------------------------------------------------------


@remembered
def evaluate_stored_actions(store: AnnotationStore, plan: Plan) -> list[Recognition]:
    """How well the stored predictions tell the actions apart.

    Method by method, over the images outside the test folder and over those in it; parts without
    images are left out.
    """
    stored = _stored_predictions(store, plan)
    return [
        Recognition(
            method,
            is_test,
            judged_images(part),
            evaluate_actions(
                part,
                top_k=plan.actions.top_k,
                target_accuracy=plan.actions.target_accuracy,
                seed=plan.actions.seed,
            ),
        )
        for is_test in (False, True)
        for method in (KEYPOINTS, ZERO_SHOT)
        if len(part := stored[(stored["method"] == method) & (stored["is_test"] == is_test)])
    ]


def _stored_predictions(store: AnnotationStore, plan: Plan) -> pd.DataFrame:
    """Table ``action_predictions``, with probabilities as dicts, and ``path, group, is_test,
    top_probability``."""
    # What was predicted in a fold was learned from in the others, whatever the plan says by now.
    rows = store.query(
        """
        SELECT p.*, c.path, coalesce(i.cluster, p.image_id) AS "group",
            p.fold IS NULL AND coalesce(h.is_test, false) AS is_test
        FROM action_predictions p
        LEFT JOIN images i USING (image_id)
        LEFT JOIN (SELECT DISTINCT image_id, path FROM class_images) c USING (image_id)
        LEFT JOIN held_out h USING (image_id)
        ORDER BY p.method, c.path
        """,
        tables={"held_out": held_out_images(store, plan.actions.test_folder)},
    ).to_pandas()
    chances = [
        json.loads(text) if isinstance(text, str) else None for text in rows["probabilities"]
    ]
    return rows.assign(
        fold=rows["fold"].astype("Int64"),
        probabilities=pd.Series(chances, index=rows.index, dtype=object),
        top_probability=[max(p.values()) if p else math.nan for p in chances],
    )


def write_action_tables(folder: Path, recognitions: Sequence[Recognition]) -> None:
    """Write the tables as CSV: ``comparison``, ``classes``, ``predictions``, and of each method and
    part of the images the confusion matrix, as counts and as shares of each true action."""
    tables = {"comparison": compare_methods(recognitions)}
    parts, classes = [], []
    for one in recognitions:
        scores = one.evaluation.scores
        counts = scores.confusion
        tables[f"{one.key}_confusion"] = counts.reset_index()
        shares = counts.div(counts.sum(axis=1).where(lambda total: total > 0), axis=0)
        tables[f"{one.key}_confusion_shares"] = shares.reset_index()
        per_class = scores.per_class.rename(columns={"class": "action"})
        classes.append(pd.concat({one.title: per_class}, names=["method"]).reset_index(level=0))
        parts.append(_listed(one))
    if parts:
        tables |= {"classes": pd.concat(classes), "predictions": pd.concat(parts)}
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", table)


def _listed(one: Recognition) -> pd.DataFrame:
    """The predictions of one method on one part of the images, and which of them to withhold."""
    limit = one.evaluation.scores.abstain.value
    sure = one.predictions["top_probability"]
    columns = ["path", "image_id", "method", "images", "true_action", "predicted_action"]
    return one.predictions.assign(
        method=one.method,
        images="test folder" if one.is_test else "all others",
        withhold=True if limit is None else ~(sure >= limit),
    )[[*columns, "top_probability", "withhold", "fold", "reason"]]


def why_not_recognised(recognitions: Sequence[Recognition]) -> str:
    """Why no method could be judged at all; empty if one could."""
    if any(one.evaluation.scores.images for one in recognitions):
        return ""
    return "; ".join(f"{one.title}: {one.why_not}" for one in recognitions)
