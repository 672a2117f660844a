"""What is known of what the entries of a plan were asked, and which of several truths holds.

For a pair of image and label, files beat corrections. A person has looked at a pair if they
corrected anything of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labeling_pipeline.asks import current_view, model_keys
from labeling_pipeline.evaluation.entry import Origin
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.keypoints import visible_points
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.reporting.truth_files import Truth, TruthFile, read_truth
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.corrections import Correction, bounds
from labeling_pipeline.store.ledger import (
    View,
    answered_annotations,
    current_annotations,
    current_sql,
    stored_corrections,
)
from labeling_pipeline.tasks import RULES, Geometry

_PAIR = ["image_id", "label"]
_MOST_NAMED = 10


@dataclass(frozen=True)
class Known:
    """What one kind of truth knows of what an entry was asked.

    pairs: ``image_id, label, path``, what was asked and is known, each once.
    predictions: what the entry answered, rows as of `current_annotations`, each once.
    boxes, keypoints: what is there, as in `GroundTruth`, with ``image_id``.
    has_text: whether it is known what stands on the images.
    notes: what a person should know, with the fix.
    """

    entry: Entry
    origin: Origin
    pairs: pd.DataFrame
    predictions: pd.DataFrame
    boxes: pd.DataFrame
    keypoints: pd.DataFrame
    has_text: bool
    notes: tuple[str, ...] = ()


def is_evaluated(entry: Entry) -> bool:
    """Whether what an entry yields can be held against a truth: boxes and what has boxes, by names
    that a truth can know, and text that was read."""
    rule = RULES[entry.task]
    if entry.describes or rule.geometry is Geometry.POINT:
        return False
    return rule.geometry is not Geometry.NONE or rule.reads_text


def known_from_files(
    store: AnnotationStore, plan: Plan, source: ImageSource, *, as_answered: bool = False
) -> list[Known]:
    """What the files that the plan names know of each entry; nothing if it names none.

    as_answered: predictions are what the plan's models themselves answered, before corrections and
        thresholds, and only what they were asked counts.

    Raises:
        ConfigurationError: a file cannot be read, or is not what its format prescribes.
    """
    truth = read_truth(store, plan, source)
    if not truth.files:
        return []
    asked = _asked(store, plan, by_plans_models=as_answered)
    # Calibration may make scores equal, and then others would go first when boxes are matched.
    view = current_view(plan).measured
    has_outlines = any(RULES[entry.task].geometry is Geometry.POLYGON for entry in plan.entries)
    annotations = (
        answered_annotations(
            store, View(view.model_keys, only=True), nested=has_outlines
        ).to_pandas()
        if as_answered
        else current_annotations(store, view)
    )
    annotations = _placed(annotations.drop_duplicates("annotation_id"))
    found = []
    for entry in filter(is_evaluated, plan.entries):
        questions = asked[asked["entry"] == entry.name]
        pairs = questions.loc[_is_known(truth, entry, questions), [*_PAIR, "path"]]
        boxes = truth.boxes
        if _is_page(entry):
            boxes = boxes[boxes["text"].notna()].drop(columns="label").merge(pairs[_PAIR])
        found.append(
            Known(
                entry,
                Origin.FILES,
                pairs=pairs,
                predictions=annotations[annotations["entry"] == entry.name],
                boxes=boxes,
                keypoints=truth.keypoints.merge(pairs[_PAIR]),
                has_text=any(file.truth.has_text for file in truth.files),
                notes=_notes(truth.files, entry, questions),
            )
        )
    return found


def known_from_corrections(store: AnnotationStore, plan: Plan, source: ImageSource) -> list[Known]:
    """What people's corrections tell of each entry that has any, where no file knows it.

    The truth is the answer as people corrected it, the prediction what the model had answered.

    Raises:
        ConfigurationError: as `known_from_files`.
    """
    corrections = stored_corrections(store, [e.name for e in plan.entries if is_evaluated(e)])
    if not corrections:
        return []
    view = current_view(plan).measured
    images = sorted({one.image_id for one in corrections})
    answered = _placed(answered_annotations(store, view, image_ids=images).to_pandas())
    corrected = current_annotations(store, view)
    corrected = _placed(corrected[corrected["image_id"].isin(images)])
    by_file, asked = read_truth(store, plan, source), _asked(store, plan)
    touched = pd.DataFrame(
        list(dict.fromkeys(pair for one in corrections for pair in _looked_at(one))),
        columns=["entry", *_PAIR],
    )
    found = []
    for entry in plan.entries:
        questions = asked[asked["entry"] == entry.name].merge(touched)
        pairs = questions.loc[~_is_known(by_file, entry, questions), [*_PAIR, "path"]]
        if pairs.empty:
            continue
        truth = _once(corrected, entry).merge(pairs[_PAIR])
        found.append(
            Known(
                entry,
                Origin.CORRECTIONS,
                pairs=pairs,
                predictions=_once(answered, entry),
                boxes=truth.assign(
                    iscrowd=False,
                    segmentation=[_segmentation(polygon) for polygon in truth["polygon"]],
                ),
                keypoints=_keypoint_rows(truth, entry),
                has_text=True,
            )
        )
    return found


def _asked(store: AnnotationStore, plan: Plan, *, by_plans_models: bool = False) -> pd.DataFrame:
    """``entry, image_id, label, path``: every question that was asked, each once.

    by_plans_models: of what the models that the plan names have answered, whatever others have.
    """
    keys = model_keys(plan)
    rows = store.query(
        "SELECT DISTINCT entry, image_id, label, path, model_key "
        f"FROM ({current_sql(keys)}) WHERE state <> 'unsupported' ORDER BY entry, image_id, label"
    ).to_pandas()
    if by_plans_models:
        rows = rows[rows["model_key"] == rows["entry"].map(keys)]
    return rows.drop(columns="model_key").drop_duplicates(ignore_index=True)


def _notes(files: Sequence[TruthFile], entry: Entry, questions: pd.DataFrame) -> tuple[str, ...]:
    """Why some of what was asked is not judged."""
    notes = [
        f"{file.name} knows {len(file.truth.file_names)} images and none of this dataset: expected "
        "paths relative to the images, as class/picture.jpg"
        for file in files
        if file.truth.file_names and not file.images
    ]
    if _is_page(entry):
        if not any(file.truth.has_text for file in files):
            notes.append("the truth does not say what stands on the images")
        return tuple(notes)
    labels = sorted(set(questions["label"]) - {x for file in files for x in file.truth.labels})
    if labels:
        shown = ", ".join(labels[:_MOST_NAMED]) + (" ..." if len(labels) > _MOST_NAMED else "")
        notes.append(
            f"nothing is known of {shown}: the truth has no category of that name; `ask` in the "
            "plan says what a class is called"
        )
    return tuple(notes)


# Corrections ------------------------------------------------------------------------------------


def _looked_at(correction: Correction) -> list[tuple[str, str, str]]:
    """entry, image_id, label of what a person has looked at to correct it."""
    labels = [correction.label, *([correction.values["label"]] if correction.values else [])]
    return [(correction.entry, correction.image_id, label) for label in labels]


def _once(annotations: pd.DataFrame, entry: Entry) -> pd.DataFrame:
    of_entry = annotations[annotations["entry"] == entry.name]
    return of_entry.drop_duplicates("annotation_id")


def _segmentation(polygon: Sequence[dict[str, float]] | None) -> list[list[float]] | None:
    if polygon is None:
        return None
    return [[value for corner in polygon for value in (corner["x_px"], corner["y_px"])]]


def _keypoint_rows(people: pd.DataFrame, entry: Entry) -> pd.DataFrame:
    """One row a keypoint, as in `GroundTruth`."""
    rows = []
    if entry.skeleton is not None:
        shown = people[["image_id", "label", *BOX_COLUMNS, "keypoints"]]
        for instance, (*person, keypoints) in enumerate(shown.itertuples(index=False, name=None)):
            placed = visible_points(() if keypoints is None else keypoints)
            for name in entry.skeleton.keypoints:
                x_px, y_px = placed.get(name, (np.nan, np.nan))
                rows.append((instance, *person, name, x_px, y_px, 2 * (name in placed)))
    columns = ["instance", *_PAIR, *BOX_COLUMNS, "name", "x_px", "y_px", "visibility"]
    return pd.DataFrame(rows, columns=columns)


# Both -------------------------------------------------------------------------------------------


def _is_page(entry: Entry) -> bool:
    """Whether it reads the text of a whole image, without places."""
    return RULES[entry.task].geometry is Geometry.NONE


def _is_known(truth: Truth, entry: Entry, questions: pd.DataFrame) -> np.ndarray:
    """(n,) bool, whether files can judge each question. Text of a whole page has no label that a
    truth could know: it is all that stands on the image."""
    return truth.knows_text(questions) if _is_page(entry) else truth.knows(questions)


def _placed(annotations: pd.DataFrame) -> pd.DataFrame:
    """Outlines without a box get the one around them."""
    if "polygon" not in annotations:
        return annotations
    bare = annotations["x0_px"].isna() & annotations["polygon"].notna()
    if bare.any():
        corners = [
            bounds([(corner["x_px"], corner["y_px"]) for corner in polygon])
            for polygon in annotations.loc[bare, "polygon"]
        ]
        annotations = annotations.copy()
        annotations.loc[bare, BOX_COLUMNS] = corners
    return annotations
