import io
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from labeling_pipeline.evaluation.abstention import choose_threshold, measure_risk_coverage
from labeling_pipeline.evaluation.actions import evaluate_actions
from labeling_pipeline.evaluation.detection import Counts
from labeling_pipeline.evaluation.plots import actions, audit, detection, drift, review
from labeling_pipeline.evaluation.plots.frame import png_bytes


def predictions(classes, per_class=6, missing=True):
    rng = np.random.default_rng(0)
    names = [f"action number {i}" for i in range(classes)]
    rows = []
    for name in names:
        for i in range(per_class):
            predicted = None if missing and i == 0 else names[rng.integers(classes)]
            rows.append((name, predicted, np.nan if predicted is None else rng.uniform()))
    made = pd.DataFrame(rows, columns=["true_action", "predicted_action", "top_probability"])
    made["probabilities"] = [{name: top} if name else None for _, name, top in rows]
    return made


def per_label(n):
    return pd.DataFrame(
        {
            "label": [f"label {i}" for i in range(n)],
            "support": 3,
            "precision": np.nan,
            "recall": 0.5,
            "f1": 1.0,
            "f1_low": 0.75,
            "f1_high": 1.0,
        }
    )


def curves(n):
    """Precision of labels that falls from 1 at a recall of its own."""
    recalls = np.linspace(0, 1, 101)
    columns = {f"label {i}": np.where(recalls <= (i + 1) / n, 1.0, 0.25) for i in range(n)}
    return pd.DataFrame(columns, index=pd.Index(recalls, name="recall"))


def audited(n):
    """All labels together and each of n, of which the last was not looked at."""
    rows = [{"label": f"label {i}", "rows": 9, "checked": 4 * (i < n - 1)} for i in range(n)]
    table = pd.DataFrame([{"label": "all", "rows": 9 * n, "checked": 4 * n}, *rows])
    for name in ("precision", "recall"):
        values = np.where(table["checked"] > 0, 0.8, np.nan)
        for end, away in (("", 0), ("_low", -0.3), ("_high", 0.1)):
            table[f"{name}{end}"] = values + away
    return table


def per_class(n):
    """Changes of the boxes of n classes, of which the last has none."""
    return pd.DataFrame(
        {
            "class": [f"class {i}" for i in range(n)],
            "entry": "object",
            **{c: [i * (n - 1 - i) for i in range(n)] for c in ("matched", "moved", "lost")},
            "new": [n - 1 - i for i in range(n)],
        }
    )


def figures(classes):
    made = predictions(classes) if classes else predictions(1).iloc[:0]
    scores = evaluate_actions(made).scores
    matches = pd.DataFrame({"score": made["top_probability"], "correct": made.index % 2 == 0})
    return {
        "confusion matrix": actions.confusion_matrix(scores.confusion),
        "class scores": actions.class_scores(scores.per_class),
        "reliability": actions.reliability(scores.reliability),
        "risk and coverage": actions.risk_coverage(scores.risk, scores.abstain),
        "top probabilities": actions.top_probabilities(made),
        "true versus predicted": actions.true_versus_predicted(made),
        "detection labels": detection.detection_labels(per_label(classes)),
        "detection sizes": detection.detection_sizes(
            per_label(min(classes, 3)).rename(columns={"label": "size"}).assign(predicted=1)
        ),
        "precision over recall": detection.precision_recall(curves(classes), Counts(3, 1, 1)),
        "box scores": detection.box_scores(matches),
        "audited labels": audit.audited_labels(audited(classes), "objects"),
        "box changes": drift.box_changes(per_class(classes)),
        "errors found": review.errors_found(pd.Series(np.linspace(2, 0, 10 * classes)), 100),
    }


@pytest.mark.parametrize("classes", [0, 1, 5, 30])
def test_every_figure_is_a_small_png_whatever_the_number_of_classes(classes):
    for name, figure in figures(classes).items():
        data = png_bytes(figure, dpi=60)
        image = Image.open(io.BytesIO(data))
        assert image.format == "PNG", name
        assert len(data) <= 100_000, name
        assert np.asarray(image.convert("L")).std() > 1, name


def test_the_confusion_matrix_shows_the_counts_and_nothing_where_there_are_none():
    confusion = pd.DataFrame(
        [[3, 1, 0], [0, 0, 2]], index=["a", "b"], columns=["a", "b", "no person"]
    )
    (axes,) = actions.confusion_matrix(confusion).axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    cells = {(x, y): text for (x, y), text in texts.items() if "%" in text}
    assert cells == {(0, 0): "3\n75%", (1, 0): "1\n25%", (2, 1): "2\n100%"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b", "no person"]


def test_every_image_is_a_point_of_its_cell():
    made = predictions(3)
    (axes,) = actions.true_versus_predicted(made).axes
    points = np.concatenate([collection.get_offsets() for collection in axes.collections])
    names = sorted(set(made["true_action"]))
    columns = {name: i for i, name in enumerate(names)} | {None: 3}
    expected = sorted(
        (
            columns[None if pd.isna(row.predicted_action) else row.predicted_action],
            names.index(row.true_action),
        )
        for row in made.itertuples()
    )
    assert sorted((round(x), round(y)) for x, y in points) == expected


def test_the_histogram_tells_right_from_wrong_and_leaves_out_what_has_no_score():
    matches = pd.DataFrame(
        {"score": [0.9, 0.8, 0.1, None, 1.0], "correct": [True, True, False, False, True]}
    )
    (axes,) = detection.box_scores(matches).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["right: 3, median 0.90", "wrong: 1, median 0.10"]
    assert "1 boxes without one not shown" in axes.get_xlabel()
    assert sum(patch.get_height() for patch in axes.patches) == 4


def test_audited_labels_show_their_intervals_and_leave_out_what_was_not_looked_at():
    (axes,) = audit.audited_labels(audited(3), "objects").axes
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["all  (12 of 27)", "label 0  (4 of 9)", "label 1  (4 of 9)"]
    lines = [bar.get_segments()[0] for c in axes.containers for bar in c.lines[2]]
    assert [line[:, 0].tolist() for line in lines] == [pytest.approx([0.5, 0.9])] * 2


def test_a_score_that_does_not_exist_is_a_dash_and_no_bar():
    (axes,) = detection.detection_labels(per_label(1)).axes
    assert [text.get_text() for text in axes.texts] == ["–", "0.50", "1.00"]
    assert [patch.get_width() for patch in axes.patches] == [0, 0.5, 1]


def test_what_withholding_gains_is_drawn_with_the_threshold_that_was_chosen():
    confidences, right = np.array([0.9, 0.8, 0.6]), np.array([True, True, False])
    risk = measure_risk_coverage(confidences, right, total=4)
    chosen = choose_threshold(confidences, right, np.arange(3), 0.9)
    (axes,) = actions.risk_coverage(risk, chosen).axes
    curve, target, threshold = axes.lines
    np.testing.assert_allclose(curve.get_xydata(), [(0.25, 0), (0.5, 0), (0.75, 1 / 3)])
    assert target.get_ydata()[0] == pytest.approx(0.1)
    assert (threshold.get_xdata()[0], threshold.get_ydata()[0]) == (0.5, 0)
    assert "abstain below 0.80: keeps 50%" in threshold.get_label()
    without = choose_threshold(confidences, ~right, np.arange(3), 0.9)
    (axes,) = actions.risk_coverage(measure_risk_coverage(confidences, ~right), without).axes
    assert len(axes.lines) == 2


def test_the_interval_of_f1_is_drawn_over_its_bar():
    (axes,) = detection.detection_labels(per_label(2)).axes
    (whiskers,) = [c for c in axes.collections if hasattr(c, "get_segments")]
    for row, ((low, y), (high, _)) in enumerate(whiskers.get_segments()):
        assert (low, high) == (0.75, 1.0)
        assert y == pytest.approx(axes.patches[-2 + row].get_y() + 0.26 * 0.46)


def test_a_size_that_does_not_occur_is_not_drawn():
    sizes = per_label(3).rename(columns={"label": "size"})
    sizes = sizes.assign(size=["small", "medium", "large"], support=[0, 3, 0], predicted=[0, 2, 1])
    (axes,) = detection.detection_sizes(sizes).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["medium  (3)", "large  (0)"]


def test_precision_over_recall_shows_each_label_their_mean_and_where_the_boxes_stand():
    (axes,) = detection.precision_recall(curves(2), Counts(tp=3, fp=1, fn=2)).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == [
        *("label 0: 0.63", "label 1: 1.00", "mean: 0.81"),
        "all boxes that count",
    ]
    assert lines["mean: 0.81"].get_ydata()[[0, 100]].tolist() == [1.0, 0.625]
    assert lines["all boxes that count"].get_xydata().tolist() == [[0.6, 0.75]]


def test_more_labels_than_can_be_told_apart_are_not_named():
    (axes,) = detection.precision_recall(curves(12), Counts()).axes
    (legend,) = axes.get_legend().get_texts()
    assert legend.get_text().startswith("mean: ")
    assert len(axes.get_lines()) == 13


def test_pyplot_is_never_imported():
    already = "matplotlib.pyplot" in sys.modules
    png_bytes(actions.class_scores(per_label(1).rename(columns={"label": "class"})))
    assert ("matplotlib.pyplot" in sys.modules) == already


def test_the_boxes_of_every_class_add_up_to_the_whole_and_the_most_changed_come_first():
    table = pd.DataFrame(
        [("calm", 9, 1, 0, 0), ("nothing", 0, 0, 0, 0), ("wild", 1, 1, 1, 1)],
        columns=["class", "matched", "moved", "lost", "new"],
    ).assign(entry="object")
    (axes,) = drift.box_changes(table).axes
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["wild, object  (4)", "calm, object  (10)"]
    widths = np.array([[bar.get_width() for bar in bars] for bars in axes.containers])
    assert np.allclose(widths.T, [[0.25] * 4, [0.9, 0.1, 0.0, 0.0]])
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["matched: 10", "moved: 2", "lost: 1", "new: 1"]


def test_the_curve_says_what_the_first_tenth_of_the_images_holds():
    (axes,) = review.errors_found(pd.Series([3.0, 1.0] + [0.0] * 8), 20).axes
    curve = axes.lines[1].get_ydata()
    assert curve.tolist() == [0, 0.75, *[1.0] * 9]
    assert "2 images, a tenth of all: 100%" in [text.get_text() for text in axes.texts]
