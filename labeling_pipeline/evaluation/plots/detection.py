"""Figures of boxes against ground truth."""

from typing import TYPE_CHECKING

import pandas as pd

from labeling_pipeline.evaluation.detection import Counts
from labeling_pipeline.evaluation.plots.frame import (
    BLUE,
    GRID,
    INK,
    MUTED,
    VERMILION,
    add_note,
    label_axes,
    new_figure,
    nothing_to_show,
    shortened,
    with_fonts,
)
from labeling_pipeline.evaluation.plots.shapes import right_and_wrong, score_bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More lines than that cannot be told apart.
_MOST_NAMED_CURVES = 6


def detection_labels(per_label: pd.DataFrame) -> "Figure":
    """Draw precision, recall and F1 of every label: ``DetectionEvaluation.per_label``."""
    return score_bars(per_label, "label", "Detection scores by label", "true boxes")


def detection_sizes(per_size: pd.DataFrame) -> "Figure":
    """Draw precision, recall and F1 of the sizes that occur: ``DetectionEvaluation.per_size``."""
    occurring = per_size[per_size["support"] + per_size["predicted"] > 0]
    return score_bars(occurring, "size", "Detection scores by size", "true boxes")


def box_scores(matches: pd.DataFrame) -> "Figure":
    """Draw the scores of right and wrong boxes: ``DetectionEvaluation.matches``."""
    return right_and_wrong(
        pd.to_numeric(matches["score"]),
        matches["correct"].astype(bool),
        "Scores of right and wrong boxes",
        "score",
        "boxes",
    )


def precision_recall(curves: pd.DataFrame, now: Counts) -> "Figure":
    """Draw precision over recall of every label at IoU 0.5, their mean, and where we stand.

    Args:
        curves: ``AveragePrecision.curves``.
        now: counts over all labels with the plan's thresholds.
    """
    title = "Precision over recall"
    if not len(curves.columns):
        return nothing_to_show(title)
    figure, axes = new_figure(6.4, 4.4)
    named = len(curves.columns) <= _MOST_NAMED_CURVES
    styles = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
    for number, label in enumerate(curves.columns if len(curves.columns) > 1 else ()):
        axes.plot(
            curves.index,
            curves[label],
            color=MUTED,
            linewidth=1,
            linestyle=styles[number] if named else "-",
            alpha=0.9 if named else 0.35,
            label=f"{shortened(str(label))}: {curves[label].mean():.2f}" if named else None,
        )
    mean = curves.mean(axis="columns")
    text = "mean" if len(curves.columns) > 1 else shortened(str(curves.columns[0]))
    axes.plot(mean.index, mean, color=BLUE, linewidth=2.2, label=f"{text}: {mean.mean():.2f}")
    if now.precision is not None and now.recall is not None:
        axes.plot(
            *(now.recall, now.precision),
            color=VERMILION,
            marker="o",
            markersize=8,
            linestyle="none",
            label="all boxes that count",
            clip_on=False,
            zorder=5,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.spines[:].set_visible(False)
    label_axes(axes, title, "recall", "precision")
    add_note(axes, "boxes by descending score, at IoU 0.5; numbers: average precision")
    axes.legend(loc="lower left", frameon=False, fontsize=8.5, labelcolor=INK)
    return with_fonts(figure)
