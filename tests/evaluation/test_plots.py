import io
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from labeling_pipeline.evaluation.actions import evaluate_actions
from labeling_pipeline.evaluation.plots import actions, detection, drift, review
from labeling_pipeline.evaluation.plots.frame import png_bytes


def predictions(classes, per_class=6, missing=True):
    rng = np.random.default_rng(0)
    names = [f"action number {i}" for i in range(classes)]
    rows = []
    for name in names:
        for i in range(per_class):
            predicted = None if missing and i == 0 else names[rng.integers(classes)]
            rows.append((name, predicted, np.nan if predicted is None else rng.uniform()))
    return pd.DataFrame(rows, columns=["true_action", "predicted_action", "top_probability"])


def per_label(n):
    return pd.DataFrame(
        {
            "label": [f"label {i}" for i in range(n)],
            "support": 3,
            "precision": np.nan,
            "recall": 0.5,
            "f1": 1.0,
        }
    )


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
    evaluation = evaluate_actions(made)
    matches = pd.DataFrame({"score": made["top_probability"], "correct": made.index % 2 == 0})
    return {
        "confusion matrix": actions.confusion_matrix(evaluation.confusion),
        "class scores": actions.class_scores(evaluation.per_class),
        "top probabilities": actions.top_probabilities(made),
        "true versus predicted": actions.true_versus_predicted(made),
        "detection labels": detection.detection_labels(per_label(classes)),
        "box scores": detection.box_scores(matches),
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


def test_a_score_that_does_not_exist_is_a_dash_and_no_bar():
    (axes,) = detection.detection_labels(per_label(1)).axes
    assert [text.get_text() for text in axes.texts] == ["–", "0.50", "1.00"]
    assert [patch.get_width() for patch in axes.patches] == [0, 0.5, 1]


def test_pyplot_is_never_imported():
    already = "matplotlib.pyplot" in sys.modules
    png_bytes(actions.class_scores(per_label(1).rename(columns={"label": "action"})))
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
