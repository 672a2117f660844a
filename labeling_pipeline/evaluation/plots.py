"""Figures of the evaluations.

Every function returns a matplotlib ``Figure`` of its own, drawn by Agg; pyplot and its global state
are never touched, so threads and processes do not meet. Colours are Okabe and Ito's ("Color
Universal Design", 2008), which colour-blind readers tell apart; where two kinds share a panel they
differ in shape or hatching too.
"""

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from labeling_pipeline.drawing import font_files
from labeling_pipeline.evaluation.actions import NO_PERSON, NOT_PREDICTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_INK, _MUTED, _GRID = "#24292f", "#6b7280", "#e5e7eb"
_MAX_BYTES = 100_000
_LONGEST_NAME = 24


def confusion_matrix(confusion: pd.DataFrame) -> "Figure":
    """Draw counts with the share of their row: ``ActionEvaluation.confusion``.

    Args:
        confusion: (n, m) counts; index true, columns predicted, perhaps more columns than rows.
    """
    n, m = confusion.shape
    if not n:
        return _nothing("Confusion matrix")
    cell_in = float(np.clip(0.78 - 0.022 * m, 0.36, 0.62))
    figure, axes = _figure(2.6 + cell_in * m, 1.9 + cell_in * n)
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
            color="white" if share > 0.62 else _INK,
            linespacing=1.05,
        )
    columns = [str(column) for column in confusion.columns]
    extra = [i for i, column in enumerate(columns) if column in (NO_PERSON, NOT_PREDICTED)]
    if extra:
        axes.axvline(min(extra) - 0.5, color=_MUTED, linewidth=1.2, linestyle=(0, (3, 2)))
    _names(axes, "x", columns, size)
    _names(axes, "y", [str(name) for name in confusion.index], size)
    axes.set_xticks(np.arange(m + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    _labels(axes, "Confusion matrix", "predicted action", "true action")
    axes.spines[:].set_visible(False)
    _note(axes, "images; shade: share of the true action")
    return _with_fonts(figure)


def class_scores(per_class: pd.DataFrame) -> "Figure":
    """Draw precision, recall and F1 of every action: ``ActionEvaluation.per_class``."""
    return _score_bars(per_class, "action", "Scores by action", "images")


def detection_labels(per_label: pd.DataFrame) -> "Figure":
    """Draw precision, recall and F1 of every label: ``DetectionEvaluation.per_label``."""
    return _score_bars(per_label, "label", "Detection scores by label", "true boxes")


def top_probabilities(predictions: pd.DataFrame) -> "Figure":
    """Draw how sure the classifier was, right and wrong predictions apart.

    Args:
        predictions: as `labeling_pipeline.evaluation.actions.predict_actions` returns them.
    """
    made = predictions[predictions["predicted_action"].notna()]
    right = made["true_action"].astype(str) == made["predicted_action"].astype(str)
    return _right_and_wrong(
        made["top_probability"],
        right,
        "How sure the predictions were",
        "probability of the predicted action",
        "images",
    )


def box_scores(matches: pd.DataFrame) -> "Figure":
    """Draw the scores of right and wrong boxes: ``DetectionEvaluation.matches``."""
    return _right_and_wrong(
        pd.to_numeric(matches["score"]),
        matches["correct"].astype(bool),
        "Scores of right and wrong boxes",
        "score",
        "boxes",
    )


def true_versus_predicted(predictions: pd.DataFrame) -> "Figure":
    """Draw every image as a point, jittered within its cell of true x predicted action.

    Args:
        predictions: as `labeling_pipeline.evaluation.actions.predict_actions` returns them; images
            without a prediction are drawn in a column of their own.
    """
    title = "True and predicted action of every image"
    known = predictions[predictions["true_action"].notna()]
    if known.empty:
        return _nothing(title)
    true = known["true_action"].astype(str).to_numpy()
    missing = known["predicted_action"].isna().to_numpy()
    predicted = known["predicted_action"].astype(object).to_numpy()
    actions = sorted({*true, *(str(p) for p in predicted[~missing])})
    columns = [*actions, NOT_PREDICTED] if missing.any() else actions
    codes = {action: i for i, action in enumerate(actions)}
    rows = np.array([codes[action] for action in true], dtype=float)
    cells = np.array(
        [len(actions) if m else codes[str(p)] for m, p in zip(missing, predicted, strict=True)],
        dtype=float,
    )
    n, m = len(actions), len(columns)
    cell_in = float(np.clip(0.78 - 0.022 * m, 0.3, 0.62))
    figure, axes = _figure(3.6 + cell_in * m, 1.9 + cell_in * n)
    size = float(np.clip(cell_in * 21, 7, 10))
    jitter = np.random.default_rng(0).uniform(-0.36, 0.36, (2, len(known)))
    probability = known["top_probability"].fillna(0.0).to_numpy(dtype=float)
    for kind, which, color, marker in (
        ("right", ~missing & (rows == cells), BLUE, "o"),
        ("wrong", ~missing & (rows != cells), VERMILION, "X"),
        (NOT_PREDICTED, missing, _MUTED, "s"),
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
    _names(axes, "x", columns, size)
    _names(axes, "y", actions, size)
    axes.set_xticks(np.arange(m + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=_GRID, linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(True)
    _labels(axes, title, "predicted action", "true action")
    axes.spines[:].set_color(_GRID)
    axes.legend(
        *axes.get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=8.5,
        labelcolor=_INK,
    )
    _note(axes, "paler: less sure")
    return _with_fonts(figure)


def png_bytes(figure: "Figure", dpi: float = 110) -> bytes:
    """Render as PNG of at most about 100 kB: few colours, fewer dots if need be."""
    from PIL import Image

    while True:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # A script that no font here has is drawn as boxes; the tables spell it out.
            warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
            figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        image = Image.open(buffer).convert("RGB")
        small = io.BytesIO()
        # The default method spends its colours on large areas and greys the few red marks.
        few = image.quantize(colors=64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(small, "png", optimize=True)
        if small.tell() <= _MAX_BYTES or dpi <= 50:
            return small.getvalue()
        dpi *= 0.8


def _figure(width_in: float, height_in: float) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr, call-arg]
    return figure, figure.subplots()


def _nothing(title: str) -> "Figure":
    figure, axes = _figure(5, 1.2)
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK)
    axes.text(0, 0.6, "nothing to show", fontsize=10, color=_MUTED, transform=axes.transAxes)
    return figure


def _score_bars(table: pd.DataFrame, key: str, title: str, unit: str) -> "Figure":
    """Draw horizontal bars, one group a row of the table: names stay readable however many."""
    n = len(table)
    if not n:
        return _nothing(title)
    figure, axes = _figure(7.4, 1.5 + 0.46 * n)
    centers = np.arange(len(table))
    height = 0.26
    kinds = (
        ("precision", BLUE, ""),
        ("recall", ORANGE, "////"),
        ("f1", GREEN, ""),
    )
    for i, (column, color, hatch) in enumerate(kinds):
        values = table[column].to_numpy(dtype=float)
        middle = centers + (i - 1) * height
        axes.barh(
            middle,
            np.nan_to_num(values),
            height=height * 0.92,
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label="F1" if column == "f1" else column,
        )
        for y, value in zip(middle, values, strict=True):
            axes.text(
                *(0.008 + (0 if math.isnan(value) else value), y),
                "–" if math.isnan(value) else f"{value:.2f}",
                va="center",
                fontsize=6.5,
                color=_MUTED,
            )
    names = [
        f"{_short(name)}  ({support})"
        for name, support in zip(table[key].astype(str), table["support"], strict=True)
    ]
    axes.set_yticks(centers, names, fontsize=9, color=_INK)
    axes.set_ylim(n - 0.45, -0.55)
    axes.set_xlim(0, 1.06)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.tick_params(length=0, labelcolor=_INK)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK, pad=24)
    axes.legend(
        *axes.get_legend_handles_labels(),
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=3,
        frameon=False,
        fontsize=8.5,
        labelcolor=_INK,
        borderaxespad=0.2,
        handlelength=1.4,
    )
    axes.set_xlabel(f"in brackets: {unit}; –: does not exist", fontsize=8, color=_MUTED)
    return _with_fonts(figure)


def _right_and_wrong(
    values: pd.Series, right: pd.Series, title: str, x_label: str, unit: str
) -> "Figure":
    """Draw two histograms over 0..1, one above the other, on one scale."""
    from matplotlib.ticker import MaxNLocator

    if values.isna().all():
        return _nothing(title)
    figure, axes = _figure(6.4, 3.6)
    bins = np.linspace(0, 1, 21)
    known = values.notna().to_numpy()
    numbers = values.to_numpy(dtype=float, na_value=np.nan)
    is_right = right.to_numpy(dtype=bool)
    parts = [
        ("right", numbers[known & is_right], BLUE, ""),
        ("wrong", numbers[known & ~is_right], VERMILION, "////"),
    ]
    below = np.zeros(len(bins) - 1)
    for kind, part, color, hatch in parts:
        counts, _ = np.histogram(np.clip(part, 0, 1), bins)
        axes.bar(
            bins[:-1],
            counts,
            width=np.diff(bins) * 0.92,
            bottom=below,
            align="edge",
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label=f"{kind}: {len(part)}" + (f", median {np.median(part):.2f}" if len(part) else ""),
        )
        below = below + counts
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max(float(below.max()) * 1.06, 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=_INK)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_MUTED)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK, pad=24)
    axes.legend(
        *axes.get_legend_handles_labels(),
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=2,
        frameon=False,
        fontsize=8.5,
        labelcolor=_INK,
        borderaxespad=0.2,
        handlelength=1.4,
    )
    without = int((~known).sum())
    suffix = f" ({without} {unit} without one not shown)" if without else ""
    axes.set_xlabel(x_label + suffix, fontsize=9, color=_INK)
    axes.set_ylabel(unit, fontsize=9, color=_INK)
    return _with_fonts(figure)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _names(axes: "Axes", axis: str, names: Sequence[str], size: float) -> None:
    shown = [_short(name) for name in names]
    if axis == "y":
        axes.set_yticks(range(len(shown)), shown, fontsize=size, color=_INK)
    else:
        slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(shown)), shown, fontsize=size, color=_INK, **slant)
    axes.tick_params(axis=axis, length=0)  # type: ignore[arg-type]


def _labels(axes: "Axes", title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK, pad=20)
    axes.set_xlabel(x_label, fontsize=9.5, color=_INK)
    axes.set_ylabel(y_label, fontsize=9.5, color=_INK)


def _note(axes: "Axes", text: str) -> None:
    axes.annotate(
        text,
        (0, 1),
        xytext=(0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8,
        color=_MUTED,
    )


def _with_fonts(figure: "Figure") -> "Figure":
    """Give every text fonts that have its characters: class names come in any script."""
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    foreign = [text for text in texts if not text.get_text().isascii()]
    if foreign:
        fonts = font_files("".join(text.get_text() for text in foreign))
        for name, file in fonts:
            if name not in fontManager.get_font_names():
                fontManager.addfont(file)
        for text in foreign:
            text.set_fontfamily([name for name, _ in fonts])
    return figure
