"""Kinds of figures that several evaluations draw."""

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.intervals import wilson_interval
from labeling_pipeline.evaluation.plots.frame import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    VERMILION,
    add_note,
    legend_above,
    name_rows,
    new_figure,
    nothing_to_show,
    shortened,
    with_fonts,
)
from labeling_pipeline.evaluation.reliability import Reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def score_bars(table: pd.DataFrame, key: str, title: str, unit: str) -> "Figure":
    """Draw horizontal bars, one group a row of the table: names stay readable however many.

    Args:
        table: the key, ``support, precision, recall, f1`` and, if it has intervals, ``f1_low,
            f1_high``, which are drawn over the bar.
        key: the column that names the rows.
        title: of the figure.
        unit: what ``support`` counts.
    """
    n = len(table)
    if not n:
        return nothing_to_show(title)
    figure, axes = new_figure(7.4, 1.5 + 0.46 * n)
    centers = np.arange(len(table))
    height = 0.26
    kinds = (
        ("precision", BLUE, ""),
        ("recall", ORANGE, "////"),
        ("f1", GREEN, ""),
    )
    for i, (column, color, hatch) in enumerate(kinds):
        values = table[column].to_numpy(dtype=float)
        ends = values
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
        if f"{column}_high" in table:
            low = table[f"{column}_low"].to_numpy(dtype=float)
            ends = np.fmax(table[f"{column}_high"].to_numpy(dtype=float), values)
            axes.errorbar(
                *(values, middle),
                xerr=[values - np.fmin(low, values), ends - values],
                fmt="none",
                ecolor=INK,
                elinewidth=1,
                capsize=2,
            )
        for y, value, end in zip(middle, values, ends, strict=True):
            axes.text(
                *(0.008 + (0 if math.isnan(value) else end), y),
                "–" if math.isnan(value) else f"{value:.2f}",
                va="center",
                fontsize=6.5,
                color=MUTED,
            )
    names = [
        f"{shortened(name)}  ({support})"
        for name, support in zip(table[key].astype(str), table["support"], strict=True)
    ]
    axes.set_xlim(0, 1.06)
    whiskers = "; whiskers: 95 % intervals" if "f1_high" in table else ""
    name_rows(axes, names, title, 3, f"in brackets: {unit}; –: does not exist{whiskers}")
    return with_fonts(figure)


def reliability_diagram(
    measured: Reliability, title: str, unit: str, calibrated: Reliability | None = None
) -> "Figure":
    """Draw how often things of each score were right, above how many have such a score.

    calibrated: the same things once their scores were calibrated, drawn beside.
    """
    from matplotlib.ticker import MaxNLocator

    if measured.ece is None:
        return nothing_to_show(title)
    figure, axes = new_figure(5.2, 5.0)
    axes.remove()
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="ideal")
    kinds = [("measured", measured, BLUE, "o", "")]
    if calibrated is not None:
        kinds = [
            ("measured", measured, ORANGE, "s", "////"),
            ("calibrated", calibrated, BLUE, "o", ""),
        ]
    for number, (kind, curve, color, marker, hatch) in enumerate(kinds):
        bins = curve.bins
        shares = bins["right"].to_numpy()
        ends = [
            wilson_interval(round(share * count), count)
            for share, count in zip(shares, bins["count"], strict=True)
        ]
        away = [
            [share - end.low for share, end in zip(shares, ends, strict=True) if end],
            [end.high - share for share, end in zip(shares, ends, strict=True) if end],
        ]
        axes.errorbar(
            bins["mean_score"],
            shares,
            yerr=away,
            color=color,
            ecolor=color,
            elinewidth=1,
            capsize=2.5,
            marker=marker,
            markersize=5,
            linewidth=1.6,
            label=f"{kind}, with 95 % intervals",
        )
        width = (bins["high"] - bins["low"]) * 0.92 / len(kinds)
        below.bar(
            bins["low"] + number * width,
            bins["count"],
            width=width,
            align="edge",
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
        )
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(0, 1)
    axes.set_ylabel("share that was right", fontsize=9, color=INK)
    below.set_ylabel(unit, fontsize=9, color=INK)
    below.set_xlabel("score", fontsize=9, color=INK)
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=2))
    for part in (axes, below):
        part.grid(color=GRID, linewidth=0.8)
        part.set_axisbelow(True)
        part.tick_params(length=0, labelsize=9, labelcolor=INK)
        part.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=20)
    errors = f"{measured.ece:.3f}"
    if calibrated is not None:
        errors += f", calibrated {calibrated.ece:.3f},"
    add_note(axes, f"expected calibration error {errors} over {measured.count:,} {unit}")
    axes.legend(loc="best", frameon=False, fontsize=8.5, labelcolor=INK)
    return with_fonts(figure)


def right_and_wrong(
    values: pd.Series, right: pd.Series, title: str, x_label: str, unit: str
) -> "Figure":
    """Draw two histograms over 0..1, one above the other, on one scale."""
    from matplotlib.ticker import MaxNLocator

    if values.isna().all():
        return nothing_to_show(title)
    figure, axes = new_figure(6.4, 3.6)
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
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=MUTED)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=24)
    legend_above(axes, 2)
    without = int((~known).sum())
    suffix = f" ({without} {unit} without one not shown)" if without else ""
    axes.set_xlabel(x_label + suffix, fontsize=9, color=INK)
    axes.set_ylabel(unit, fontsize=9, color=INK)
    return with_fonts(figure)
