"""What the files that a plan names say of a dataset's images: read, and each thing told once.

For a pair of image and label, of several files the one that the plan names first is believed: two
truths of one thing would make every object count twice. A file knows a pair if it speaks of the
image and of the label.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.coco import read_coco
from labeling_pipeline.evaluation.ground_truth import GroundTruth
from labeling_pipeline.evaluation.yolo import (
    LabelFile,
    YoloNames,
    is_yolo,
    label_files,
    read_names,
    read_yolo,
)
from labeling_pipeline.images.sources import ImageSource, find_companion, path_within
from labeling_pipeline.plan import Plan
from labeling_pipeline.store.annotation_store import AnnotationStore

# Label files are small and many: on a remote storage each of them takes a while.
_READERS = 16


@dataclass(frozen=True)
class TruthFile:
    """A file of truth. images: image_id -> the name by which it knows it, of the dataset's images
    that it knows."""

    name: str
    truth: GroundTruth
    images: dict[str, str]

    def covers(self, questions: pd.DataFrame) -> np.ndarray:
        """(n,) bool, whether it knows the image and the label of each."""
        known = questions["image_id"].isin(list(self.images))
        return np.asarray(known & questions["label"].isin(self.truth.labels))

    def rows(self, rows: pd.DataFrame, earlier: Sequence["TruthFile"]) -> pd.DataFrame:
        """Those of its rows that are about the dataset's images and about nothing that an earlier
        file covers, with ``image_id``."""
        ids = {name: image_id for image_id, name in self.images.items()}
        known = rows.assign(image_id=rows["file_name"].map(ids)).dropna(subset="image_id")
        known = known.astype({"image_id": str})
        for file in earlier:
            known = known[~file.covers(known)]
        return known


_NO_FILE = TruthFile("", GroundTruth.of((), (), frozenset(), frozenset()), {})


@dataclass(frozen=True)
class Truth:
    """All files of truth. boxes, keypoints: of each image and label from the first that covers it;
    as in `GroundTruth`, with ``image_id``."""

    files: tuple[TruthFile, ...]
    boxes: pd.DataFrame
    keypoints: pd.DataFrame

    @classmethod
    def of(cls, files: Sequence[TruthFile]) -> "Truth":
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

    def knows(self, questions: pd.DataFrame) -> np.ndarray:
        """(n,) bool, whether any file knows the image and the label of each."""
        known = np.zeros(len(questions), dtype=bool)
        for file in self.files:
            known |= file.covers(questions)
        return known

    def knows_text(self, questions: pd.DataFrame) -> np.ndarray:
        """(n,) bool, whether any file knows what stands on each image, whatever the label."""
        known = np.zeros(len(questions), dtype=bool)
        for file in self.files:
            if file.truth.has_text:
                known |= np.asarray(questions["image_id"].isin(list(file.images)))
        return known


@dataclass(frozen=True)
class _Unread:
    """A file of truth as bytes, known by its name and digest.

    labels: path of an image -> its label file, where the format has those.
    """

    name: str
    digest: str
    data: bytes = field(compare=False, repr=False)
    labels: Mapping[str, LabelFile] | None = field(compare=False, repr=False)

    @classmethod
    def of(cls, name: str, data: bytes, labels: Mapping[str, LabelFile] | None) -> "_Unread":
        digest = hashlib.sha256(data)
        for path, file in (labels or {}).items():
            digest.update(hashlib.sha256(file.data).digest())
            digest.update(f"{path}\0{file.path}\0{file.size_px}\0".encode())
        return cls(name, digest.hexdigest(), data, labels)


@functools.lru_cache(maxsize=4)
def _parsed(file: _Unread) -> GroundTruth:
    """It is asked for by each evaluation, and takes a while."""
    if file.labels is None:
        return read_coco(file.name, file.data)
    return read_yolo(read_names(file.name, file.data), file.labels)


def truth_digest(store: AnnotationStore, plan: Plan, source: ImageSource) -> tuple[str, ...]:
    """Another one whenever the plan's files say anything else of the images.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    return tuple(file.digest for file in _fetch(plan, source, _paths_of(store)))


def _paths_of(store: AnnotationStore) -> pd.DataFrame:
    """``path, image_id, width_px, height_px``: a truth may know an image by any of the paths under
    which its content lies."""
    return store.query(
        "SELECT path, image_id, width_px, height_px FROM dataset_files JOIN images USING (image_id)"
        " WHERE skipped_reason IS NULL AND status = 'accepted' ORDER BY path"
    ).to_pandas()


def _fetch(plan: Plan, source: ImageSource, paths: pd.DataFrame) -> Iterator[_Unread]:
    for name in plan.ground_truth:
        data = source.read_companion(name)
        labels = _label_files(read_names(name, data), paths, source) if is_yolo(name) else None
        yield _Unread.of(name, data, labels)


def read_truth(store: AnnotationStore, plan: Plan, source: ImageSource) -> Truth:
    """What the plan's files say of the images that were accepted.

    Raises:
        ConfigurationError: a file cannot be read, or is not what its format prescribes.
    """
    paths = _paths_of(store)
    files = []
    for file in _fetch(plan, source, paths):
        truth = _parsed(file)
        known = paths[paths["path"].isin(truth.file_names)].drop_duplicates("image_id")
        images = dict(zip(known["image_id"], known["path"], strict=True))
        files.append(TruthFile(file.name, truth, images))
    return Truth.of(files)


def _label_files(
    names: YoloNames, paths: pd.DataFrame, source: ImageSource
) -> dict[str, LabelFile]:
    """Path of an image -> its label file, of those that have one."""
    root = path_within(source.root)

    def find(path: str, size_px: tuple[int, int]) -> LabelFile | None:
        for name in label_files(path, root, names.path):
            data = find_companion(source, name)
            if data is not None:
                return LabelFile(name, data, size_px)
        return None

    sizes = paths[["width_px", "height_px"]].itertuples(index=False, name=None)
    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(find, paths["path"], sizes))
    return {path: file for path, file in zip(paths["path"], found, strict=True) if file is not None}
