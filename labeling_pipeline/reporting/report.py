"""The report over everything that is known of a labeled dataset."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from labeling_pipeline.asks import model_keys
from labeling_pipeline.evaluation.report.actions import ActionReport, actions_section
from labeling_pipeline.evaluation.report.agreement import agreement_section
from labeling_pipeline.evaluation.report.calibration import calibration_section
from labeling_pipeline.evaluation.report.coverage import (
    CoverageRow,
    coverage_rows,
    coverage_section,
)
from labeling_pipeline.evaluation.report.data import Picture, ReportData, Section
from labeling_pipeline.evaluation.report.detection import EntryDetection, detection_section
from labeling_pipeline.evaluation.report.drift import drift_section
from labeling_pipeline.evaluation.report.files import (
    RejectedFile,
    examples_section,
    rejects_section,
)
from labeling_pipeline.evaluation.report.history import (
    Changes,
    Summary,
    annotations_of,
    changes_between,
)
from labeling_pipeline.evaluation.report.index import Run, render_index
from labeling_pipeline.evaluation.report.page import render_report
from labeling_pipeline.evaluation.report.provenance import ModelUse, provenance_section
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.inventory import report_files
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.actions import (
    evaluate_stored_actions,
    why_not_recognised,
)
from labeling_pipeline.reporting.agreement import agreement_report, measure_agreement
from labeling_pipeline.reporting.audit import audit_report
from labeling_pipeline.reporting.calibration import calibration_report
from labeling_pipeline.reporting.classes import class_table
from labeling_pipeline.reporting.detection import draw_errors, evaluate_all
from labeling_pipeline.reporting.drift import drift_report, measure_drift
from labeling_pipeline.reporting.figures import report_pictures
from labeling_pipeline.reporting.review import review_report
from labeling_pipeline.store.annotation_store import AnnotationStore

_PAGE, _SUMMARY, _RUNS = "report.html", "summary.json", "runs"


@dataclass(frozen=True)
class WrittenReport:
    """page: of this run. index: over all runs. changes: since the one before, if there is one."""

    page: Path
    index: Path
    data: ReportData
    changes: Changes | None


def write_report(
    store: AnnotationStore, plan: Plan, source: ImageSource, home: Home, now: datetime
) -> WrittenReport:
    """Write a page over everything, and the index over all pages.

    Each run has a folder of its own in ``reports/runs``, named after its time; the index lists what
    lies there. ``reports/report.html`` is a copy of the newest page.
    """
    rows = coverage_rows(class_table(store, plan))
    models = _models_used(store, plan)
    text = _text_of(plan)
    data = ReportData(
        title=f"Annotation report: {home.path.resolve().name}",
        generated_at=now,
        image_root=source.root,
        sections=_sections(store, plan, source, home, rows, models, text),
    )
    summary = Summary(
        now,
        data.headlines,
        annotations_of(rows),
        {model.entry: model.in_words for model in models},
        text,
    )
    earlier = _earlier_runs(home)
    changes = changes_between(earlier[0].summary, summary) if earlier else None
    page = render_report(data, changes).encode()
    folder = _new_folder(home, now)
    write_if_changed(folder / _PAGE, page)
    # The summary comes last: a run without one is not listed.
    write_if_changed(folder / _SUMMARY, summary.to_json().encode())
    write_if_changed(home.reports / _PAGE, page)
    index = home.reports / "index.html"
    runs = [Run(f"{_RUNS}/{folder.name}/{_PAGE}", summary), *earlier]
    title = f"Annotation reports: {home.path.resolve().name}"
    write_if_changed(index, render_index(title, runs).encode())
    return WrittenReport(folder / _PAGE, index, data, changes)


def headline_rows(report: WrittenReport) -> list[dict[str, str]]:
    """The numbers at the top as rows of a table."""
    rows = []
    for headline in report.data.headlines:
        moved = report.changes.of(headline.name) if report.changes else None
        rows.append(
            {
                "number": headline.name,
                "value": headline.text,
                "95 % interval": headline.interval_text or "–",
                "since the report before": (moved.step if moved else "") or "–",
                "note": headline.note,
            }
        )
    return rows


def _sections(
    store: AnnotationStore,
    plan: Plan,
    source: ImageSource,
    home: Home,
    rows: Sequence[CoverageRow],
    models: Sequence[ModelUse],
    plan_text: str,
) -> tuple[Section, ...]:
    """In the order in which a reader wants them: how good, what to look at, what there is."""
    agreement = measure_agreement(store, plan)
    drift = measure_drift(store, plan)
    actions = evaluate_stored_actions(store, plan)
    files = report_files(store)
    return (
        detection_section(
            [
                EntryDetection(
                    evaluation, report_pictures(evaluation.figures), draw_errors(evaluation, source)
                )
                for evaluation in evaluate_all(store, plan, source)
            ]
        ),
        calibration_section(calibration_report(store, plan, source, home)),
        actions_section(
            [ActionReport(one, report_pictures(one.figures)) for one in actions],
            why_not_recognised(actions),
        ),
        audit_report(store, plan, home),
        review_report(store, plan, home),
        agreement_section(agreement_report(agreement, source)),
        drift_section(drift_report(drift, source)),
        coverage_section(rows),
        examples_section(_examples(store, home)),
        rejects_section(
            files.statuses.get("accepted", 0),
            [
                RejectedFile(note.path, note.reason, note.detail or "")
                for note in files.not_accepted
            ],
        ),
        provenance_section(models, plan_text),
    )


def _earlier_runs(home: Home) -> list[Run]:
    """The newest first; those of another version of this program are left out."""
    runs = []
    for file in (home.reports / _RUNS).glob(f"*/{_SUMMARY}"):
        summary = Summary.from_json(file.read_text(encoding="utf-8"))
        if summary is not None:
            runs.append(Run(f"{_RUNS}/{file.parent.name}/{_PAGE}", summary))
    return sorted(runs, key=lambda run: run.summary.generated_at, reverse=True)


def _new_folder(home: Home, now: datetime) -> Path:
    """Of this run alone, even if another one began in the same second."""
    name = now.strftime("%Y-%m-%dT%H-%M-%SZ")
    number = 1
    while True:
        folder = home.reports / _RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def _text_of(plan: Plan) -> str:
    file = Path(plan.file)
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _examples(store: AnnotationStore, home: Home) -> tuple[Picture, ...]:
    """The first drawn picture of each class, of at most twelve classes."""
    first = store.query(
        "SELECT class, display_name, min(image_number) AS number FROM class_images "
        "GROUP BY class, display_name ORDER BY display_name LIMIT 12"
    ).to_pylist()
    paths = {
        row["display_name"]: home.results / row["class"] / f"vis_{row['number']}.jpg"
        for row in first
    }
    return tuple(
        Picture(name, path.read_bytes(), f"{name}: {path.name}")
        for name, path in paths.items()
        if path.exists()
    )


def _models_used(store: AnnotationStore, plan: Plan) -> tuple[ModelUse, ...]:
    known = {row["model_key"]: row for row in store.query("SELECT * FROM models").to_pylist()}
    return tuple(
        ModelUse(
            entry=entry,
            name=row["name"],
            checkpoint=row["checkpoint"],
            revision=row["revision"],
            licence=row["licence"],
            model_key=key,
            parameters=json.loads(row["parameters"]),
        )
        for entry, key in model_keys(plan).items()
        if (row := known.get(key)) is not None
    )
