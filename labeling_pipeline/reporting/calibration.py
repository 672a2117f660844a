"""Calibration over the store: learned where there is ground truth, written where a plan can name
it."""

from pathlib import Path

import pandas as pd

from labeling_pipeline.asks import fitted_thresholds, models_of, thresholds_of_others
from labeling_pipeline.evaluation.calibration import (
    BOX_COLUMNS,
    Calibration,
    ModelCalibration,
    calibrate_scores,
    choose_thresholds,
)
from labeling_pipeline.evaluation.report.calibration import CalibrationReport
from labeling_pipeline.export.thresholds_yaml import (
    CalibrationItem,
    ThresholdItem,
    Thresholds,
)
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.detection import judge_answers
from labeling_pipeline.reporting.figures import report_pictures, write_figures, write_table
from labeling_pipeline.reporting.remembered import remembered
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.tasks import Task

THRESHOLDS_FILE = "thresholds.yaml"
"""In the reports of a home."""


@remembered
def calibrate(store: AnnotationStore, plan: Plan, source: ImageSource) -> Calibration | None:
    """Learn what the scores of the plan's models mean, and choose thresholds. Near duplicates are
    one image. ``None`` without ground truth.

    Raises:
        ConfigurationError: the plan names a ground truth that cannot be read.
    """
    judged = judge_answers(store, plan, source)
    if not judged:
        return None
    settings = plan.calibration
    images = store.query("SELECT image_id, coalesce(cluster, image_id) AS cluster FROM images")
    group_of = dict(zip(*(images[c].to_pylist() for c in ("image_id", "cluster")), strict=True))
    boxes = pd.concat(
        [matches.assign(entry=entry) for entry, (matches, _) in judged.items()], ignore_index=True
    )
    boxes["group"] = boxes["image_id"].map(group_of)
    # Sums of probabilities may be rounded to a little over 1.
    boxes["score"] = boxes["score"].clip(0, 1)
    boxes = boxes[BOX_COLUMNS]
    models = models_of(plan)
    uses: dict[tuple[str, Task], list[str]] = {}
    for entry in judged:
        uses.setdefault((models[entry].model_key, plan.entry(entry).task), []).append(entry)
    true_boxes = {
        (entry, label): count
        for entry, (_, support) in judged.items()
        for label, count in support.items()
    }
    thresholds = choose_thresholds(boxes, true_boxes, settings.target_precision, settings.folds)
    keys = {entry: models[entry].model_key for entry in judged}
    return Calibration(
        tuple(
            ModelCalibration(
                model_key,
                models[entries[0]].card.name,
                task,
                calibrate_scores(boxes[boxes["entry"].isin(entries)], settings.folds),
            )
            for (model_key, task), entries in uses.items()
        ),
        thresholds.assign(model_key=thresholds["entry"].map(keys)),
    )


def thresholds_of(plan: Plan, calibration: Calibration) -> Thresholds:
    """As the thresholds file says it."""
    return Thresholds(
        version=1,
        target_precision=plan.calibration.target_precision,
        ground_truth=plan.ground_truth,
        calibrations=tuple(
            CalibrationItem(
                model_key=one.model_key,
                model=one.model,
                task=one.task,
                boxes=one.scores.boxes,
                wrong=one.scores.wrong,
                error_before=_rounded(one.scores.before.ece),
                error_after=_rounded(one.scores.after.ece if one.scores.after else None),
                reason=one.scores.reason or None,
                knots=one.scores.score_map.knots if one.scores.score_map else (),
            )
            for one in calibration.models
        ),
        thresholds=tuple(
            ThresholdItem(
                entry=row.entry,
                label=row.label,
                model_key=row.model_key,
                threshold=_rounded(row.threshold),
                precision=_rounded(row.precision),
                interval=_interval(row.precision_low, row.precision_high),
                recall=_rounded(row.recall),
                kept=None if pd.isna(row.threshold) else row.kept,
                boxes=row.boxes,
                reason=row.reason or None,
            )
            for row in calibration.thresholds.itertuples()
        ),
    )


def write_calibration(home: Home, plan: Plan, calibration: Calibration) -> Path:
    """Write the thresholds file, and tables and figures to a folder of their own; returns the path
    of the file."""
    folder = home.reports / "calibration"
    write_figures(folder, calibration.figures)
    tables = {"scores": calibration.table, "thresholds": calibration.thresholds}
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", table)
    path = home.reports / THRESHOLDS_FILE
    write_if_changed(path, thresholds_of(plan, calibration).to_yaml().encode())
    return path


def calibration_report(
    store: AnnotationStore, plan: Plan, source: ImageSource, home: Home
) -> CalibrationReport | None:
    """What the report says of it; ``None`` without ground truth."""
    calibration = calibrate(store, plan, source)
    if calibration is None:
        return None
    return CalibrationReport(
        calibration,
        plan.calibration.target_precision,
        _applied(plan, calibration, home),
        report_pictures(calibration.figures),
    )


def _applied(plan: Plan, calibration: Calibration, home: Home) -> tuple[str, ...]:
    """Whether any of this holds for the labels of the dataset, in sentences."""
    fitted = fitted_thresholds(plan)
    if fitted is None:
        return (
            "None of this is applied yet: scores are shown as measured. To apply it, name the file "
            f"in the plan: thresholds: {(home.reports / THRESHOLDS_FILE).resolve()}",
        )
    now = thresholds_of(plan, calibration)
    is_this = (fitted.calibrations, fitted.thresholds) == (now.calibrations, now.thresholds)
    what = "says just this" if is_this else "says other things than were found now"
    told = f"The plan applies {plan.thresholds}, which {what}."
    return (told, *thresholds_of_others(plan).values())


def _rounded(value: float | None) -> float | None:
    return None if value is None or pd.isna(value) else round(float(value), 4)


def _interval(low: float, high: float) -> tuple[float, float] | None:
    return None if pd.isna(low) else (round(low, 4), round(high, 4))
