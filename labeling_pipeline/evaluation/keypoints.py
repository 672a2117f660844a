"""Keypoints against ground truth."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labeling_pipeline.annotations import Keypoint
from labeling_pipeline.evaluation.detection import boxes_of, ratio, rows_of, scores_of
from labeling_pipeline.evaluation.matching import BoxSet, match_greedily


@dataclass(frozen=True)
class KeypointEvaluation:
    """How well keypoints were placed: PCK, the percentage of correct keypoints.

    A keypoint is correct if it lies within ``alpha`` times the larger side of the true person's box
    (Yang and Ramanan, "Articulated human detection with flexible mixtures of parts", 2013, who use
    ``alpha * max(height, width)``). The larger side rather than the diagonal: it is the published
    definition, so numbers compare, and the stricter of the two.

    pck: over the labelled keypoints of matched persons; a keypoint the model called invisible is
        wrong. ``None`` if there is none to judge.
    persons, matched: true persons with keypoints on asked images, and those of them that a
        predicted person was matched to.
    labelled, correct: keypoints of the matched persons.
    per_keypoint: one row a keypoint: ``name, labelled, placed, correct, pck``; ``placed``: the
        model gave a point at all.
    judged_images: every asked image, sorted.
    """

    alpha: float
    iou_threshold: float
    pck: float | None
    persons: int
    matched: int
    labelled: int
    correct: int
    per_keypoint: pd.DataFrame
    judged_images: tuple[str, ...]


def evaluate_keypoints(
    predictions: pd.DataFrame,
    truths: pd.DataFrame,
    asked: pd.DataFrame,
    *,
    iou_threshold: float = 0.5,
    alpha: float = 0.1,
) -> KeypointEvaluation:
    """Judge keypoints on the persons that were found.

    Persons are matched by box alone: what a person was called when asked for ("standing person")
    is the business of `evaluate_detection`.

    Args:
        predictions: ``image_id, score, x0_px, y0_px, x1_px, y1_px, keypoints``, the last a
            sequence of `Keypoint` or of mappings with ``name, x_px, y_px``.
        truths: as `GroundTruth.keypoints`, with ``image_id``.
        asked: ``image_id``, every image that was asked for keypoints and that the truth covers.
        iou_threshold: least IoU of the boxes of a matched pair, in 0..1.
        alpha: tolerance as a share of the larger side of the true box.
    """
    images = asked[["image_id"]].drop_duplicates()
    found, found_images = rows_of(predictions, images)
    points, _ = rows_of(truths, images)
    # One row a person.
    people = points.drop_duplicates("instance")
    _, people_images = rows_of(people, images)
    people, people_images = rows_of(people, images)
    matching = match_greedily(
        BoxSet(found_images, boxes_of(found)),
        scores_of(found),
        BoxSet(people_images, boxes_of(people)),
        np.zeros(len(people), dtype=bool),
        [iou_threshold],
    ).at(0)
    true_boxes = boxes_of(people)
    points_of = dict(list(points.groupby("instance")))
    judged: list[tuple[str, bool, bool]] = []
    persons, matched_persons = len(people), int((matching.taken >= 0).sum())
    for row in np.flatnonzero(matching.taken >= 0):
        person = matching.taken[row]
        x0, y0, x1, y1 = true_boxes[person]
        tolerance_px = alpha * max(x1 - x0, y1 - y0)
        given = visible_points(found["keypoints"].iloc[row])
        for name, x_px, y_px, visibility in points_of[people["instance"].iloc[person]][
            ["name", "x_px", "y_px", "visibility"]
        ].itertuples(index=False):
            if not visibility:
                continue
            point = given.get(name)
            correct = point is not None and (math.dist(point, (x_px, y_px)) <= tolerance_px + 1e-9)
            judged.append((name, point is not None, correct))

    table = pd.DataFrame(judged, columns=["name", "placed", "correct"])
    per_keypoint = (
        table.groupby("name", sort=False)
        .agg(labelled=("placed", "size"), placed=("placed", "sum"), correct=("correct", "sum"))
        .reset_index()
    )
    per_keypoint["pck"] = per_keypoint["correct"] / per_keypoint["labelled"]
    correct_points = int(table["correct"].sum())
    return KeypointEvaluation(
        alpha=alpha,
        iou_threshold=iou_threshold,
        pck=ratio(correct_points, len(table)),
        persons=persons,
        matched=matched_persons,
        labelled=len(table),
        correct=correct_points,
        per_keypoint=per_keypoint,
        judged_images=tuple(sorted(images["image_id"])),
    )


def visible_points(
    keypoints: Iterable[Keypoint | Mapping[str, Any]],
) -> dict[str, tuple[float, float]]:
    """Return name -> (x_px, y_px) of the keypoints that have a place, from either spelling."""
    points: dict[str, tuple[float, float]] = {}
    for keypoint in keypoints:
        if isinstance(keypoint, Keypoint):
            name, x_px, y_px = keypoint.name, keypoint.x_px, keypoint.y_px
        else:
            name, x_px, y_px = keypoint["name"], keypoint["x_px"], keypoint["y_px"]
        if x_px is not None and y_px is not None and math.isfinite(x_px) and math.isfinite(y_px):
            points[name] = (float(x_px), float(y_px))
    return points
