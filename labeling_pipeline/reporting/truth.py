"""What is known of what the entries of a plan were asked, and which of several truths holds.

For a pair of image and label, files beat corrections, and of several files the one that the plan
names first: two truths of one thing would make every object count twice. A file knows a pair if it
speaks of the image and of the label; a person has looked at a pair if they corrected anything of
it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labeling_pipeline.asks import current_view, model_keys
from labeling_pipeline.evaluation.coco import read_coco
from labeling_pipeline.evaluation.entry import Origin
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS, GroundTruth
from labeling_pipeline.evaluation.keypoints import visible_points
from labeling_pipeline.evaluation.yolo import (
    LabelFile,
    YoloNames,
    is_yolo,
    label_files,
    read_names,
    read_yolo,
)
from labeling_pipeline.images.sources import ImageSource, find_companion, path_within
from labeling_pipeline.plan import Entry, Plan
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

# Label files are small and many: on a remote storage each of them takes a while.
_READERS = 16
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
    truth = _read_files(store, plan, source)
    if not truth.files:
        return []
    asked = _asked(store, plan, by_plans_models=as_answered)
    # Calibration may make scores equal, and then others would go first when boxes are matched.
    view = current_view(plan).measured
    annotations = (
        answered_annotations(store, View(view.model_keys, only=True)).to_pandas()
        if as_answered
        else current_annotations(store, view)
    )
    annotations = _placed(annotations.drop_duplicates("annotation_id"))
    found = []
    for entry in filter(is_evaluated, plan.entries):
        questions = asked[asked["entry"] == entry.name]
        pairs = questions.loc[truth.knows(entry, questions), [*_PAIR, "path"]]
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
    by_file, asked = _read_files(store, plan, source), _asked(store, plan)
    touched = pd.DataFrame(
        list(dict.fromkeys(pair for one in corrections for pair in _looked_at(one))),
        columns=["entry", *_PAIR],
    )
    found = []
    for entry in plan.entries:
        questions = asked[asked["entry"] == entry.name].merge(touched)
        pairs = questions.loc[~by_file.knows(entry, questions), [*_PAIR, "path"]]
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


# Files ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file of truth. images: image_id -> the name by which it knows it, of the dataset's images
    that it knows."""

    name: str
    truth: GroundTruth
    images: dict[str, str]

    def covers(self, questions: pd.DataFrame) -> np.ndarray:
        """(n,) bool, whether it knows the image and the label of each."""
        known = questions["image_id"].isin(list(self.images))
        return np.asarray(known & questions["label"].isin(self.truth.labels))

    def rows(self, rows: pd.DataFrame, earlier: Sequence["_File"]) -> pd.DataFrame:
        """Those of its rows that are about the dataset's images and about nothing that an earlier
        file covers, with ``image_id``."""
        ids = {name: image_id for image_id, name in self.images.items()}
        known = rows.assign(image_id=rows["file_name"].map(ids)).dropna(subset="image_id")
        known = known.astype({"image_id": str})
        for file in earlier:
            known = known[~file.covers(known)]
        return known


_NO_FILE = _File("", GroundTruth.of((), (), frozenset(), frozenset()), {})


@dataclass(frozen=True)
class _Files:
    """All files of truth. boxes, keypoints: of each image and label from the first that covers it;
    as in `GroundTruth`, with ``image_id``."""

    files: tuple[_File, ...]
    boxes: pd.DataFrame
    keypoints: pd.DataFrame

    @classmethod
    def of(cls, files: Sequence[_File]) -> "_Files":
        """files: in the order of the plan."""
        boxes, keypoints = [], []
        for number, file in enumerate(files or [_NO_FILE]):
            boxes.append(file.rows(file.truth.boxes, files[:number]))
            people = file.rows(file.truth.keypoints, files[:number])
            # Those of several files stay apart.
            keypoints.append(people.assign(instance=people["instance"] + (number << 32)))
        return cls(
            tuple(files),
            pd.concat(boxes, ignore_index=True),
            pd.concat(keypoints, ignore_index=True),
        )

    def knows(self, entry: Entry, questions: pd.DataFrame) -> np.ndarray:
        """(n,) bool, whether any file can judge each question. Text of a whole page has no label
        that a truth could know: it is all that stands on the image."""
        known = np.zeros(len(questions), dtype=bool)
        for file in self.files:
            if not _is_page(entry):
                known |= file.covers(questions)
            elif file.truth.has_text:
                known |= np.asarray(questions["image_id"].isin(list(file.images)))
        return known


def _read_files(store: AnnotationStore, plan: Plan, source: ImageSource) -> _Files:
    # A truth may know an image by any of the paths under which its content lies.
    paths = store.query(
        "SELECT path, image_id, width_px, height_px FROM dataset_files JOIN images USING (image_id)"
        " WHERE skipped_reason IS NULL AND status = 'accepted' ORDER BY path"
    ).to_pandas()
    files = []
    for name in plan.ground_truth:
        data = source.read_companion(name)
        truth = (
            _read_yolo(read_names(name, data), paths, source)
            if is_yolo(name)
            else read_coco(name, data)
        )
        known = paths[paths["path"].isin(truth.file_names)].drop_duplicates("image_id")
        images = dict(zip(known["image_id"], known["path"], strict=True))
        files.append(_File(name, truth, images))
    return _Files.of(files)


def _read_yolo(names: YoloNames, paths: pd.DataFrame, source: ImageSource) -> GroundTruth:
    root = path_within(source.root)

    def find(path: str) -> tuple[str, bytes] | None:
        for name in label_files(path, root, names.path):
            data = find_companion(source, name)
            if data is not None:
                return name, data
        return None

    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(find, paths["path"]))
    sizes = paths[["width_px", "height_px"]].itertuples(index=False, name=None)
    return read_yolo(
        names,
        {
            path: LabelFile(*labels, size)
            for path, labels, size in zip(paths["path"], found, sizes, strict=True)
            if labels is not None
        },
    )


def _notes(files: Sequence[_File], entry: Entry, questions: pd.DataFrame) -> tuple[str, ...]:
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


def _placed(annotations: pd.DataFrame) -> pd.DataFrame:
    """Outlines without a box get the one around them."""
    bare = annotations["x0_px"].isna() & annotations["polygon"].notna()
    if bare.any():
        corners = [
            bounds([(corner["x_px"], corner["y_px"]) for corner in polygon])
            for polygon in annotations.loc[bare, "polygon"]
        ]
        annotations = annotations.copy()
        annotations.loc[bare, BOX_COLUMNS] = corners
    return annotations
