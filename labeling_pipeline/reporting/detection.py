"""What the entries of a plan found against the ground truth."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from labeling_pipeline.asks import current_view, model_keys
from labeling_pipeline.evaluation.detection import DetectionEvaluation, evaluate_detection
from labeling_pipeline.evaluation.detection_errors import ERROR_COLUMNS, worst_first
from labeling_pipeline.evaluation.ground_truth import read_coco
from labeling_pipeline.evaluation.keypoints import KeypointEvaluation, evaluate_keypoints
from labeling_pipeline.evaluation.plots import detection as plots
from labeling_pipeline.evaluation.plots.frame import png_bytes
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.plan import Plan
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_annotations, current_outcomes
from labeling_pipeline.tasks import RULES, Geometry, Task


@dataclass(frozen=True)
class EntryEvaluation:
    """How one entry's boxes, and keypoints if it has them, compare with the ground truth.

    errors: those of ``boxes`` with the ``path`` of the image first, the worst images first.
    """

    boxes: DetectionEvaluation
    keypoints: KeypointEvaluation | None
    errors: pd.DataFrame


def evaluate_entries(
    store: AnnotationStore, plan: Plan, source: ImageSource
) -> dict[str, EntryEvaluation]:
    """Entry -> evaluation over every asked label on every accepted image the truth covers.

    An image whose asking failed counts as one where nothing was found; a label that was never
    asked counts nowhere. Empty without ground truth.

    Raises:
        ConfigurationError: the plan names a ground truth that cannot be read.
    """
    if plan.ground_truth is None:
        return {}
    truth = read_coco(plan.ground_truth, source.read_companion(plan.ground_truth))
    keys = model_keys(plan)
    outcomes = current_outcomes(store, keys)
    outcomes = outcomes[outcomes["state"] != "unsupported"]
    annotations = current_annotations(store, current_view(plan))
    annotations = annotations.drop_duplicates("annotation_id")
    image_of = dict(zip(outcomes["path"], outcomes["image_id"], strict=True))
    boxes = _with_image_ids(truth.boxes, image_of)
    keypoints = _with_image_ids(truth.keypoints, image_of)
    evaluations = {}
    for entry in plan.entries:
        rule = RULES[entry.task]
        # What is described bears no name that the ground truth could know.
        if entry.describes or rule.geometry not in (Geometry.BOX, Geometry.KEYPOINTS):
            continue
        of_entry = outcomes[outcomes["entry"] == entry.name]
        asked = of_entry[truth.covers(of_entry["path"], of_entry["label"])]
        asked = asked[["image_id", "label"]].drop_duplicates()
        predicted = annotations[annotations["entry"] == entry.name]
        found = evaluate_detection(predicted, boxes, asked)
        paths = of_entry.drop_duplicates("image_id").set_index("image_id")["path"]
        errors = found.errors.assign(path=found.errors["image_id"].map(paths))
        evaluations[entry.name] = EntryEvaluation(
            boxes=found,
            keypoints=(
                evaluate_keypoints(predicted, keypoints, asked)
                if entry.task is Task.KEYPOINT
                else None
            ),
            errors=worst_first(errors)[["path", *ERROR_COLUMNS]],
        )
    return evaluations


def write_errors(folder: Path, entry: str, errors: pd.DataFrame) -> Path:
    """Write ``<entry>_errors.csv``: ``EntryEvaluation.errors``; returns its path."""
    path = folder / f"{entry}_errors.csv"
    text = errors.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    write_if_changed(path, text.encode())
    return path


def detection_figures(entry: str, evaluation: DetectionEvaluation) -> dict[str, bytes]:
    """Scores by label, and how well the score tells right boxes from wrong: name -> PNG."""
    figures = {
        f"{entry}_labels": plots.detection_labels(evaluation.per_label),
        f"{entry}_box_scores": plots.box_scores(evaluation.matches),
    }
    return {name: png_bytes(figure) for name, figure in figures.items()}


def _with_image_ids(truths: pd.DataFrame, image_of: dict[str, str]) -> pd.DataFrame:
    """Truths of the images we know, with their image_id."""
    known = truths[truths["file_name"].isin(list(image_of))]
    return known.assign(image_id=known["file_name"].map(image_of))
