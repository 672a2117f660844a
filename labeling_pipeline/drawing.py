"""Annotations drawn onto their image.

Supervision draws; this module decides what it draws: a colour that belongs to the label, lines and
text in proportion to the image, labels that stay inside the picture. Images too small for legible
text, or for so many annotations, are enlarged first, so the result may be larger than what came in.
In a crowd labels get smaller, then only the score stands at each box and the names below the
picture, and where even that would hide the picture there are only the names below.
"""

import functools
import hashlib
import io
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from labeling_pipeline.annotations import Annotation
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.tasks import SKELETONS, Skeleton

# Strong enough for white text on them (contrast at least 4.5), and far apart for the eye.
PALETTE: tuple[str, ...] = (
    *("#c62828", "#1565c0", "#2e7d32", "#6a1b9a", "#ad4e00", "#00707c"),
    *("#ad1457", "#4527a0", "#5d4037", "#37621e", "#01579b", "#8a5a00"),
)
CJK_FONT = Path(__file__).parent / "fonts" / "wqy-microhei-part.ttf"
"""The Chinese and Japanese characters of the sample's documents, and Latin letters."""

DRAWING_VERSION = 2
"""Goes up when the same annotations would be drawn otherwise than before."""

_LEAST_PX = 640 * 480
_EASILY_SHOWN = 30
"""Annotations that a picture of so many pixels shows without crowding."""

_MOST_CROWDED = 5
_LEAST_FONT_PX, _LEAST_TAG_PX, _LEAST_TEXT_PX = 14, 11, 14
_MOST_HIDDEN = 0.2
"""Share of a picture that labels may cover."""

_MOST_ENLARGED_PX = 2400
_BACKGROUND = (246, 247, 249)
_INK, _MUTED, _RULE = (36, 41, 47), (107, 114, 128), (214, 218, 224)


def label_color(label: str) -> str:
    """Return the colour of a label, ``#rrggbb``: the same in every picture and every process."""
    digest = hashlib.sha256(label.encode()).digest()
    return PALETTE[int.from_bytes(digest[16:20]) % len(PALETTE)]


def label_colors(labels: Sequence[str]) -> dict[str, str]:
    """Colours that tell labels apart, as far as there are enough: by their place in the order."""
    unique = dict.fromkeys(labels)
    return {label: PALETTE[number % len(PALETTE)] for number, label in enumerate(unique)}


def draw_annotations(
    image: np.ndarray,
    annotations: Sequence[Annotation],
    *,
    title: str | None = None,
    colors: Mapping[str, str] | None = None,
) -> np.ndarray:
    """Draw boxes, points, outlines, keypoints with their skeleton, and what they are.

    Text that was read stands on a page of its own beside or below the picture, where it was read,
    so that it hides nothing and the two are easily compared. Text for the whole image stands below.

    Args:
        image: (height, width, 3) uint8 RGB.
        annotations: in pixels of the image. A keypoint without coordinates is not drawn. If there
            are none, the picture says so.
        title: stands in a strip above the picture.
        colors: label -> ``#rrggbb`` of ``PALETTE``; others get their `label_color`.

    Returns:
        (height', width', 3) uint8 RGB: enlarged if it has fewer pixels than 640 x 480, or than many
        annotations or small text need; widened if it is too narrow for words; with the page of
        texts if any has a place, and taller by the strips of title, names and text for the image.

    Raises:
        ValueError: the image is not of that shape and type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected (height, width, 3) uint8, got {image.shape} {image.dtype}")
    colors = {a.label: label_color(a.label) for a in annotations} | dict(colors or {})
    canvas, scale = _enlarged(image, annotations)
    side_px = math.sqrt(canvas.shape[0] * canvas.shape[1])
    font_px = max(_LEAST_FONT_PX, round(side_px / 40))
    named = [a for a in annotations if a.text is None and (a.bbox or a.point)]
    texts, tag_px = _tags(named, canvas.shape[0] * canvas.shape[1], font_px)
    thickness_px = max(2, round(tag_px / 7))
    # Supervision follows OpenCV and takes arrays as BGR.
    canvas = np.ascontiguousarray(canvas[..., ::-1])
    # Large boxes first: small ones stay visible on top.
    for annotation in sorted(annotations, key=_area, reverse=True):
        color = colors[annotation.label]
        canvas = _draw_geometry(canvas, annotation, color, scale, thickness_px)
    canvas = _widened(canvas, 20 * font_px)
    if any(texts):
        boxes = np.array([_on_canvas(a, canvas, scale) for a in named])
        canvas = _draw_tags(canvas, texts, boxes, [colors[a.label] for a in named], tag_px)
    canvas = np.ascontiguousarray(canvas[..., ::-1])
    if any(a.text is not None and not _is_about_whole_image(a) for a in annotations):
        beside = canvas.shape[0] >= canvas.shape[1]
        canvas = np.concatenate([canvas, _text_page(canvas, annotations, scale)], axis=int(beside))
    if not annotations:
        canvas = _draw_note(canvas, "nothing found", font_px)
    if texts != [_text_of(annotation) for annotation in named]:
        canvas = _with_names(canvas, Counter(a.label for a in named), colors, font_px)
    for annotation in annotations:
        if annotation.text and _is_about_whole_image(annotation):
            canvas = _captioned(canvas, annotation.text, font_px)
    return canvas if title is None else _titled(canvas, title, font_px)


def contact_sheet(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int,
    *,
    cell_px: int = 420,
) -> np.ndarray:
    """Lay pictures out in a grid, each with its title below.

    Args:
        images: (height, width, 3) uint8 RGB each, of any size.
        titles: one for each image.
        columns: at most so many side by side.
        cell_px: width and height that every picture is fitted into.

    Returns:
        (height, width, 3) uint8 RGB; a blank cell if there are no images.

    Raises:
        ValueError: there are not as many titles as images, or columns is less than 1.
    """
    if len(images) != len(titles):
        raise ValueError(f"{len(images)} images but {len(titles)} titles")
    if columns < 1:
        raise ValueError(f"a sheet needs at least 1 column, got {columns}")
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    gap_px, font_px = 12, 15
    title_px = round(font_px * 1.9)
    sheet = Image.new(
        "RGB",
        (
            columns * (cell_px + gap_px) + gap_px,
            rows * (cell_px + title_px + gap_px) + gap_px,
        ),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        picture = Image.fromarray(image)
        ratio = min(cell_px / picture.width, cell_px / picture.height)
        size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        left = gap_px + (i % columns) * (cell_px + gap_px)
        top = gap_px + (i // columns) * (cell_px + title_px + gap_px)
        sheet.paste(
            picture, (left + (cell_px - picture.width) // 2, top + (cell_px - picture.height) // 2)
        )
        font = _font(title, font_px)
        draw.text(
            (left + cell_px // 2, top + cell_px + title_px // 2),
            _cut(title, font, cell_px),
            font=font,
            fill=_INK,
            anchor="mm",
        )
    return np.asarray(sheet)


def encode_jpeg(array: np.ndarray, *, quality: int = 88) -> bytes:
    """The bytes of a picture.

    Args:
        array: (height, width, 3) uint8 RGB.
        quality: of the JPEG, 1..95.
    """
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def write_jpeg(path: Path, array: np.ndarray, *, quality: int = 88) -> None:
    """Write a picture as `encode_jpeg` makes it; missing folders are made.

    Raises:
        OSError: it cannot be written.
    """
    write_if_changed(path, encode_jpeg(array, quality=quality))


def default_font() -> Path:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic, Arabic and more."""
    from matplotlib import get_data_path

    return Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def font_files(text: str) -> list[tuple[str, str]]:
    """Return (family, file) of fonts that together have the characters of the text.

    The first is DejaVu Sans. Then comes the font of this package if it has all that is missing,
    else one of the machine's, if any helps; what no font has is drawn as a box.
    """
    chosen = [("DejaVu Sans", str(default_font()))]
    missing = {ord(c) for c in text if c.isprintable()} - _characters(chosen[0][1])
    if missing and missing <= _characters(str(CJK_FONT)):
        chosen.append(("WenQuanYi Micro Hei Part", str(CJK_FONT)))
    elif missing:
        found = _system_font(frozenset(missing))
        chosen += [found] if found else []
    return chosen


@functools.cache
def _system_font(characters: frozenset[int]) -> tuple[str, str] | None:
    """Return (family, file) of the installed font that has the most of the characters."""
    from matplotlib.font_manager import fontManager

    best: tuple[int, str, str] = (0, "", "")
    for entry in fontManager.ttflist:
        # "Last Resort" has a box with a number for every character there is.
        if entry.name.startswith("Last Resort") or entry.style != "normal":
            continue
        has = len(characters & _characters(entry.fname))
        best = max(best, (has, entry.name, entry.fname), key=lambda candidate: candidate[0])
    return best[1:] if best[0] else None


@functools.cache
def _characters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _font_file(text: str) -> str:
    """Return the one font file that serves the whole text best."""
    wanted = {ord(c) for c in text if c.isprintable()}
    files = [file for _, file in font_files(text)]
    return max(files, key=lambda file: len(wanted & _characters(file)))


def _font(text: str, font_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_file(text), font_px)


def _supervision() -> ModuleType:
    with warnings.catch_warnings():
        # It warns where OpenCV is missing; its NumPy fallback draws the same.
        warnings.simplefilter("ignore", UserWarning)
        import supervision
    return supervision


def _enlarged(image: np.ndarray, annotations: Sequence[Annotation]) -> tuple[np.ndarray, float]:
    """Return a copy, enlarged if it is small for what is drawn on it, and the factor."""
    height, width = image.shape[:2]
    crowding = min(max(len(annotations) / _EASILY_SHOWN, 1.0), _MOST_CROWDED)
    scale = max(1.0, math.sqrt(crowding * _LEAST_PX / (height * width)))
    texts = [a.bbox for a in annotations if a.bbox is not None and a.text is not None]
    lines_px = [min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in texts]
    if lines_px and (line_px := float(np.median(lines_px))) > 0:
        at_most = _MOST_ENLARGED_PX / max(height, width)
        scale = max(scale, min(_LEAST_TEXT_PX / line_px, at_most))
    if scale == 1.0:
        return image.copy(), scale
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), scale


def _widened(canvas: np.ndarray, least_px: int) -> np.ndarray:
    """Blank space to the right of a picture that is too narrow for words."""
    missing = least_px - canvas.shape[1]
    if missing <= 0:
        return canvas
    space = np.full((canvas.shape[0], missing, 3), _BACKGROUND[::-1], dtype=np.uint8)
    return np.concatenate([canvas, space], axis=1)


def _area(annotation: Annotation) -> float:
    if annotation.bbox is None:
        return 0.0
    x0, y0, x1, y1 = annotation.bbox
    return (x1 - x0) * (y1 - y0)


def _text_of(annotation: Annotation) -> str:
    label = annotation.label if len(annotation.label) <= 40 else f"{annotation.label[:39]}…"
    return f"{label} {_score_text(annotation)}".rstrip()


def _score_text(annotation: Annotation) -> str:
    """A measured score as 0.61; a calibrated one, which is a probability, as 97%, and never as a
    certainty."""
    score = annotation.score
    if score is None:
        return ""
    if not annotation.is_calibrated:
        return f"{score:.2f}"
    return "<1%" if score < 0.005 else ">99%" if score >= 0.995 else f"{score:.0%}"


def _skeleton_of(names: Sequence[str]) -> Skeleton | None:
    """Return the skeleton that has all these names, the smallest if several have."""
    fitting = [s for s in SKELETONS.values() if set(names) <= set(s.keypoints)]
    return min(fitting, key=lambda skeleton: len(skeleton.keypoints), default=None)


def _draw_geometry(
    canvas: np.ndarray, annotation: Annotation, hex_color: str, scale: float, thickness_px: int
) -> np.ndarray:
    sv = _supervision()
    color = sv.Color.from_hex(hex_color)
    if annotation.polygon:
        corners = np.rint(np.asarray(annotation.polygon) * scale).astype(np.int32)
        for shade, width_px in ((sv.Color.WHITE, thickness_px + 2), (color, thickness_px)):
            canvas = sv.draw_polygon(canvas, corners, shade, width_px)
    elif annotation.bbox is not None:
        boxes = sv.Detections(xyxy=_on_canvas(annotation, canvas, scale)[None])
        # A white rim keeps the line visible on whatever colour lies under it.
        for shade, width_px in ((sv.Color.WHITE, thickness_px + 2), (color, thickness_px)):
            annotator = sv.BoxAnnotator(shade, width_px, sv.ColorLookup.INDEX)
            canvas = annotator.annotate(canvas, boxes)
    radius_px = max(3, round(thickness_px * 1.4))
    if annotation.point is not None:
        spot = sv.KeyPoints(xy=np.asarray(annotation.point, dtype=np.float32)[None, None] * scale)
        for shade, radius in ((sv.Color.WHITE, 2 * radius_px + 2), (color, 2 * radius_px)):
            canvas = sv.VertexAnnotator(shade, radius).annotate(canvas, spot)
    if not annotation.keypoints:
        return canvas
    names = [keypoint.name for keypoint in annotation.keypoints]
    skeleton = _skeleton_of(names)
    order = skeleton.keypoints if skeleton else tuple(names)
    points = np.full((1, len(order), 2), np.nan, dtype=np.float32)
    for keypoint in annotation.keypoints:
        if keypoint.x_px is not None and keypoint.y_px is not None:
            points[0, order.index(keypoint.name)] = keypoint.x_px * scale, keypoint.y_px * scale
    keypoints = sv.KeyPoints(xy=points)
    if skeleton:
        # Supervision counts keypoints from 1.
        edges = [(a + 1, b + 1) for a, b in skeleton.edges]
        for shade, width_px in ((sv.Color.WHITE, thickness_px + 2), (color, thickness_px)):
            canvas = sv.EdgeAnnotator(shade, width_px, edges).annotate(canvas, keypoints)
    for shade, radius in ((sv.Color.WHITE, radius_px + 1), (color, radius_px)):
        canvas = sv.VertexAnnotator(shade, radius).annotate(canvas, keypoints)
    return canvas


def _on_canvas(annotation: Annotation, canvas: np.ndarray, scale: float) -> np.ndarray:
    """(4,) float: the box, or the point, in pixels of the canvas, kept inside it."""
    height, width = canvas.shape[:2]
    extent = annotation.bbox or (annotation.point or (0.0, 0.0)) * 2
    box = np.asarray(extent, dtype=float) * scale
    return np.clip(box, 0, [width - 1, height - 1, width - 1, height - 1])


def _tags(
    annotations: Sequence[Annotation], picture_px: int, font_px: int
) -> tuple[list[str], int]:
    """What stands at each annotation, and how large, so that not too much is hidden: label and
    score, in a crowd smaller, in a larger one the score alone, and else nothing."""
    smallest_px = max(_LEAST_TAG_PX, font_px // 2)
    names = [_text_of(annotation) for annotation in annotations]
    scores = ["" if a.score is None else f"{a.score:.2f}" for a in annotations]
    for texts in (names, scores):
        font = ImageFont.truetype(_font_file("".join(texts)), font_px)
        hidden = sum(math.prod(_tag_size(text, font)) for text in texts if text) / picture_px
        fitting_px = (
            font_px if hidden <= _MOST_HIDDEN else font_px * math.sqrt(_MOST_HIDDEN / hidden)
        )
        if fitting_px >= smallest_px:
            return texts, int(fitting_px)
    return [""] * len(annotations), smallest_px


def _tag_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[float, float]:
    """Width and height of a tag."""
    left, top, right, bottom = font.getbbox(text)
    pad_px = _tag_padding(font.size)
    return right - left + 2 * pad_px, bottom - top + 2 * pad_px


def _tag_padding(font_px: float) -> int:
    return max(2, int(font_px) // 4)


def _draw_tags(
    canvas: np.ndarray,
    texts: Sequence[str],
    boxes: np.ndarray,
    colors: Sequence[str],
    font_px: int,
) -> np.ndarray:
    """Write at each box, unless the text is empty. boxes: (n, 4) xyxy in pixels of the canvas."""
    sv = _supervision()
    file = _font_file("".join(texts))
    font = ImageFont.truetype(file, font_px)
    height, width = canvas.shape[:2]
    places = np.empty((0, 4))
    for box, text in zip(boxes, texts, strict=True):
        if text:
            size = np.array(_tag_size(text, font))
            places = np.vstack([places, _place(box, size, np.array([width, height]), places)])
    annotator = sv.RichLabelAnnotator(
        color=sv.ColorPalette.from_hex(list(PALETTE)),
        text_color=sv.Color.WHITE,
        font_path=file,
        font_size=font_px,
        text_padding=_tag_padding(font_px),
        text_position=sv.Position.CENTER,
    )
    shown = [(t, PALETTE.index(c)) for t, c in zip(texts, colors, strict=True) if t]
    detections = sv.Detections(xyxy=places, class_id=np.array([color for _, color in shown]))
    return np.asarray(annotator.annotate(canvas, detections, labels=[text for text, _ in shown]))


def _text_page(canvas: np.ndarray, annotations: Sequence[Annotation], scale: float) -> np.ndarray:
    """A page of the canvas's size with every text in its place, as large as its box allows, and
    its score in small print above its end."""
    page = Image.new("RGB", (canvas.shape[1], canvas.shape[0]), _BACKGROUND)
    for annotation in annotations:
        if annotation.text is None or annotation.bbox is None:
            continue
        corners = _text_corners(annotation, scale)
        along, down = corners[1] - corners[0], corners[3] - corners[0]
        width, height = float(np.hypot(*along)), float(np.hypot(*down))
        font = _font(annotation.text, max(6, round(0.8 * height)))
        if (length := font.getlength(annotation.text)) > width:
            font = font.font_variant(size=max(6, int(font.size * width / length)))
        small = _font("0", max(9, round(canvas.shape[0] / 60)))
        score = _score_text(annotation)
        # Upright on a layer with room for the score, then turned as the text is.
        size = (max(1, round(width)), max(1, round(height + 2 * small.size)))
        layer = Image.new("RGBA", size)
        draw = ImageDraw.Draw(layer)
        middle = (size[0] / 2, size[1] / 2)
        draw.rectangle((0, small.size, size[0] - 1, small.size + height), outline=_RULE)
        draw.text(middle, annotation.text, font=font, fill=_INK, anchor="mm")
        draw.text((size[0], small.size - 1), score, font=small, fill=_MUTED, anchor="rs")
        angle_deg = math.degrees(math.atan2(along[1], along[0]))
        layer = layer.rotate(-angle_deg, Image.Resampling.BICUBIC, expand=True)
        x, y = corners.mean(axis=0)
        page.paste(layer, (round(x - layer.width / 2), round(y - layer.height / 2)), layer)
    return np.asarray(page)


def _text_corners(annotation: Annotation, scale: float) -> np.ndarray:
    """(4, 2) float, pixels of the canvas: clockwise from the top left of the text."""
    if len(annotation.polygon) == 4:
        return np.asarray(annotation.polygon, dtype=float) * scale
    x0, y0, x1, y1 = (scale * value for value in annotation.bbox or (0.0,) * 4)
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    # Text in a tall box runs from top to bottom, if it is more than a character.
    runs_down = y1 - y0 >= 1.5 * (x1 - x0) and len(annotation.text or "") > 1
    return np.roll(corners, -1, axis=0) if runs_down else corners


def _place(box: np.ndarray, size: np.ndarray, frame: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Find a place for a label at its box, inside the frame, away from other labels if possible.

    Args:
        box: (4,) of the annotation, xyxy in pixels, as all boxes here.
        size: (2,) width and height of the label.
        frame: (2,) width and height of the picture.
        taken: (n, 4) the labels placed before.

    Returns:
        (4,) the place that hides least of other labels; the first of the usual places if equal.
    """
    x0, y0, x1, y1 = box
    width, height = size
    usual = np.array(
        [
            *((x0, y0 - height), (x0, y0), (x0, y1), (x0, y1 - height)),
            *(
                (x1 - width, y0 - height),
                (x1 - width, y0),
                (x1 - width, y1),
                (x1 - width, y1 - height),
            ),
        ]
    )
    corners = np.clip(usual, 0, np.maximum(frame - size, 0))
    places = np.hstack([corners, corners + size])
    if not len(taken):
        return places[0]
    left_top = np.maximum(places[:, None, :2], taken[None, :, :2])
    right_bottom = np.minimum(places[:, None, 2:], taken[None, :, 2:])
    hidden = np.clip(right_bottom - left_top, 0, None).prod(axis=2).sum(axis=1)
    return places[hidden.argmin()]


def _draw_note(canvas: np.ndarray, text: str, font_px: int) -> np.ndarray:
    """Write into the lower left corner, light on dark."""
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture, "RGBA")
    font = _font(text, font_px)
    pad = font_px // 2
    width, height = draw.textlength(text, font=font) + 2 * pad, font_px + 2 * pad
    bottom = picture.height
    draw.rectangle((0, bottom - height, width, bottom), fill=(*_INK, 215))
    draw.text((pad, bottom - height / 2), text, font=font, fill="white", anchor="lm")
    return np.asarray(picture)


def _titled(canvas: np.ndarray, title: str, font_px: int) -> np.ndarray:
    """Add a strip above, so that the title covers nothing of the picture."""
    strip = Image.new("RGB", (canvas.shape[1], round(font_px * 2)), _INK)
    font = _font(title, font_px)
    ImageDraw.Draw(strip).text(
        (font_px // 2, strip.height / 2),
        _cut(title, font, strip.width - font_px),
        font=font,
        fill="white",
        anchor="lm",
    )
    return np.concatenate([np.asarray(strip), canvas])


def _with_names(
    canvas: np.ndarray, counts: Mapping[str, int], colors: Mapping[str, str], font_px: int
) -> np.ndarray:
    """Add a strip below that says which colour is what, and how many there are of it."""
    pad, line_px = font_px // 2, round(font_px * 1.5)
    places: list[tuple[float, int, str, str]] = []
    x, row = float(pad), 0
    for label, count in counts.items():
        text = f"{label} {count}"
        font = _font(text, font_px)
        text = _cut(text, font, canvas.shape[1] - 2 * pad - 1.4 * font_px)
        width = font.getlength(text) + 2.5 * font_px
        if x > pad and x + width > canvas.shape[1]:
            x, row = float(pad), row + 1
        places.append((x, row, text, colors[label]))
        x += width
    strip = Image.new("RGB", (canvas.shape[1], (row + 1) * line_px + 2 * pad), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for x, row, text, color in places:
        y = pad + (row + 0.5) * line_px
        draw.rectangle((x, y - font_px / 2, x + font_px, y + font_px / 2), fill=color)
        place = (x + 1.4 * font_px, y)
        draw.text(place, text, font=_font(text, font_px), fill=_INK, anchor="lm")
    return np.concatenate([canvas, np.asarray(strip)])


def _is_about_whole_image(annotation: Annotation) -> bool:
    return annotation.bbox is None and annotation.point is None and not annotation.polygon


def _captioned(canvas: np.ndarray, text: str, font_px: int) -> np.ndarray:
    """Add a strip below with all of the text, in as many lines as it takes."""
    font = _font(text, font_px)
    pad, line_px = font_px // 2, round(font_px * 1.4)
    lines = _wrapped(text, font, canvas.shape[1] - 2 * pad)
    strip = Image.new("RGB", (canvas.shape[1], len(lines) * line_px + 2 * pad), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        place = (pad, pad + (number + 0.5) * line_px)
        draw.text(place, line, font=font, fill=_INK, anchor="lm")
    return np.concatenate([canvas, np.asarray(strip)])


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width_px: float) -> list[str]:
    """Lines no wider than that: broken between words, or inside one that is wider itself."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width_px:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width_px:
                lines.append("")
            lines[-1] += character
    return lines


def _cut(text: str, font: ImageFont.FreeTypeFont, width_px: float) -> str:
    """Shorten to the width; the end stays, since it tells file names apart."""
    if font.getlength(text) <= width_px:
        return text
    for start in range(1, len(text)):
        if font.getlength(f"…{text[start:]}") <= width_px:
            return f"…{text[start:]}"
    return ""
