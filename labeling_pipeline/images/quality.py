"""Which images are good enough to label: judged from stored measurements, as often as rules change.

Reasons: those of `labeling_pipeline.images.inspection`, then those of `CHECKS` in their order, and
``near_duplicate``. Each check rejects, or only flags where the plan says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from labeling_pipeline.images.inspection import MEASURED_SIDE_PX

NEAR_DUPLICATE = "near_duplicate"

Check = Literal[
    "too_small",
    "extreme_aspect",
    "blank",
    "too_dark",
    "too_bright",
    "blurred",
    "low_information",
    "near_duplicate",
]


class CleaningRules(BaseModel):
    """Thresholds an image has to meet. The defaults reject what no model could use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_side_px: int = Field(
        32, ge=1, description="The shorter side has at least this many pixels (too_small)."
    )
    max_aspect: float = Field(
        5.0, ge=1, description="Longer side / shorter side is at most this (extreme_aspect)."
    )
    min_contrast: float = Field(
        1.5, ge=0, description="Least standard deviation of luma, of 0..255 (blank)."
    )
    min_brightness: float = Field(
        4.0, ge=0, le=255, description="Least mean luma, of 0..255 (too_dark)."
    )
    max_brightness: float = Field(
        252.0, ge=0, le=255, description="Greatest mean luma, of 0..255 (too_bright)."
    )
    min_sharpness: float = Field(
        3.0,
        ge=0,
        description="Least variance of the Laplacian of luma, at "
        f"{MEASURED_SIDE_PX} px at most (blurred).",
    )
    min_entropy_bits: float = Field(
        0.3,
        ge=0,
        le=8,
        description="Least entropy of the histogram of luma, of 0..8 (low_information).",
    )
    near_duplicate_distance: int = Field(
        8,
        ge=0,
        le=32,
        description="Pictures whose perceptual hashes differ in at most this many of 64 bits are "
        "compared closely (near_duplicate).",
    )
    near_duplicate_difference: int = Field(
        12,
        ge=0,
        le=255,
        description="Near duplicates differ by at most this much, of 0..255, everywhere in a "
        "12 x 12 thumbnail.",
    )
    only_flag: tuple[Check, ...] = Field(
        (),
        description="Checks that flag an image in place of rejecting it: "
        + ", ".join(get_args(Check)),
    )


Columns = Mapping[str, Any]
"""Measurements by their column in ``images``: of one image, or arrays (n,) of many."""


@dataclass(frozen=True)
class _Test:
    fails: Callable[[Columns, CleaningRules], Any]
    detail: Callable[[Columns, CleaningRules], str]


CHECKS: dict[str, _Test] = {
    "too_small": _Test(
        lambda of, rules: np.minimum(of["width_px"], of["height_px"]) < rules.min_side_px,
        lambda of, rules: (
            f"{of['width_px']} x {of['height_px']} px, the shorter side needs {rules.min_side_px}"
        ),
    ),
    "extreme_aspect": _Test(
        lambda of, rules: (
            np.maximum(of["width_px"], of["height_px"])
            > rules.max_aspect * np.minimum(of["width_px"], of["height_px"])
        ),
        lambda of, rules: f"aspect ratio {_aspect(of):.1f}, at most {rules.max_aspect:g}",
    ),
    "blank": _Test(
        lambda of, rules: of["contrast"] < rules.min_contrast,
        lambda of, rules: f"contrast {of['contrast']:.2f}, at least {rules.min_contrast:g}",
    ),
    "too_dark": _Test(
        lambda of, rules: of["brightness"] < rules.min_brightness,
        lambda of, rules: f"brightness {of['brightness']:.1f}, at least {rules.min_brightness:g}",
    ),
    "too_bright": _Test(
        lambda of, rules: of["brightness"] > rules.max_brightness,
        lambda of, rules: f"brightness {of['brightness']:.1f}, at most {rules.max_brightness:g}",
    ),
    "blurred": _Test(
        lambda of, rules: of["sharpness"] < rules.min_sharpness,
        lambda of, rules: f"sharpness {of['sharpness']:.2f}, at least {rules.min_sharpness:g}",
    ),
    "low_information": _Test(
        lambda of, rules: of["entropy"] < rules.min_entropy_bits,
        lambda of, rules: f"entropy {of['entropy']:.2f} bits, at least {rules.min_entropy_bits:g}",
    ),
}
"""What one image is judged by, in the order in which reasons are given."""


def failed_checks(measured: Columns, rules: CleaningRules) -> dict[str, Any]:
    """Check -> whether it fails, for an image or an array (n,) of many.

    measured: of images that could be decoded.
    """
    return {name: test.fails(measured, rules) for name, test in CHECKS.items()}


def _aspect(of: Columns) -> float:
    shorter, longer = sorted((of["width_px"], of["height_px"]))
    return longer / max(shorter, 1)
