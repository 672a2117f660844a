"""What can be said of a labeled dataset: action predictions, evaluations, counts.

Reads the store and the plan's ground truth, hands both to the pure functions of ``evaluation``.
"""

import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from labeling_pipeline.annotations import Annotation
from labeling_pipeline.asks import class_names, model_keys
from labeling_pipeline.drawing import contact_sheet, draw_annotations
from labeling_pipeline.evaluation import plots
from labeling_pipeline.evaluation.actions import (
    ActionEvaluation,
    evaluate_actions,
    predict_actions,
)
from labeling_pipeline.evaluation.agreement import (
    ASKED_COLUMNS,
    BOTH,
    SIDE_COLUMNS,
    Agreement,
    compare_entries,
)
from labeling_pipeline.evaluation.detection import (
    DetectionEvaluation,
    KeypointEvaluation,
    evaluate_detection,
    evaluate_keypoints,
)
from labeling_pipeline.evaluation.ground_truth import read_coco
from labeling_pipeline.evaluation.report import (
    ActionReport,
    AgreementReport,
    EntryDetection,
    ModelUse,
    Picture,
    RejectedFile,
    ReportData,
    coverage_rows,
    render_report,
)
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.home import Home
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.inventory import report_files
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.results import thresholds
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_annotations, current_outcomes
from labeling_pipeline.tasks import RULES, Geometry, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYPOINT_METHOD = "keypoints"
_BOX = ["x0_px", "y0_px", "x1_px", "y1_px"]
_BOXED = (Geometry.BOX, Geometry.POLYGON, Geometry.KEYPOINTS)
_COMPARED = ["entry_a", "entry_b", "class", "image_id"]
_MOST_DRAWN = 3


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
    if plan.ground_truth is None:
        return {}
    truth = read_coco(plan.ground_truth, source.read_companion(plan.ground_truth))
    keys = model_keys(plan)
    outcomes = current_outcomes(store, keys)
    outcomes = outcomes[outcomes["state"] != "unsupported"]
    annotations = current_annotations(store, keys, thresholds(plan))
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
        evaluations[entry.name] = EntryEvaluation(
            boxes=evaluate_detection(predicted, boxes, asked),
            keypoints=(
                evaluate_keypoints(predicted, keypoints, asked)
                if entry.task is Task.KEYPOINT
                else None
            ),
        )
    return evaluations


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
    boxes = current_annotations(store, keys, thresholds(plan)).dropna(subset=_BOX)
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
    tables = {
        "classes": agreement.per_class,
        "images": agreement.per_image,
        "boxes": agreement.boxes,
        "not_compared": agreement.not_compared,
    }
    for name, table in tables.items():
        text = table.to_csv(index=False, float_format="%.4f", lineterminator="\n")
        write_if_changed(folder / f"{name}.csv", text.encode())


def draw_disagreements(agreement: Agreement, source: ImageSource) -> np.ndarray | None:
    """The images that most disagree, a row each: what the one entry found beside the other.

    Returns:
        (height, width, 3) uint8 RGB; ``None`` if nothing disagrees.

    Raises:
        ImageError: an image cannot be read any more.
    """
    panels, titles = [], []
    for image in agreement.disagreements.head(_MOST_DRAWN).to_dict("records"):
        pixels = read_image(source.read(image["path"]))
        same = [agreement.boxes[key] == image[key] for key in _COMPARED]
        pieces = agreement.boxes[np.logical_and.reduce(same)]
        for side, columns in SIDE_COLUMNS.items():
            here = pieces.dropna(subset=columns)
            found = [
                Annotation("both" if by == BOTH else "alone", bbox=tuple(box))
                for by, box in zip(here["found_by"], here[columns].to_numpy(), strict=True)
            ]
            panels.append(draw_annotations(pixels, found))
            entry, name = image[f"entry_{side}"], Path(image["path"]).name
            titles.append(f"{entry}: {image['class']} in {name}")
    return contact_sheet(panels, titles, columns=2) if panels else None


def predict_and_store_actions(store: AnnotationStore, plan: Plan) -> pd.DataFrame:
    """Predict the action of every image of the action entry's classes from its keypoints.

    Out of fold; the folder is the true action; near duplicates share a fold. Replaces what table
    ``action_predictions`` held for this method. Returns the rows of ``predict_actions``; empty if
    the plan has no keypoint entry.
    """
    entry = plan.action_entry()
    if entry is None:
        nothing = pd.DataFrame(columns=["image_id", "true_action", "predicted_action", "reason"])
        _replace_predictions(store, nothing, None)
        return nothing
    keys = model_keys(plan)
    names = {slug: name for slug, name in class_names(store).items() if entry.covers(name)}
    # A file that lies in no class folder belongs to every class and has no true action.
    images = store.query(
        """
        SELECT i.image_id, i.class, display_name AS true_action,
               coalesce(cluster, i.image_id) AS "group"
        FROM class_images i JOIN files f ON f.path = i.path AND f.class = i.class
        ORDER BY i.path
        """
    ).to_pandas()
    images = images[images["class"].isin(list(names))]
    people = current_annotations(store, keys, thresholds(plan))
    people = people[(people["entry"] == entry.name) & people["belongs"]]
    best = best_of_each_image(people)
    best = best.assign(bbox=list(best[_BOX].to_numpy()))[["image_id", "keypoints", "bbox"]]
    rows = images.merge(best, on="image_id", how="left")
    rows = rows.astype({"keypoints": object, "bbox": object})
    rows = rows.where(rows.notna(), None)
    predictions = predict_actions(rows, folds=plan.actions.folds, seed=plan.actions.seed)
    _replace_predictions(store, predictions, keys[entry.name])
    return predictions


def best_of_each_image(annotations: pd.DataFrame) -> pd.DataFrame:
    """The best-scored row of each image; what a person gave has no score and is the best."""
    ranked = annotations.assign(by_model=annotations["corrected_by"].isna()).sort_values(
        ["by_model", "score"], ascending=[True, False], kind="stable"
    )
    return ranked.drop(columns="by_model").drop_duplicates("image_id")


def _replace_predictions(
    store: AnnotationStore, predictions: pd.DataFrame, model_key: str | None
) -> None:
    """Make these the predictions of the keypoint method, in place of all earlier ones."""
    with store.transaction() as tx:
        tx.execute("DELETE FROM action_predictions WHERE method = $1", (KEYPOINT_METHOD,))
        tx.insert(
            "action_predictions",
            [
                {
                    "image_id": row.image_id,
                    "method": KEYPOINT_METHOD,
                    "model_key": model_key,
                    "true_action": row.true_action,
                    "predicted_action": row.predicted_action,
                    "probabilities": json.dumps(row.probabilities) if row.probabilities else None,
                    "fold": None if pd.isna(row.fold) else int(row.fold),
                    "reason": row.reason,
                }
                for row in predictions.itertuples()
            ],
        )


def stored_action_predictions(store: AnnotationStore) -> pd.DataFrame:
    """Table ``action_predictions`` with its probabilities as dicts and ``top_probability``."""
    rows = store.query(
        "SELECT * FROM action_predictions WHERE method = $1 ORDER BY image_id", (KEYPOINT_METHOD,)
    ).to_pandas()
    probabilities = [
        json.loads(text) if isinstance(text, str) else None for text in rows["probabilities"]
    ]
    rows["probabilities"] = pd.Series(probabilities, index=rows.index, dtype=object)
    rows["top_probability"] = [max(p.values()) if p else math.nan for p in probabilities]
    return rows


def evaluate_stored_actions(store: AnnotationStore) -> ActionEvaluation:
    """How well the stored predictions tell the actions apart."""
    return evaluate_actions(stored_action_predictions(store))


def action_figures(predictions: pd.DataFrame, evaluation: ActionEvaluation) -> dict[str, bytes]:
    """The four figures of human-action recognition: name -> PNG."""
    figures: dict[str, Figure] = {
        "confusion_matrix": plots.confusion_matrix(evaluation.confusion),
        "class_scores": plots.class_scores(evaluation.per_class),
        "top_probabilities": plots.top_probabilities(predictions),
        "true_versus_predicted": plots.true_versus_predicted(predictions),
    }
    return {name: plots.png_bytes(figure) for name, figure in figures.items()}


def detection_figures(entry: str, evaluation: DetectionEvaluation) -> dict[str, bytes]:
    """Scores by label, and how well the score tells right boxes from wrong: name -> PNG."""
    figures = {
        f"{entry}_labels": plots.detection_labels(evaluation.per_label),
        f"{entry}_box_scores": plots.box_scores(evaluation.matches),
    }
    return {name: plots.png_bytes(figure) for name, figure in figures.items()}


def write_figures(folder: Path, figures: dict[str, bytes]) -> dict[str, Path]:
    """Write PNG files; returns name -> path."""
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, path in paths.items():
        write_if_changed(path, figures[name])
    return paths


def class_table(store: AnnotationStore, plan: Plan) -> pd.DataFrame:
    """One row per entry x class it covers, over the class's own images.

    Columns: entry, class, display_name, label, images, annotations, mean_score, and a count for
    each state that occurs.
    """
    keys = model_keys(plan)
    outcomes = current_outcomes(store, keys)
    outcomes = outcomes[outcomes["belongs"]]
    annotations = current_annotations(store, keys, thresholds(plan))
    annotations = annotations[annotations["belongs"]]
    group = ["entry", "class"]
    found = annotations.groupby(group).agg(
        annotations=("annotation_id", "count"), mean_score=("score", "mean")
    )
    states = outcomes.groupby([*group, "state"]).size().unstack(fill_value=0)
    names = outcomes.groupby(group).agg(
        display_name=("display_name", "first"),
        label=("label", "first"),
        images=("image_id", "nunique"),
    )
    table = names.join(found).join(states).reset_index()
    table["annotations"] = table["annotations"].fillna(0).astype(int)
    order = {entry.name: position for position, entry in enumerate(plan.entries)}
    return table.sort_values(
        ["entry", "class"], key=lambda c: c.map(order) if c.name == "entry" else c
    )


def _with_image_ids(truths: pd.DataFrame, image_of: dict[str, str]) -> pd.DataFrame:
    """Truths of the images we know, with their image_id."""
    known = truths[truths["file_name"].isin(list(image_of))]
    return known.assign(image_id=known["file_name"].map(image_of))


def write_report(
    store: AnnotationStore, plan: Plan, source: ImageSource, home: Home, now: datetime
) -> Path:
    """Write ``report.html`` over everything; returns its path."""
    evaluations = evaluate_entries(store, plan, source)
    predictions = stored_action_predictions(store)
    actions = evaluate_actions(predictions)
    reasons = why_not_predicted(actions)
    files = report_files(store)
    data = ReportData(
        title=f"Annotation report: {home.path.resolve().name}",
        generated_at=now,
        image_root=source.root,
        images=files.statuses.get("accepted", 0),
        coverage=coverage_rows(class_table(store, plan)),
        rejects=tuple(
            RejectedFile(note.path, note.reason, note.detail or "") for note in files.not_accepted
        ),
        detection=tuple(
            EntryDetection(
                entry,
                evaluation.boxes,
                evaluation.keypoints,
                _pictures(detection_figures(entry, evaluation.boxes)),
            )
            for entry, evaluation in evaluations.items()
        ),
        agreement=_agreement_report(store, plan, source),
        actions=(
            ActionReport(actions, _pictures(action_figures(predictions, actions)))
            if actions.accuracy_all is not None
            else None
        ),
        examples=_examples(store, home),
        models=_models_used(store, plan),
        plan=Path(plan.file).read_text(encoding="utf-8") if Path(plan.file).is_file() else "",
        absent={"actions": f"Action recognition: {reasons}."} if reasons else {},
    )
    path = home.reports / "report.html"
    write_if_changed(path, render_report(data).encode())
    return path


def why_not_predicted(actions: ActionEvaluation) -> str:
    """Why images have no predicted action, and how many; empty if all have one."""
    return "; ".join(f"{reason} ({images} images)" for reason, images in actions.reasons.items())


def _pictures(figures: dict[str, bytes]) -> tuple[Picture, ...]:
    return tuple(
        Picture(name.replace("_", " ").capitalize(), data) for name, data in figures.items()
    )


def _agreement_report(
    store: AnnotationStore, plan: Plan, source: ImageSource
) -> AgreementReport | None:
    measured = measure_agreement(store, plan)
    if measured.per_class.empty:
        return None
    pixels = draw_disagreements(measured, source)
    if pixels is None:
        return AgreementReport(measured)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    caption = "What each entry found on the images that most disagree."
    return AgreementReport(measured, (Picture("disagreements", buffer.getvalue(), caption),))


def _examples(store: AnnotationStore, home: Home) -> tuple[Picture, ...]:
    """The first drawn picture of each class, of at most twelve classes."""
    first = store.query(
        "SELECT class, display_name, min(image_number) AS number FROM class_images "
        "GROUP BY class, display_name ORDER BY display_name LIMIT 12"
    ).to_pylist()
    paths = {
        row["display_name"]: home.results / row["class"] / f"vis_{row['number']}.jpg"
        for row in first
    }
    return tuple(
        Picture(name, path.read_bytes(), path.name) for name, path in paths.items() if path.exists()
    )


def _models_used(store: AnnotationStore, plan: Plan) -> tuple[ModelUse, ...]:
    known = {row["model_key"]: row for row in store.query("SELECT * FROM models").to_pylist()}
    return tuple(
        ModelUse(
            entry=entry,
            name=row["name"],
            checkpoint=row["checkpoint"],
            revision=row["revision"],
            licence=row["licence"],
            model_key=key,
            parameters=json.loads(row["parameters"]),
        )
        for entry, key in model_keys(plan).items()
        if (row := known.get(key)) is not None
    )
