"""Figures of what a checked sample says."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.plots.frame import (
    BLUE,
    VERMILION,
    name_rows,
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
    axes.set_xlim(-0.01, 1.01)
    name_rows(axes, names, title, 2, "95 % intervals; in brackets: rows checked")
    return with_fonts(figure)
