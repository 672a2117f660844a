"""What all figures share: a frame, names that stay legible, fonts, a PNG of bounded size.

Every function returns a matplotlib ``Figure`` of its own, drawn by Agg; pyplot and its global state
are never touched, so threads and processes do not meet. Colours are Okabe and Ito's ("Color
Universal Design", 2008), which colour-blind readers tell apart; where two kinds share a panel they
differ in shape or hatching too.
"""

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labeling_pipeline.drawing import font_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, MUTED, GRID = "#24292f", "#6b7280", "#e5e7eb"
_MAX_BYTES = 100_000
_LONGEST_NAME = 24


def png_bytes(figure: "Figure", dpi: float = 110) -> bytes:
    """Render as PNG of at most about 100 kB: few colours, fewer dots if need be."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    while True:
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        with warnings.catch_warnings():
            # A script that no font here has is drawn as boxes; the tables spell it out.
            warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
            # Saving would draw twice, first for the layout alone.
            canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        small = io.BytesIO()
        # The default method spends its colours on large areas and greys the few red marks.
        few = image.quantize(colors=64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(small, "png", optimize=True)
        if small.tell() <= _MAX_BYTES or dpi <= 50:
            return small.getvalue()
        dpi *= 0.8


def new_figure(width_in: float, height_in: float) -> tuple["Figure", "Axes"]:
    """An empty figure of that size and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr, call-arg]
    return figure, figure.subplots()


def nothing_to_show(title: str) -> "Figure":
    """A small figure that says so."""
    figure, axes = new_figure(5, 1.2)
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.text(0, 0.6, "nothing to show", fontsize=10, color=MUTED, transform=axes.transAxes)
    return figure


def shortened(name: str) -> str:
    """A name that fits beside a figure."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def name_ticks(axes: "Axes", axis: str, names: Sequence[str], size: float) -> None:
    """Names along an axis, ``x`` or ``y``."""
    shown = [shortened(name) for name in names]
    if axis == "y":
        axes.set_yticks(range(len(shown)), shown, fontsize=size, color=INK)
    else:
        slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(shown)), shown, fontsize=size, color=INK, **slant)
    axes.tick_params(axis=axis, length=0)  # type: ignore[arg-type]


def name_rows(
    axes: "Axes", names: Sequence[str], title: str, legend_columns: int, note: str
) -> None:
    """Dress shares from 0 to 1 that lie in rows, the first on top: names to the left, what the
    colours mean above, a small line below."""
    axes.set_yticks(range(len(names)), names, fontsize=9, color=INK)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=24)
    legend_above(axes, legend_columns)
    axes.set_xlabel(note, fontsize=8, color=MUTED)


def label_axes(axes: "Axes", title: str, x_label: str, y_label: str) -> None:
    """Title and names of both axes."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=20)
    axes.set_xlabel(x_label, fontsize=9.5, color=INK)
    axes.set_ylabel(y_label, fontsize=9.5, color=INK)


def legend_above(axes: "Axes", columns: int) -> None:
    """What the colours mean, in a line between the title and the axes."""
    axes.legend(
        *axes.get_legend_handles_labels(),
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        borderaxespad=0.2,
        handlelength=1.4,
    )


def add_note(axes: "Axes", text: str) -> None:
    """A small line under the title."""
    axes.annotate(
        text,
        (0, 1),
        xytext=(0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8,
        color=MUTED,
    )


def with_fonts(figure: "Figure") -> "Figure":
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
