"""All that is measured of one entry of a plan against one kind of truth."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.average_precision import AveragePrecision
from labeling_pipeline.evaluation.detection import DetectionEvaluation, ratio
from labeling_pipeline.evaluation.detection_errors import ErrorKind
from labeling_pipeline.evaluation.intervals import Measure
from labeling_pipeline.evaluation.keypoints import KeypointEvaluation
from labeling_pipeline.evaluation.outlines import OutlineEvaluation
from labeling_pipeline.evaluation.plots import detection as plots
from labeling_pipeline.evaluation.plots.frame import png_bytes
from labeling_pipeline.evaluation.text import TextEvaluation


class Origin(StrEnum):
    """Where a truth comes from: files that the plan names, or people's corrections. People chose
    which images to correct, so what is measured there says nothing of the others."""

    FILES = "files"
    CORRECTIONS = "corrections"


@dataclass(frozen=True)
class EntryEvaluation:
    """How one entry compares with the truth. What its task does not yield is ``None``.

    entry: its name.
    boxes: of boxes, or of the boxes around outlines.
    ranking: average precision; ``None`` also if no box has a score.
    errors: those of ``boxes``, with the ``path`` of the image first, the worst images first.
    misread: of ``text``, with the ``path`` of the image first.
    notes: what a person should know of the truth, with the fix.
    """

    entry: str
    origin: Origin
    boxes: DetectionEvaluation | None
    ranking: AveragePrecision | None
    keypoints: KeypointEvaluation | None
    outlines: OutlineEvaluation | None
    text: TextEvaluation | None
    errors: pd.DataFrame
    misread: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its files and figures; no other entry can be called so."""
        return self.entry if self.origin is Origin.FILES else f"{self.entry}-corrected"

    @property
    def judged_images(self) -> int:
        """How many images it is about."""
        judged = self.boxes or self.text
        return len(judged.judged_images) if judged else 0

    @cached_property
    def figures(self) -> dict[str, bytes]:
        """What is seen at a glance: name -> PNG."""
        boxes, name = self.boxes, self.name
        if boxes is None or not self.judged_images:
            return {}
        figures = {
            f"{name}_labels": plots.detection_labels(boxes.per_label),
            f"{name}_sizes": plots.detection_sizes(boxes.per_size),
            f"{name}_box_scores": plots.box_scores(boxes.matches),
        }
        if self.ranking is not None:
            figures[f"{name}_precision_recall"] = plots.precision_recall(
                self.ranking.curves, boxes.overall
            )
        return {name: png_bytes(figure) for name, figure in figures.items()}

    @property
    def labels(self) -> pd.DataFrame:
        """``DetectionEvaluation.per_label`` with ``ap, ap_50`` of each label, NaN without a
        ranking; no rows without boxes."""
        if self.boxes is None:
            return pd.DataFrame()
        if self.ranking is None:
            return self.boxes.per_label.assign(ap=math.nan, ap_50=math.nan)
        ranked = self.ranking.per_label[["label", "ap", "ap_50"]]
        return self.boxes.per_label.merge(ranked, on="label")

    @property
    def sizes(self) -> pd.DataFrame:
        """``DetectionEvaluation.per_size`` with ``ap`` of each size, likewise."""
        if self.boxes is None:
            return pd.DataFrame()
        ranked = self.ranking
        ap = (ranked.ap_small, ranked.ap_medium, ranked.ap_large) if ranked else (None,) * 3
        return self.boxes.per_size.assign(ap=np.array(ap, dtype=float))

    @property
    def kinds(self) -> pd.DataFrame:
        """How many errors there are of each kind that occurs: ``kind, boxes``."""
        counts = self.errors["kind"].value_counts()
        kinds = [kind.value for kind in ErrorKind if kind in counts]
        return pd.DataFrame({"kind": kinds, "boxes": [int(counts[kind]) for kind in kinds]})

    @property
    def measures(self) -> dict[str, Measure]:
        """Name -> what was measured, of all that exists."""
        return dict(self._measures())

    def _measures(self) -> Iterator[tuple[str, Measure]]:
        if boxes := self.boxes:
            yield "f1", Measure(boxes.overall.f1, boxes.f1_interval)
            yield "f1_at_95", Measure(boxes.by_threshold[0.95].f1)
            yield "mean_f1", Measure(boxes.mean_f1, boxes.mean_f1_interval)
            yield "precision", Measure(boxes.overall.precision)
            yield "recall", Measure(boxes.overall.recall)
            share = ratio(boxes.absent_with_boxes, boxes.absent)
            yield "absent_with_boxes", Measure(share, boxes.absent_interval)
        if ranking := self.ranking:
            yield "average_precision", Measure(ranking.ap)
            yield "average_precision_50", Measure(ranking.ap_50)
            yield "average_precision_75", Measure(ranking.ap_75)
        if keypoints := self.keypoints:
            yield "pck", Measure(keypoints.pck, keypoints.pck_interval)
            yield "oks", Measure(keypoints.oks, keypoints.oks_interval)
            if keypoints.average_precision:
                yield "oks_average_precision", Measure(keypoints.average_precision.ap)
        if self.outlines:
            yield "mask_iou", Measure(self.outlines.mask_iou)
        if text := self.text:
            yield "page_character_error_rate", text.pages.characters.measure
            yield "page_word_error_rate", text.pages.words.measure
            if text.lines:
                yield "line_character_error_rate", text.lines.characters.measure
                yield "line_word_error_rate", text.lines.words.measure
