"""Keypoints against ground truth.

Persons are matched by box alone: what a person was called when asked for ("standing person") is the
business of `labeling_pipeline.evaluation.detection`. Of the matched ones it is judged

- how many keypoints are right, **PCK**: a keypoint is, if it lies within ``alpha`` times the larger
  side of the true person's box (Yang and Ramanan, "Articulated human detection with flexible
  mixtures of parts", 2013, who use ``alpha * max(height, width)``). The larger side rather than the
  diagonal: it is the published definition, so numbers compare, and the stricter of the two.
- how near they are, **OKS**, object keypoint similarity: the mean over the labelled keypoints of
  ``exp(-d² / (2 s² (2 sigma)²))``, d the distance, s² the area of the person, sigma how far apart
  annotators place this keypoint (https://cocodataset.org/#keypoints-eval). Sigmas are COCO's for
  its 17 keypoints of a person. COCO has none for other skeletons: there each of n keypoints has
  1/n, as in Ultralytics, and such a similarity compares only with others made so.

A keypoint that the model called invisible is wrong and has a similarity of 0. **OKS AP** ranks the
predicted persons by score and matches them by OKS instead of the box.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labeling_pipeline.annotations import Keypoint
from labeling_pipeline.evaluation.average_precision import AveragePrecision, rank_people
from labeling_pipeline.evaluation.detection import ratio
from labeling_pipeline.evaluation.intervals import Interval, bootstrap_intervals, share_interval
from labeling_pipeline.evaluation.matching import match_rows
from labeling_pipeline.evaluation.tables import areas_of, boxes_of, rows_of
from labeling_pipeline.tasks import PERSON, Skeleton

PERSON_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
"""COCO's, of the keypoints of ``PERSON``."""


@dataclass(frozen=True)
class KeypointEvaluation:
    """How well keypoints were placed.

    pck: over the labelled keypoints of matched persons. ``None`` if there is none to judge.
    oks: mean over matched persons, likewise.
    pck_interval, oks_interval: bootstrapped over images.
    average_precision: of OKS; ``None`` if there is nobody to find, or no score to rank by.
    has_coco_sigmas: whether the sigmas are COCO's, so that OKS compares with published numbers.
    persons, matched: true persons with a labelled keypoint on asked images, and those of them that
        a predicted person was matched to.
    labelled, correct: keypoints of the matched persons.
    per_keypoint: one row a keypoint that is labelled, in the skeleton's order: ``name, labelled,
        placed, correct, pck``; ``placed``: the model gave a point at all.
    judged_images: every asked image, sorted.
    """

    alpha: float
    iou_threshold: float
    pck: float | None
    oks: float | None
    pck_interval: Interval | None
    oks_interval: Interval | None
    average_precision: AveragePrecision | None
    has_coco_sigmas: bool
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
    skeleton: Skeleton = PERSON,
    iou_threshold: float = 0.5,
    alpha: float = 0.1,
) -> KeypointEvaluation:
    """Judge keypoints on the persons that were found.

    Args:
        predictions: ``image_id, score, x0_px, y0_px, x1_px, y1_px, keypoints``, the last a
            sequence of `Keypoint` or of mappings with ``name, x_px, y_px``.
        truths: as `GroundTruth.keypoints`, with ``image_id``; ``area`` may be missing.
        asked: ``image_id``, every image that was asked for keypoints and that the truth covers.
        skeleton: its keypoints are judged, others left out.
        iou_threshold: least IoU of the boxes of a matched pair, above 0 and at most 1.
        alpha: tolerance as a share of the larger side of the true box.
    """
    images = asked[["image_id"]].drop_duplicates().sort_values("image_id", ignore_index=True)
    found, found_images = rows_of(predictions, images)
    people, people_images = rows_of(truths.drop_duplicates("instance"), images)
    points = _true_points(truths, people["instance"], skeleton)
    placed = _placed_points(found["keypoints"], skeleton)
    matching = match_rows(found, found_images, people, people_images, [iou_threshold]).at(0)
    is_labelled = points[..., 2] > 0
    has_points = is_labelled.sum(axis=1) > 0
    row = np.flatnonzero(matching.taken >= 0)
    row = row[has_points[matching.taken[row]]]
    person = matching.taken[row]

    labelled = is_labelled[person]
    distance_px = np.linalg.norm(placed[row] - points[person, :, :2], axis=2)
    boxes = boxes_of(people)[person]
    tolerance_px = alpha * (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) + 1e-9
    correct = labelled & (distance_px <= tolerance_px[:, None])
    sigmas = PERSON_SIGMAS if skeleton is PERSON else (1 / points.shape[1],) * points.shape[1]
    similarity = _similarity(distance_px, areas_of(people)[person], labelled, sigmas)
    intervals = _intervals(found_images[row], labelled, correct, similarity, len(images))
    per_keypoint = pd.DataFrame(
        {
            "name": skeleton.keypoints,
            "labelled": labelled.sum(axis=0),
            "placed": (labelled & ~np.isnan(distance_px)).sum(axis=0),
            "correct": correct.sum(axis=0),
        }
    )
    per_keypoint = per_keypoint[per_keypoint["labelled"] > 0].reset_index(drop=True)
    return KeypointEvaluation(
        alpha=alpha,
        iou_threshold=iou_threshold,
        pck=ratio(int(correct.sum()), int(labelled.sum())),
        oks=float(similarity.mean()) if len(similarity) else None,
        pck_interval=intervals[0],
        oks_interval=intervals[1],
        average_precision=rank_people(
            people, points, found, placed, list(images["image_id"]), sigmas
        ),
        has_coco_sigmas=skeleton is PERSON,
        persons=int(has_points.sum()),
        matched=len(row),
        labelled=int(labelled.sum()),
        correct=int(correct.sum()),
        per_keypoint=per_keypoint.assign(pck=per_keypoint["correct"] / per_keypoint["labelled"]),
        judged_images=tuple(images["image_id"]),
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


def _true_points(truths: pd.DataFrame, people: pd.Series, skeleton: Skeleton) -> np.ndarray:
    """(n, k, 3) float: x, y in pixels and visibility of the k keypoints of n people; a keypoint
    that is not labelled has 0 as its visibility."""
    points = np.zeros((len(people), len(skeleton.keypoints), 3))
    person = pd.Index(people).get_indexer(truths["instance"])
    keypoint = pd.Index(skeleton.keypoints).get_indexer(truths["name"])
    kept = (person >= 0) & (keypoint >= 0) & (truths["visibility"].to_numpy(dtype=int) > 0)
    given = truths.loc[kept, ["x_px", "y_px", "visibility"]].to_numpy(dtype=float)
    points[person[kept], keypoint[kept]] = given
    return points


def _placed_points(people: Iterable[Any], skeleton: Skeleton) -> np.ndarray:
    """(p, k, 2) float: x, y in pixels of the k keypoints of p people; NaN: not placed."""
    nowhere = (math.nan, math.nan)
    placed = [
        [points.get(name, nowhere) for name in skeleton.keypoints]
        for points in (visible_points(() if given is None else given) for given in people)
    ]
    return np.array(placed, dtype=float).reshape(-1, len(skeleton.keypoints), 2)


def _similarity(
    distance_px: np.ndarray, area_px2: np.ndarray, labelled: np.ndarray, sigmas: Sequence[float]
) -> np.ndarray:
    """(n,) OKS of n people. distance_px: (n, k), NaN: not placed."""
    spread = 2 * area_px2[:, None] * (2 * np.asarray(sigmas)) ** 2 + np.spacing(1)
    near = np.exp(-(np.nan_to_num(distance_px, nan=np.inf) ** 2) / spread)
    return (near * labelled).sum(axis=1) / labelled.sum(axis=1)


def _intervals(
    image_of: np.ndarray,
    labelled: np.ndarray,
    correct: np.ndarray,
    similarity: np.ndarray,
    images: int,
) -> list[Interval | None]:
    """Of PCK and of the mean OKS. image_of: (n,) the image of each matched person."""
    columns = [correct.sum(axis=1), labelled.sum(axis=1), similarity, np.ones(len(image_of))]
    sums = np.stack([np.bincount(image_of, weights=c, minlength=images) for c in columns])

    def statistics(weights: np.ndarray) -> list[float | None]:
        right, points, similar, people = sums @ weights
        return [ratio(right, points), ratio(similar, people)]

    units = len(np.unique(image_of))
    return [share_interval(one, units) for one in bootstrap_intervals(statistics, images)]
