"""Human action recognition from keypoints: does the labeled posture tell the action?

The people found on the images are turned into features, a small classifier is trained on most of
the images and predicts the rest, in turns (out-of-fold), and the predictions are compared with the
true actions. High agreement says that the keypoints are good enough to carry the action.

Near-duplicates share a group and a group is never on both sides of a fold
(``StratifiedGroupKFold``), or memory would pass for recognition.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labeling_pipeline.annotations import Keypoint
from labeling_pipeline.evaluation.detection import ratio
from labeling_pipeline.evaluation.keypoints import visible_points
from labeling_pipeline.tasks import PERSON

NO_PERSON = "no person"
NOT_PREDICTED = "not predicted"

_PREDICTION_COLUMNS = [
    *("image_id", "true_action", "predicted_action", "probabilities", "top_probability"),
    *("fold", "reason"),
]


@dataclass(frozen=True)
class ActionEvaluation:
    """How well actions were recognised.

    images, predicted, without_person: how many images there are, got an action, show no person.
    accuracy_all: right ones among all images that could be judged: an image without a person
        counts as wrong, one that there was nothing to learn from does not count.
    accuracy_predicted: right ones among those that were predicted.
    macro_f1: mean of the classes' F1 over all images. All three are ``None`` if there is nothing
        to divide by.
    per_class: one row an action, sorted: ``action, support, predicted, precision, recall, f1``;
        recall is over all images of the class. A ratio that does not exist is NaN.
    confusion: counts; index true action, columns predicted action, then ``no person`` and, if
        anything else kept images from being predicted, ``not predicted``.
    reasons: why images have no prediction -> how many.
    """

    images: int
    predicted: int
    without_person: int
    accuracy_all: float | None
    accuracy_predicted: float | None
    macro_f1: float | None
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    reasons: dict[str, int]


def keypoint_features(
    keypoints: Iterable[Keypoint | Mapping[str, Any]] | None, bbox: Sequence[float] | None
) -> np.ndarray:
    """Describe a posture, whatever the person's place and size.

    Points are taken relative to the centre of the person's box and divided by its larger side, the
    same for x and y, so that lying stays different from standing. Limbs are added as unit vectors
    (cosine and sine of their direction), which say how the body is bent whatever its proportions.

    Args:
        keypoints: `Keypoint` values or mappings with ``name, x_px, y_px``; names that the person
            skeleton does not have are ignored.
        bbox: x0, y0, x1, y1 in pixels; if there is none, the box around the visible points.

    Returns:
        (67,) float64: 17 times x, y; 16 limbs times cosine, sine; the logarithm of width / height.
        What a missing point leaves unknown is NaN.
    """
    points = np.full((len(PERSON.keypoints), 2), np.nan)
    visible = visible_points(keypoints if keypoints is not None else ())
    for i, name in enumerate(PERSON.keypoints):
        if name in visible:
            points[i] = visible[name]
    edges = np.asarray(PERSON.edges)
    if bbox is None:
        seen = points[np.isfinite(points[:, 0])]
        if not len(seen):
            return np.full(points.size + 2 * len(edges) + 1, np.nan)
        bbox = (*seen.min(axis=0), *seen.max(axis=0))
    x0, y0, x1, y1 = (float(v) for v in bbox)
    # A box without extent says nothing of scale; one pixel keeps the division defined.
    width_px, height_px = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
    scale_px = max(width_px, height_px)
    relative = (points - [(x0 + x1) / 2, (y0 + y1) / 2]) / scale_px
    limbs = relative[edges[:, 1]] - relative[edges[:, 0]]
    lengths = np.linalg.norm(limbs, axis=1, keepdims=True)
    directions = np.divide(limbs, lengths, out=np.full_like(limbs, np.nan), where=lengths > 0)
    return np.concatenate([relative.ravel(), directions.ravel(), [math.log(width_px / height_px)]])


def predict_actions(people: pd.DataFrame, *, folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Predict the action of every image from the others.

    Args:
        people: one row an image: ``image_id, group`` (near-duplicates share one; missing: the
            image is its own), ``true_action, keypoints`` and ``bbox`` of the best-scored person,
            both ``None`` where no person was found.
        folds: at most so many folds; fewer if the classes are small.
        seed: of the shuffling into folds and of the classifier.

    Returns:
        One row an image, in the order given: ``image_id, true_action, predicted_action,
        probabilities`` (action -> probability), ``top_probability, fold, reason``. Without a
        prediction the action, probabilities and fold are ``None`` and ``reason`` says why.
    """
    people = people.reset_index(drop=True)
    result = pd.DataFrame(
        {
            "image_id": people["image_id"],
            "true_action": people["true_action"],
            "predicted_action": None,
            "probabilities": None,
            "top_probability": np.nan,
            "fold": pd.array([None] * len(people), dtype="Int64"),
            "reason": None,
        },
        columns=_PREDICTION_COLUMNS,
    ).astype({"predicted_action": object, "probabilities": object, "reason": object})

    has_person = people["keypoints"].map(_is_given) | people["bbox"].map(_is_given)
    has_action = people["true_action"].notna()
    result.loc[~has_person, "reason"] = NO_PERSON
    result.loc[has_person & ~has_action, "reason"] = "no true action is known"
    usable = np.flatnonzero(has_person & has_action)
    actions = people["true_action"].to_numpy(dtype=object)[usable].astype(str)
    groups = people["group"].where(people["group"].notna(), people["image_id"])
    group_names = groups.to_numpy(dtype=object)[usable].astype(str)
    splits, reason = _splits(actions, group_names, folds, seed)
    if reason is not None:
        result.loc[usable, "reason"] = reason
        return result

    features = np.stack(
        [
            keypoint_features(_given(row.keypoints), _given(row.bbox))
            for row in people.iloc[usable].itertuples()
        ]
    )
    all_actions = sorted(set(actions))
    for fold, (train, test) in enumerate(splits):
        rows = usable[test]
        known = set(actions[train])
        # A fold can take a small class's only group away.
        if len(known) < 2:
            result.loc[rows, "reason"] = "too few images: one action is left to learn from"
            continue
        classifier = _classifier(seed)
        classifier.fit(features[train], actions[train])
        probabilities = classifier.predict_proba(features[test])
        for row, values in zip(rows, probabilities, strict=True):
            by_action = dict.fromkeys(all_actions, 0.0)
            by_action.update(zip(classifier.classes_.tolist(), values.tolist(), strict=True))
            best = max(by_action, key=by_action.__getitem__)
            result.at[row, "predicted_action"] = best
            result.at[row, "probabilities"] = by_action  # type: ignore[assignment]
            result.at[row, "top_probability"] = by_action[best]
            result.at[row, "fold"] = fold
    return result


def evaluate_actions(predictions: pd.DataFrame) -> ActionEvaluation:
    """Compare predicted with true actions.

    Args:
        predictions: ``image_id, true_action, predicted_action`` and, optionally, ``reason``.
            Images whose true action is missing are left out.
    """
    from sklearn.metrics import precision_recall_fscore_support

    judged = predictions[predictions["true_action"].notna()]
    true = judged["true_action"].astype(str)
    predicted = judged["predicted_action"]
    got = predicted.notna()
    reasons = judged.get("reason", pd.Series(None, index=judged.index, dtype=object))
    reasons = reasons.where(reasons.notna(), NO_PERSON)[~got]
    actions = sorted({*true, *predicted[got].astype(str)})

    # An object of its own can never be mistaken for a class that bears the column's name.
    codes = {action: i for i, action in enumerate(actions)}
    true_codes = true.map(codes).to_numpy(dtype=int)
    predicted_codes = predicted.astype(object).map(codes).fillna(-1).to_numpy(dtype=int)
    if len(judged):
        precision, recall, f1, support = precision_recall_fscore_support(
            true_codes, predicted_codes, labels=range(len(actions)), zero_division=np.nan
        )
    else:
        precision = recall = f1 = support = np.empty(0)
    per_class = pd.DataFrame(
        {
            "action": actions,
            "support": np.asarray(support, dtype=int),
            "predicted": [int((predicted_codes == i).sum()) for i in range(len(actions))],
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }
    )
    right = int((true_codes == predicted_codes).sum())
    without_person = int((reasons == NO_PERSON).sum())
    f1_known = per_class["f1"].dropna()
    return ActionEvaluation(
        images=len(judged),
        predicted=int(got.sum()),
        without_person=without_person,
        accuracy_all=ratio(right, int(got.sum()) + without_person),
        accuracy_predicted=ratio(right, int(got.sum())),
        macro_f1=float(f1_known.mean()) if len(f1_known) else None,
        per_class=per_class,
        confusion=_confusion(actions, true_codes, predicted_codes, got.to_numpy(), reasons),
        reasons={str(reason): int(n) for reason, n in reasons.value_counts().items()},
    )


def _is_given(value: object) -> bool:
    """Missing is ``None`` or NaN; a sequence is a value, even an empty one."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _given(value: Any) -> Any:
    return value if _is_given(value) else None


def _splits(
    actions: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str | None]:
    """Return (train, test) positions, or the reason why there are none."""
    from sklearn.model_selection import StratifiedGroupKFold

    if not len(actions):
        return [], "too few images: none shows a person"
    classes = set(actions)
    if len(classes) < 2:
        return [], f"one action only ({classes.pop()}): nothing to tell it from"
    groups_of = pd.DataFrame({"action": actions, "group": groups}).groupby("action")["group"]
    # As many folds as the largest class has independent images; a smaller class then misses from
    # some folds, which costs less than training everything on half of the images.
    n_splits = min(folds, int(groups_of.nunique().max()))
    if n_splits < 2:
        return [], "too few images: no action has two that are not near-duplicates"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        splitter = StratifiedGroupKFold(n_splits=n_splits, shuffle=True, random_state=seed)
        splits = list(splitter.split(np.zeros(len(actions)), actions, groups))
    return [(train, test) for train, test in splits if len(test)], None


def _classifier(seed: int) -> Any:
    """Median imputation and a random forest.

    Among what works with a dozen images a class (regularised logistic regression, RBF support
    vectors, extra trees), forests stayed right longest as keypoints got noisy and went missing.
    Indicators of what is missing made every one of them worse.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        RandomForestClassifier(n_estimators=200, random_state=seed),
    )


def _confusion(
    actions: Sequence[str],
    true_codes: np.ndarray,
    predicted_codes: np.ndarray,
    got: np.ndarray,
    reasons: pd.Series,
) -> pd.DataFrame:
    n = len(actions)
    no_person = (reasons == NO_PERSON).to_numpy()
    columns = predicted_codes.copy()
    columns[~got] = np.where(no_person, n, n + 1)
    counts = np.zeros((n, n + 2), dtype=int)
    np.add.at(counts, (true_codes, columns), 1)
    table = pd.DataFrame(counts, index=list(actions), columns=[*actions, NO_PERSON, NOT_PREDICTED])
    table.index.name = "true_action"
    return table.iloc[:, : n + 1] if no_person.all() else table
