"""The queue of images that a person should look at first."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from labeling_pipeline.annotations import Annotation
from labeling_pipeline.asks import class_names, current_view
from labeling_pipeline.drawing import (
    contact_sheet,
    draw_annotations,
    encode_jpeg,
    write_jpeg,
)
from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.evaluation.agreement import SIDE_COLUMNS, SIDES, Agreement
from labeling_pipeline.evaluation.drift import SIDE_COLUMNS as DRIFT_COLUMNS
from labeling_pipeline.evaluation.drift import Change, ModelDrift
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.plots import review as plots
from labeling_pipeline.evaluation.plots.frame import png_bytes
from labeling_pipeline.evaluation.report.data import Picture, Section
from labeling_pipeline.evaluation.report.review import (
    MOST_LISTED,
    ReviewReport,
    review_section,
)
from labeling_pipeline.evaluation.review import (
    NAMED_FROM,
    PAIR,
    Reason,
    ReviewQueue,
    doubts_of_answers,
    doubts_of_boxes,
    doubts_of_scores,
    doubts_of_twins,
    rank_images,
)
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.home import Home
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.agreement import measure_agreement
from labeling_pipeline.reporting.drift import measure_drift
from labeling_pipeline.reporting.figures import report_pictures
from labeling_pipeline.reporting.remembered import remembered
from labeling_pipeline.reporting.settled import (
    QUEUE,
    read_marks,
    review_folder,
    settled,
    write_marks,
    write_sheet,
)
from labeling_pipeline.results import annotation_of, drawn_digest
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_annotations, current_outcomes

_DRAWN = ".drawn.json"
_LONGEST_SIDE_PX = 1600
_SHOWN = 6
_THUMBNAIL_PX = 640


@dataclass(frozen=True)
class Review:
    """The queue of a dataset.

    table: its rows as a person reads them: ``rank, path, classes, expected_errors, reasons,
        entries, picture, reviewed`` (blank, to be filled in), ``image_id``, and ``answers``: what
        stands for the labels of today.
    annotations: rows of `current_annotations`, of each class's own images, each once.
    """

    queue: ReviewQueue
    table: pd.DataFrame
    annotations: pd.DataFrame


def measure_review(store: AnnotationStore, plan: Plan, home: Home) -> Review:
    """Which images to look at first, by all that is known of the labels that are in force.

    Of each class's own images, which its files and pictures show.

    Args:
        store: where the labels are.
        plan: which of them are in force.
        home: in its reports people leave their verdicts.

    Raises:
        ConfigurationError: a file that people fill in cannot be read.
    """
    known = _measure_doubts(store, plan)
    done = settled(known.doubts, known.images, store, plan, home)
    queue = rank_images(known.doubts, done, known.images["path"])
    return Review(queue, _table(queue, known.images, known.outcomes, plan), known.annotations)


@dataclass(frozen=True)
class _Doubts:
    """doubts: in what is labeled, settled or not. annotations, outcomes: that hold, of each class's
    own images. images: by image id, with ``answers``, see `settled`."""

    doubts: pd.DataFrame
    annotations: pd.DataFrame
    outcomes: pd.DataFrame
    images: pd.DataFrame


@remembered
def _measure_doubts(store: AnnotationStore, plan: Plan) -> _Doubts:
    view = current_view(plan)
    annotations = current_annotations(store, view)
    annotations = annotations[annotations["belongs"]].drop_duplicates("annotation_id")
    outcomes = current_outcomes(store, view.model_keys)
    outcomes = outcomes[outcomes["belongs"]]
    answered = annotations[annotations["corrected_by"].isna()]
    alone = _found_by_one(measure_agreement(store, plan), plan, class_names(store))
    doubts = pd.concat(
        [
            doubts_of_scores(answered),
            doubts_of_answers(outcomes.drop_duplicates(PAIR)),
            doubts_of_twins(answered),
            doubts_of_boxes(alone, Reason.ONE_MODEL),
            *(doubts_of_boxes(*one) for one in _drifted(measure_drift(store, plan).measured)),
        ],
        ignore_index=True,
    )
    images = outcomes.drop_duplicates("image_id").set_index("image_id")
    images = images.assign(answers=_answers(annotations, outcomes))
    return _Doubts(doubts, annotations, outcomes, images)


def make_queue(
    store: AnnotationStore, plan: Plan, source: ImageSource, home: Home
) -> tuple[Review, int]:
    """Measure, write and draw the queue in folder ``review`` of the reports.

    Returns:
        The queue, and how many pictures were drawn.

    Raises:
        ConfigurationError: a file that people fill in cannot be read; nothing is written.
        ImageError: an image cannot be read any more.
    """
    review = measure_review(store, plan, home)
    folder = review_folder(home)
    write_review(folder, review)
    return review, draw_queue(review, source, folder / "pictures")


def _found_by_one(agreement: Agreement, plan: Plan, names: Mapping[str, str]) -> pd.DataFrame:
    """Boxes that only one of two entries found: a doubt in the answers of both."""
    labels = {(e.name, name): e.label_for(name) for e in plan.entries for name in names.values()}
    parts = []
    for side, other in (SIDES, SIDES[::-1]):
        alone = agreement.boxes[agreement.boxes["found_by"] == agreement.boxes[f"entry_{side}"]]
        finder, misser = alone[f"entry_{side}"], alone[f"entry_{other}"]
        item = alone[f"{side}_annotation_id"]
        for entry, it, said in (
            (finder, item, " (not by " + misser + ")"),
            (misser, "missed " + item, " (only by " + finder + ")"),
        ):
            asked = pd.MultiIndex.from_arrays([entry, alone["class"]])
            label = pd.Series(asked.map(labels), index=alone.index, dtype=object)
            rows = alone[["image_id"]].assign(
                entry=entry, label=label, item=it, detail=label + said
            )
            rows[BOX_COLUMNS] = alone[SIDE_COLUMNS[side]].to_numpy()
            parts.append(rows)
    return pd.concat(parts).drop_duplicates([*PAIR, "item"], ignore_index=True)


def _drifted(drift: ModelDrift) -> Iterator[tuple[pd.DataFrame, Reason]]:
    """Boxes that the models of the plan have and others had not, and the other way round."""
    for change, side, reason in (
        (Change.NEW, "now", Reason.NEW),
        (Change.LOST, "before", Reason.LOST),
    ):
        boxes = drift.boxes[drift.boxes["change"] == change]
        rows = boxes[PAIR].assign(item=boxes[f"{side}_annotation_id"], detail=boxes["label"])
        rows[BOX_COLUMNS] = boxes[DRIFT_COLUMNS[side]].to_numpy()
        yield rows, reason


def _answers(annotations: pd.DataFrame, outcomes: pd.DataFrame) -> pd.Series:
    """Image id -> what stands for its labels: another one as soon as anything about them is."""
    said = [
        *zip(annotations["image_id"], annotations["annotation_id"], strict=True),
        *zip(
            outcomes["image_id"],
            outcomes["entry"] + " " + outcomes["class"] + " " + outcomes["state"],
            strict=True,
        ),
    ]
    digests = {
        image_id: hashlib.sha256("\n".join(text for _, text in of_image).encode()).hexdigest()
        for image_id, of_image in groupby(sorted(said), key=itemgetter(0))
    }
    # A letter first, so that no spreadsheet takes it for a number.
    return pd.Series(
        {image_id: f"v{digest[:12]}" for image_id, digest in digests.items()}, dtype=object
    )


def _table(
    queue: ReviewQueue,
    images: pd.DataFrame,
    outcomes: pd.DataFrame,
    plan: Plan,
) -> pd.DataFrame:
    rows = queue.images
    image_id = rows["image_id"]
    number = image_id.map(images["image_number"])
    drawn = rows["rank"] <= plan.review.pictures
    return pd.DataFrame(
        {
            "rank": rows["rank"],
            "path": image_id.map(images["path"]),
            "classes": _classes(rows, outcomes),
            "expected_errors": rows["expected_errors"],
            "reasons": rows["reasons"],
            "entries": rows["entries"].map(", ".join),
            "picture": number.map("pictures/{}.jpg".format).where(drawn, ""),
            "reviewed": "",
            "image_id": image_id,
            "answers": image_id.map(images["answers"]),
        }
    )


def _classes(rows: pd.DataFrame, outcomes: pd.DataFrame) -> list[str]:
    """Of each image the classes whose labels are in doubt, by display name."""
    asked: dict[tuple[str, str], list[str]] = {}
    for image_id, label, name in zip(
        *(outcomes[column] for column in ("image_id", "label", "display_name")), strict=True
    ):
        asked.setdefault((image_id, label), []).append(name)
    return [
        ", ".join(
            dict.fromkeys(name for label in labels for name in asked.get((image_id, label), ()))
        )
        for image_id, labels in zip(rows["image_id"], rows["labels"], strict=True)
    ]


def write_review(folder: Path, review: Review) -> None:
    """Write ``queue.csv``, and keep in ``reviewed.csv`` what people marked in the one before.

    Raises:
        ConfigurationError: the queue of before cannot be read.
    """
    write_marks(folder, read_marks(folder))
    write_sheet(folder / QUEUE, review.table)


def draw_queue(review: Review, source: ImageSource, folder: Path) -> int:
    """Draw the images that come first, with what is doubted; what has not changed is left alone.

    Returns:
        How many were drawn.

    Raises:
        ImageError: an image cannot be read any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    memory = folder / _DRAWN
    known: dict[str, str] = json.loads(memory.read_text()) if memory.is_file() else {}
    first = review.table[review.table["picture"] != ""]
    found, doubts = (
        dict(tuple(rows[rows["image_id"].isin(first["image_id"])].groupby("image_id")))
        for rows in (review.annotations, review.queue.doubts)
    )
    shown: dict[str, str] = {}
    drawn = 0
    for image in first.itertuples(index=False):
        name = Path(image.picture).name
        what = list(_pictured(found.get(image.image_id), doubts[image.image_id]))
        what.append(Annotation("", text=image.reasons))
        shown[name] = drawn_digest(image.image_id, what)
        if known.get(name) != shown[name] or not (folder / name).exists():
            pixels, scale = _reduced(read_image(source.read(image.path)), _LONGEST_SIDE_PX)
            picture = draw_annotations(
                pixels, [one.scaled(scale) for one in what], title=Path(image.path).name
            )
            write_jpeg(folder / name, picture)
            drawn += 1
    for name in known.keys() - shown.keys():
        (folder / name).unlink(missing_ok=True)
    write_if_changed(memory, json.dumps(shown).encode())
    return drawn


def _pictured(found: pd.DataFrame | None, doubts: pd.DataFrame) -> Iterator[Annotation]:
    """What stands on an image, with the reasons for doubts in it, and what may be missing."""
    weighty = doubts[doubts["doubt"] >= NAMED_FROM]
    reasons = weighty.groupby("item")["reason"].agg(", ".join).to_dict()
    for row in found.itertuples() if found is not None else ():
        annotation = annotation_of(row)
        has_place = annotation.bbox is not None or annotation.point is not None
        what = annotation.text if annotation.text and has_place else annotation.label
        why = reasons.pop(row.annotation_id, None)
        yield replace(
            annotation,
            label=f"{what}: {why}" if why else what,
            text=None if has_place else annotation.text,
        )
    missing = weighty[weighty["item"].isin(reasons.keys())].dropna(subset=BOX_COLUMNS)
    for row in missing.drop_duplicates("item").to_dict("records"):
        box = tuple(row[column] for column in BOX_COLUMNS)
        yield Annotation(f"{row['label']}: {row['reason']}", bbox=box)


def _reduced(pixels: np.ndarray, longest_px: int) -> tuple[np.ndarray, float]:
    """(height, width, 3) uint8 RGB, scaled down if a side is longer, and by which factor."""
    height, width = pixels.shape[:2]
    scale = min(1.0, longest_px / max(height, width))
    if scale == 1.0:
        return pixels, scale
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)), scale


def review_figures(queue: ReviewQueue) -> dict[str, bytes]:
    """How far the queue goes: name -> PNG."""
    figure = plots.errors_found(queue.images["expected_errors"], queue.total)
    return {"errors_found": png_bytes(figure)}


def first_pictures(review: Review, folder: Path) -> dict[str, np.ndarray]:
    """The first of the drawn pictures, by what stands below them: (height, width, 3) uint8 RGB."""
    pictures = {}
    for image in review.table.head(_SHOWN).itertuples(index=False):
        path = folder / image.picture
        if image.picture and path.is_file():
            title = f"{image.rank}. {image.path}: {image.expected_errors:.1f} expected errors"
            pictures[title], _ = _reduced(read_image(path), _THUMBNAIL_PX)
    return pictures


def review_sheet(review: Review, folder: Path) -> np.ndarray | None:
    """The first pictures side by side: (height, width, 3) uint8 RGB; ``None`` without any."""
    pictures = first_pictures(review, folder)
    return contact_sheet(list(pictures.values()), list(pictures), columns=3) if pictures else None


def review_report(store: AnnotationStore, plan: Plan, home: Home) -> Section:
    """The section of the report. A file of people that cannot be understood leaves the page without
    it, and the page says why."""
    try:
        review = measure_review(store, plan, home)
    except ConfigurationError as error:
        return review_section(None, str(error))
    if not review.queue.total:
        return review_section(None)
    pictures = first_pictures(review, review_folder(home))
    return review_section(
        ReviewReport(
            review.queue,
            review.table.head(MOST_LISTED),
            tuple(Picture(name, encode_jpeg(pixels), name) for name, pixels in pictures.items()),
            report_pictures(review_figures(review.queue)),
        )
    )
