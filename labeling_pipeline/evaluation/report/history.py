"""What a report leaves for the next one, and what has changed between the two."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from labeling_pipeline.evaluation.intervals import Interval
from labeling_pipeline.evaluation.report.coverage import CoverageRow
from labeling_pipeline.evaluation.report.data import Form, Headline, Section, written

_VERSION = 1


@dataclass(frozen=True)
class Summary:
    """What of a report other reports are compared with.

    annotations: entry -> class -> how many. models: entry -> what answered, in words.
    plan: its text.
    """

    generated_at: datetime
    headlines: tuple[Headline, ...]
    annotations: Mapping[str, Mapping[str, int]]
    models: Mapping[str, str]
    plan: str

    def to_json(self) -> str:
        """As text; `from_json` reads it."""
        values = {"version": _VERSION} | asdict(self)
        values["generated_at"] = self.generated_at.isoformat()
        return json.dumps(values, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Summary | None":
        """What `to_json` wrote; ``None`` if it is of another version of this program."""
        values = json.loads(text)
        if values.pop("version", None) != _VERSION:
            return None
        return cls(
            **values
            | {
                "generated_at": datetime.fromisoformat(values["generated_at"]),
                "headlines": tuple(_headline(row) for row in values["headlines"]),
            }
        )


def annotations_of(rows: Sequence[CoverageRow]) -> dict[str, dict[str, int]]:
    """Entry -> class -> annotations, as in `Summary`."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        counts.setdefault(row.entry, {})[row.display_name] = row.annotations
    return counts


def _headline(row: dict[str, Any]) -> Headline:
    interval = Interval(**row["interval"]) if row["interval"] else None
    return Headline(**row | {"form": Form(row["form"]), "interval": interval})


@dataclass(frozen=True)
class Moved:
    """A number that is another one now. Either is ``None`` where it did not exist."""

    name: str
    before: float | None
    now: float | None
    form: Form
    more_is_better: bool | None = None
    interval: Interval | None = None

    @property
    def step(self) -> str:
        """The difference with its sign; empty where one of the two does not exist."""
        if self.before is None or self.now is None:
            return ""
        sign = "+" if self.now >= self.before else "−"
        return sign + written(abs(self.now - self.before), self.form)

    @property
    def verdict(self) -> str:
        """``better`` or ``worse``; empty where neither can be said."""
        if self.before is None or self.now is None or self.more_is_better is None:
            return ""
        return "better" if (self.now > self.before) is self.more_is_better else "worse"

    @property
    def is_within_chance(self) -> bool:
        """Whether the earlier number lies within the interval of today's."""
        return (
            self.interval is not None
            and self.before is not None
            and self.interval.holds(self.before)
        )

    @property
    def texts(self) -> tuple[str, str]:
        """Both numbers as they are written."""
        return written(self.before, self.form), written(self.now, self.form)


@dataclass(frozen=True)
class Changes:
    """What is not as it was in the report before.

    headlines: those with another number. classes: annotations of a class and an entry.
    models: (entry, before, now), in words; an entry that is new or gone says so.
    plan: lines of a unified diff, without its header.
    """

    since: datetime
    headlines: tuple[Moved, ...]
    classes: tuple[Moved, ...]
    models: tuple[tuple[str, str, str], ...]
    plan: tuple[str, ...]

    def of(self, name: str) -> Moved | None:
        """What happened to the headline of that name."""
        return next((moved for moved in self.headlines if moved.name == name), None)

    @property
    def are_none(self) -> bool:
        """Whether all is as it was."""
        return not (self.headlines or self.classes or self.models or self.plan)


def changes_between(before: Summary, now: Summary) -> Changes:
    """What is not as it was. Classes whose count moved most come first."""
    return Changes(
        since=before.generated_at,
        headlines=tuple(_moved_headlines(before, now)),
        classes=tuple(
            sorted(
                _moved_classes(before, now),
                key=lambda moved: -abs((moved.now or 0) - (moved.before or 0)),
            )
        ),
        models=tuple(
            (entry, before.models.get(entry, "not asked"), now.models.get(entry, "not asked"))
            for entry in {**before.models, **now.models}
            if before.models.get(entry) != now.models.get(entry)
        ),
        plan=tuple(
            list(
                difflib.unified_diff(
                    before.plan.splitlines(), now.plan.splitlines(), lineterm="", n=1
                )
            )[2:]
        ),
    )


def _moved_headlines(before: Summary, now: Summary) -> Iterator[Moved]:
    earlier = {headline.name: headline.value for headline in before.headlines}
    for headline in now.headlines:
        # What was never measured before is no change of it.
        if headline.name not in earlier:
            continue
        was = earlier[headline.name]
        if _as_written(was, headline) != headline.text:
            yield Moved(
                headline.name,
                was,
                headline.value,
                headline.form,
                headline.more_is_better,
                headline.interval,
            )


def _as_written(value: float | None, headline: Headline) -> str:
    return replace(headline, value=value).text


def _moved_classes(before: Summary, now: Summary) -> Iterator[Moved]:
    for entry in {**before.annotations, **now.annotations}:
        was, is_now = before.annotations.get(entry, {}), now.annotations.get(entry, {})
        for name in {**was, **is_now}:
            if was.get(name) != is_now.get(name):
                yield Moved(f"{name} ({entry})", was.get(name), is_now.get(name), Form.COUNT)


def changes_section(changes: Changes | None) -> Section:
    """Section of the report: what has changed since the one before."""
    return Section(
        "changes",
        "What changed",
        "changes.html.j2",
        changes,
        absent="What changed: this is the first report.",
    )
