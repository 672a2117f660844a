"""The audit of a dataset: pictures and sheets for a reviewer, and what their verdicts come to.

What is judged is what models answered, before corrections. A mistake that a person corrected would
otherwise leave the sample, and what is left of it would look better than the dataset is.

The folder holds, for each entry, a sheet ``<entry>.csv``, a page ``<entry>.html``, and
``<entry>-outdated.csv``: verdicts of answers that no longer hold. They count again if those answers
do.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labeling_pipeline.errors import AuditError
from labeling_pipeline.evaluation.audit import (
    AuditEstimate,
    Checked,
    EntryAudit,
    Strata,
    audit_table,
    estimate,
    strata_of,
)
from labeling_pipeline.evaluation.plots import audit as plots
from labeling_pipeline.evaluation.plots.frame import png_bytes
from labeling_pipeline.evaluation.report.audit import audit_section
from labeling_pipeline.evaluation.report.data import Section
from labeling_pipeline.export.audit_page import audit_page
from labeling_pipeline.export.audit_sheet import Sheet, SheetRow, read_sheet, sheet_bytes
from labeling_pipeline.export.corrections_json import listed
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.labeling import Progress
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.reporting.audit_sample import (
    Item,
    Record,
    Sample,
    can_miss,
    draw_missing,
    entry_samples,
    picture_of,
)
from labeling_pipeline.reporting.figures import report_pictures, write_table
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.tasks import RULES, Geometry

ESTIMATES = "all-estimates.csv"
"""No entry of a plan can have a file of this name."""

_RECORD = "drawn.json"


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
    longer is moved to ``<entry>-outdated.csv``. Pictures that are there already are not drawn
    again.

    Raises:
        AuditError: a sheet cannot be understood; nothing was written.
        ImageError: an image cannot be read any more.
    """
    folder = audit_folder(home)
    record = _read_record(folder)
    samples = list(entry_samples(store, plan, record))
    for sample in samples:
        _Filled.read(folder, sample, record)
    draw_missing(folder, samples, source, progress)
    # Read once more: drawing takes its time, and somebody may have saved a sheet meanwhile.
    filled = [_Filled.read(folder, sample, record) for sample in samples]
    for one in filled:
        name, items = one.sample.entry.name, one.sample.items
        drawn = {item: (*items[item].pair, items[item].share) for item in one.rows}
        record[name] = record.get(name, {}) | drawn
    write_if_changed(folder / _RECORD, json.dumps(record, indent=0).encode())
    for one in filled:
        one.write(folder)
    shown = {row.picture for one in filled for row in one.every_row}
    for sample in samples:
        for picture in map(picture_of, record[sample.entry.name]):
            if picture not in shown:
                (folder / picture).unlink(missing_ok=True)
    audits = [one.audit() for one in filled]
    write_if_changed(folder / "README.txt", _readme(samples).encode())
    write_table(folder / ESTIMATES, audit_table(audits))
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
    return [_Filled.read(folder, one, record).audit() for one in entry_samples(store, plan, record)]


def audit_figures(audits: Iterable[EntryAudit]) -> dict[str, bytes]:
    """Precision and recall of the labels of each entry that was looked at: name -> PNG."""
    return {
        f"audited_{audit.entry}": png_bytes(plots.audited_labels(audit_table([audit]), audit.entry))
        for audit in audits
        if audit.checked
    }


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


def audit_report(store: AnnotationStore, plan: Plan, home: Home) -> Section:
    """The section of the report. A sheet that cannot be understood leaves the page without it, and
    the page says why."""
    try:
        audits = read_audit(store, plan, home)
    except AuditError as error:
        return audit_section((), (), str(error))
    rows = sum(audit.rows for audit in audits)
    waiting = f"{rows:,} rows wait to be checked by hand in reports/audit: see its README.txt"
    none = "no sample has been drawn yet: materialize audit_sample"
    return audit_section(audits, report_pictures(audit_figures(audits)), waiting if rows else none)


def audit_folder(home: Home) -> Path:
    """Where sheets and pictures lie."""
    return home.reports / "audit"


@dataclass(frozen=True)
class _Filled:
    """A sample and what reviewers wrote of it.

    rows: name of an item -> its row of the sheet, in order. outdated: filled rows of no item.
    changed: names of rows without a verdict, whose pair has one that is outdated.
    """

    sample: Sample
    rows: Mapping[str, SheetRow]
    outdated: Sequence[SheetRow]
    changed: frozenset[str]
    separator: str

    @classmethod
    def read(cls, folder: Path, sample: Sample, record: Record) -> "_Filled":
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
            can_miss=can_miss(self.sample.entry),
            separator=self.separator,
        )
        write_if_changed(folder / f"{entry.name}.html", page.encode())

    def audit(self) -> EntryAudit:
        """What the verdicts come to."""
        items = self.sample.items
        strata = strata_of(self.sample.pairs)
        checked = self._checked()
        unsettled = {items[name].pair[1] for name in self.changed}
        in_sheet = Counter(items[name].pair[1] for name in self.rows)
        of_label: dict[str, tuple[dict, list[Checked]]] = {}
        for key, size in strata.items():
            of_label.setdefault(key[0], ({}, []))[0][key] = size
        for pair in checked:
            of_label[pair.label][1].append(pair)
        return EntryAudit(
            entry=self.sample.entry.name,
            rows=len(self.rows),
            checked=len(checked),
            changed=len(self.changed),
            outdated=sum(row.is_checked for row in self.outdated),
            overall=self._estimate(strata, checked, bool(unsettled)),
            per_label={
                label: self._estimate(*own, label in unsettled) for label, own in of_label.items()
            },
            sizes={
                label: (sum(size.pairs for size in own.values()), in_sheet[label])
                for label, (own, _) in of_label.items()
            },
        )

    def _checked(self) -> list[Checked]:
        pairs = []
        for name, row in self.rows.items():
            if row.is_checked:
                item, verdict = self.sample.items[name], row.verdict()
                counts = (len(item.shown), len(verdict.wrong), verdict.missed)
                pairs.append(Checked(item.pair[1], item.stratum, *counts, item.share))
        return pairs

    def _estimate(
        self, strata: Strata, checked: Sequence[Checked], is_unsettled: bool
    ) -> AuditEstimate:
        found = estimate(strata, checked, has_recall=can_miss(self.sample.entry))
        return replace(found, precision=None, recall=None) if is_unsettled else found


def _row(item: Item, written: SheetRow | None) -> SheetRow:
    """The row of an item, with what a reviewer wrote."""
    row = SheetRow(item.name, picture_of(item.name), item.path, item.pair[1], len(item.shown))
    if written is None:
        return row
    return replace(
        row, wrong=written.wrong, missed=written.missed, note=written.note, more=written.more
    )


def _check(path: Path, sheet: Sheet, sample: Sample) -> None:
    """Raises AuditError where a row says what cannot be of its item."""
    problems = []
    for row in sheet.rows:
        where = f"{path}:{sheet.lines[row.item]}"
        item = sample.items.get(row.item)
        if item is not None and row.shown != len(item.shown):
            problems.append(
                f"{where}: shown: expected {len(item.shown)}, as it was written, got {row.shown}"
            )
        if not can_miss(sample.entry) and row.verdict().missed:
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
    return folder / f"{entry.name}-outdated.csv"


_WRONG = {
    Geometry.BOX: "A box is wrong if the thing in it is not what the label says, if it fits so "
    "badly that less than half of box and thing together is common to both, or if another box "
    "shows the same thing already.",
    Geometry.POINT: "A point is wrong if it does not lie on what the label says, or if another one "
    "shows the same thing already.",
    Geometry.POLYGON: "An outline is wrong if the thing in it is not what the label says, if less "
    "than half of outline and thing together is common to both, or if another one shows the same "
    "thing already.",
    Geometry.KEYPOINTS: "What has a number is wrong if it is not what the label says, if the box "
    "or most of the points are misplaced, or if another one shows the same already.",
    Geometry.NONE: "A text is wrong if it does not say what is there.",
}
_TEXTS = (
    "The texts stand below the picture with their numbers. What is read or described wrongly is "
    "wrong, too."
)
_MISSED = (
    "Missed is everything that the label names and nothing shows. Two people should come to the "
    "same count: agree on what is too small, too hidden or too blurred."
)
_ORDER = "Go from the top and stop where you like: every beginning is a smaller sample of its own."


def _instructions(entry: Entry) -> list[str]:
    """What to tell a reviewer."""
    rule = RULES[entry.task]
    has_texts = (rule.reads_text or entry.describes) and rule.geometry is not Geometry.NONE
    texts, missed = [_TEXTS] * has_texts, [_MISSED] * can_miss(entry)
    return [_WRONG[rule.geometry], *texts, *missed, _ORDER]


def _readme(samples: Sequence[Sample]) -> str:
    lines = [
        "A random sample of the labels, to be checked by hand.",
        "",
        "Open <entry>.html in a browser, or <entry>.csv in a spreadsheet program beside the",
        "pictures. Fill in, row by row:",
        "",
        "  wrong    the numbers of what is wrong in the picture, as 2 5; or none, or all",
        "  missed   how many things that the label names nothing shows; left empty: none",
        "  note     whatever you like",
        "",
        "A row is checked once wrong or missed is filled in: write none if all is right.",
        "Save as CSV in UTF-8, in this folder. Then materialize audit_sample; what the",
        f"verdicts come to stands in {ESTIMATES} and in the report.",
        "",
        "Verdicts of answers that no longer hold lie in <entry>-outdated.csv. They count again",
        "if those answers do. drawn.json says how likely each row was drawn: leave it here.",
        "",
    ]
    for sample in samples:
        lines += [sample.entry.name, *(f"  {line}" for line in _instructions(sample.entry)), ""]
    return "\n".join(lines)
