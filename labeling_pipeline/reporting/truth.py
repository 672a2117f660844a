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


def known_from_files(store: AnnotationStore, plan: Plan, source: ImageSource) -> list[Known]:
    """What the files that the plan names know of each entry; nothing if it names none.

    Raises:
        ConfigurationError: a file cannot be read, or is not what its format prescribes.
    """
    files = _read_files(store, plan, source)
    if not files:
        return []
    asked = _asked(store, plan)
    annotations = _placed(
        current_annotations(store, current_view(plan)).drop_duplicates("annotation_id")
    )
    found = []
    for entry in filter(is_evaluated, plan.entries):
        questions = asked[asked["entry"] == entry.name]
        decides = _deciding(files, entry, questions)
        parts = [
            file.about(entry, questions[decides == number]) for number, file in enumerate(files)
        ]
        found.append(
            Known(
                entry,
                Origin.FILES,
                pairs=questions.loc[decides >= 0, [*_PAIR, "path"]],
                predictions=annotations[annotations["entry"] == entry.name],
                boxes=pd.concat([boxes for boxes, _ in parts], ignore_index=True),
                keypoints=_people_apart([keypoints for _, keypoints in parts]),
                has_text=any(file.truth.has_text for file in files),
                notes=_notes(files, entry, questions),
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
    view = current_view(plan)
    images = sorted({one.image_id for one in corrections})
    answered = _placed(answered_annotations(store, view, image_ids=images).to_pandas())
    corrected = current_annotations(store, view)
    corrected = _placed(corrected[corrected["image_id"].isin(images)])
    files, asked = _read_files(store, plan, source), _asked(store, plan)
    touched = pd.DataFrame(
        list(dict.fromkeys(pair for one in corrections for pair in _looked_at(one))),
        columns=["entry", *_PAIR],
    )
    found = []
    for entry in plan.entries:
        questions = asked[asked["entry"] == entry.name].merge(touched)
        pairs = questions.loc[_deciding(files, entry, questions) < 0, [*_PAIR, "path"]]
        if pairs.empty:
            continue
        truth = _of_pairs(_once(corrected, entry), pairs)
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


def _asked(store: AnnotationStore, plan: Plan) -> pd.DataFrame:
    """``entry, image_id, label, path``: every question that was asked, each once."""
    return store.query(
        "SELECT DISTINCT entry, image_id, label, path "
        f"FROM ({current_sql(model_keys(plan))}) WHERE state <> 'unsupported' "
        "ORDER BY entry, image_id, label"
    ).to_pandas()


# Files ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file of truth. images: image_id -> the name by which it knows it, of the dataset's images
    that it knows."""

    name: str
    truth: GroundTruth
    images: dict[str, str]

    def knows(self, entry: Entry, questions: pd.DataFrame) -> np.ndarray:
        """(n,) bool, whether it can judge each question. Text of a whole page has no label that a
        truth could know: it is all that stands on the image."""
        is_known = questions["image_id"].isin(list(self.images))
        if _is_page(entry):
            return np.asarray(is_known & self.truth.has_text)
        return np.asarray(is_known & questions["label"].isin(self.truth.labels))

    def about(self, entry: Entry, questions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Boxes and keypoints of these questions."""
        boxes, keypoints = self._rows(self.truth.boxes), self._rows(self.truth.keypoints)
        if _is_page(entry):
            texts = boxes[boxes["text"].notna()].drop(columns="label")
            return texts.merge(questions[_PAIR]), keypoints.iloc[:0]
        return _of_pairs(boxes, questions), _of_pairs(keypoints, questions)

    def _rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        ids = {name: image_id for image_id, name in self.images.items()}
        known = rows.assign(image_id=rows["file_name"].map(ids)).dropna(subset="image_id")
        return known.astype({"image_id": str})


def _read_files(store: AnnotationStore, plan: Plan, source: ImageSource) -> list[_File]:
    if not plan.ground_truth:
        return []
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
    return files


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


def _deciding(files: Sequence[_File], entry: Entry, questions: pd.DataFrame) -> np.ndarray:
    """(n,) int, the file that holds for each question, -1 for none."""
    decides = np.full(len(questions), -1)
    for number, file in enumerate(files):
        decides[(decides < 0) & file.knows(entry, questions)] = number
    return decides


def _people_apart(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Keypoints of several files together; their people stay apart."""
    highest = 0
    apart = []
    for part in parts:
        apart.append(part.assign(instance=part["instance"] + highest))
        highest += int(part["instance"].max()) + 1 if len(part) else 0
    return pd.concat(apart, ignore_index=True)


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


def _of_pairs(rows: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    return rows.merge(pairs[_PAIR])


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
