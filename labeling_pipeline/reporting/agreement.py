"""How far the entries of a plan that have different models agree."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labeling_pipeline.annotations import Annotation
from labeling_pipeline.asks import class_names, current_view, model_keys
from labeling_pipeline.drawing import encode_jpeg
from labeling_pipeline.evaluation.agreement import (
    ASKED_COLUMNS,
    BOTH,
    SIDE_COLUMNS,
    Agreement,
    compare_entries,
)
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.report.agreement import AgreementReport
from labeling_pipeline.evaluation.report.data import Picture
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.reporting.figures import Panel, draw_side_by_side, write_tables
from labeling_pipeline.reporting.remembered import remembered
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_annotations, current_outcomes
from labeling_pipeline.tasks import RULES, Geometry

_BOXED = (Geometry.BOX, Geometry.POLYGON, Geometry.KEYPOINTS)
_COMPARED = ["entry_a", "entry_b", "class", "image_id"]
_MOST_DRAWN = 3


@remembered
def measure_agreement(store: AnnotationStore, plan: Plan) -> Agreement:
    """How far entries with different models agree on the boxes of the classes that both label.

    Over the images of each class itself, which are those that its pictures and files show. Only
    answers of the models that the plan names count: an answer from before a change of model might
    be the other entry's own. No rows if no two entries can be compared.
    """
    keys = model_keys(plan)
    names = list(class_names(store).values())
    outcomes = current_outcomes(store, keys)
    labels = {(e.name, name): e.label_for(name) for e in plan.entries for name in names}
    asked_now = outcomes.set_index(["entry", "display_name"]).index.map(labels)
    holds = (outcomes["label"] == asked_now) & (
        outcomes["model_key"] == outcomes["entry"].map(keys)
    )
    states = (
        outcomes[holds]
        .pivot(index=["display_name", "image_id"], columns="entry", values="state")
        .reindex(columns=list(keys))
        .rename_axis(index=["class", "image_id"])
    )
    images = store.query(
        "SELECT display_name AS class, image_id, path FROM class_images ORDER BY class, path"
    ).to_pandas()
    asked = [
        images[images["class"].isin(classes)]
        .join(states[[a, b]].set_axis(["state_a", "state_b"], axis=1), on=["class", "image_id"])
        .assign(entry_a=a, entry_b=b)
        for a, b, classes in _comparable(plan, keys, names)
    ]
    boxes = current_annotations(store, current_view(plan), nested=False)
    boxes = boxes.dropna(subset=BOX_COLUMNS)
    boxes = boxes.assign(**{"class": boxes["display_name"]})
    return compare_entries(
        pd.concat(asked, ignore_index=True) if asked else pd.DataFrame(columns=ASKED_COLUMNS), boxes
    )


def _comparable(
    plan: Plan, keys: Mapping[str, str], names: Sequence[str]
) -> Iterator[tuple[str, str, list[str]]]:
    """Two entries with different models, and the classes that both ask the same label of.

    Entries that yield boxes, and of which neither looks at what the other found: there it could
    only agree. Whether two labels mean the same thing only a person knows.
    """
    boxed = [entry for entry in plan.entries if RULES[entry.task].geometry in _BOXED]
    for a, b in itertools.combinations(boxed, 2):
        shared = [
            name
            for name in names
            if a.covers(name)
            and b.covers(name)
            and a.label_for(name).casefold() == b.label_for(name).casefold()
        ]
        if shared and keys[a.name] != keys[b.name] and a.name not in _looked_at(plan, b):
            yield a.name, b.name, shared


def _looked_at(plan: Plan, entry: Entry) -> Iterator[str]:
    """Names of the entries whose regions an entry looks at, step by step."""
    source = plan.source_of(entry)
    while source is not None:
        yield source.name
        source = plan.source_of(source)


def write_agreement(folder: Path, agreement: Agreement) -> None:
    """Write the tables as CSV: ``classes``, ``images``, ``boxes`` and ``not_compared``."""
    write_tables(
        folder,
        {
            "classes": agreement.per_class,
            "images": agreement.per_image,
            "boxes": agreement.boxes,
            "not_compared": agreement.not_compared,
        },
    )


def draw_disagreements(agreement: Agreement, source: ImageSource) -> np.ndarray | None:
    """The images that most disagree, a row each: what the one entry found beside the other.

    Returns:
        (height, width, 3) uint8 RGB; ``None`` if nothing disagrees.
    """
    worst = agreement.disagreements.head(_MOST_DRAWN).to_dict("records")
    return draw_side_by_side(
        ((image["path"], _panels(agreement.boxes, image)) for image in worst), source
    )


def _panels(boxes: pd.DataFrame, image: Mapping[str, Any]) -> tuple[Panel, Panel]:
    """What either entry found on an image. boxes: ``Agreement.boxes``."""
    pieces = boxes[np.logical_and.reduce([boxes[key] == image[key] for key in _COMPARED])]
    first, second = (
        (
            f"{image[f'entry_{side}']}: {image['class']}",
            [
                Annotation("both" if by == BOTH else "alone", bbox=tuple(box))
                for by, *box in pieces[["found_by", *columns]].dropna().to_numpy(object)
            ],
        )
        for side, columns in SIDE_COLUMNS.items()
    )
    return first, second


def agreement_report(measured: Agreement, source: ImageSource) -> AgreementReport | None:
    """What the report shows; ``None`` if no two entries can be compared."""
    if measured.per_class.empty:
        return None
    pixels = draw_disagreements(measured, source)
    if pixels is None:
        return AgreementReport(measured)
    caption = "What each entry found on the images that most disagree."
    return AgreementReport(measured, (Picture("disagreements", encode_jpeg(pixels), caption),))
