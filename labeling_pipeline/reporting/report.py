"""The report over everything that is known of a labeled dataset."""

import json
from datetime import datetime
from pathlib import Path

from labeling_pipeline.asks import model_keys
from labeling_pipeline.evaluation.actions import evaluate_actions
from labeling_pipeline.evaluation.report.actions import ActionReport, actions_section
from labeling_pipeline.evaluation.report.agreement import agreement_section
from labeling_pipeline.evaluation.report.coverage import coverage_rows, coverage_section
from labeling_pipeline.evaluation.report.data import Picture, ReportData
from labeling_pipeline.evaluation.report.detection import EntryDetection, detection_section
from labeling_pipeline.evaluation.report.drift import drift_section
from labeling_pipeline.evaluation.report.files import (
    RejectedFile,
    examples_section,
    rejects_section,
)
from labeling_pipeline.evaluation.report.page import render_report
from labeling_pipeline.evaluation.report.provenance import ModelUse, provenance_section
from labeling_pipeline.evaluation.report.review import review_section
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.inventory import report_files
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.actions import (
    action_figures,
    stored_action_predictions,
    why_not_predicted,
)
from labeling_pipeline.reporting.agreement import agreement_report, measure_agreement
from labeling_pipeline.reporting.classes import class_table
from labeling_pipeline.reporting.detection import detection_figures, evaluate_entries
from labeling_pipeline.reporting.drift import drift_report, measure_drift
from labeling_pipeline.reporting.figures import report_pictures
from labeling_pipeline.reporting.review import measure_review, review_report
from labeling_pipeline.reporting.settled import review_folder
from labeling_pipeline.store.annotation_store import AnnotationStore


def write_report(
    store: AnnotationStore, plan: Plan, source: ImageSource, home: Home, now: datetime
) -> Path:
    """Write ``report.html`` over everything; returns its path."""
    predictions = stored_action_predictions(store)
    agreement = measure_agreement(store, plan)
    drift = measure_drift(store, plan)
    review = measure_review(store, plan, home, agreement, drift.measured)
    actions = evaluate_actions(predictions)
    files = report_files(store)
    data = ReportData(
        title=f"Annotation report: {home.path.resolve().name}",
        generated_at=now,
        image_root=source.root,
        sections=(
            detection_section(
                [
                    EntryDetection(
                        entry,
                        evaluation.boxes,
                        evaluation.keypoints,
                        report_pictures(detection_figures(entry, evaluation.boxes)),
                    )
                    for entry, evaluation in evaluate_entries(store, plan, source).items()
                ]
            ),
            actions_section(
                ActionReport(actions, report_pictures(action_figures(predictions, actions)))
                if actions.accuracy_all is not None
                else None,
                why_not_predicted(actions),
            ),
            review_section(review_report(review, review_folder(home))),
            agreement_section(agreement_report(agreement, source)),
            drift_section(drift_report(drift, source)),
            coverage_section(coverage_rows(class_table(store, plan))),
            examples_section(_examples(store, home)),
            rejects_section(
                files.statuses.get("accepted", 0),
                [
                    RejectedFile(note.path, note.reason, note.detail or "")
                    for note in files.not_accepted
                ],
            ),
            provenance_section(_models_used(store, plan), _text_of(plan)),
        ),
    )
    path = home.reports / "report.html"
    write_if_changed(path, render_report(data).encode())
    return path


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
        Picture(name, path.read_bytes(), path.name) for name, path in paths.items() if path.exists()
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
