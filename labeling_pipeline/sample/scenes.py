"""Procedurally drawn scenes: coloured shapes and stick people, with exact boxes and keypoints.

The sample dataset is drawn here, and so are the pictures that the tiny checkpoints were trained
and scored on. A tiny checkpoint knows nothing else, so a change to what is drawn asks for new
checkpoints.

Everything random comes from the generator that the caller passes. Seed namespaces keep pictures
apart, each the first number of a ``numpy.random.SeedSequence``: 1 is training, 2 is held-out
scoring, 3 is the sample dataset, 4 and 5 are benchmarks; tests take others.

Coordinates are pixels, x to the right and y down, with the origin at the top left corner of the
top left pixel. "Left" in a keypoint's name is the person's own left. People face the viewer, so
it is the right side of the picture; a limb's colour tells the two sides apart also where the
drawing is symmetric.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from labeling_pipeline.tasks import PERSON

SHAPES = ("circle", "square", "triangle", "star")
POSTURES = ("standing", "arms_raised", "sitting", "running", "lying")
POSTURE_LABELS: dict[str, str] = {
    "standing": "standing person",
    "arms_raised": "person with raised arms",
    "sitting": "sitting person",
    "running": "running person",
    "lying": "lying person",
}
PERSON_KEYPOINTS: tuple[str, ...] = PERSON.keypoints

Color = tuple[int, int, int]

_SKIN: Color = (240, 205, 170)
_EYE: Color = (20, 20, 20)
_LEFT_LIMB: Color = (230, 60, 60)
_RIGHT_LIMB: Color = (60, 90, 235)

_KEYPOINT = {name: i for i, name in enumerate(PERSON_KEYPOINTS)}
_HEAD = [_KEYPOINT[n] for n in ("nose", "left eye", "right eye", "left ear", "right ear")]
_TORSO = [_KEYPOINT[n] for n in ("left shoulder", "right shoulder", "right hip", "left hip")]
_LIMBS = [
    (_KEYPOINT[f"{side} {start}"], _KEYPOINT[f"{side} {end}"], color)
    for start, end in (
        ("shoulder", "elbow"),
        ("elbow", "wrist"),
        ("hip", "knee"),
        ("knee", "ankle"),
    )
    for side, color in (("left", _LEFT_LIMB), ("right", _RIGHT_LIMB))
]

# In smaller pictures people cannot be told from noise.
MIN_SIDE_PX = 56

_MAX_OVERLAP_IOU = 0.05
_PLACEMENT_TRIES = 20


@dataclass(frozen=True)
class SceneObject:
    """One drawn object and everything that is known about it."""

    label: str  # one of SHAPES, or "person"
    bbox_px: np.ndarray  # (4,) float64, x0 y0 x1 y1, the tight box of what was drawn
    keypoints_px: (
        np.ndarray | None
    )  # (17, 2) float64, x y, order of PERSON_KEYPOINTS; None for shapes
    posture: str | None  # one of POSTURES; None for shapes


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it."""

    image: np.ndarray  # (height, width, 3) uint8, RGB
    objects: tuple[SceneObject, ...]  # as drawn: a later one may cover a little of an earlier one


def draw_scene(
    rng: np.random.Generator,
    width_px: int,
    height_px: int,
    kinds: Sequence[str] | None = None,
    max_objects: int = 3,
    scale_px: float | None = None,
) -> Scene:
    """Draw a scene of shapes and people on a noisy two-colour background.

    Args:
        rng: source of everything random; equal states draw equal scenes.
        width_px: width of the picture, pixels.
        height_px: height of the picture, pixels.
        kinds: what to draw, one entry an object: a shape, a posture, or "person" for a person in
            a random posture. None draws 1 to `max_objects` objects, the four shapes and people
            equally likely.
        max_objects: upper bound of the random number of objects; unused when `kinds` is given.
        scale_px: what objects are sized by, pixels: shapes measure 0.18 to 0.45 of it, standing
            people 0.42 to 0.80. None goes by the picture.

    Returns:
        The scene. An object that finds no free place after some tries is left out, so a crowded
        request can yield fewer objects than it names.

    Raises:
        ValueError: a kind is not known, or a side is under `MIN_SIDE_PX`.
    """
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise ValueError(
            f"a scene needs sides of at least {MIN_SIDE_PX} px, got {width_px} x {height_px}"
        )
    for kind in kinds or ():
        if kind not in SHAPES and kind not in POSTURES and kind != "person":
            raise ValueError(f"unknown kind of object: {kind!r}")

    background, base_color = _background(rng, width_px, height_px)
    image = Image.fromarray(background)
    draw = ImageDraw.Draw(image)
    wanted: Sequence[str | None] = (
        kinds if kinds is not None else [None] * int(rng.integers(1, max_objects + 1))
    )
    if scale_px is None:
        # Objects scale with the picture, but in a long picture the short side limits what fits.
        scale_px = min(math.sqrt(width_px * height_px), 1.2 * min(width_px, height_px))
    objects: list[SceneObject] = []
    for wanted_kind in wanted:
        placed = _place(rng, wanted_kind, scale_px, width_px, height_px, objects)
        if placed is None:
            continue
        color = _contrasting_color(rng, base_color)
        if placed.keypoints_px is None:
            _draw_shape(draw, placed.label, placed.bbox_px, color)
        else:
            _draw_person(draw, placed.keypoints_px, color)
        objects.append(placed)
    return Scene(np.array(image), tuple(objects))


def _place(
    rng: np.random.Generator,
    kind: str | None,
    scale_px: float,
    width_px: int,
    height_px: int,
    others: Sequence[SceneObject],
) -> SceneObject | None:
    """Size and place one object where it barely overlaps the others; None if no try succeeds."""
    for _ in range(_PLACEMENT_TRIES):
        # A random kind is drawn anew in each try: what does not fit gives way to what does.
        chosen = kind if kind is not None else str(rng.choice([*SHAPES, "person"]))
        candidate: SceneObject | None
        if chosen in SHAPES:
            candidate = _sized_shape(rng, chosen, scale_px, width_px, height_px)
        else:
            posture = str(rng.choice(POSTURES)) if chosen == "person" else chosen
            candidate = _sized_person(rng, posture, scale_px, width_px, height_px)
        if candidate is not None and all(
            _iou(candidate.bbox_px, other.bbox_px) < _MAX_OVERLAP_IOU for other in others
        ):
            return candidate
    return None


def _sized_shape(
    rng: np.random.Generator, shape: str, scale_px: float, width_px: int, height_px: int
) -> SceneObject:
    width = scale_px * rng.uniform(0.18, 0.45)
    height = width if shape == "circle" else width * rng.uniform(0.8, 1.25)
    x = rng.uniform(0, width_px - width - 1)
    y = rng.uniform(0, height_px - height - 1)
    return SceneObject(shape, np.array([x, y, x + width, y + height]), None, None)


def _sized_person(
    rng: np.random.Generator, posture: str, scale_px: float, width_px: int, height_px: int
) -> SceneObject | None:
    """A person at a random place; None when this one is too large for the picture."""
    keypoints = _person_keypoints(rng, posture) * (scale_px * rng.uniform(0.42, 0.80))
    box = _person_box(keypoints)
    size = box[2:] - box[:2]
    frame = np.array([width_px, height_px])
    if (size >= frame - 2).any():
        return None
    corner = rng.uniform(1, frame - 1 - size)
    return SceneObject(
        "person", np.concatenate([corner, corner + size]), keypoints - box[:2] + corner, posture
    )


def _person_keypoints(rng: np.random.Generator, posture: str) -> np.ndarray:
    """Keypoints of a person in a posture.

    Returns:
        (17, 2) float64, x y, in units of the standing body's height, head at the origin.
    """

    def angles(*mean_and_spread: tuple[float, float]) -> list[float]:
        return [mean + rng.normal(0, spread) for mean, spread in mean_and_spread]

    # A limb is two angles (upper, lower), radians from straight down, growing outwards.
    if posture == "arms_raised":
        arms = [angles((2.6, 0.2), (2.9, 0.2)) for _ in range(2)]
        legs = [angles((0.1, 0.07), (0.05, 0.05))] * 2
    elif posture == "sitting":
        arms = [angles((0.3, 0.15), (0.2, 0.2))] * 2
        legs = [angles((1.1, 0.12), (0.0, 0.08)) for _ in range(2)]
    elif posture == "running":
        arms = [angles((0.9, 0.15), (2.2, 0.2)), angles((0.9, 0.15), (0.2, 0.2))]
        legs = [angles((0.75, 0.1), (0.1, 0.1)), angles((0.35, 0.1), (0.95, 0.15))]
        if rng.random() < 0.5:
            arms, legs = arms[::-1], legs[::-1]
    else:
        arms = [angles((0.25, 0.12), (0.15, 0.12)) for _ in range(2)]
        legs = [angles((0.1, 0.06), (0.06, 0.05)) for _ in range(2)]

    points = {"nose": (0.0, 0.10)}
    for name, side, arm, leg in (("left", 1, arms[0], legs[0]), ("right", -1, arms[1], legs[1])):
        points[f"{name} eye"] = (side * 0.03, 0.08)
        points[f"{name} ear"] = (side * 0.065, 0.09)
        points[f"{name} shoulder"] = (side * 0.14, 0.24)
        points[f"{name} hip"] = (side * 0.09, 0.54)
        points[f"{name} elbow"] = _joint(points[f"{name} shoulder"], side, arm[0], 0.17)
        points[f"{name} wrist"] = _joint(points[f"{name} elbow"], side, arm[1], 0.16)
        points[f"{name} knee"] = _joint(points[f"{name} hip"], side, leg[0], 0.22)
        points[f"{name} ankle"] = _joint(points[f"{name} knee"], side, leg[1], 0.22)
    upright = np.array([points[name] for name in PERSON_KEYPOINTS])

    if posture == "lying":
        turn = math.copysign(math.pi / 2, rng.random() - 0.5)
    else:
        turn = rng.normal(0, 0.06)
    cos, sin = math.cos(turn), math.sin(turn)
    return upright @ np.array([[cos, sin], [-sin, cos]])


def _joint(
    start: tuple[float, float], side: int, angle_rad: float, length: float
) -> tuple[float, float]:
    return (
        start[0] + side * length * math.sin(angle_rad),
        start[1] + length * math.cos(angle_rad),
    )


def _limb_width_px(keypoints_px: np.ndarray) -> float:
    # Shoulder to hip is 0.30 of the body's height and 0.05 aside, in every posture.
    shoulder, hip = keypoints_px[_KEYPOINT["left shoulder"]], keypoints_px[_KEYPOINT["left hip"]]
    body_height_px = float(np.linalg.norm(shoulder - hip)) / math.hypot(0.30, 0.05)
    return max(2.0, 0.045 * body_height_px)


def _head_circle(keypoints_px: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (2,) and radius of the drawn head, pixels."""
    ears = keypoints_px[_KEYPOINT["left ear"]] - keypoints_px[_KEYPOINT["right ear"]]
    return keypoints_px[_HEAD].mean(0), float(np.linalg.norm(ears)) / 2 * 1.15


def _person_box(keypoints_px: np.ndarray) -> np.ndarray:
    """Tight box (4,) x0 y0 x1 y1 around the joints with their limb width, and around the head."""
    half_width = _limb_width_px(keypoints_px) / 2
    center, radius = _head_circle(keypoints_px)
    low = np.minimum(keypoints_px.min(0) - half_width, center - radius)
    high = np.maximum(keypoints_px.max(0) + half_width, center + radius)
    return np.concatenate([low, high])


def _draw_person(draw: ImageDraw.ImageDraw, keypoints_px: np.ndarray, shirt: Color) -> None:
    width = _limb_width_px(keypoints_px)
    center, radius = _head_circle(keypoints_px)
    draw.polygon([tuple(keypoints_px[i]) for i in _TORSO], fill=shirt)
    for start, end, color in _LIMBS:
        _draw_limb(draw, keypoints_px[start], keypoints_px[end], width, color)
    neck = keypoints_px[_TORSO[:2]].mean(0)
    _draw_limb(draw, neck, center, width, _SKIN)
    _draw_disc(draw, center, radius, _SKIN)
    for eye in ("left eye", "right eye"):
        _draw_disc(draw, keypoints_px[_KEYPOINT[eye]], max(1.0, 0.2 * radius), _EYE)


def _draw_limb(
    draw: ImageDraw.ImageDraw, start: np.ndarray, end: np.ndarray, width: float, color: Color
) -> None:
    draw.line([tuple(start), tuple(end)], fill=color, width=max(2, round(width)))
    for joint in (start, end):
        _draw_disc(draw, joint, width / 2, color)


def _draw_disc(draw: ImageDraw.ImageDraw, center: np.ndarray, radius: float, color: Color) -> None:
    draw.ellipse([*(center - radius), *(center + radius)], fill=color)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, bbox_px: np.ndarray, color: Color) -> None:
    x0, y0, x1, y1 = (float(v) for v in bbox_px)
    if shape == "circle":
        draw.ellipse([x0, y0, x1, y1], fill=color)
    elif shape == "square":
        draw.rectangle([x0, y0, x1, y1], fill=color)
    elif shape == "triangle":
        draw.polygon([(x0, y1), (x1, y1), ((x0 + x1) / 2, y0)], fill=color)
    else:
        corners = _STAR * (bbox_px[2:] - bbox_px[:2]) + bbox_px[:2]
        draw.polygon([tuple(p) for p in corners], fill=color)


def _unit_star() -> np.ndarray:
    """Corners (10, 2) of a five-pointed star stretched to fill the unit square, one point up."""
    angle = -math.pi / 2 + np.arange(10) * math.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    corners = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    low, high = corners.min(0), corners.max(0)
    return (corners - low) / (high - low)


_STAR = _unit_star()


def _background(
    rng: np.random.Generator, width_px: int, height_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """A faint gradient between two colours under grey noise.

    Returns:
        The picture, (height, width, 3) uint8, and its prevailing colour, (3,) int64.
    """
    base, other = rng.integers(0, 256, (2, 3))
    if rng.random() < 0.5:
        ramp = np.linspace(0, 1, height_px, dtype=np.float32)[:, None, None]
    else:
        ramp = np.linspace(0, 1, width_px, dtype=np.float32)[None, :, None]
    mix = np.float32(rng.random() * 0.35) * ramp
    noise = rng.standard_normal((height_px, width_px, 1), dtype=np.float32)
    image = base.astype(np.float32) * (1 - mix) + other.astype(np.float32) * mix
    image = image + noise * np.float32(rng.uniform(2, 12))
    return np.clip(image, 0, 255).astype(np.uint8), base


def _contrasting_color(rng: np.random.Generator, background: np.ndarray) -> Color:
    for _ in range(50):
        color = rng.integers(0, 256, 3)
        if np.abs(color - background).sum() > 200:
            break
    else:
        color = 255 - background
    return int(color[0]), int(color[1]), int(color[2])


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    overlap = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - overlap
    return float(overlap / union)
