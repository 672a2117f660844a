"""Figures of what another model answered otherwise."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.drift import Change
from labeling_pipeline.evaluation.plots.frame import (
    BLUE,
    GREEN,
    ORANGE,
    VERMILION,
    name_rows,
    new_figure,
    nothing_to_show,
    shortened,
    with_fonts,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS = {
    Change.MATCHED: (BLUE, ""),
    Change.MOVED: (GREEN, "...."),
    Change.LOST: (VERMILION, "////"),
    Change.NEW: (ORANGE, ""),
}
_MOST_CLASSES = 40


def box_changes(per_class: pd.DataFrame) -> "Figure":
    """Draw what became of the boxes of every class, the most changed on top:
    ``ModelDrift.per_class``, of which at most 40 rows that have boxes."""
    from matplotlib.ticker import PercentFormatter

    changes = [change.value for change in Change]
    table = per_class[per_class[changes].any(axis=1)]
    title = "What became of the boxes"
    if table.empty:
        return nothing_to_show(title)
    total = table[changes].sum(axis=1)
    order = (1 - table["matched"] / total).sort_values(ascending=False, kind="stable").index
    shown = table.loc[order[:_MOST_CLASSES]]
    shares = shown[changes].div(total[shown.index], axis=0)
    figure, axes = new_figure(7.4, 1.6 + 0.32 * len(shown))
    middle = np.arange(len(shown))
    left = np.zeros(len(shown))
    for change, (color, hatch) in _LOOKS.items():
        width = shares[change.value].to_numpy()
        axes.barh(
            middle,
            width,
            left=left,
            height=0.72,
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label=f"{change.value}: {int(table[change.value].sum()):,}",
        )
        left = left + width
    names = [
        f"{shortened(row['class'])}, {row['entry']}  ({count:,})"
        for row, count in zip(shown.to_dict("records"), total[shown.index], strict=True)
    ]
    axes.set_xlim(0, 1)
    left_out = len(table) - len(shown)
    note = "in brackets: boxes, before or now"
    note += f"; {left_out} classes that changed less are left out" if left_out else ""
    name_rows(axes, names, title, 4, note)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    return with_fonts(figure)
