"""What the entries of a plan found against the ground truth."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from labeling_pipeline.asks import current_view, model_keys
from labeling_pipeline.evaluation.detection import (
    DetectionEvaluation,
    KeypointEvaluation,
    evaluate_detection,
    evaluate_keypoints,
)
from labeling_pipeline.evaluation.ground_truth import GroundTruth, read_coco
from labeling_pipeline.evaluation.plots import detection as plots
from labeling_pipeline.evaluation.plots.frame import png_bytes
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import (
    View,
    answered_annotations,
    current_annotations,
    current_outcomes,
)
from labeling_pipeline.tasks import RULES, Geometry, Task


@dataclass(frozen=True)
class EntryEvaluation:
    """How one entry's boxes, and keypoints if it has them, compare with the ground truth."""

    boxes: DetectionEvaluation
    keypoints: KeypointEvaluation | None


def evaluate_entries(
    store: AnnotationStore, plan: Plan, source: ImageSource
) -> dict[str, EntryEvaluation]:
    """Entry -> evaluation over every asked label on every accepted image the truth covers.

    An image whose asking failed counts as one where nothing was found; a label that was never
    asked counts nowhere. Empty without ground truth.

    Raises:
        ConfigurationError: the plan names a ground truth that cannot be read.
    """
    truth = _truth(plan, source)
    if truth is None:
        return {}
    outcomes = current_outcomes(store, model_keys(plan))
    image_of = _image_of(outcomes)
    boxes = _with_image_ids(truth.boxes, image_of)
    keypoints = _with_image_ids(truth.keypoints, image_of)
    # Calibration may make scores equal, and then others would go first when boxes are matched.
    annotations = current_annotations(store, current_view(plan).measured)
    annotations = annotations.drop_duplicates("annotation_id")
    evaluations = {}
    for entry, asked in _judged(plan, outcomes, truth):
        predicted = annotations[annotations["entry"] == entry.name]
        evaluations[entry.name] = EntryEvaluation(
            boxes=evaluate_detection(predicted, boxes, asked),
            keypoints=(
                evaluate_keypoints(predicted, keypoints, asked)
                if entry.task is Task.KEYPOINT
                else None
            ),
        )
    return evaluations


def evaluate_answers(
    store: AnnotationStore, plan: Plan, source: ImageSource
) -> dict[str, DetectionEvaluation]:
    """Entry -> evaluation of the boxes that the plan's models themselves answered: before
    corrections and thresholds, with scores as measured. Otherwise as `evaluate_entries`.

    Raises:
        ConfigurationError: the plan names a ground truth that cannot be read.
    """
    truth = _truth(plan, source)
    if truth is None:
        return {}
    keys = model_keys(plan)
    outcomes = _of_models(current_outcomes(store, keys), keys)
    boxes = _with_image_ids(truth.boxes, _image_of(outcomes))
    answers = _of_models(answered_annotations(store, View(keys)).to_pandas(), keys)
    answers = answers.drop_duplicates("annotation_id")
    return {
        entry.name: evaluate_detection(answers[answers["entry"] == entry.name], boxes, asked)
        for entry, asked in _judged(plan, outcomes, truth)
    }


def _truth(plan: Plan, source: ImageSource) -> GroundTruth | None:
    if plan.ground_truth is None:
        return None
    return read_coco(plan.ground_truth, source.read_companion(plan.ground_truth))


def _judged(
    plan: Plan, outcomes: pd.DataFrame, truth: GroundTruth
) -> Iterator[tuple[Entry, pd.DataFrame]]:
    """The entries whose boxes can be judged, each with the pairs ``image_id, label`` that were
    asked and that the truth covers."""
    outcomes = outcomes[outcomes["state"] != "unsupported"]
    for entry in plan.entries:
        rule = RULES[entry.task]
        # What is described bears no name that the ground truth could know.
        if entry.describes or rule.geometry not in (Geometry.BOX, Geometry.KEYPOINTS):
            continue
        of_entry = outcomes[outcomes["entry"] == entry.name]
        asked = of_entry[truth.covers(of_entry["path"], of_entry["label"])]
        yield entry, asked[["image_id", "label"]].drop_duplicates()


def _of_models(rows: pd.DataFrame, model_keys: Mapping[str, str]) -> pd.DataFrame:
    """Those that come from the models that the plan names."""
    return rows[rows["model_key"] == rows["entry"].map(model_keys)]


def _image_of(outcomes: pd.DataFrame) -> dict[str, str]:
    """Path -> image_id."""
    return dict(zip(outcomes["path"], outcomes["image_id"], strict=True))


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
