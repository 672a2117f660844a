"""Figures of the review queue."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.plots.frame import (
    BLUE,
    GRID,
    INK,
    MUTED,
    add_note,
    label_axes,
    new_figure,
    nothing_to_show,
    with_fonts,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def errors_found(expected_errors: pd.Series, total: int) -> "Figure":
    """Draw how many of the expected errors are seen after how many images.

    Args:
        expected_errors: of the images of a queue, in its order.
        total: images that were looked through.
    """
    title = "How far the queue goes"
    if expected_errors.empty or not expected_errors.sum():
        return nothing_to_show(title)
    seen = np.concatenate([[0], expected_errors.cumsum() / expected_errors.sum()])
    images = np.arange(len(seen))
    figure, axes = new_figure(6.0, 3.6)
    axes.plot([0, len(images) - 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.fill_between(images, seen, color=BLUE, alpha=0.12, linewidth=0)
    axes.plot(images, seen, color=BLUE, linewidth=1.8)
    tenth = max(1, round(total / 10))
    if tenth < len(images):
        axes.plot([tenth], [seen[tenth]], "o", color=BLUE)
        axes.annotate(
            f"{tenth:,} images, a tenth of all: {seen[tenth]:.0%}",
            (tenth, seen[tenth]),
            xytext=(8, -10),
            textcoords="offset points",
            fontsize=9,
            color=INK,
        )
    axes.set_xlim(0, max(1, len(images) - 1))
    axes.set_ylim(0, 1.02)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.spines[:].set_visible(False)
    label_axes(axes, title, "images looked at, in the order of the queue", "expected errors seen")
    add_note(axes, "dashed: in no order")
    return with_fonts(figure)
