"""What a class leaves in the home for people and other tools: JSON files and pictures."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labeling_pipeline.annotations import Annotation, Keypoint, box_iou
from labeling_pipeline.asks import class_names, current_view
from labeling_pipeline.drawing import (
    DRAWING_VERSION,
    contact_sheet,
    draw_annotations,
    label_colors,
    write_jpeg,
)
from labeling_pipeline.export.class_json import (
    build_box_document,
    build_posture_document,
    export_path,
    write_class_json,
)
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.images.reading import decode, read_image
from labeling_pipeline.images.sources import ImageSource, read_known
from labeling_pipeline.inventory import held_out_images
from labeling_pipeline.labeling import Progress
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_annotations

CONTACT_SHEET = "contact_sheet.jpg"
_MOST_ON_SHEET = 40
_SHEET_COLUMNS, _SHEET_CELL_PX = 4, 480
_FIRST_IMAGES = 6
_TWIN_IOU = 0.7
_DRAWN = ".drawn.json"


@dataclass(frozen=True)
class ExportSummary:
    """files: path -> (images, annotations) of every JSON file of the class."""

    files: dict[Path, tuple[int, int]]
    written: int


@dataclass(frozen=True)
class DrawingSummary:
    """What was drawn of a class.

    pictures: how many there are; drawn: those of them that were drawn just now.
    sheet: (height, width, 3) uint8 RGB, the first pictures side by side; ``None`` without any.
    """

    folder: Path
    pictures: int
    drawn: int
    sheet: Any


def covering_entries(plan: Plan, display_name: str) -> list[Entry]:
    """The entries that label a class, in the plan's order."""
    return [entry for entry in plan.entries if entry.covers(display_name)]


def export_class(
    store: AnnotationStore, plan: Plan, class_slug: str, source: ImageSource, results: Path
) -> ExportSummary:
    """Write the JSON files of one class; one that would not change is left alone."""
    display_name = class_names(store)[class_slug]
    images = _class_images(store, class_slug)
    held_out = held_out_images(store, plan.actions.test_folder).to_pandas()
    tested = held_out.loc[held_out["is_test"], "image_id"]
    images = images.assign(is_test=images["image_id"].isin(tested))
    annotations = current_annotations(store, current_view(plan), class_slug)
    files: dict[Path, tuple[int, int]] = {}
    written = 0
    for position, entry in enumerate(covering_entries(plan, display_name)):
        own = annotations[(annotations["entry"] == entry.name) & annotations["belongs"]]
        if entry.skeleton is not None:
            document = build_posture_document(display_name, images, own, source, entry.skeleton)
        else:
            document = build_box_document(entry.task, display_name, images, own, source)
        path = export_path(results, class_slug, entry.name, first=position == 0)
        written += write_class_json(path, document)
        files[path] = (len(document["images"]), len(document["annotations"]))
    return ExportSummary(files, written)


def draw_class(
    store: AnnotationStore,
    plan: Plan,
    class_slug: str,
    source: ImageSource,
    results: Path,
    *,
    progress: Progress = lambda done, total: None,
) -> DrawingSummary:
    """Draw ``vis_<id>.jpg`` for every image of a class, and ``contact_sheet.jpg`` of them; what has
    not changed is left alone.

    What each picture shows is remembered as a hash beside the pictures.

    Raises:
        ImageError: a file is not there any more, or holds another image than was labeled.
    """
    folder = results / class_slug
    folder.mkdir(parents=True, exist_ok=True)
    memory = folder / _DRAWN
    known: dict[str, str] = json.loads(memory.read_text()) if memory.is_file() else {}
    images = _class_images(store, class_slug)
    annotations = current_annotations(store, current_view(plan), class_slug)
    annotations = annotations[annotations["belongs"]]
    by_image = dict(tuple(annotations.groupby("image_id")))
    colors = plan_colors(store, plan)
    shown: dict[str, str] = {}
    drawn = 0
    for done, image in enumerate(images.itertuples(index=False), 1):
        rows = by_image.get(image.image_id)
        found = [] if rows is None else [drawn_annotation(r, plan) for r in rows.itertuples()]
        found = _without_plain_twins(found)
        name = f"vis_{image.image_number}.jpg"
        used = [colors.get(one.label) for one in found]
        shown[name] = drawn_digest(image.image_id, found, used)
        if known.get(name) != shown[name] or not (folder / name).exists():
            pixels = read_image(read_known(source, image.path, image.image_id))
            title = Path(image.path).name
            picture = draw_annotations(pixels, found, title=title, colors=colors)
            write_jpeg(folder / name, picture)
            drawn += 1
        progress(done, len(images))
    names = list(shown)
    if names:
        shown[CONTACT_SHEET] = drawn_digest(shown)
        if (
            known.get(CONTACT_SHEET) != shown[CONTACT_SHEET]
            or not (folder / CONTACT_SHEET).exists()
        ):
            write_jpeg(folder / CONTACT_SHEET, _class_sheet(folder, names))
    for name in known.keys() - shown.keys():
        (folder / name).unlink(missing_ok=True)
    write_if_changed(memory, json.dumps(shown).encode())
    first = [read_image(folder / name) for name in names[:_FIRST_IMAGES]]
    sheet = contact_sheet(first, names[:_FIRST_IMAGES], columns=3) if names else None
    return DrawingSummary(folder, len(names), drawn, sheet)


def plan_colors(store: AnnotationStore, plan: Plan) -> dict[str, str]:
    """Label -> colour, in the order in which the plan asks the classes: a new class changes none.

    Without it labels would share colours by chance.
    """
    names = class_names(store, with_retired=True).values()
    return label_colors(
        [entry.label_for(name) for entry in plan.entries for name in names if entry.covers(name)]
    )


def _class_sheet(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Pictures of a class side by side; of many a selection that is spread over all of them."""
    places = np.linspace(0, len(names) - 1, min(len(names), _MOST_ON_SHEET)).round().astype(int)
    chosen = [names[place] for place in places]
    pictures = [decode((folder / name).read_bytes(), _SHEET_CELL_PX).pixels for name in chosen]
    return contact_sheet(pictures, chosen, _SHEET_COLUMNS, cell_px=_SHEET_CELL_PX)


def drawn_digest(*shown: object) -> str:
    """Another one if a picture would look otherwise. shown: all that it shows."""
    return hashlib.sha256(repr((DRAWING_VERSION, *shown)).encode()).hexdigest()[:16]


def _without_plain_twins(found: list[Annotation]) -> list[Annotation]:
    """Leave out boxes that a keypoint instance of the same label shows already, for legibility."""
    instances = [a for a in found if a.keypoints and a.bbox]
    return [
        a
        for a in found
        if a.keypoints
        or a.bbox is None
        or not any(
            a.label == other.label and box_iou(a.bbox, other.bbox) > _TWIN_IOU  # type: ignore[arg-type]
            for other in instances
        )
    ]


def annotation_of(row: Any) -> Annotation:
    """A row of table ``annotations`` as a value; of `current_annotations` with its calibration."""
    has_box = not pd.isna(row.x0_px)
    point = _given(row.point)
    return Annotation(
        label=row.label,
        bbox=(row.x0_px, row.y0_px, row.x1_px, row.y1_px) if has_box else None,
        point=(point["x_px"], point["y_px"]) if point is not None else None,
        polygon=tuple((corner["x_px"], corner["y_px"]) for corner in _given(row.polygon) or ()),
        keypoints=tuple(
            Keypoint(p["name"], p["x_px"], p["y_px"], p["score"])
            for p in _given(row.keypoints) or ()
        ),
        text=_given(row.text),
        score=None if pd.isna(row.score) else float(row.score),
        is_calibrated=bool(getattr(row, "is_calibrated", False)),
    )


def drawn_annotation(row: Any, plan: Plan) -> Annotation:
    """A row of table ``annotations`` as it is drawn: what a model calls a thing is its label."""
    annotation = annotation_of(row)
    has_place = annotation.bbox is not None or annotation.point is not None
    if not plan.entry(row.entry).describes or annotation.text is None or not has_place:
        return annotation
    return replace(annotation, label=annotation.text, text=None)


def _given(value: Any) -> Any:
    """A nested value, or ``None`` where pandas put NaN for NULL; arrays become lists."""
    if value is None or isinstance(value, float):
        return None
    return list(value) if hasattr(value, "__array__") else value


def _class_images(store: AnnotationStore, class_slug: str) -> pd.DataFrame:
    return store.query(
        "SELECT image_id, image_number, path FROM class_images WHERE class = $1 "
        "ORDER BY image_number",
        (class_slug,),
    ).to_pandas()
