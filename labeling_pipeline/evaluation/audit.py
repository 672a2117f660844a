"""How good labels are without ground truth: a random sample that a person checks.

**What is judged** is pairs of an image and a label that an entry was asked for, and what it said:
how many of the boxes (or points, outlines, texts) are wrong, and how many things have none.

**The sample** is stratified. Of each label, pairs where something is shown are cut at the terciles
of their lowest score; where nothing is shown, sound answers and missing ones are apart. Within a
stratum every pair is as likely as any other: each has a random number of its own, a hash of seed,
image and label, and those with the smallest are drawn (permanent random numbers; Ohlsson,
"Coordination of samples using permanent random numbers", 1995). So the same pairs are drawn again
next time, and new images displace only as many as their share.

**Precision** is the share of right ones among what is shown. **Recall** is the product of two
shares: of the things on images where something is shown, those that are shown; and of all things,
those on such images. The second rests on what is missed where nothing is shown, and is uncertain
where that was rarely looked at. How both are estimated: `labeling_pipeline.evaluation.survey`.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.intervals import Interval
from labeling_pipeline.evaluation.survey import Estimate, Sample, product

SCORE_STRATA = ("low score", "middle score", "high score")
NO_SCORE, NOTHING_FOUND, NO_ANSWER = "no score", "nothing found", "no answer"
WHERE_SHOWN = (*SCORE_STRATA, NO_SCORE)
"""Strata of pairs where something is shown."""

WHERE_EMPTY = (NOTHING_FOUND, NO_ANSWER)
"""Strata of pairs where nothing is."""


_Name = TypeVar("_Name")


@dataclass(frozen=True)
class AuditEstimate:
    """What checked pairs say of all.

    precision: share of what is shown that is right; ``None`` if nothing is shown, or nothing of it
        was checked. recall: share of the things that are shown; ``None`` where things cannot be
        missed, and until pairs with and without something shown were checked, as far as there are.
    shown: how much all pairs show. checked: pairs. checked_shown, wrong, missed: of these.
    """

    precision: Estimate | None
    recall: Estimate | None
    shown: int
    checked: int
    checked_shown: int
    wrong: int
    missed: int


@dataclass(frozen=True)
class EntryAudit:
    """How far the audit of one entry of the plan is, and what it says.

    rows: in the sheet; checked: those with a verdict. changed: those whose answer is another than
        when they were checked. outdated: verdicts of answers that no longer hold.
    overall: over all labels. per_label: label -> of its own. There are no numbers while rows have
        changed: those that did not are no random sample.
    sizes: label -> pairs, and rows of the sheet.
    """

    entry: str
    rows: int
    checked: int
    changed: int
    outdated: int
    overall: AuditEstimate
    per_label: Mapping[str, AuditEstimate]
    sizes: Mapping[str, tuple[int, int]]

    @property
    def to_check(self) -> int:
        """Rows without a verdict."""
        return self.rows - self.checked


def draw_sample(pairs: pd.DataFrame, per_label: int, seed: int = 0) -> pd.DataFrame:
    """Draw pairs of one entry to check.

    A label's rows are halved between pairs where something is shown and pairs where nothing is; the
    strata of a half share evenly. What a stratum or half has too few pairs for goes to the others.

    Args:
        pairs: one row a pair: ``label, image_id, shown`` (how many), ``score`` (the lowest; NaN
            without one), ``is_answered`` (whether the answer was sound).
        per_label: how many are drawn of each label, if it has so many.
        seed: of the random numbers.

    Returns:
        All pairs, with ``stratum``, ``share`` of the stratum that is drawn, ``is_drawn``, and
        ``place``: in its order, any beginning of the drawn ones is a smaller sample of its own.
    """
    pairs = pairs.assign(stratum=_strata(pairs))
    sizes = pairs.groupby(["label", "stratum"]).size()
    drawn = {
        (label, stratum): rows
        for label, of_label in sizes.groupby(level="label")
        for stratum, rows in _allocated(of_label.droplevel("label").to_dict(), per_label).items()
    }
    keys = pd.MultiIndex.from_frame(pairs[["label", "stratum"]])
    in_stratum = sizes.reindex(keys).to_numpy()
    rows = np.array([drawn[key] for key in keys], dtype=float)
    number = pd.Series(
        [
            _random_number(seed, image_id, label)
            for image_id, label in zip(pairs["image_id"], pairs["label"], strict=True)
        ],
        index=pairs.index,
        dtype=np.uint64,
    )
    rank = number.groupby([pairs["label"], pairs["stratum"]]).rank(method="first").to_numpy() - 1
    with np.errstate(divide="ignore"):
        place = (rank + 0.5) / rows
    return pairs.assign(share=rows / in_stratum, is_drawn=rank < rows, place=place)


def _strata(pairs: pd.DataFrame) -> pd.Series:
    """The stratum of each pair. Equal scores stay together, so that terciles may be uneven."""
    is_shown = pairs["shown"] > 0
    scores = pairs["score"].where(is_shown)
    by_label = scores.groupby(pairs["label"])
    level = sum(
        (scores > by_label.transform("quantile", cut)).astype(int) for cut in (1 / 3, 2 / 3)
    )
    named = pd.Series(np.array(SCORE_STRATA)[level], index=pairs.index, dtype=object)
    named = named.mask(is_shown & scores.isna(), NO_SCORE)
    named = named.mask(~is_shown & pairs["is_answered"], NOTHING_FOUND)
    return named.mask(~is_shown & ~pairs["is_answered"], NO_ANSWER)


def _allocated(sizes: Mapping[str, int], rows: int) -> dict[str, int]:
    """How many of a label's rows each stratum gets. sizes: stratum -> pairs."""
    halves = {
        part: {stratum: sizes[stratum] for stratum in part if stratum in sizes}
        for part in (WHERE_SHOWN, WHERE_EMPTY)
    }
    of_half = _shared_out({part: sum(half.values()) for part, half in halves.items()}, rows)
    return {
        stratum: share
        for part, half in halves.items()
        for stratum, share in _shared_out(half, of_half[part]).items()
    }


def _shared_out(sizes: Mapping[_Name, int], rows: int) -> dict[_Name, int]:
    """Rows shared out evenly, to nobody more than its size; the odd ones go to the smallest."""
    given: dict[_Name, int] = {}
    for position, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
        fair = -(-(rows - sum(given.values())) // (len(sizes) - position))
        given[name] = min(sizes[name], fair)
    return given


def _random_number(seed: int, image_id: str, label: str) -> int:
    """Uniform over 64 bits; the same for the same pair in every process."""
    text = f"{seed}\n{image_id}\n{label}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


class Stratum(NamedTuple):
    """All pairs of one: how many they are, and how much they show."""

    pairs: int
    shown: int


class Checked(NamedTuple):
    """A pair that was checked. share: the probability with which it was drawn."""

    label: str
    stratum: str
    shown: int
    wrong: int
    missed: int
    share: float


Strata = Mapping[tuple[str, str], Stratum]
"""Label and name -> stratum."""


def strata_of(pairs: pd.DataFrame) -> dict[tuple[str, str], Stratum]:
    """The strata of the pairs that `draw_sample` returns, label by label."""
    sums = pairs.groupby(["label", "stratum"], sort=False)["shown"].agg(["size", "sum"])
    return {key: Stratum(int(size), int(shown)) for key, size, shown in sums.itertuples()}


def estimate(strata: Strata, checked: Sequence[Checked], *, has_recall: bool) -> AuditEstimate:
    """Conclude from checked pairs to all, of one label or of several together.

    Strata of which no pair was checked count as being like the others where something is shown, or
    like the others where nothing is. has_recall: whether things can be missed at all.
    """
    shown, empty = (_Part.of(strata, checked, names) for names in (WHERE_SHOWN, WHERE_EMPTY))
    return AuditEstimate(
        precision=_precision(shown),
        recall=_recall(shown, empty) if has_recall else None,
        shown=shown.things,
        checked=len(checked),
        checked_shown=sum(pair.shown for pair in checked),
        wrong=sum(pair.wrong for pair in checked),
        missed=sum(pair.missed for pair in checked),
    )


@dataclass(frozen=True)
class _Part:
    """The pairs of some strata, and those of them that were checked.

    pairs, things: how many there are, and how much they show.
    sample: ``None`` if none was checked.
    shown, wrong, missed: (n,) float, of the checked pairs.
    """

    pairs: int
    things: int
    sample: Sample | None
    shown: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    @classmethod
    def of(cls, strata: Strata, checked: Sequence[Checked], names: Sequence[str]) -> "_Part":
        here = [size for (_, name), size in strata.items() if name in names]
        rows = [pair for pair in checked if pair.stratum in names]
        population = sum(size.pairs for size in here)
        sample = None
        if rows:
            keys = [(pair.label, pair.stratum) for pair in rows]
            number = {key: position for position, key in enumerate(dict.fromkeys(keys))}
            sample = Sample.drawn(
                strata=np.array([number[key] for key in keys]),
                sizes=np.array([strata[key].pairs for key in keys]),
                probabilities=np.array([pair.share for pair in rows]),
                population=population,
            )
        counts = np.array([pair[2:5] for pair in rows], dtype=float).reshape(-1, 3)
        return cls(population, sum(size.shown for size in here), sample, *counts.T)


def _precision(shown: _Part) -> Estimate | None:
    if shown.sample is None:
        return None
    return shown.sample.share(shown.wrong, shown.shown).complement()


def _recall(shown: _Part, empty: _Part) -> Estimate | None:
    unchecked = [part for part in (shown, empty) if part.pairs and not part.sample]
    if unchecked:
        return None
    nothing = Estimate(0.0, Interval(0.0, 0.0))
    missed = empty.sample.mean_count(empty.missed) if empty.sample else nothing
    there = shown.shown - shown.wrong + shown.missed
    if not shown.sample or not there.any():
        # Nothing is shown of whatever there is.
        return nothing if missed.value else None
    things = shown.things * shown.sample.ratio(there, shown.shown)

    def share_there(missed_per_pair: float) -> float:
        return things / (things + empty.pairs * missed_per_pair)

    return product(
        shown.sample.share(there - shown.missed, there),
        Estimate(
            share_there(missed.value),
            Interval(share_there(missed.interval.high), share_there(missed.interval.low)),
        ),
    )


def audit_table(audits: Iterable[EntryAudit]) -> pd.DataFrame:
    """One row an entry, followed by one a label of it; NaN where there is no number.

    Columns: entry, label (``all`` in the first), pairs, shown, rows, checked, wrong, missed,
    precision, precision_low, precision_high, recall, recall_low, recall_high.
    """
    rows = []
    for audit in audits:
        pairs, in_sheet = (sum(sizes) for sizes in zip(*audit.sizes.values(), strict=True))
        rows.append(_table_row(audit.entry, "all", (pairs, in_sheet), audit.overall))
        rows += [
            _table_row(audit.entry, label, audit.sizes[label], estimated)
            for label, estimated in audit.per_label.items()
        ]
    nothing = AuditEstimate(None, None, shown=0, checked=0, checked_shown=0, wrong=0, missed=0)
    return pd.DataFrame(rows, columns=list(_table_row("", "", (0, 0), nothing)))


def _table_row(
    entry: str, label: str, sizes: tuple[int, int], estimated: AuditEstimate
) -> dict[str, object]:
    def numbers(name: str, one: Estimate | None) -> dict[str, float]:
        values = (one.value, one.interval.low, one.interval.high) if one else (np.nan,) * 3
        return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))

    return {
        "entry": entry,
        "label": label,
        "pairs": sizes[0],
        "shown": estimated.shown,
        "rows": sizes[1],
        "checked": estimated.checked,
        "wrong": estimated.wrong,
        "missed": estimated.missed,
        **numbers("precision", estimated.precision),
        **numbers("recall", estimated.recall),
    }
