"""Figures of action recognition."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.abstention import AbstainThreshold, RiskCoverage
from labeling_pipeline.evaluation.plots.frame import (
    BLUE,
    GRID,
    INK,
    MUTED,
    VERMILION,
    add_note,
    label_axes,
    legend_above,
    name_ticks,
    new_figure,
    nothing_to_show,
    with_fonts,
)
from labeling_pipeline.evaluation.plots.shapes import (
    reliability_diagram,
    right_and_wrong,
    score_bars,
)
from labeling_pipeline.evaluation.reliability import Reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOT_PREDICTED = "not predicted"


def confusion_matrix(confusion: pd.DataFrame) -> "Figure":
    """Draw counts with the share of their row: ``Classification.confusion``.

    Args:
        confusion: (n, m) counts; index true, columns predicted, then of those without a prediction.
    """
    n, m = confusion.shape
    if not n:
        return nothing_to_show("Confusion matrix")
    cell_in = float(np.clip(0.78 - 0.022 * m, 0.36, 0.62))
    figure, axes = new_figure(2.6 + cell_in * m, 1.9 + cell_in * n)
    counts = confusion.to_numpy()
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="equal")
    size = float(np.clip(cell_in * 21, 7, 10))
    with_share = cell_in >= 0.42
    for row, column in zip(*np.nonzero(counts), strict=True):
        share = shares[row, column]
        text = f"{counts[row, column]}"
        axes.text(
            *(column, row, f"{text}\n{share:.0%}" if with_share else text),
            ha="center",
            va="center",
            fontsize=size * (0.85 if with_share else 1),
            color="white" if share > 0.62 else INK,
            linespacing=1.05,
        )
    columns = [str(column) for column in confusion.columns]
    if m > n:
        axes.axvline(n - 0.5, color=MUTED, linewidth=1.2, linestyle=(0, (3, 2)))
    name_ticks(axes, "x", columns, size)
    name_ticks(axes, "y", [str(name) for name in confusion.index], size)
    axes.set_xticks(np.arange(m + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    label_axes(axes, "Confusion matrix", "predicted action", "true action")
    axes.spines[:].set_visible(False)
    add_note(axes, "images; shade: share of the true action")
    return with_fonts(figure)


def class_scores(per_class: pd.DataFrame) -> "Figure":
    """Draw precision, recall and F1 of every action: ``Classification.per_class``."""
    return score_bars(per_class, "class", "Scores by action", "images")


def top_probabilities(predictions: pd.DataFrame) -> "Figure":
    """Draw how sure the classifier was, right and wrong predictions apart.

    Args:
        predictions: ``PREDICTION_COLUMNS`` of `labeling_pipeline.evaluation.actions`.
    """
    made = predictions[predictions["predicted_action"].notna()]
    right = made["true_action"].astype(str) == made["predicted_action"].astype(str)
    return right_and_wrong(
        made["top_probability"],
        right,
        "How sure the predictions were",
        "probability of the predicted action",
        "images",
    )


def true_versus_predicted(predictions: pd.DataFrame) -> "Figure":
    """Draw every image as a point, jittered within its cell of true x predicted action.

    Args:
        predictions: ``PREDICTION_COLUMNS`` of `labeling_pipeline.evaluation.actions`; images
            without a prediction are drawn in a column of their own.
    """
    title = "True and predicted action of every image"
    known = predictions[predictions["true_action"].notna()]
    if known.empty:
        return nothing_to_show(title)
    true = known["true_action"].astype(str).to_numpy()
    missing = known["predicted_action"].isna().to_numpy()
    predicted = known["predicted_action"].astype(object).to_numpy()
    actions = sorted({*true, *(str(p) for p in predicted[~missing])})
    columns = [*actions, _NOT_PREDICTED] if missing.any() else actions
    codes = {action: i for i, action in enumerate(actions)}
    rows = np.array([codes[action] for action in true], dtype=float)
    cells = np.array(
        [len(actions) if m else codes[str(p)] for m, p in zip(missing, predicted, strict=True)],
        dtype=float,
    )
    n, m = len(actions), len(columns)
    cell_in = float(np.clip(0.78 - 0.022 * m, 0.3, 0.62))
    figure, axes = new_figure(3.6 + cell_in * m, 1.9 + cell_in * n)
    size = float(np.clip(cell_in * 21, 7, 10))
    jitter = np.random.default_rng(0).uniform(-0.36, 0.36, (2, len(known)))
    probability = known["top_probability"].fillna(0.0).to_numpy(dtype=float)
    for kind, which, color, marker in (
        ("right", ~missing & (rows == cells), BLUE, "o"),
        ("wrong", ~missing & (rows != cells), VERMILION, "X"),
        (_NOT_PREDICTED, missing, MUTED, "s"),
    ):
        if which.any():
            axes.scatter(
                (cells + jitter[0])[which],
                (rows + jitter[1])[which],
                s=20 if n <= 18 else 13,
                c=color,
                marker=marker,
                alpha=np.where(missing, 0.7, 0.45 + 0.55 * probability)[which],  # type: ignore[arg-type]
                linewidths=0,
                label=f"{kind} ({int(which.sum())})",
            )
    axes.set_xlim(-0.5, m - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_aspect("equal")
    name_ticks(axes, "x", columns, size)
    name_ticks(axes, "y", actions, size)
    axes.set_xticks(np.arange(m + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(True)
    label_axes(axes, title, "predicted action", "true action")
    axes.spines[:].set_color(GRID)
    axes.legend(
        *axes.get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )
    add_note(axes, "paler: less sure")
    return with_fonts(figure)


def reliability(measured: Reliability) -> "Figure":
    """Draw how often predictions of each probability were right: ``Classification.reliability``."""
    return reliability_diagram(measured, "Whether probabilities mean what they say", "images")


def risk_coverage(risk: RiskCoverage, abstain: AbstainThreshold) -> "Figure":
    """Draw how much is wrong of what each threshold keeps, and the threshold that was chosen.

    Args:
        risk: ``Classification.risk``.
        abstain: ``Classification.abstain``.
    """
    from matplotlib.ticker import PercentFormatter

    title = "What withholding unsure predictions gains"
    curve = risk.curve
    if curve.empty:
        return nothing_to_show(title)
    figure, axes = new_figure(6.4, 3.8)
    axes.plot(
        *(curve["coverage"], curve["risk"]),
        color=BLUE,
        linewidth=1.8,
        # A curve of few points is hardly a line.
        marker="o" if len(curve) < 10 else None,
        markersize=4,
        label=f"measured, area {risk.aurc:.3f}",
    )
    allowed = 1 - abstain.target
    axes.axhline(
        allowed, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=f"target {allowed:.0%}"
    )
    if abstain.value is not None:
        (chosen,) = curve[curve["threshold"] == abstain.value].to_dict("records")
        axes.plot(
            *(chosen["coverage"], chosen["risk"]),
            "D",
            color=VERMILION,
            markersize=7,
            label=f"abstain below {abstain.value:.2f}: keeps {chosen['coverage']:.0%}",
        )
    top = max(float(curve["risk"].max()), allowed) * 1.1 + 0.01
    axes.set_xlim(0, 1.03)
    axes.set_ylim(-0.05 * top, top)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.spines[:].set_visible(False)
    label_axes(axes, title, "share of all images that is kept, surest first", "share of it wrong")
    legend_above(axes, 3)
    return with_fonts(figure)
