"""How well things were told apart: every metric of one confusion matrix, with its interval.

An image that should have got a class and got none is wrong: it is missed by its own class, and no
other one is blamed for it. Numbers that look at probabilities are over the predictions alone.

Definitions are scikit-learn's (``precision_recall_fscore_support``, ``balanced_accuracy_score``,
``cohen_kappa_score``, ``top_k_accuracy_score``), where "no prediction" is a class that is never
true; a ratio that does not exist is left out of means (``zero_division=nan``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.abstention import (
    AbstainThreshold,
    RiskCoverage,
    choose_threshold,
    measure_risk_coverage,
)
from labeling_pipeline.evaluation.intervals import (
    Interval,
    Measure,
    bootstrap_intervals,
    clustered_interval,
)
from labeling_pipeline.evaluation.reliability import Reliability, measure_reliability


@dataclass(frozen=True)
class Classification:
    """How well images were classified.

    images, predicted: how many were to get a class, and how many got one.
    accuracy: right ones among all images.
    accuracy_predicted: right ones among those that got a class.
    balanced_accuracy: mean recall of the classes that occur.
    macro_f1: mean F1 of the classes that occur or were predicted.
    kappa: Cohen's ("A coefficient of agreement for nominal scales", 1960), over all images.
    top_k: share of all images whose class is among the k most probable; of equally probable ones
        the alphabetically first comes first. k: at most as many as there are to choose from.
    per_class: one row a class, sorted: ``class, support, predicted, precision, recall, f1``. A
        ratio that does not exist is NaN.
    averages: rows ``macro`` and ``weighted`` (by support), columns ``precision, recall, f1``.
    confusion: counts; index true class, columns predicted class, then why there is no prediction.
    reliability: of the probability of the predicted class.
    risk: what a threshold on that probability would keep. Coverage is over all images.
    abstain: the threshold below which a prediction should be withheld.
    """

    images: int
    predicted: int
    accuracy: Measure
    accuracy_predicted: Measure
    balanced_accuracy: Measure
    macro_f1: Measure
    kappa: Measure
    k: int
    top_k: float | None
    per_class: pd.DataFrame
    averages: pd.DataFrame
    confusion: pd.DataFrame
    reliability: Reliability
    risk: RiskCoverage
    abstain: AbstainThreshold


def evaluate_classification(
    true: Sequence[str],
    predicted: Sequence[str | None],
    probabilities: pd.DataFrame,
    *,
    reasons: Sequence[str | None] | None = None,
    groups: Sequence[object] | None = None,
    top_k: int = 3,
    target_accuracy: float = 0.95,
    seed: int = 0,
) -> Classification:
    """Compare predicted with true classes.

    Args:
        true: the class of each of m images.
        predicted: the predicted one; ``None`` where there is none.
        probabilities: (m, classes) float, columns named by class; the rows of images without a
            prediction are not looked at. Classes without a column have probability 0.
        reasons: why an image has no prediction; default: ``"not predicted"``.
        groups: images of one group, as near duplicates, are right or wrong together: intervals
            count groups. Default: each image is its own.
        top_k: see ``Classification``.
        target_accuracy: of what the abstain threshold keeps.
        seed: of the bootstrap and of the parts that judge the threshold.
    """
    truth = np.asarray(true, dtype=object)
    got = np.array([name is not None for name in predicted], dtype=bool)
    answers = np.asarray(predicted, dtype=object)
    classes = sorted({*truth, *answers[got]})
    true_codes = _codes(truth, classes)
    codes = np.full(len(truth), len(classes))
    codes[got] = _codes(answers[got], classes)
    group_codes = _group_codes(groups, len(truth))
    candidates = sorted({*classes, *probabilities.columns})
    chances = probabilities.reindex(columns=candidates, fill_value=0.0).to_numpy(dtype=float)
    right = codes == true_codes
    cells = true_codes * (len(classes) + 1) + codes
    matrix = _matrix(cells, np.ones(len(cells)), len(classes))

    def resampled(drawn: np.ndarray) -> list[float]:
        scores = _scores(_matrix(cells, drawn[group_codes], len(classes)))
        return [scores.balanced_accuracy, scores.macro_f1, scores.kappa]

    units = int(group_codes.max(initial=-1)) + 1
    intervals = bootstrap_intervals(resampled, units, seed=seed)
    balanced, f1, kappa = (_with_width(interval) for interval in intervals)
    scores = _scores(matrix)
    tops = chances[got].max(axis=1, initial=0.0)
    k = min(top_k, len(candidates))
    return Classification(
        images=len(truth),
        predicted=int(got.sum()),
        accuracy=_share(right, group_codes),
        accuracy_predicted=_share(right[got], group_codes[got]),
        balanced_accuracy=Measure(_known(scores.balanced_accuracy), balanced),
        macro_f1=Measure(_known(scores.macro_f1), f1),
        kappa=Measure(_known(scores.kappa), kappa),
        k=k,
        top_k=_known(_mean(got & (_ranks(chances, _codes(truth, candidates)) < k))),
        per_class=pd.DataFrame(
            {
                "class": classes,
                "support": scores.support.astype(int),
                "predicted": scores.predicted.astype(int),
                "precision": scores.precision,
                "recall": scores.recall,
                "f1": scores.f1,
            }
        ),
        averages=_averages(scores),
        confusion=_confusion(matrix, classes, true_codes[~got], _reasons(reasons, got)),
        reliability=measure_reliability(np.minimum(tops, 1.0), right[got]),
        risk=measure_risk_coverage(tops, right[got], len(truth)),
        abstain=choose_threshold(tops, right[got], group_codes[got], target_accuracy, seed=seed),
    )


@dataclass(frozen=True)
class _Scores:
    """What follows from a confusion matrix; (classes,) float, and NaN for what does not exist."""

    support: np.ndarray
    predicted: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    balanced_accuracy: float
    macro_f1: float
    kappa: float


def _scores(matrix: np.ndarray) -> _Scores:
    """matrix: (classes, classes + 1) counts, the last column of those without a prediction."""
    right = np.diagonal(matrix)
    support, predicted = matrix.sum(axis=1), matrix[:, :-1].sum(axis=0)
    total = support.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / predicted, right / support
        f1 = 2 * right / (support + predicted)
        observed, expected = right.sum() / total, support @ predicted / total**2
        kappa = (observed - expected) / (1 - expected)
    return _Scores(
        support, predicted, precision, recall, f1, _mean(recall), _mean(f1), float(kappa)
    )


def _averages(scores: _Scores) -> pd.DataFrame:
    columns = {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1}
    return pd.DataFrame(
        {
            name: [_mean(values), _mean(values, weights=scores.support)]
            for name, values in columns.items()
        },
        index=pd.Index(["macro", "weighted"], name="average"),
    )


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Of those that exist; NaN if none does."""
    exists = np.isfinite(values)
    share = exists.astype(float) if weights is None else weights * exists
    total = share.sum()
    return float(np.where(exists, values, 0.0) @ share / total) if total else float("nan")


def _matrix(cells: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes + 1) weights of the images in each cell, numbered row by row."""
    shape = (classes, classes + 1)
    return np.bincount(cells, weights, minlength=classes * (classes + 1)).reshape(shape)


def _confusion(
    matrix: np.ndarray, classes: Sequence[str], missed: np.ndarray, reasons: np.ndarray
) -> pd.DataFrame:
    """The last column of the matrix cut into one for each reason.

    missed, reasons: true code, and why, of each image without a prediction.
    """
    names = sorted(set(reasons))
    without = np.zeros((len(classes), len(names)), dtype=int)
    np.add.at(without, (missed, _codes(reasons, names)), 1)
    table = pd.DataFrame(
        np.hstack([matrix[:, :-1].astype(int), without]),
        index=list(classes),
        columns=[*classes, *names],
    )
    return table.rename_axis(index="true")


def _reasons(reasons: Sequence[str | None] | None, got: np.ndarray) -> np.ndarray:
    given = [None] * len(got) if reasons is None else list(reasons)
    return np.array(
        [why or "not predicted" for why, has in zip(given, got, strict=True) if not has],
        dtype=object,
    )


def _codes(names: np.ndarray, among: Sequence[str]) -> np.ndarray:
    place = {name: code for code, name in enumerate(among)}
    return np.array([place[name] for name in names], dtype=int)


def _group_codes(groups: Sequence[object] | None, images: int) -> np.ndarray:
    if groups is None:
        return np.arange(images)
    return pd.factorize(pd.Series(list(groups), dtype=object))[0]


def _ranks(chances: np.ndarray, true_codes: np.ndarray) -> np.ndarray:
    """How many classes come before the true one, by probability and then by order."""
    own = np.take_along_axis(chances, true_codes[:, None], axis=1)
    earlier = np.arange(chances.shape[1])[None, :] < true_codes[:, None]
    return ((chances > own) | ((chances == own) & earlier)).sum(axis=1)


def _share(right: np.ndarray, group_codes: np.ndarray) -> Measure:
    if not len(right):
        return Measure(None)
    return Measure(float(right.mean()), clustered_interval(right, group_codes))


def _with_width(interval: Interval | None) -> Interval | None:
    """Where all are right, or all wrong, every resample is alike: that says nothing of how sure
    the number is."""
    return None if interval is None or interval.low == interval.high else interval


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
