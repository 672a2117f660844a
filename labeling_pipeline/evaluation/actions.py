"""Human-action recognition: do the labels tell which action an image shows?

By two methods. From keypoints: the people found on the images are turned into features, a small
classifier learns from most of the images and predicts the rest, in turns (out of fold). High
accuracy says that the keypoints are good enough to carry the action. Near duplicates share a group
and a group is never on both sides of a fold (``StratifiedGroupKFold``), or memory would pass for
recognition.

Zero-shot: the model was asked for each action in one prompt, and the presence of each, 1 - P(None)
where its boxes would begin, is shared out among them. Nothing is learned.

Images of a test folder are predicted once, by the classifier that learned from all the others.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from labeling_pipeline.annotations import Keypoint, State
from labeling_pipeline.evaluation.agreement import ANSWERED
from labeling_pipeline.evaluation.classification import (
    Classification,
    evaluate_classification,
)
from labeling_pipeline.evaluation.intervals import Measure
from labeling_pipeline.evaluation.keypoints import visible_points
from labeling_pipeline.evaluation.plots import actions as plots
from labeling_pipeline.evaluation.plots.frame import png_bytes
from labeling_pipeline.tasks import PERSON

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYPOINTS, ZERO_SHOT = "keypoints", "zero_shot"
"""The methods, as table ``action_predictions`` of the store spells them."""

NO_PERSON = "no person"
NO_ACTION = "no action seen"
NO_ANSWER = "no sound answer"
COUNTED_AS_WRONG = (NO_PERSON, NO_ACTION, NO_ANSWER)
"""Reasons for having no prediction that the labels are to blame for. Any other one says that there
was nothing to go by, and such images count nowhere."""

NOT_LABELED = "not labeled yet"
NO_PRESENCE = "the model measures no presence of a label: one that does is rex-omni"

PREDICTION_COLUMNS = [
    *("image_id", "true_action", "predicted_action", "probabilities", "top_probability"),
    *("fold", "reason"),
]
"""What the two ways of predicting return, one row an image. ``probabilities``: action ->
probability. Without a prediction it, the action and the fold are ``None`` and ``reason`` says why.
``fold``: in which turn an image was predicted; ``None`` if it was in none."""

_FEATURES = 2 * len(PERSON.keypoints) + 2 * len(PERSON.edges) + 1
# Of more images every tree draws so many: of 8,000 that takes a third of the time, at no less
# accuracy.
_MOST_A_TREE = 2000


@dataclass(frozen=True)
class ActionEvaluation:
    """How well actions were recognised.

    scores: over all images that could be judged.
    reasons: why images have no prediction and count as wrong -> how many.
    not_judged: why others count nowhere -> how many.
    """

    scores: Classification
    reasons: dict[str, int]
    not_judged: dict[str, int]

    @property
    def images(self) -> int:
        """How many there are, judged or not."""
        return self.scores.images + sum(self.not_judged.values())

    @property
    def without_prediction(self) -> int:
        """How many count as wrong because nothing was predicted."""
        return sum(self.reasons.values())


@dataclass(frozen=True)
class Recognition:
    """How well one method recognised the actions of one part of the images.

    method: ``KEYPOINTS`` or ``ZERO_SHOT``. is_test: of the test folder, or of all other images.
    predictions: the rows that the evaluation is of.
    """

    method: str
    is_test: bool
    predictions: pd.DataFrame
    evaluation: ActionEvaluation

    @property
    def key(self) -> str:
        """In names of files and of metadata."""
        return f"{self.method}_test" if self.is_test else self.method

    @property
    def title(self) -> str:
        """For people."""
        name = self.method.replace("_", "-")
        return f"{name}, test folder" if self.is_test else name

    @cached_property
    def figures(self) -> dict[str, bytes]:
        """Name -> PNG. Of a test folder those that say what was mistaken for what; how sure the
        predictions were is the same question on fewer images."""
        scores, predictions = self.evaluation.scores, self.predictions
        figures: dict[str, Figure] = {"confusion_matrix": plots.confusion_matrix(scores.confusion)}
        if not self.is_test:
            figures["true_versus_predicted"] = plots.true_versus_predicted(predictions)
        figures["class_scores"] = plots.class_scores(scores.per_class)
        if not self.is_test:
            figures |= {
                "top_probabilities": plots.top_probabilities(predictions),
                "risk_coverage": plots.risk_coverage(scores.risk, scores.abstain),
                "reliability": plots.reliability(scores.reliability),
            }
        return {f"{self.key}_{name}": png_bytes(figure) for name, figure in figures.items()}

    @property
    def why_not(self) -> str:
        """Why images were not judged, and how many; empty if all were."""
        reasons = self.evaluation.not_judged.items()
        return "; ".join(f"{reason} ({images} images)" for reason, images in reasons)


def compare_methods(recognitions: Sequence[Recognition]) -> pd.DataFrame:
    """One row a method and part of the images, with the columns of its scores.

    ``<score>_low`` and ``<score>_high`` are the ends of 95 % intervals; what does not exist is NaN.
    """
    return pd.DataFrame([_compared(one) for one in recognitions])


def _compared(one: Recognition) -> dict[str, object]:
    scores = one.evaluation.scores
    estimates = {
        "accuracy": scores.accuracy,
        "accuracy_predicted": scores.accuracy_predicted,
        "balanced_accuracy": scores.balanced_accuracy,
        "macro_f1": scores.macro_f1,
        "kappa": scores.kappa,
        "accuracy_kept": Measure(scores.abstain.accuracy, scores.abstain.interval),
    }
    numbers: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        ends = estimate.interval
        numbers[name] = estimate.value
        numbers[f"{name}_low"] = ends.low if ends else None
        numbers[f"{name}_high"] = ends.high if ends else None
    numbers |= {
        f"top_{scores.k}": scores.top_k,
        "expected_calibration_error": scores.reliability.ece,
        "area_under_risk_coverage": scores.risk.aurc,
        "abstain_below": scores.abstain.value,
        "share_kept": scores.abstain.coverage,
    }
    return {
        "method": one.title,
        "images": scores.images,
        "without_prediction": one.evaluation.without_prediction,
        "not_judged": sum(one.evaluation.not_judged.values()),
        **{name: math.nan if value is None else value for name, value in numbers.items()},
    }


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
            return np.full(_FEATURES, np.nan)
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


def predict_from_keypoints(people: pd.DataFrame, *, folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Predict the action of every image from the others.

    Args:
        people: one row an image: ``image_id, group`` (near-duplicates share one; missing: the
            image is its own), ``true_action, keypoints`` and ``bbox`` of the best-scored person,
            both ``None`` where no person was found. Optional: ``reason``, why nothing can be said
            of an image without a person (default: ``NO_PERSON``); ``is_test`` (bool): it is
            predicted once, from all others; ``is_held_out`` (bool): nothing is learned from it
            (default: as ``is_test``).
        folds: at most so many folds; fewer if the classes are small.
        seed: of the shuffling into folds and of the classifier.

    Returns:
        ``PREDICTION_COLUMNS``, one row an image, in the order given.
    """
    people = people.reset_index(drop=True)
    made = _Predictions(people)
    is_test = people.get("is_test", pd.Series(False, people.index)).to_numpy(dtype=bool)
    is_held_out = people.get("is_held_out", pd.Series(is_test)).to_numpy(dtype=bool)
    has_person = (people["keypoints"].map(_is_given) | people["bbox"].map(_is_given)).to_numpy()
    has_action = people["true_action"].notna().to_numpy()
    why_not = people.get("reason", pd.Series(None, people.index, dtype=object))
    made.leave(~has_person, why_not.where(why_not.notna(), NO_PERSON).to_numpy(dtype=object))
    made.leave(has_person & ~has_action, "no true action is known")
    usable = has_person & has_action
    features = np.full((len(people), _FEATURES), np.nan)
    for row, keypoints, bbox in zip(people.index, people["keypoints"], people["bbox"], strict=True):
        if usable[row]:
            features[row] = keypoint_features(_given(keypoints), _given(bbox))
    actions = people["true_action"].to_numpy(dtype=object)
    groups = people["group"].where(people["group"].notna(), people["image_id"]).to_numpy(dtype=str)
    names = sorted(set(actions[usable]))

    def predict(learned: np.ndarray, rows: np.ndarray, fold: int | None) -> None:
        if len(set(actions[learned])) < 2:
            made.leave(rows, "too few images: fewer than two actions are left to learn from")
            return
        classifier = _fitted(features[learned], actions[learned].astype(str), seed)
        chances = np.zeros((len(rows), len(names)))
        columns = [names.index(name) for name in classifier.classes_]
        chances[:, columns] = classifier.predict_proba(features[rows])
        made.fill(rows, names, chances, fold)

    rows = np.flatnonzero(usable & ~is_test)
    splits, reason = _splits(actions[rows].astype(str), groups[rows], folds, seed)
    if reason is not None:
        made.leave(rows, reason)
    for fold, (train, test) in enumerate(splits):
        learned = rows[train]
        predict(learned[~is_held_out[learned]], rows[test], fold)
    if len(tested := np.flatnonzero(usable & is_test)):
        predict(rows[~is_held_out[rows]], tested, None)
    return made.table()


def predict_from_presences(
    images: pd.DataFrame,
    answers: pd.DataFrame,
    actions: Sequence[str],
    why_not: str | None = None,
) -> pd.DataFrame:
    """Predict the action of every image from how present each action was to the model.

    Args:
        images: one row an image: ``image_id, true_action``.
        answers: one row an image and action that it was asked for, all of an image in one prompt:
            ``image_id, action, state, presence`` (0..1; missing where the model measures none).
        actions: all that are asked for, to choose from.
        why_not: why nothing can be predicted whatever the answers, if so.

    Returns:
        ``PREDICTION_COLUMNS``, one row an image, in the order given; ``fold`` is always ``None``.
        Presences are divided by their sum.
    """
    images = images.reset_index(drop=True)
    made = _Predictions(images)
    if why_not is not None:
        made.leave(np.arange(len(images)), why_not)
        return made.table()
    names = sorted(actions)
    place = pd.Index(images["image_id"]).get_indexer(answers["image_id"])
    answers = answers.assign(row=place)[place >= 0]
    column_of = {name: column for column, name in enumerate(names)}
    cells = answers["row"].to_numpy(), answers["action"].map(column_of).to_numpy(dtype=int)
    state = answers["state"].to_numpy(dtype=object)
    presence = answers["presence"].to_numpy(dtype=float, na_value=np.nan)
    # A whole answer that passes over a label says that it is not there.
    presence = np.where(np.isnan(presence) & (state == State.NOT_MENTIONED), 0.0, presence)
    chances = np.full((len(images), len(names)), np.nan)
    chances[cells] = presence
    asked, found, sound = (np.zeros(chances.shape, dtype=bool) for _ in range(3))
    asked[cells] = True
    found[cells] = state == State.FOUND
    sound[cells] = np.isin(state.astype(str), ANSWERED)

    is_open = np.ones(len(images), dtype=bool)
    for why, applies in (
        (NOT_LABELED, ~asked.all(axis=1)),
        (NO_ANSWER, ~sound.all(axis=1)),
        (NO_PRESENCE, np.isnan(chances).any(axis=1)),
        (NO_ACTION, ~found.any(axis=1) | (chances.sum(axis=1) == 0)),
    ):
        made.leave(is_open & applies, why)
        is_open &= ~applies
    rows = np.flatnonzero(is_open)
    total = chances[rows].sum(axis=1, keepdims=True)
    made.fill(rows, names, chances[rows] / total, None)
    return made.table()


def evaluate_actions(
    predictions: pd.DataFrame, *, top_k: int = 3, target_accuracy: float = 0.95, seed: int = 0
) -> ActionEvaluation:
    """Compare predicted with true actions.

    Args:
        predictions: ``true_action, predicted_action``, and where known ``probabilities, reason,
            group`` (of near duplicates). Images whose true action is missing are left out.
        top_k, target_accuracy, seed: as for `evaluate_classification`.
    """
    known = predictions[predictions["true_action"].notna()]
    judged = judged_images(predictions)
    got = judged["predicted_action"].notna().to_numpy()
    reasons = _reasons(judged).tolist()
    chances = [
        value if isinstance(value, Mapping) else {}
        for value in judged.get("probabilities", pd.Series(None, judged.index, dtype=object))
    ]
    return ActionEvaluation(
        scores=evaluate_classification(
            judged["true_action"].astype(str).tolist(),
            judged["predicted_action"].astype(object).where(got, None).tolist(),
            pd.DataFrame(chances, index=judged.index).fillna(0.0),
            reasons=reasons,
            groups=judged["group"].tolist() if "group" in judged else None,
            top_k=top_k,
            target_accuracy=target_accuracy,
            seed=seed,
        ),
        reasons=_counted(_reasons(judged)[~got]),
        not_judged=_counted(_reasons(known.drop(judged.index))),
    )


def judged_images(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows that count: with a true action, and a prediction or a reason that is as bad as a
    wrong one."""
    known = predictions[predictions["true_action"].notna()]
    return known[known["predicted_action"].notna() | _reasons(known).isin(COUNTED_AS_WRONG)]


def _reasons(predictions: pd.DataFrame) -> pd.Series:
    """Why there is no prediction, where nothing else is said: nobody was found."""
    reasons = predictions.get("reason", pd.Series(None, predictions.index, dtype=object))
    return reasons.where(reasons.notna(), NO_PERSON)


def _counted(reasons: pd.Series) -> dict[str, int]:
    return {str(reason): int(images) for reason, images in reasons.value_counts().items()}


class _Predictions:
    """The columns of the predictions, while they are made."""

    def __init__(self, images: pd.DataFrame) -> None:
        count = len(images)
        self._images = images
        self._predicted, self._chances, self._folds, self._reasons = (
            np.full(count, None, dtype=object) for _ in range(4)
        )
        self._top = np.full(count, np.nan)

    def leave(self, rows: np.ndarray, reason: str | np.ndarray) -> None:
        """These rows, by mask or by number, get no prediction."""
        self._reasons[rows] = reason if isinstance(reason, str) else reason[rows]

    def fill(
        self, rows: np.ndarray, names: Sequence[str], chances: np.ndarray, fold: int | None
    ) -> None:
        """These rows, by number, get one. chances: (rows, names)."""
        best = chances.argmax(axis=1) if len(rows) else np.empty(0, dtype=int)
        self._predicted[rows] = np.array(names, dtype=object)[best]
        self._top[rows] = chances[np.arange(len(rows)), best]
        self._folds[rows] = fold
        for row, values in zip(rows, chances.tolist(), strict=True):
            self._chances[row] = dict(zip(names, values, strict=True))

    def table(self) -> pd.DataFrame:
        """All of them."""
        return pd.DataFrame(
            {
                "image_id": self._images["image_id"],
                "true_action": self._images["true_action"],
                # Of type object, or missing texts would become NaN.
                "predicted_action": pd.Series(self._predicted, dtype=object),
                "probabilities": pd.Series(self._chances, dtype=object),
                "top_probability": self._top,
                "fold": pd.array(self._folds, dtype="Int64"),
                "reason": pd.Series(self._reasons, dtype=object),
            },
            columns=PREDICTION_COLUMNS,
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
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

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
    # Groups of one need no company kept together, which takes seconds for ten thousand.
    has_company = len(set(groups)) < len(groups)
    splitter = StratifiedGroupKFold if has_company else StratifiedKFold
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        folded = splitter(n_splits=n_splits, shuffle=True, random_state=seed).split(
            np.zeros(len(actions)), actions, groups if has_company else None
        )
        splits = list(folded)
    return [(train, test) for train, test in splits if len(test)], None


def _fitted(features: np.ndarray, actions: np.ndarray, seed: int) -> Any:
    """Median imputation and a random forest, trained.

    Among what works with a dozen images a class (regularised logistic regression, RBF support
    vectors, extra trees), forests stayed right longest as keypoints got noisy and went missing.
    Indicators of what is missing made every one of them worse.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    forest = RandomForestClassifier(
        n_estimators=200,
        random_state=seed,
        n_jobs=-1,
        max_samples=_MOST_A_TREE if len(actions) > _MOST_A_TREE else None,
    )
    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    classifier = make_pipeline(imputer, forest).fit(features, actions)
    # In threads the trees' votes are added up in any order, and the sums differ in the last digit.
    forest.set_params(n_jobs=1)
    return classifier
