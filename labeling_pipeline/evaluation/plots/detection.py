"""Figures of boxes against ground truth."""

from typing import TYPE_CHECKING

import pandas as pd

from labeling_pipeline.evaluation.plots.shapes import right_and_wrong, score_bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def detection_labels(per_label: pd.DataFrame) -> "Figure":
    """Draw precision, recall and F1 of every label: ``DetectionEvaluation.per_label``."""
    return score_bars(per_label, "label", "Detection scores by label", "true boxes")


def box_scores(matches: pd.DataFrame) -> "Figure":
    """Draw the scores of right and wrong boxes: ``DetectionEvaluation.matches``."""
    return right_and_wrong(
        pd.to_numeric(matches["score"]),
        matches["correct"].astype(bool),
        "Scores of right and wrong boxes",
        "score",
        "boxes",
    )
