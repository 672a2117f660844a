"""Figures of what a checked sample says."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.plots.frame import (
    BLUE,
    GRID,
    INK,
    MUTED,
    VERMILION,
    new_figure,
    nothing_to_show,
    shortened,
    with_fonts,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def audited_labels(table: pd.DataFrame, entry: str) -> "Figure":
    """Draw precision and recall with their intervals, a row a label.

    Args:
        table: rows of `labeling_pipeline.evaluation.audit.audit_table`; those without a number are
            left out.
        entry: that they are of.
    """
    title = f"Audited labels of {entry}"
    known = table[table["precision"].notna() | table["recall"].notna()]
    if len(table) == 2:
        # All labels together are the one that there is.
        known = known.tail(1)
    if known.empty:
        return nothing_to_show(title)
    figure, axes = new_figure(7.4, 1.5 + 0.42 * len(known))
    rows = np.arange(len(known))
    for name, color, marker, shift in (
        ("precision", BLUE, "o", -0.13),
        ("recall", VERMILION, "D", 0.13),
    ):
        values = known[name].to_numpy(dtype=float)
        low, high = (known[f"{name}_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        if np.isfinite(values).any():
            axes.errorbar(
                values,
                rows + shift,
                xerr=np.clip([values - low, high - values], 0, None),
                fmt=marker,
                color=color,
                markersize=5,
                elinewidth=1.6,
                capsize=3,
                label=name,
            )
    names = [
        f"{shortened(label)}  ({checked} of {in_sheet})"
        for label, checked, in_sheet in zip(
            known["label"].astype(str), known["checked"], known["rows"], strict=True
        )
    ]
    axes.set_yticks(rows, names, fontsize=9, color=INK)
    axes.set_ylim(len(known) - 0.45, -0.55)
    axes.set_xlim(-0.01, 1.01)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=24)
    axes.legend(
        *axes.get_legend_handles_labels(),
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=2,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        borderaxespad=0.2,
    )
    axes.set_xlabel("95 % intervals; in brackets: rows checked", fontsize=8, color=MUTED)
    return with_fonts(figure)
