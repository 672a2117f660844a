"""What the entries of a plan found, against what is known."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from labeling_pipeline.annotations import Annotation
from labeling_pipeline.drawing import draw_annotations, encode_jpeg
from labeling_pipeline.errors import ImageError
from labeling_pipeline.evaluation.average_precision import rank_boxes
from labeling_pipeline.evaluation.detection import evaluate_detection, judge_boxes
from labeling_pipeline.evaluation.detection_errors import ERROR_COLUMNS, ErrorKind, worst_first
from labeling_pipeline.evaluation.entry import EntryEvaluation, Measure
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.keypoints import evaluate_keypoints
from labeling_pipeline.evaluation.outlines import evaluate_outlines
from labeling_pipeline.evaluation.report.data import Picture, many
from labeling_pipeline.evaluation.report.detection import error_in_words
from labeling_pipeline.evaluation.text import MISREAD_COLUMNS, TextEvaluation, evaluate_text
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.images.reading import decode
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.figures import write_table
from labeling_pipeline.reporting.remembered import remembered
from labeling_pipeline.reporting.truth import Known, known_from_corrections, known_from_files
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.tasks import RULES, Geometry

MOST_PICTURES = 4
"""Images with errors that are drawn of each entry."""

_RIGHT, _FALSE, _MISSED = "#2e7d32", "#c62828", "#1565c0"
_EXAMPLE_PX = 640


def evaluate_entries(
    store: AnnotationStore, plan: Plan, source: ImageSource
) -> dict[str, EntryEvaluation]:
    """Entry -> evaluation over every asked label on every accepted image that a file knows.

    An image whose asking failed counts as one where nothing was found; a label that was never
    asked counts nowhere. What people corrected counts as the labels' own. Empty without a file.

    Raises:
        ConfigurationError: the plan names a ground truth that cannot be read.
    """
    return {known.entry.name: _evaluate(known) for known in known_from_files(store, plan, source)}


def evaluate_corrections(
    store: AnnotationStore, plan: Plan, source: ImageSource
) -> dict[str, EntryEvaluation]:
    """Entry -> evaluation of what models answered where people corrected it and no file knows it.

    Raises:
        ConfigurationError: as `evaluate_entries`.
    """
    known = known_from_corrections(store, plan, source)
    return {one.entry.name: _evaluate(one) for one in known}


def judge_answers(
    store: AnnotationStore, plan: Plan, source: ImageSource
) -> dict[str, tuple[pd.DataFrame, dict[str, int]]]:
    """Entry -> which of the boxes are right that the plan's models themselves answered, before
    corrections and thresholds, as of `judge_boxes`. Otherwise as `evaluate_entries`; of entries
    that have boxes.

    Raises:
        ConfigurationError: as `evaluate_entries`.
    """
    return {
        known.entry.name: judge_boxes(
            known.predictions.dropna(subset=BOX_COLUMNS),
            known.boxes.dropna(subset=BOX_COLUMNS),
            known.pairs,
        )
        for known in known_from_files(store, plan, source, as_answered=True)
        if RULES[known.entry.task].geometry is not Geometry.NONE
    }


@remembered
def evaluate_all(store: AnnotationStore, plan: Plan, source: ImageSource) -> list[EntryEvaluation]:
    """What is known from files, then what is known from corrections.

    Raises:
        ConfigurationError: as `evaluate_entries`.
    """
    return [
        *evaluate_entries(store, plan, source).values(),
        *evaluate_corrections(store, plan, source).values(),
    ]


def _evaluate(known: Known) -> EntryEvaluation:
    rule, pairs, paths = RULES[known.entry.task], known.pairs, _paths(known)
    found, true = known.predictions, known.boxes
    placed = found.dropna(subset=BOX_COLUMNS)
    boxes = ranking = keypoints = outlines = text = None
    if rule.geometry is not Geometry.NONE:
        true_boxes = true.dropna(subset=BOX_COLUMNS)
        boxes = evaluate_detection(placed, true_boxes, pairs)
        # People's word has no score: it is as sure as can be.
        surest = placed["score"].mask(placed["corrected_by"].notna(), 1.0)
        ranking = rank_boxes(placed.assign(score=surest), true_boxes, pairs)
        if rule.geometry is Geometry.POLYGON and true["segmentation"].notna().any():
            outlines = evaluate_outlines(placed, true_boxes, pairs)
    if known.entry.skeleton is not None:
        skeleton = known.entry.skeleton
        keypoints = evaluate_keypoints(placed, known.keypoints, pairs, skeleton=skeleton)
    if rule.reads_text and known.has_text:
        text = _evaluate_text(known)
    errors = pd.DataFrame(columns=ERROR_COLUMNS) if boxes is None else boxes.errors
    misread = pd.DataFrame(columns=MISREAD_COLUMNS) if text is None else text.misread
    errors = worst_first(errors.assign(path=errors["image_id"].map(paths)))
    return EntryEvaluation(
        entry=known.entry.name,
        origin=known.origin,
        boxes=boxes,
        ranking=ranking,
        keypoints=keypoints,
        outlines=outlines,
        text=text,
        errors=errors[["path", *ERROR_COLUMNS]],
        misread=misread.assign(path=misread["image_id"].map(paths))[["path", *MISREAD_COLUMNS]],
        notes=known.notes,
    )


def _evaluate_text(known: Known) -> TextEvaluation:
    """Over the pairs of which all text is known: boxes without any are no text to miss."""
    silent = known.boxes.loc[known.boxes["text"].isna(), ["image_id", "label"]]
    if "iscrowd" in known.boxes:
        silent = silent[~known.boxes.loc[silent.index, "iscrowd"].astype(bool)]
    is_known = ~pd.MultiIndex.from_frame(known.pairs[["image_id", "label"]]).isin(
        pd.MultiIndex.from_frame(silent)
    )
    return evaluate_text(
        known.predictions,
        known.boxes,
        known.pairs[is_known],
        has_places=RULES[known.entry.task].geometry is not Geometry.NONE,
    )


def _paths(known: Known) -> pd.Series:
    """image_id -> path."""
    return known.pairs.drop_duplicates("image_id").set_index("image_id")["path"]


def write_detection(folder: Path, evaluations: Iterable[EntryEvaluation]) -> None:
    """Write what was measured and the tables of each evaluation.

    ``<name>.json``: name of a measure -> value and interval. CSV: ``<name>_labels``,
    ``<name>_sizes``, ``<name>_errors``, ``<name>_keypoints``, ``<name>_misread``, those that its
    task has.
    """
    for one in filter(lambda one: one.judged_images, evaluations):
        tables = {"errors": one.errors, "misread": one.misread if one.text else None}
        if one.boxes:
            tables |= {"labels": one.labels, "sizes": one.sizes}
        if one.keypoints:
            tables["keypoints"] = one.keypoints.per_keypoint
        for kind, table in tables.items():
            if table is not None:
                write_table(folder / f"{one.name}_{kind}.csv", table)
        measures = {name: _written(measure) for name, measure in one.measures.items()}
        document = json.dumps({"images": one.judged_images, **measures}, indent=1) + "\n"
        write_if_changed(folder / f"{one.name}.json", document.encode())


def _written(measure: Measure) -> dict[str, object]:
    interval = measure.interval
    return {
        "value": measure.value,
        "interval": None if interval is None else [interval.low, interval.high],
    }


def draw_errors(
    evaluation: EntryEvaluation, source: ImageSource, most: int = MOST_PICTURES
) -> tuple[Picture, ...]:
    """The images with most errors: right boxes in green, false ones in red, what was missed in
    blue. An image that cannot be read any more is left out."""
    if evaluation.boxes is None:
        return ()
    matches = evaluation.boxes.matches
    pictures: list[Picture] = []
    for (path, image_id), errors in evaluation.errors.groupby(["path", "image_id"], sort=False):
        if len(pictures) == most:
            break
        right = matches[matches["correct"] & (matches["image_id"] == image_id)]
        shown = {row.label: _RIGHT for row in right.itertuples()}
        found = [Annotation(row.label, bbox=_box(row)) for row in right.itertuples()]
        for row in errors.itertuples():
            beneath = None if pd.isna(row.true_label) else row.true_label
            what = error_in_words(row.label, row.kind, beneath)
            shown[what] = _MISSED if row.kind == ErrorKind.MISSED else _FALSE
            found.append(Annotation(what, bbox=_box(row)))
        with suppress(ImageError):
            image = decode(source.read(str(path)), _EXAMPLE_PX)
            factor = image.pixels.shape[1] / image.width_px
            drawn = draw_annotations(
                image.pixels, [one.scaled(factor) for one in found], colors=shown
            )
            told = f"{path}: {many(len(errors), 'error', 'errors')}"
            pictures.append(Picture(told, encode_jpeg(drawn)))
    return tuple(pictures)


def _box(row: Any) -> tuple[float, float, float, float]:
    return row.x0_px, row.y0_px, row.x1_px, row.y1_px
