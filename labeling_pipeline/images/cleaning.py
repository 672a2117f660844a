"""Which images are good enough to label: measure once, judge as often as the rules change.

Measuring decodes an image; its result is a row of the table ``images``. Judging and looking for
near duplicates need only those rows, so a changed threshold reads no file again.

Reasons: those of `labeling_pipeline.images.reading`, then ``too_small``, ``extreme_aspect``,
``blank``, ``too_dark``, ``too_bright``, ``blurred``, ``near_duplicate``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from labeling_pipeline.errors import ImageError
from labeling_pipeline.images.hashing import (
    HASH_BITS,
    content_hash,
    fingerprint,
    hamming,
    parse_fingerprints,
)
from labeling_pipeline.images.reading import decode

ACCEPTED, REJECTED = "accepted", "rejected"
NEAR_DUPLICATE = "near_duplicate"

# Brightness, contrast and sharpness are measured at most this large, so that one threshold fits
# photos of any resolution.
_MEASURED_SIDE_PX = 1024
# Two pictures of one scene may differ this much in width / height, from rounding when resized.
_ASPECT_TOLERANCE = 0.05


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
        2.0,
        ge=0,
        description="Least variance of the Laplacian of luma, at 1024 px at most (blurred).",
    )
    reject_near_duplicates: bool = Field(
        True, description="Keep only the best of pictures that look alike (near_duplicate)."
    )
    near_duplicate_distance: int = Field(
        8,
        ge=0,
        le=32,
        description="Pictures whose perceptual hashes differ in at most this many of 64 bits are "
        "compared closely.",
    )
    near_duplicate_difference: int = Field(
        12,
        ge=0,
        le=255,
        description="Near duplicates differ by at most this much, of 0..255, everywhere in a "
        "12 x 12 thumbnail.",
    )


@dataclass(frozen=True)
class ImageRecord:
    """A row of the table ``images``, without its number. The columns are explained there."""

    image_id: str
    width_px: int | None = None
    height_px: int | None = None
    format: str | None = None
    mode: str | None = None
    frames: int | None = None
    exif_orientation: int | None = None
    brightness: float | None = None
    contrast: float | None = None
    sharpness: float | None = None
    perceptual_hash: str | None = None
    cluster: str | None = None
    status: str = ACCEPTED
    reason: str | None = None
    detail: str | None = None


def inspect_image(data: bytes) -> ImageRecord:
    """Measure an image.

    Args:
        data: the bytes of the file.

    Returns:
        The record with status accepted, not judged yet; rejected with reason and detail, and
        without measurements, if the image cannot be decoded.
    """
    image_id = content_hash(data)
    try:
        decoded = decode(data)
    except ImageError as error:
        return ImageRecord(image_id, status=REJECTED, reason=error.reason, detail=error.detail)
    height, width = decoded.pixels.shape[:2]
    luma = Image.fromarray(decoded.pixels).convert("L")
    luma.thumbnail((_MEASURED_SIDE_PX, _MEASURED_SIDE_PX), Image.Resampling.BOX)
    values = np.asarray(luma, dtype=np.float32)
    return ImageRecord(
        image_id,
        width_px=width,
        height_px=height,
        format=decoded.format,
        mode=decoded.mode,
        frames=decoded.frames,
        exif_orientation=decoded.exif_orientation,
        brightness=float(values.mean(dtype=np.float64)),
        contrast=float(values.std(dtype=np.float64)),
        sharpness=_sharpness(values),
        perceptual_hash=fingerprint(decoded.pixels),
    )


def judge(record: ImageRecord, rules: CleaningRules) -> tuple[str, str] | None:
    """Reason and detail why one image is rejected for itself; None if it is good enough."""
    if record.width_px is None or record.height_px is None:
        return record.reason or "unreadable", record.detail or "the image could not be decoded"
    shorter, longer = sorted((record.width_px, record.height_px))
    brightness, contrast = record.brightness or 0.0, record.contrast or 0.0
    sharpness = record.sharpness or 0.0
    checks = (
        (
            shorter < rules.min_side_px,
            "too_small",
            f"{record.width_px} x {record.height_px} px, the shorter side needs "
            f"{rules.min_side_px}",
        ),
        (
            longer > rules.max_aspect * shorter,
            "extreme_aspect",
            f"aspect ratio {longer / max(shorter, 1):.1f}, at most {rules.max_aspect:g}",
        ),
        (
            contrast < rules.min_contrast,
            "blank",
            f"contrast {contrast:.2f}, at least {rules.min_contrast:g}",
        ),
        (
            brightness < rules.min_brightness,
            "too_dark",
            f"brightness {brightness:.1f}, at least {rules.min_brightness:g}",
        ),
        (
            brightness > rules.max_brightness,
            "too_bright",
            f"brightness {brightness:.1f}, at most {rules.max_brightness:g}",
        ),
        (
            sharpness < rules.min_sharpness,
            "blurred",
            f"sharpness {sharpness:.2f}, at least {rules.min_sharpness:g}",
        ),
    )
    return next(((reason, detail) for failed, reason, detail in checks if failed), None)


def near_duplicates(records: Sequence[ImageRecord], rules: CleaningRules) -> list[int]:
    """For each image, which image of the sequence stands for it: itself, or a better one like it.

    Images are taken from the best to the worst: by pixels, then sharpness, then image_id. Each
    one not yet represented represents itself and all worse ones that are like it. So every image
    is like the one that is kept for it, never only like one in between.

    Alike means: the hashes are within `near_duplicate_distance`, the thumbnails differ nowhere by
    more than `near_duplicate_difference`, and the shapes agree. Candidates come from bands: of
    d + 1 disjoint pieces of two hashes at distance d, one is equal in both.

    Args:
        records: measured images; all have a perceptual hash.
        rules: the thresholds.

    Returns:
        As many indices into `records` as there are records.
    """
    order = sorted(range(len(records)), key=lambda i: _rank(records[i]))
    if not order:
        return []
    hashes, thumbnails = parse_fingerprints([str(records[i].perceptual_hash) for i in order])
    aspects = np.log([_aspect(records[i]) for i in order])
    bands = _Bands(hashes, rules.near_duplicate_distance + 1)
    kept_by = np.full(len(order), -1)
    for position in range(len(order)):
        if kept_by[position] >= 0:
            continue
        kept_by[position] = position
        others = bands.behind(position)
        others = others[kept_by[others] < 0]
        distance = hamming(hashes[position], hashes[others])
        others = np.unique(others[distance <= rules.near_duplicate_distance])
        if len(others) == 0:
            continue
        difference = np.abs(
            thumbnails[others].astype(np.int16) - thumbnails[position].astype(np.int16)
        ).max(axis=1)
        alike = (difference <= rules.near_duplicate_difference) & (
            np.abs(aspects[others] - aspects[position]) <= _ASPECT_TOLERANCE
        )
        kept_by[others[alike]] = position
    stands_for = [0] * len(order)
    for position, index in enumerate(order):
        stands_for[index] = order[kept_by[position]]
    return stands_for


class _Bands:
    """Positions of hashes, grouped by each of several disjoint pieces of their bits."""

    def __init__(self, hashes: np.ndarray, count: int) -> None:
        edges = np.linspace(0, HASH_BITS, count + 1).astype(int)
        self._pieces = []
        for low, high in pairwise(edges):
            keys = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
            grouped = np.argsort(keys, kind="stable")
            ends = np.searchsorted(keys[grouped], keys, side="right")
            place = np.empty_like(grouped)
            place[grouped] = np.arange(len(grouped))
            # A stable sort keeps positions ascending, so those behind one follow it in its group.
            self._pieces.append((grouped, place + 1, ends))

    def behind(self, position: int) -> np.ndarray:
        """Positions after the given one that share a piece with it, some more than once."""
        return np.concatenate(
            [grouped[begin[position] : end[position]] for grouped, begin, end in self._pieces]
        )


def _rank(record: ImageRecord) -> tuple[int, float, str]:
    pixels = (record.width_px or 0) * (record.height_px or 0)
    return -pixels, -(record.sharpness or 0.0), record.image_id


def _aspect(record: ImageRecord) -> float:
    return (record.width_px or 1) / (record.height_px or 1)


def _sharpness(luma: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of (height, width) float32 luma; 0 under 3 px."""
    if min(luma.shape) < 3:
        return 0.0
    laplacian = (
        luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
    )
    return float(laplacian.var(dtype=np.float64))
