"""What the report is made of: sections, each with its headlines, and pictures."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from labeling_pipeline.evaluation.intervals import Interval

# A PNG with so many pixels across needs a row of its own.
_WIDE_PX = 950


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG, as bytes."""

    title: str
    data: bytes
    caption: str = ""

    @property
    def is_wide(self) -> bool:
        """Whether it needs a row of its own."""
        # The header's width, https://www.w3.org/TR/png/#11IHDR
        return self._is_png and int.from_bytes(self.data[16:20]) > _WIDE_PX

    @property
    def _is_png(self) -> bool:
        return self.data.startswith(b"\x89PNG")

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        kind = "png" if self._is_png else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


class Form(StrEnum):
    """How a number is written: 1,234 or 0.931 or 93.1%."""

    COUNT = "count"
    NUMBER = "number"
    SHARE = "share"


@dataclass(frozen=True)
class Headline:
    """A number to read first.

    name: the same in every report, so that reports can be compared.
    value: ``None`` if it does not exist.
    more_is_better: whether a rise is good news; ``None`` if it is neither.
    """

    name: str
    value: float | None
    form: Form
    note: str = ""
    interval: Interval | None = None
    more_is_better: bool | None = None

    @property
    def text(self) -> str:
        """The number as it is written."""
        return written(self.value, self.form)

    @property
    def interval_text(self) -> str:
        """The interval as it is written; empty without one."""
        if self.interval is None:
            return ""
        return (
            f"{written(self.interval.low, self.form)} to {written(self.interval.high, self.form)}"
        )


@dataclass(frozen=True)
class Section:
    """One part of the page.

    anchor: of links to it. title: in the navigation.
    template: a file beside this module, rendered with ``content``.
    content: what it shows; ``None``: it is left out, and ``absent`` says why.
    """

    anchor: str
    title: str
    template: str
    content: Any
    headlines: tuple[Headline, ...] = ()
    absent: str = ""


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows, in the order in which it is shown."""

    title: str
    generated_at: datetime
    image_root: str
    sections: Sequence[Section]

    @property
    def headlines(self) -> tuple[Headline, ...]:
        """Of all sections: first those that say how good the labels are, then the counts."""
        every = [headline for section in self.sections for headline in section.headlines]
        return tuple(sorted(every, key=lambda headline: headline.form is Form.COUNT))


def written(value: float | None, form: Form) -> str:
    """A number as the page writes it; one that does not exist is a dash."""
    if value is None or math.isnan(value):
        return "–"
    by_form = {
        Form.COUNT: f"{value:,.0f}",
        Form.NUMBER: number(value, 3),
        Form.SHARE: percent(value),
    }
    return by_form[form]


def number(value: float | None, digits: int = 2) -> str:
    """A number; one that does not exist is a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share; one that does not exist is a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.1%}"


def many(count: int, one: str, several: str) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else several}"
