"""The audit of a dataset: pictures and sheets for a reviewer, and what their verdicts come to.

What is judged is what models answered, before corrections. A mistake that a person corrected would
otherwise leave the sample, and what is left of it would look better than the dataset is.

The folder holds, for each entry, a sheet ``<entry>.csv``, a page ``<entry>.html``, and
``<entry>_outdated.csv``: verdicts of answers that no longer hold. They count again if those answers
do. A row is named after all that its picture shows, so that a verdict holds for as long as it is
true, whichever model, threshold or parser the answer comes from.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from labeling_pipeline.annotations import Annotation, State
from labeling_pipeline.asks import current_view
from labeling_pipeline.drawing import draw_annotations, label_colors, write_jpeg
from labeling_pipeline.errors import AuditError
from labeling_pipeline.evaluation.agreement import ANSWERED
from labeling_pipeline.evaluation.audit import AuditEstimate, draw_sample, estimate
from labeling_pipeline.evaluation.survey import Estimate
from labeling_pipeline.export.audit_page import audit_page
from labeling_pipeline.export.audit_sheet import Sheet, SheetRow, read_sheet, sheet_bytes
from labeling_pipeline.export.corrections_json import listed
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.home import Home
from labeling_pipeline.images.reading import decode
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.labeling import Progress
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.results import annotation_of
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import View, answered_annotations, current_outcomes
from labeling_pipeline.tasks import RULES, Geometry

ESTIMATES = "estimates.csv"
_RECORD = "drawn.json"
_LARGE_ENOUGH_PX = 1280

Pair = tuple[str, str]
"""Image id and label."""

Record = dict[str, dict[str, tuple[str, str, float]]]
"""Entry -> name of a row -> image id, label, probability with which it was drawn."""


@dataclass(frozen=True)
class EntryAudit:
    """How far the audit of one entry is, and what it says.

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


def write_audit(
    store: AnnotationStore,
    plan: Plan,
    source: ImageSource,
    home: Home,
    *,
    progress: Progress = lambda done, total: None,
) -> list[EntryAudit]:
    """Draw the sample and its pictures, and take in what reviewers wrote into the sheets.

    Rows with a verdict stay for as long as their picture would be the same. A verdict that holds no
    longer is moved to ``<entry>_outdated.csv``. Pictures that are there already are not drawn
    again.

    Raises:
        AuditError: a sheet cannot be understood; nothing was written.
        ImageError: an image cannot be read any more.
    """
    folder = audit_folder(home)
    record = _read_record(folder)
    samples = list(_samples(store, plan, record))
    for sample in samples:
        _Filled.read(folder, sample, record)
    _draw_missing(folder, samples, source, progress)
    # Read once more: drawing takes its time, and somebody may have saved a sheet meanwhile.
    filled = [_Filled.read(folder, sample, record) for sample in samples]
    for sample in samples:
        drawn = {item.name: (*item.pair, item.share) for item in sample.items.values()}
        record[sample.entry.name] = record.get(sample.entry.name, {}) | drawn
    write_if_changed(folder / _RECORD, json.dumps(record, indent=0).encode())
    for one in filled:
        one.write(folder)
    shown = {row.picture for one in filled for row in one.every_row}
    for sample in samples:
        for picture in map(_picture, record[sample.entry.name]):
            if picture not in shown:
                (folder / picture).unlink(missing_ok=True)
    audits = [one.audit() for one in filled]
    write_if_changed(folder / "README.txt", _readme(samples).encode())
    table = audit_table(audits).to_csv(index=False, float_format="%.4f", lineterminator="\n")
    write_if_changed(folder / ESTIMATES, table.encode())
    return audits


def read_audit(store: AnnotationStore, plan: Plan, home: Home) -> list[EntryAudit]:
    """What the sheets say now; empty if no sample has been drawn yet.

    Raises:
        AuditError: a sheet cannot be understood.
    """
    folder = audit_folder(home)
    record = _read_record(folder)
    if not record:
        return []
    return [_Filled.read(folder, one, record).audit() for one in _samples(store, plan, record)]


def checked_pairs(plan: Plan, home: Home) -> set[tuple[str, str, str]]:
    """(entry, image id, label) of all that has a verdict in a sheet.

    Raises:
        AuditError: a sheet cannot be understood.
    """
    folder = audit_folder(home)
    record = _read_record(folder)
    return {
        (entry.name, *record[entry.name][row.item][:2])
        for entry in plan.entries
        for row in read_sheet(_sheet(folder, entry)).rows
        if row.is_checked and row.item in record.get(entry.name, {})
    }


def audit_folder(home: Home) -> Path:
    """Where sheets and pictures lie."""
    return home.reports / "audit"


def audit_table(audits: Iterable[EntryAudit]) -> pd.DataFrame:
    """One row an entry, followed by one a label of it; NaN where there is no number.

    Columns: entry, label (empty: all together), pairs, shown, rows, checked, wrong, missed,
    precision, precision_low, precision_high, recall, recall_low, recall_high.
    """
    rows = []
    for audit in audits:
        pairs, in_sheet = (sum(sizes) for sizes in zip(*audit.sizes.values(), strict=True))
        rows.append(_table_row(audit.entry, "", (pairs, in_sheet), audit.overall))
        rows += [
            _table_row(audit.entry, label, audit.sizes[label], estimated)
            for label, estimated in audit.per_label.items()
        ]
    return pd.DataFrame(rows, columns=list(_table_row("", "", (0, 0), _NO_ESTIMATE)))


_NO_ESTIMATE = AuditEstimate(None, None, shown=0, checked=0, checked_shown=0, wrong=0, missed=0)


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


@dataclass(frozen=True)
class _Item:
    """A pair that is in the sample, or was before. shown: in the order of their numbers."""

    name: str
    pair: Pair
    path: str
    stratum: str
    share: float
    place: float
    is_drawn: bool
    shown: tuple[Annotation, ...]


@dataclass(frozen=True)
class _Sample:
    """The pairs of one entry. items: those in the sample now, and earlier ones, by name."""

    entry: Entry
    pairs: pd.DataFrame
    items: Mapping[str, _Item]

    @property
    def can_miss(self) -> bool:
        """Whether things may have no box."""
        return _can_miss(self.entry)


def _can_miss(entry: Entry) -> bool:
    rule = RULES[entry.task]
    return rule.geometry is not Geometry.NONE and not rule.needs_references


def _samples(store: AnnotationStore, plan: Plan, record: Record) -> Iterator[_Sample]:
    """The sample of every entry that was asked anything."""
    view = current_view(plan)
    answers = answered_annotations(store, view)
    every_pair = _pairs(store, view, answers)
    for entry in plan.entries:
        pairs = every_pair[every_pair["entry"] == entry.name]
        if not _can_miss(entry):
            pairs = pairs[pairs["shown"] > 0]
        if len(pairs):
            sample = draw_sample(pairs, plan.audit.per_label, plan.audit.seed)
            known = record.get(entry.name, {})
            yield _Sample(entry, sample, dict(_items(entry, sample, answers, known)))


def _pairs(store: AnnotationStore, view: View, answers: pa.Table) -> pd.DataFrame:
    """One row each image and label that an entry was asked for: ``entry, label, image_id, path,
    is_answered, shown, score``. A label may have been asked for several classes."""
    key = ["entry", "label", "image_id"]
    outcomes = current_outcomes(store, view.model_keys)
    outcomes = outcomes[outcomes["state"] != State.UNSUPPORTED]
    asked = (
        outcomes.assign(is_answered=outcomes["state"].isin(ANSWERED))
        .groupby(key, sort=False)
        .agg(path=("path", "first"), is_answered=("is_answered", "all"))
    )
    found = answers.select([*key, "annotation_id", "score"]).to_pandas()
    found = found.drop_duplicates("annotation_id").groupby(key)
    asked["shown"] = found.size()
    asked["score"] = found["score"].min()
    return asked.fillna({"shown": 0}).astype({"shown": int}).reset_index()


def _items(
    entry: Entry,
    sample: pd.DataFrame,
    answers: pa.Table,
    known: Mapping[str, tuple[str, str, float]],
) -> Iterator[tuple[str, _Item]]:
    """Name -> item, of the pairs that are drawn, and of those that once were."""
    wanted = {(image_id, label) for image_id, label, _ in known.values()}
    keys = zip(sample["image_id"], sample["label"], strict=True)
    rows = sample[np.array([key in wanted for key in keys]) | sample["is_drawn"]]
    contents = _contents(entry, answers, rows["image_id"])
    for row in rows.itertuples():
        pair = (row.image_id, row.label)
        shown = contents.get(pair, ())
        name = _name(entry, pair, shown)
        _, _, share = known.get(name, (*pair, 0.0))
        yield (
            name,
            _Item(
                name=name,
                pair=pair,
                path=row.path,
                stratum=row.stratum,
                # Drawn by either of two samples with the same random numbers.
                share=max(share, row.share),
                place=row.place,
                is_drawn=row.is_drawn,
                shown=shown,
            ),
        )


def _contents(
    entry: Entry, answers: pa.Table, image_ids: Iterable[str]
) -> dict[Pair, tuple[Annotation, ...]]:
    """What is shown of some images, from top to bottom, without scores."""
    is_wanted = pc.and_(
        pc.equal(answers["entry"], entry.name),
        pc.is_in(answers["image_id"], pa.array(sorted(set(image_ids)), pa.string())),
    )
    found: dict[Pair, list[Annotation]] = {}
    rows = answers.filter(is_wanted).to_pandas().drop_duplicates("annotation_id")
    for row in rows.itertuples():
        found.setdefault((row.image_id, row.label), []).append(_without_scores(annotation_of(row)))
    return {pair: tuple(sorted(shown, key=_from_the_top)) for pair, shown in found.items()}


def _without_scores(annotation: Annotation) -> Annotation:
    """Scores would sway a reviewer."""
    points = tuple(replace(point, score=None) for point in annotation.keypoints)
    return replace(annotation, score=None, keypoints=points)


def _from_the_top(annotation: Annotation) -> tuple[float, float, str]:
    x, y = annotation.point or (annotation.bbox or (0.0, 0.0))[:2]
    return y, x, _shape(annotation)


def _shape(annotation: Annotation) -> str:
    """All that a picture shows of it, to a hundredth of a pixel."""

    def rounded(*numbers: float | None) -> list[float | None]:
        return [None if number is None else round(number, 2) for number in numbers]

    parts = [
        rounded(*annotation.bbox) if annotation.bbox else None,
        rounded(*annotation.point) if annotation.point else None,
        [rounded(*corner) for corner in annotation.polygon],
        [[point.name, *rounded(point.x_px, point.y_px)] for point in annotation.keypoints],
        annotation.text,
    ]
    return json.dumps(parts)


def _name(entry: Entry, pair: Pair, shown: Sequence[Annotation]) -> str:
    """Of a row. It begins with a letter, for spreadsheet programs."""
    identity = json.dumps([entry.name, *pair, *map(_shape, shown)])
    return f"r{hashlib.sha256(identity.encode()).hexdigest()[:11]}"


def _draw_missing(
    folder: Path, samples: Sequence[_Sample], source: ImageSource, progress: Progress
) -> None:
    missing = [
        (sample.entry, item)
        for sample in samples
        for item in sample.items.values()
        if item.is_drawn and not (folder / _picture(item.name)).is_file()
    ]
    for done, (entry, item) in enumerate(missing, 1):
        write_jpeg(folder / _picture(item.name), _drawn(entry, item, source))
        progress(done, len(missing))


def _drawn(entry: Entry, item: _Item, source: ImageSource) -> np.ndarray:
    """The picture of an item: what is shown bears numbers, texts stand below with theirs."""
    image = decode(source.read(item.path), _LARGE_ENOUGH_PX)
    factor = image.pixels.shape[1] / image.width_px
    shown: list[Annotation] = []
    for number, one in enumerate(item.shown, 1):
        placed = replace(one.scaled(factor), label=str(number), text=None)
        shown += [placed] if one.bbox or one.point else []
        if one.text is not None:
            shown.append(Annotation("text", text=f"{number}  {one.text}"))
    title = f"{item.name}  {item.pair[1]}  {Path(item.path).name}"
    numbers = [str(number) for number in range(1, len(item.shown) + 1)]
    return draw_annotations(image.pixels, shown, title=title, colors=label_colors(numbers))


@dataclass(frozen=True)
class _Filled:
    """A sample and what reviewers wrote of it.

    rows: name of an item -> its row of the sheet, in order. outdated: filled rows of no item.
    changed: names of rows without a verdict, whose pair has one that is outdated.
    """

    sample: _Sample
    rows: Mapping[str, SheetRow]
    outdated: Sequence[SheetRow]
    changed: frozenset[str]
    separator: str

    @classmethod
    def read(cls, folder: Path, sample: _Sample, record: Record) -> "_Filled":
        """Raises AuditError."""
        entry, items = sample.entry, sample.items
        written: dict[str, SheetRow] = {}
        # The sheet comes last: what it says of a row counts.
        for path in (_outdated_sheet(folder, entry), _sheet(folder, entry)):
            sheet = read_sheet(path)
            _check(path, sheet, sample)
            written |= {row.item: row for row in sheet.rows if row.is_filled}
        names = [name for name, item in items.items() if item.is_drawn or name in written]
        names.sort(key=lambda name: (items[name].place, items[name].pair[1], name))
        rows = {name: _row(items[name], written.get(name)) for name in names}
        outdated = [row for name, row in written.items() if name not in rows]
        known = record.get(entry.name, {})
        once = {known[row.item][:2] for row in outdated if row.is_checked and row.item in known}
        changed = [n for n, row in rows.items() if not row.is_checked and items[n].pair in once]
        return cls(sample, rows, outdated, frozenset(changed), sheet.separator)

    @property
    def every_row(self) -> Iterator[SheetRow]:
        """Of both sheets."""
        yield from self.rows.values()
        yield from self.outdated

    def write(self, folder: Path) -> None:
        """Both sheets, and the page."""
        entry, rows = self.sample.entry, list(self.rows.values())
        # What is outdated first: a crash in between must lose nothing.
        if self.outdated:
            content = sheet_bytes(self.outdated, self.separator)
            write_if_changed(_outdated_sheet(folder, entry), content)
        write_if_changed(_sheet(folder, entry), sheet_bytes(rows, self.separator))
        if not self.outdated:
            _outdated_sheet(folder, entry).unlink(missing_ok=True)
        page = audit_page(
            entry.name,
            rows,
            _instructions(entry),
            can_miss=self.sample.can_miss,
            separator=self.separator,
        )
        write_if_changed(folder / f"{entry.name}.html", page.encode())

    def audit(self) -> EntryAudit:
        """What the verdicts come to."""
        pairs, items = self.sample.pairs, self.sample.items
        checked = self._checked()
        unsettled = {items[name].pair[1] for name in self.changed}
        labels = list(dict.fromkeys(pairs["label"]))
        in_sheet = pd.Series([items[name].pair[1] for name in self.rows]).value_counts()
        checked_of = dict(tuple(checked.groupby("label")))
        per_label = {
            label: self._estimate(
                of_label, checked_of.get(label, checked.head(0)), label in unsettled
            )
            for label, of_label in pairs.groupby("label", sort=False)
        }
        return EntryAudit(
            entry=self.sample.entry.name,
            rows=len(self.rows),
            checked=len(checked),
            changed=len(self.changed),
            outdated=sum(row.is_checked for row in self.outdated),
            overall=self._estimate(pairs, checked, bool(unsettled)),
            per_label=per_label,
            sizes={
                label: (int((pairs["label"] == label).sum()), int(in_sheet.get(label, 0)))
                for label in labels
            },
        )

    def _checked(self) -> pd.DataFrame:
        """The checked rows, as `estimate` takes them."""
        rows = []
        for name, row in self.rows.items():
            if row.is_checked:
                item, verdict = self.sample.items[name], row.verdict()
                counts = (len(item.shown), len(verdict.wrong), verdict.missed)
                rows.append((item.pair[1], item.stratum, *counts, item.share))
        columns = ["label", "stratum", "shown", "wrong", "missed", "share"]
        return pd.DataFrame(rows, columns=columns)

    def _estimate(
        self, pairs: pd.DataFrame, checked: pd.DataFrame, is_unsettled: bool
    ) -> AuditEstimate:
        found = estimate(pairs, checked, has_recall=self.sample.can_miss)
        return replace(found, precision=None, recall=None) if is_unsettled else found


def _row(item: _Item, written: SheetRow | None) -> SheetRow:
    """The row of an item, with what a reviewer wrote."""
    row = SheetRow(item.name, _picture(item.name), item.path, item.pair[1], len(item.shown))
    if written is None:
        return row
    return replace(
        row, wrong=written.wrong, missed=written.missed, note=written.note, more=written.more
    )


def _check(path: Path, sheet: Sheet, sample: _Sample) -> None:
    """Raises AuditError where a row says what cannot be of its item."""
    problems = []
    for row in sheet.rows:
        where = f"{path}:{sheet.lines[row.item]}"
        item = sample.items.get(row.item)
        if item is not None and row.shown != len(item.shown):
            problems.append(
                f"{where}: shown: expected {len(item.shown)}, as it was written, got {row.shown}"
            )
        if not sample.can_miss and row.verdict().missed:
            problems.append(
                f"{where}: missed: expected nothing, for {sample.entry.name} says one thing of "
                f"what it is given, got {row.missed!r}"
            )
    if problems:
        raise AuditError(listed(problems))


def _read_record(folder: Path) -> Record:
    path = folder / _RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_bytes())
        return {
            entry: {name: (str(i), str(label), float(p)) for name, (i, label, p) in items.items()}
            for entry, items in record.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise AuditError(
            f"{path}: expected which rows were drawn, as it was written, but {error}: delete it, "
            "and rows are weighted as if all had been drawn at once"
        ) from error


def _sheet(folder: Path, entry: Entry) -> Path:
    return folder / f"{entry.name}.csv"


def _outdated_sheet(folder: Path, entry: Entry) -> Path:
    return folder / f"{entry.name}_outdated.csv"


def _picture(name: str) -> str:
    return f"pictures/{name}.jpg"


_WRONG = {
    Geometry.BOX: "A box is wrong if the thing in it is not what the label says, if it fits so "
    "badly that less than half of box and thing together is common to both, or if another box "
    "shows the same thing already.",
    Geometry.POINT: "A point is wrong if it does not lie on what the label says, or if another one "
    "shows the same thing already.",
    Geometry.POLYGON: "An outline is wrong if the thing in it is not what the label says, if less "
    "than half of outline and thing together is common to both, or if another one shows the same "
    "thing already.",
    Geometry.KEYPOINTS: "A person or animal is wrong if it is not what the label says, if box or "
    "most of the points are misplaced, or if another one shows it already.",
    Geometry.NONE: "A text is wrong if it does not say what is there.",
}
"""What to tell a reviewer."""


def _instructions(entry: Entry) -> list[str]:
    rule = RULES[entry.task]
    text = (
        "The texts stand below the picture, with their numbers: one that is not what stands there "
    )
    text = f"{text}or says something else than what is there is wrong, too."
    reads = (rule.reads_text or entry.describes) and rule.geometry is not Geometry.NONE
    missed = "Missed is everything that the label names and nothing shows. Two people must come to "
    missed = f"{missed}the same count: agree on what is too small, too hidden or too blurred."
    return [
        _WRONG[rule.geometry],
        *([text] if reads else []),
        *([missed] if _can_miss(entry) else []),
        "Go from the top and stop where you like: every beginning is a smaller sample of its own.",
    ]


def _readme(samples: Sequence[_Sample]) -> str:
    lines = [
        "A random sample of the labels, to be checked by hand.",
        "",
        "Open <entry>.html in a browser, or <entry>.csv in a spreadsheet program beside the",
        "pictures. Fill in, row by row:",
        "",
        "  wrong    the numbers of what is wrong in the picture, as 2 5; or none, or all",
        "  missed   how many things that the label names nothing shows; empty is none",
        "  note     whatever you like",
        "",
        "A row is checked once wrong or missed is filled in: write none if all is right.",
        "Save as CSV in UTF-8, in this folder. Then materialize audit_sample, and see",
        f"{ESTIMATES} or the report.",
        "",
    ]
    for sample in samples:
        lines += [f"{sample.entry.name}:", *(f"  {line}" for line in _instructions(sample.entry))]
    return "\n".join(lines) + "\n"
