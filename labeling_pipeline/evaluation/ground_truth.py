"""What is known about images, whatever file says it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from labeling_pipeline.errors import ConfigurationError

BOX_COLUMNS = ["x0_px", "y0_px", "x1_px", "y1_px"]

_BOXES = ["file_name", "label", *BOX_COLUMNS, "iscrowd", "area", "text", "segmentation"]
_KEYPOINTS = ["file_name", "instance", "label", *BOX_COLUMNS, "area"]
_POINT = ["name", "x_px", "y_px", "visibility"]


@dataclass(frozen=True)
class GroundTruth:
    """What one file knows about the images.

    boxes: one row a box: ``file_name, label, x0_px, y0_px, x1_px, y1_px, iscrowd, area`` (square
        pixels; NaN: that of the box), ``text`` (what stands there; missing: not known) and
        ``segmentation`` (COCO's: a list of outlines, each ``[x, y, x, y, ...]`` in pixels, or a
        run-length encoding; missing: not known).
    keypoints: one row a keypoint of a person: ``file_name, instance, label``, the person's box
        ``x0_px, y0_px, x1_px, y1_px`` and ``area``, then ``name, x_px, y_px, visibility``.
        ``instance`` tells the people of the whole file apart. ``visibility`` is COCO's: 0 not
        labelled (then the coordinates are NaN), 1 labelled but hidden, 2 visible.
    file_names: the images the truth speaks of, also those without a box.
    labels: the categories the truth speaks of, also those without a box. An image in
        ``file_names`` without a box of such a label is known not to show it; of any other label
        nothing is known.
    """

    boxes: pd.DataFrame
    keypoints: pd.DataFrame
    file_names: frozenset[str]
    labels: frozenset[str]

    @classmethod
    def of(
        cls,
        boxes: Sequence[tuple[Any, ...]],
        keypoints: Sequence[tuple[Any, ...]],
        file_names: frozenset[str],
        labels: frozenset[str],
    ) -> "GroundTruth":
        """From rows with the columns above, in their order."""
        return cls(
            boxes=pd.DataFrame(boxes, columns=_BOXES),
            keypoints=pd.DataFrame(keypoints, columns=[*_KEYPOINTS, *_POINT]),
            file_names=file_names,
            labels=labels,
        )

    @property
    def has_text(self) -> bool:
        """Whether it knows what stands on any image."""
        return bool(self.boxes["text"].notna().any())

    def covers(self, file_names: pd.Series, labels: pd.Series) -> pd.Series:
        """Tell, row by row, whether the truth knows if that label is on that image."""
        return file_names.isin(self.file_names) & labels.isin(self.labels)


def invalid(path: str, where: str, expected: str, got: object) -> ConfigurationError:
    """The error of a file that is not what its format prescribes."""
    shown = repr(got)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return ConfigurationError(
        f"The ground truth {path} is not valid at {where}: expected {expected}, got {shown}. "
        "Correct the file, or leave the ground truth out of the plan."
    )
