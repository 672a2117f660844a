import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.annotations import Annotation, Keypoint
from labeling_pipeline.drawing import (
    PALETTE,
    _font,
    _tag_size,
    _tags,
    _wrapped,
    contact_sheet,
    draw_annotations,
    label_color,
    label_colors,
    write_jpeg,
)


def gray(width=800, height=600):
    return np.full((height, width, 3), 120, dtype=np.uint8)


def changed(before, after):
    """(height, width) bool: where the pictures differ."""
    return (before.astype(int) != after.astype(int)).any(axis=2)


def rgb(color):
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def test_a_box_is_drawn_in_the_colour_of_its_label_at_its_place():
    image = gray()
    drawn = draw_annotations(image, [Annotation("person", (200, 150, 500, 450), score=0.87)])
    assert drawn.shape == image.shape
    assert tuple(drawn[300, 200]) == rgb(label_color("person"))
    where = np.argwhere(changed(image, drawn))
    assert where[:, 1].min() >= 195
    assert where[:, 1].max() <= 505
    assert not changed(image, drawn)[300, 300]


def test_the_picture_that_came_in_stays_as_it_was():
    image = gray()
    draw_annotations(image, [Annotation("person", (200, 150, 500, 450))])
    assert (image == 120).all()


def test_colours_belong_to_labels_and_nothing_else():
    assert label_color("person") == label_color("person")
    assert {label_color(f"label {i}") for i in range(300)} == set(PALETTE)


def test_white_text_is_legible_on_every_colour():
    # Contrast ratio of WCAG 2.2, 4.5 at least for normal text.
    for color in PALETTE:
        channels = np.array(rgb(color)) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        luminance = float(linear @ [0.2126, 0.7152, 0.0722])
        assert 1.05 / (luminance + 0.05) >= 4.5, color


@pytest.mark.parametrize(
    "box",
    [
        pytest.param((0, 0, 50, 30), id="top left"),
        pytest.param((750, 0, 799, 30), id="top right"),
        pytest.param((770, 580, 799, 599), id="bottom right"),
        pytest.param((0, 0, 800, 600), id="the whole picture"),
        pytest.param((-50, -50, 900, 700), id="beyond the picture"),
        pytest.param((10, 10, 10, 10), id="without extent"),
    ],
)
def test_a_label_stays_inside_the_picture(box):
    bare = draw_annotations(gray(), [Annotation("", box)])
    labelled = draw_annotations(gray(), [Annotation("a rather long label", box, score=0.5)])
    where = np.argwhere(changed(bare, labelled))
    height, width = np.ptp(where, axis=0) + 1
    assert width > 120  # the label has its full width, so nothing was cut off
    assert height >= 14


@pytest.mark.parametrize(
    ("score", "is_calibrated", "text"),
    [
        pytest.param(0.968, False, "0.97", id="measured"),
        pytest.param(0.968, True, "97%", id="calibrated"),
        pytest.param(0.9951, True, ">99%", id="never certainly right"),
        pytest.param(0.0049, True, "<1%", id="never certainly wrong"),
        pytest.param(None, True, "", id="no score"),
    ],
)
def test_a_probability_is_a_percentage_and_what_was_measured_is_not(score, is_calibrated, text):
    names = (f"name {number}" for number in range(1000))
    label = next(n for n in names if label_color(n) == label_color(f"{n} {text}".strip()))
    box = (200, 150, 500, 450)
    scored = Annotation(label, box, score=score, is_calibrated=is_calibrated)
    said = Annotation(f"{label} {text}".strip(), box)
    assert not changed(draw_annotations(gray(), [scored]), draw_annotations(gray(), [said])).any()


def test_labels_of_the_same_place_do_not_cover_each_other():
    box = (200, 200, 400, 400)
    both = draw_annotations(gray(), [Annotation("person", box), Annotation("face", box)])
    for label in ("person", "face"):
        alone = (both == rgb(label_color(label))).all(axis=2)
        assert alone.sum() > 500, label


def test_a_keypoint_without_coordinates_is_not_drawn_and_neither_are_its_limbs():
    image = gray()
    points = {"left shoulder": (300.0, 200.0), "left elbow": (300.0, 400.0)}
    seen = [Keypoint(name, x, y, None) for name, (x, y) in points.items()]
    hidden = [seen[0], Keypoint("left elbow", None, None, None)]

    limb = draw_annotations(image, [Annotation("person", keypoints=tuple(seen))])
    no_limb = draw_annotations(image, [Annotation("person", keypoints=tuple(hidden))])
    assert changed(image, limb)[300, 300]
    assert changed(image, no_limb)[200, 300]
    assert not changed(image, no_limb)[220:, :].any()


def test_keypoints_of_no_known_skeleton_are_drawn_without_limbs():
    image = gray()
    points = (Keypoint("tail", 100.0, 100.0, None), Keypoint("horn", 300.0, 100.0, None))
    drawn = changed(image, draw_annotations(image, [Annotation("cow", keypoints=points)]))
    assert drawn[100, 100]
    assert drawn[100, 300]
    assert not drawn[100, 200]


def test_a_small_picture_is_enlarged_with_its_annotations():
    image = gray(64, 32)
    drawn = draw_annotations(image, [Annotation("x", (16, 8, 48, 24))])
    height, width, _ = drawn.shape
    assert width == 2 * height
    assert width * height == pytest.approx(640 * 480, rel=0.01)
    assert tuple(drawn[height // 2, width // 4]) == rgb(label_color("x"))


@pytest.mark.parametrize("size_px", [(64, 64), (200, 2000), (40, 400), (2000, 200), (4000, 3000)])
def test_a_label_has_its_full_width_at_any_shape_of_picture(size_px):
    image = gray(*size_px)
    box = tuple(
        share * side for share, side in zip((0.9, 0.4, 0.95, 0.5), size_px * 2, strict=True)
    )
    bare = draw_annotations(image, [Annotation("", box)])
    drawn = draw_annotations(image, [Annotation("traffic light", box, score=0.77)])
    rows, columns = np.argwhere(changed(bare, drawn)).T
    text = _font("x", 14).getbbox("traffic light 0.77")
    assert np.ptp(columns) + 1 >= text[2] - text[0]
    assert np.ptp(rows) + 1 >= text[3] - text[1]
    # No more of the picture is hidden than needs be.
    assert changed(bare, drawn).mean() < 0.06


def test_a_picture_that_is_narrower_than_words_gets_space_beside_it():
    image = gray(100, 4000)
    drawn = draw_annotations(
        image, [Annotation("x", (10, 10, 90, 900))], title="a/long_name_01.jpg"
    )
    assert drawn.shape[1] >= 250
    assert (drawn[100:3000, 240] == drawn[100, 240]).all()


def scattered(count, labels, size_px=(1600, 1200)):
    random = np.random.default_rng(0)
    corners = random.uniform(0, 0.9, (count, 2)) * size_px
    return [
        Annotation(labels[i % len(labels)], (x, y, x + 60, y + 80), score=0.5)
        for i, (x, y) in enumerate(corners)
    ]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        pytest.param(10, {"cat 0.50", "traffic light 0.50"}, id="room for label and score"),
        pytest.param(150, {"cat 0.50", "traffic light 0.50"}, id="smaller"),
        pytest.param(350, {"0.50"}, id="room for the score alone"),
        pytest.param(3000, {""}, id="room for nothing"),
    ],
)
def test_in_a_crowd_less_stands_at_each_box(count, expected):
    texts, font_px = _tags(scattered(count, ["cat", "traffic light"]), 1600 * 1200, 35)
    assert set(texts) == expected
    assert 17 <= font_px <= 35
    assert (font_px == 35) == (count == 10)
    hidden = sum(np.prod(_tag_size(text, _font("x", font_px))) for text in texts if text)
    assert hidden <= 0.21 * 1600 * 1200


def test_what_no_longer_stands_at_each_box_stands_below_the_picture():
    image = gray(1600, 1200)
    few, many = scattered(10, ["cat", "dog"]), scattered(350, ["cat", "dog"])
    assert draw_annotations(image, few).shape == image.shape
    drawn = draw_annotations(image, many, colors={"cat": PALETTE[3], "dog": PALETTE[5]})
    below = drawn[1200:]
    for color in (PALETTE[3], PALETTE[5]):
        assert (below == rgb(color)).all(axis=2).sum() > 500


def test_a_crowd_in_a_small_picture_enlarges_it():
    image, shown = gray(320, 240), scattered(60, ["cat"], (320, 240))
    assert draw_annotations(image, shown).size > 1.5 * draw_annotations(image, shown[:5]).size


def test_small_text_enlarges_the_picture():
    image = gray(640, 480)
    line = Annotation("line", (10, 10, 200, 18), text="small print")
    drawn = draw_annotations(image, [line])
    assert drawn.shape[1] == pytest.approx(640 * 14 / 8, abs=1)


def test_labels_of_one_dataset_get_colours_of_their_own_that_new_labels_do_not_change():
    labels = [f"label {i}" for i in range(len(PALETTE))]
    colors = label_colors(labels)
    assert len(set(colors.values())) == len(PALETTE)
    assert label_colors([*labels, "one more", labels[0]]).items() > colors.items()
    image = gray()
    drawn = draw_annotations(
        image, [Annotation("cat", (200, 150, 500, 450))], colors={"cat": "#00707c"}
    )
    assert tuple(drawn[300, 200]) == rgb("#00707c")


def test_a_picture_without_annotations_says_so():
    image = gray()
    drawn = changed(image, draw_annotations(image, []))
    assert drawn[-10:, :60].any()
    assert not drawn[:500].any()


@pytest.mark.parametrize(
    ("size_px", "page"),
    [
        pytest.param((800, 600), (slice(600, 1200), slice(0, 800)), id="below a wide picture"),
        pytest.param((600, 800), (slice(0, 800), slice(600, 1200)), id="beside a tall picture"),
    ],
)
def test_text_that_was_read_stands_on_a_page_of_its_own_where_it_was_read(size_px, page):
    image = gray(*size_px)
    box = (100, 200, 400, 240)
    drawn = draw_annotations(image, [Annotation("word", box, text="Gate 7", score=0.5)])
    height, width = drawn[page].shape[:2]
    assert (width, height) == size_px
    empty = draw_annotations(image, [Annotation("word", box, text="", score=None)])
    where = np.argwhere(changed(drawn[page], empty[page]))
    assert where[:, 0].min() > 180
    assert where[:, 0].max() < 240
    assert where[:, 1].min() > 100
    assert where[:, 1].max() <= 400
    # Nothing but the outline hides the picture.
    assert not changed(image, drawn[: size_px[1], : size_px[0]])[204:236, 104:396].any()


@pytest.mark.parametrize(
    "text", ["Straße", "кошка", "出口", "猫と犬", "いらっしゃいませ", "出口 Gate 7"]
)
def test_text_is_drawn_in_its_own_script(text):
    """A character that no font has is an empty box, the same for every such character."""
    box = (0, 100, 800, 180)
    drawn, boxes = (
        draw_annotations(gray(), [Annotation("word", box, text=t)])
        for t in (text, "\U000e0fff" * len(text))
    )
    assert changed(drawn, boxes).sum() > 500


def test_text_follows_its_outline_when_it_is_turned():
    image = gray(600, 600)
    upright = ((100, 100), (500, 100), (500, 160), (100, 160))
    turned = ((160, 100), (160, 500), (100, 500), (100, 100))
    pages = []
    for corners in (upright, turned):
        xs, ys = zip(*corners, strict=True)
        box = (min(xs), min(ys), max(xs), max(ys))
        annotation = Annotation("text line", box, polygon=corners, text="Mind the step")
        pages.append(draw_annotations(image, [annotation])[:, 600:])
    # Turned by a quarter, clockwise.
    ink = [(page < 120).all(axis=2) for page in pages]
    along, down = (np.argwhere(mask).std(axis=0) for mask in ink)
    np.testing.assert_allclose(along, down[::-1], rtol=0.05)
    assert along[1] > 5 * along[0]


def test_a_title_stands_above_the_picture_and_covers_nothing():
    image = gray()
    boxes = [Annotation("x", (10, 10, 90, 90))]
    plain, titled = draw_annotations(image, boxes), draw_annotations(image, boxes, title="a/b.jpg")
    assert titled.shape[0] > plain.shape[0]
    np.testing.assert_array_equal(titled[-plain.shape[0] :], plain)


def test_text_for_the_whole_image_stands_below_it_and_covers_nothing():
    image = gray()
    boxes = [Annotation("x", (10, 10, 90, 90))]
    plain = draw_annotations(image, boxes)
    one = draw_annotations(image, [*boxes, Annotation("caption", text="two cows")])
    many = draw_annotations(image, [*boxes, Annotation("caption", text="two cows " * 40)])
    assert plain.shape[0] < one.shape[0] < many.shape[0]
    for captioned in (one, many):
        assert captioned.shape[1] == plain.shape[1]
        np.testing.assert_array_equal(captioned[: plain.shape[0]], plain)


def test_a_word_wider_than_the_picture_is_broken_and_none_of_it_lost():
    font = _font("W", 20)
    text = "a " + "W" * 100 + " b"
    lines = _wrapped(text, font, 300)
    assert all(font.getlength(line) <= 300 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(np.zeros((10, 10), np.uint8), id="one channel"),
        pytest.param(np.zeros((10, 10, 4), np.uint8), id="four channels"),
        pytest.param(np.zeros((10, 10, 3), np.float32), id="floats"),
    ],
)
def test_a_picture_that_is_not_rgb_bytes_is_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        draw_annotations(image, [])


@pytest.mark.parametrize(
    ("count", "columns", "cells"),
    [(5, 3, (2, 3)), (2, 4, (1, 2)), (1, 1, (1, 1)), (0, 3, (1, 1))],
)
def test_a_contact_sheet_has_as_many_cells_as_it_needs(count, columns, cells):
    images = [gray(50 + 40 * i, 60) for i in range(count)]
    sheet = contact_sheet(images, [f"{i}.jpg" for i in range(count)], columns, cell_px=100)
    one = contact_sheet([gray()], ["x"], 1, cell_px=100)
    per_row, per_column = one.shape[0] - 12, one.shape[1] - 12
    assert sheet.shape == (cells[0] * per_row + 12, cells[1] * per_column + 12, 3)


def test_a_contact_sheet_wants_a_title_for_every_picture():
    with pytest.raises(ValueError, match="1 images but 0 titles"):
        contact_sheet([gray()], [], 3)


def test_a_jpeg_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "visualizations" / "a.jpg"
    for level in (10, 200):
        write_jpeg(path, np.full((20, 30, 3), level, np.uint8))
    assert abs(int(np.asarray(Image.open(path)).mean()) - 200) <= 2
    assert list(path.parent.iterdir()) == [path]
