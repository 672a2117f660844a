"""The index: one page over all reports of a dataset, with how the numbers went."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from labeling_pipeline.evaluation.report.data import Form, Headline, many, written
from labeling_pipeline.evaluation.report.history import Summary
from labeling_pipeline.evaluation.report.page import environment

_TEMPLATE = "index.html.j2"
_WIDTH, _HEIGHT, _MARGIN = 100, 24, 2


@dataclass(frozen=True)
class Run:
    """One report. link: to its page, relative to the index."""

    link: str
    summary: Summary

    def headline(self, name: str) -> Headline | None:
        """The headline of that name, if the report has it."""
        return next((one for one in self.summary.headlines if one.name == name), None)


@dataclass(frozen=True)
class Trend:
    """How one number went. points: in order of time."""

    name: str
    form: Form
    points: tuple[float, ...]

    @property
    def text(self) -> str:
        """The newest."""
        return written(self.points[-1], self.form)

    @property
    def range_text(self) -> str:
        """From the least to the most."""
        low, high = written(min(self.points), self.form), written(max(self.points), self.form)
        return f"always {low}" if low == high else f"{low} to {high}"

    @property
    def line(self) -> str:
        """Points of an SVG polyline in a box of 100 x 24."""
        low, high = min(self.points), max(self.points)
        span = (high - low) or 1.0
        step = _WIDTH / (len(self.points) - 1)
        usable = _HEIGHT - 2 * _MARGIN
        middle = usable / 2 if low == high else 0.0
        return " ".join(
            f"{i * step:.1f},{_HEIGHT - _MARGIN - middle - (value - low) / span * usable:.1f}"
            for i, value in enumerate(self.points)
        )


def render_index(title: str, runs: Sequence[Run]) -> str:
    """Render the page as HTML. runs: the newest first, at least one."""
    newest = runs[0].summary.headlines
    return (
        environment()
        .get_template(_TEMPLATE)
        .render(
            title=title,
            runs=runs,
            names=[headline.name for headline in newest],
            trends=list(_trends(newest, runs)),
            many=many,
        )
    )


def _trends(newest: Sequence[Headline], runs: Sequence[Run]) -> Iterator[Trend]:
    """Of the numbers that say how good the labels are and that two reports have."""
    for headline in newest:
        if headline.form is Form.COUNT or headline.value is None:
            continue
        past = [one for run in reversed(runs) if (one := run.headline(headline.name))]
        points = tuple(one.value for one in past if one.value is not None)
        if len(points) > 1:
            yield Trend(headline.name, headline.form, points)
