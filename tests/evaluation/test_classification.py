import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from labeling_pipeline.evaluation.classification import evaluate_classification
from labeling_pipeline.evaluation.intervals import wilson_interval
from labeling_pipeline.evaluation.reliability import measure_reliability

NOTHING = "nothing"
"""How scikit-learn is told of an image without a prediction: a class that is never true."""


def drawn(seed, names="abcde", images=120, missing=0.1, bias=None):
    """Random truth, probabilities and what follows from them."""
    random = np.random.default_rng(seed)
    names = list(names)
    true = random.choice(names, images, p=bias)
    chances = random.dirichlet(np.ones(len(names)), images)
    chances[np.arange(images), [names.index(name) for name in true]] += 0.3
    chances /= chances.sum(axis=1, keepdims=True)
    predicted = [
        None if random.random() < missing else names[best] for best in chances.argmax(axis=1)
    ]
    return true.tolist(), predicted, pd.DataFrame(chances, columns=names)


CASES = {
    "five classes": drawn(0),
    "all predicted": drawn(1, missing=0),
    "two classes": drawn(2, "ab"),
    "seldom classes": drawn(3, "abcdefghij", images=30),
    "a class that is never true": drawn(4, "abc", bias=[0.5, 0.5, 0]),
    "a class that is never predicted": (
        *(["a", "b", "c", "c"], ["a", "b", "a", "b"]),
        pd.DataFrame({"a": [0.9, 0.1, 0.6, 0.2], "b": [0.1, 0.9, 0.2, 0.5], "c": 0.2}),
    ),
    "most without a prediction": drawn(5, missing=0.9),
    "one right image": (["a"], ["a"], pd.DataFrame({"a": [0.8], "b": [0.2]})),
}


@pytest.mark.filterwarnings(
    "ignore:y_pred contains classes", "ignore:`y1`, `y2`", "ignore:A single label was found"
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_number_is_the_one_of_scikit_learn(case):
    true, predicted, chances = case
    found = evaluate_classification(true, predicted, chances, top_k=2)
    told = [name or NOTHING for name in predicted]
    classes = found.per_class["class"].tolist()
    assert classes == sorted({*true, *told} - {NOTHING})

    got = [name != NOTHING for name in told]
    assert (found.images, found.predicted) == (len(true), sum(got))
    assert found.accuracy.value == pytest.approx(metrics.accuracy_score(true, told))
    if any(got):
        right = np.array(true)[got] == np.array(told)[got]
        assert found.accuracy_predicted.value == pytest.approx(right.mean())
        tops = chances.max(axis=1).to_numpy()[got]
        assert found.reliability.ece == measure_reliability(tops, right).ece
    balanced = metrics.balanced_accuracy_score(true, told)
    assert found.balanced_accuracy.value == pytest.approx(balanced)
    kappa = metrics.cohen_kappa_score(true, told)
    assert found.kappa.value == (None if np.isnan(kappa) else pytest.approx(kappa))
    *each, support = metrics.precision_recall_fscore_support(
        true, told, labels=classes, zero_division=np.nan
    )
    for name, expected in zip(("precision", "recall", "f1"), each, strict=True):
        np.testing.assert_allclose(found.per_class[name], expected)
        for average in ("macro", "weighted"):
            of_all = metrics.precision_recall_fscore_support(
                true, told, labels=classes, zero_division=np.nan, average=average
            )
            expected = dict(zip(("precision", "recall", "f1"), of_all, strict=False))[name]
            assert found.averages.loc[average, name] == pytest.approx(expected, nan_ok=True)
    assert found.per_class["support"].tolist() == support.tolist()
    assert found.macro_f1.value == pytest.approx(found.averages.loc["macro", "f1"])
    counts = metrics.confusion_matrix(true, told, labels=[*classes, NOTHING])[: len(classes)]
    np.testing.assert_array_equal(found.confusion[classes].to_numpy(), counts[:, :-1])
    if not all(got):
        np.testing.assert_array_equal(found.confusion["not predicted"], counts[:, -1])


def test_one_wrong_image_is_what_it_is_by_hand():
    found = evaluate_classification(["a"], ["b"], pd.DataFrame({"a": [0.2], "b": [0.8]}), top_k=2)
    assert (found.accuracy.value, found.balanced_accuracy.value, found.macro_f1.value) == (0, 0, 0)
    assert (found.kappa.value, found.top_k, found.reliability.ece) == (0, 1, pytest.approx(0.8))
    assert found.per_class["recall"].tolist() == pytest.approx([0, np.nan], nan_ok=True)
    # "a" was never predicted, so that the mean precision weighted by support does not exist.
    assert np.isnan(found.averages.loc["weighted", "precision"])
    assert (found.risk.aurc, found.abstain.value) == (1, None)


@pytest.mark.filterwarnings("ignore:'k' .* greater than or equal to 'n_classes'")
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_is_the_one_of_scikit_learn_with_misses_for_what_is_not_predicted(k):
    true, predicted, chances = drawn(6)
    got = np.array([name is not None for name in predicted])
    expected = metrics.top_k_accuracy_score(
        np.array(true)[got], chances[got], k=k, labels=list(chances)
    )
    found = evaluate_classification(true, predicted, chances, top_k=k)
    assert (found.k, found.top_k) == (k, pytest.approx(expected * got.mean()))
    if k == 1:
        assert found.top_k == pytest.approx(found.accuracy.value)


def test_of_equally_probable_classes_the_first_one_comes_first():
    chances = pd.DataFrame({"b": [0.4, 0.4], "a": [0.4, 0.4], "c": [0.2, 0.2]})
    one, two, three = (
        evaluate_classification(["a", "b"], ["a", "a"], chances, top_k=k) for k in (1, 2, 9)
    )
    assert (one.top_k, two.top_k) == (0.5, 1.0)
    assert three.k == 3


def test_who_could_have_been_chosen_counts_for_top_k_though_nobody_did():
    chances = pd.DataFrame({"a": [0.1], "b": [0.5], "c": [0.4]})
    found = evaluate_classification(["a"], ["b"], chances, top_k=2)
    assert (found.top_k, found.per_class["class"].tolist()) == (0.0, ["a", "b"])


def test_without_images_no_number_exists():
    found = evaluate_classification([], [], pd.DataFrame())
    assert (found.images, found.k, found.top_k, found.risk.aurc) == (0, 0, None, None)
    for estimate in (found.accuracy, found.balanced_accuracy, found.macro_f1, found.kappa):
        assert (estimate.value, estimate.interval) == (None, None)
    assert found.per_class.empty
    assert found.averages.isna().all(axis=None)


def test_of_one_class_there_is_no_agreement_beyond_chance():
    found = evaluate_classification(["a", "a"], ["a", "a"], pd.DataFrame({"a": [1.0, 1.0]}))
    assert found.accuracy.value == found.macro_f1.value == 1
    assert found.kappa.value is None


def test_where_all_is_right_only_the_accuracy_has_an_interval():
    names = ["a", "b"] * 20
    found = evaluate_classification(names, names, pd.DataFrame({"a": [0.5] * 40, "b": 0.5}))
    assert found.accuracy.interval == wilson_interval(40, 40)
    assert found.accuracy.interval.low < 0.95
    assert found.balanced_accuracy.interval is None
    assert found.macro_f1.interval is None


@pytest.mark.parametrize("copies", [1, 3])
def test_intervals_are_those_of_theory_and_count_near_duplicates_once(copies):
    true, predicted, chances = drawn(7, "abcd", images=400, missing=0)
    once = evaluate_classification(true, predicted, chances)
    found = evaluate_classification(
        true * copies,
        predicted * copies,
        pd.concat([chances] * copies, ignore_index=True),
        groups=[f"group {i}" for i in range(400)] * copies,
    )
    recalls = once.per_class["recall"].to_numpy()
    support = once.per_class["support"].to_numpy()
    error = np.sqrt((recalls * (1 - recalls) / support).sum()) / 4
    for interval in (found.balanced_accuracy.interval, once.balanced_accuracy.interval):
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.12)
        assert interval.holds(once.balanced_accuracy.value)
    for name in ("accuracy", "macro_f1", "kappa"):
        one, many = getattr(once, name), getattr(found, name)
        assert many.value == pytest.approx(one.value)
        assert many.interval.low == pytest.approx(one.interval.low, abs=0.01)
        assert many.interval.high == pytest.approx(one.interval.high, abs=0.01)


def test_reasons_are_columns_of_the_confusion_after_those_of_the_classes():
    found = evaluate_classification(
        ["blur", "cut", "cut"],
        ["blur", None, None],
        pd.DataFrame({"blur": [1.0, 0.0, 0.0]}),
        reasons=[None, "cut", "blur"],
    )
    # Classes that are called like a reason are not confused with it.
    assert found.confusion.columns.tolist() == ["blur", "cut", "blur", "cut"]
    assert found.confusion.to_numpy().tolist() == [[1, 0, 0, 0], [0, 0, 1, 1]]
    assert found.accuracy.value == pytest.approx(1 / 3)
