"""What the models of the plan answer otherwise than other ones did."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labeling_pipeline.annotations import Annotation
from labeling_pipeline.asks import class_names, current_view
from labeling_pipeline.drawing import encode_jpeg
from labeling_pipeline.evaluation.drift import (
    ASKED_COLUMNS,
    PAIR,
    SIDE_COLUMNS,
    ModelDrift,
    compare_answers,
)
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.plots import drift as plots
from labeling_pipeline.evaluation.plots.frame import png_bytes
from labeling_pipeline.evaluation.report.data import Picture
from labeling_pipeline.evaluation.report.drift import DriftReport
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.reporting.figures import (
    Panel,
    draw_side_by_side,
    report_pictures,
    write_tables,
)
from labeling_pipeline.reporting.remembered import remembered
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import (
    View,
    answered_annotations,
    current_outcomes,
    other_models,
)

NO_OTHER_MODEL = "no other model has answered it yet"

_ASKED = ["entry", "class", "image_id", "label"]
_ANNOTATION = [*PAIR, "annotation_id", *BOX_COLUMNS, "score", "text", "point", "keypoints"]
_MOST_DRAWN = 3


@remembered
def measure_drift(store: AnnotationStore, plan: Plan) -> DriftReport:
    """How the answers of the plan's models differ from those of other ones, entry by entry.

    Over the images of each class itself, and what is asked of them today. What models answered,
    not what people made of it; the plan's thresholds apply to both sides.
    """
    view = replace(current_view(plan), only=True)
    names = class_names(store)
    known = store.query("SELECT model_key, name FROM models").to_pylist()
    name_of = {row["model_key"]: row["name"] for row in known}
    others: dict[str, str] = {}
    without: dict[str, str] = {}
    for entry in plan.entries:
        key, reason = _other_key(store, entry, names, view, plan.drift.against)
        if key is not None:
            others[entry.name] = key
        else:
            without[entry.name] = reason
    keys = {entry: view.model_keys[entry] for entry in others}
    now, before = (replace(view, model_keys=of_side) for of_side in (keys, others))
    measured = compare_answers(
        _asked(store, plan, names, before, now),
        _answers(store, before),
        _answers(store, now),
        iou_threshold=plan.drift.iou,
        moved_iou=plan.drift.moved_iou,
    )
    return DriftReport(
        measured,
        {entry: _named(key, name_of) for entry, key in others.items()},
        {entry: _named(key, name_of) for entry, key in keys.items()},
        without,
    )


def _other_key(
    store: AnnotationStore,
    entry: Entry,
    names: Mapping[str, str],
    view: View,
    against: str | None,
) -> tuple[str | None, str]:
    """The model key that an entry is compared with, or ``None`` and why there is none."""
    classes = [slug for slug, name in names.items() if entry.covers(name)]
    others = other_models(store, entry.name, classes, view.model_keys[entry.name])
    wanted = [row for row in others if against in (None, row["model_key"], row["name"])]
    if wanted:
        return wanted[0]["model_key"], ""
    if not others:
        return None, NO_OTHER_MODEL
    name_of = {row["model_key"]: row["name"] for row in others}
    given = ", ".join(_named(row["model_key"], name_of) for row in others)
    return None, f"drift.against is {against!r}, but the other models that answered it are {given}"


def _named(key: str, name_of: Mapping[str, str | None]) -> str:
    return f"{name_of.get(key) or 'a model'} ({key})"


def _asked(
    store: AnnotationStore, plan: Plan, names: Mapping[str, str], before: View, now: View
) -> pd.DataFrame:
    """The rows of `compare_answers`: what the plan asks of each class's own images, and what came
    of it with either model."""
    if not now.model_keys:
        return pd.DataFrame(columns=ASKED_COLUMNS)
    images = store.query(
        "SELECT class, image_id, path FROM class_images ORDER BY class, path"
    ).to_pandas()
    asked = pd.concat(
        [
            images[images["class"] == slug].assign(
                entry=entry, label=plan.entry(entry).label_for(name)
            )
            for entry in now.model_keys
            for slug, name in names.items()
            if plan.entry(entry).covers(name)
        ],
        ignore_index=True,
    )
    for side, view in (("before", before), ("now", now)):
        outcomes = current_outcomes(store, view.model_keys, only=True)
        states = outcomes.loc[outcomes["belongs"], [*_ASKED, "state"]]
        asked = asked.merge(states.rename(columns={"state": f"state_{side}"}), "left", on=_ASKED)
    return asked.assign(**{"class": asked["class"].map(names)})[ASKED_COLUMNS]


def _answers(store: AnnotationStore, view: View) -> pd.DataFrame:
    """What models answered about each class's own images, each annotation once."""
    if not view.model_keys:
        return pd.DataFrame(columns=_ANNOTATION)
    rows = answered_annotations(store, view).select([*_ANNOTATION, "belongs"])
    return rows.filter(rows["belongs"]).to_pandas().drop_duplicates("annotation_id")


def drift_figures(measured: ModelDrift) -> dict[str, bytes]:
    """What became of the boxes of every class: name -> PNG."""
    return {"box_changes": png_bytes(plots.box_changes(measured.per_class))}


def write_drift(folder: Path, report: DriftReport) -> None:
    """Write the tables as CSV: ``entries``, ``classes``, ``images``, ``boxes``, ``states`` and
    ``not_compared``."""
    measured = report.measured
    entries = measured.per_entry
    named = entries.assign(
        model_before=entries["entry"].map(report.before), model_now=entries["entry"].map(report.now)
    )
    write_tables(
        folder,
        {
            "entries": named,
            "classes": measured.per_class,
            "images": measured.per_image,
            "boxes": measured.boxes,
            "states": measured.transitions,
            "not_compared": measured.not_compared,
        },
    )


def draw_changes(measured: ModelDrift, source: ImageSource) -> np.ndarray | None:
    """The most changed images, a row each: what was found before beside what is now.

    Returns:
        (height, width, 3) uint8 RGB; ``None`` if no box changed.
    """
    changed = measured.changed
    with_boxes = changed[changed[["moved", "lost", "new"]].any(axis=1)]
    return draw_side_by_side(
        (
            (image["path"], _panels(measured.boxes, image))
            for image in with_boxes.head(_MOST_DRAWN).to_dict("records")
        ),
        source,
    )


def _panels(boxes: pd.DataFrame, image: Mapping[str, Any]) -> tuple[Panel, Panel]:
    """What was found on an image before, and what is now."""
    pieces = boxes[(boxes["entry"] == image["entry"]) & (boxes["image_id"] == image["image_id"])]

    def found(side: str) -> Iterator[Annotation]:
        here = pieces.dropna(subset=SIDE_COLUMNS[side])
        columns = ["change", "label", f"{side}_score", *SIDE_COLUMNS[side]]
        for change, label, score, *box in here[columns].to_numpy(object):
            yield Annotation(
                f"{change}: {label}", bbox=tuple(box), score=None if pd.isna(score) else score
            )

    return (
        (f"{image['entry']} before", list(found("before"))),
        (f"{image['entry']} now", list(found("now"))),
    )


def drift_report(report: DriftReport, source: ImageSource) -> DriftReport:
    """The same with its figures."""
    if not report.before:
        return report
    figures = report_pictures(drift_figures(report.measured))
    pixels = draw_changes(report.measured, source)
    if pixels is None:
        return replace(report, figures=figures)
    caption = "The most changed images: what was found before, and what is now."
    changes = Picture("changes", encode_jpeg(pixels), caption)
    return replace(report, figures=figures, examples=(changes,))
