import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from labeling_pipeline.errors import ImageError
from labeling_pipeline.images.reading import FORMATS, MAX_SIDE_PX, decode, read_image
from tests.images.formats import heic, in_format, iptc, stored
from tests.images.orientations import STORED_AS


def gradient(height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth and without symmetry, so that lossy formats keep it and turns change it."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 // (width - 1), y * 255 // (height - 1), 255 - (x + y)]
    return np.stack(channels, axis=2).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, format_name: str, **options: Any) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def difference(left: np.ndarray, right: np.ndarray) -> int:
    assert left.shape == right.shape
    return int(np.abs(left.astype(int) - right.astype(int)).max())


GRADIENT = gradient()
# 8-bit Lab is coarse, most of all at the edge of what RGB can show.
MUTED = GRADIENT // 2 + 64
GREY = np.repeat(np.asarray(Image.fromarray(GRADIENT).convert("L"))[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("format_name", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 8),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 8),
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("PPM", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("AVIF", {"quality": 95}, 12),
        ("JPEG2000", {}, 0),
    ],
)
def test_however_a_picture_is_compressed_it_is_the_same(
    tmp_path: Path, format_name: str, options: dict[str, Any], tolerance: int
):
    path = tmp_path / "picture"
    path.write_bytes(encoded(GRADIENT, format_name, **options))
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert difference(pixels, GRADIENT) <= tolerance
    assert (read_image(path.read_bytes()) == pixels).all()


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format_is_read(format_name: str):
    picture = Image.fromarray(GRADIENT)
    decoded = decode(in_format(picture, format_name))
    assert decoded.format.upper() == format_name
    # Some store one size only.
    expected = stored(picture, format_name).convert("RGB").resize(decoded.pixels.shape[1::-1])
    # 8 bits a pixel, and another definition of chroma than the one it was written by.
    tolerance = {"XVTHUMB": 20, "PCD": 30}.get(format_name, 3)
    assert np.abs(decoded.pixels.astype(int) - np.asarray(expected)).mean() < tolerance


def test_no_format_is_opened_that_hands_its_file_to_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "gs").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\n%%EndComments\nshowpage\n"
    for data in (drawing, iptc(drawing)):
        with pytest.raises(ImageError, match="no image format"):
            read_image(data)
    assert not (tmp_path / "called").exists()


def palette() -> bytes:
    return encoded(Image.fromarray(GRADIENT).quantize(256), "PNG")


def cmyk(format_name: str, **options: Any) -> bytes:
    return encoded(Image.fromarray(GRADIENT).convert("CMYK"), format_name, **options)


def lab() -> bytes:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(
        Image.fromarray(MUTED), srgb, lab, outputMode="LAB", renderingIntent=1
    )
    assert image is not None
    return encoded(image, "TIFF")


def grey16(values: np.ndarray, format_name: str) -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint16)), format_name)


def floats(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values.astype(np.float32)), "TIFF")


def integers32(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values.astype(np.int32)), "TIFF")


@pytest.mark.parametrize(
    ("make", "expected", "tolerance"),
    [
        pytest.param(palette, GRADIENT, 40, id="palette"),
        pytest.param(lambda: cmyk("TIFF"), GRADIENT, 1, id="CMYK TIFF"),
        pytest.param(lambda: cmyk("JPEG", quality=95), GRADIENT, 24, id="CMYK JPEG"),
        pytest.param(lab, MUTED, 16, id="Lab TIFF"),
        pytest.param(lambda: encoded(GREY[:, :, 0], "PNG"), GREY, 0, id="grey"),
        pytest.param(lambda: grey16(GREY[:, :, 0] * 257.0, "PNG"), GREY, 0, id="16-bit PNG"),
        pytest.param(lambda: grey16(GREY[:, :, 0] * 257.0, "TIFF"), GREY, 0, id="16-bit TIFF"),
        pytest.param(lambda: integers32(GREY[:, :, 0] * 257.0), GREY, 0, id="32-bit as 16-bit"),
        pytest.param(lambda: floats(GREY[:, :, 0] / 255), GREY, 0, id="floats in 0..1"),
        pytest.param(lambda: floats(GREY[:, :, 0]), GREY, 0, id="floats in 0..255"),
        pytest.param(
            lambda: encoded(Image.fromarray(GREY[:, :, 0] > 127), "PNG"),
            np.where(GREY > 127, 255, 0),
            0,
            id="1-bit",
        ),
    ],
)
def test_every_mode_becomes_rgb(make: Callable[[], bytes], expected: np.ndarray, tolerance: int):
    assert difference(read_image(make()), expected) <= tolerance


def test_a_dim_16bit_picture_stays_dim():
    values = np.array([[0, 257], [1000, 2570]])
    assert read_image(grey16(values, "PNG"))[:, :, 0].tolist() == [[0, 1], [4, 10]]


def test_floats_of_unknown_range_are_stretched_and_what_is_not_finite_is_black():
    values = np.array([[-100.0, 0.0], [400.0, np.nan]])
    assert read_image(floats(values))[:, :, 0].tolist() == [[0, 51], [255, 0]]


def rgba(alpha: int) -> Image.Image:
    return Image.new("RGBA", (4, 3), (200, 100, 0, alpha))


def transparent_palette() -> bytes:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return encoded(image, "PNG", transparency=1)


@pytest.mark.parametrize(
    ("make", "color"),
    [
        pytest.param(lambda: encoded(rgba(255), "PNG"), (200, 100, 0), id="opaque"),
        pytest.param(lambda: encoded(rgba(0), "PNG"), (255, 255, 255), id="invisible"),
        pytest.param(lambda: encoded(rgba(51), "PNG"), (244, 224, 204), id="faint"),
        pytest.param(
            lambda: encoded(Image.new("LA", (4, 3), (0, 51)), "PNG"), (204, 204, 204), id="grey"
        ),
        pytest.param(transparent_palette, (255, 255, 255), id="palette"),
    ],
)
def test_transparency_lies_over_white(make: Callable[[], bytes], color: tuple[int, int, int]):
    assert (read_image(make()) == color).all()


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(format_name: str):
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "lime", "blue")]
    data = encoded(
        frames[0],
        format_name,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if format_name == "WEBP" else {}),
    )
    decoded = decode(data)
    assert (decoded.pixels == (255, 0, 0)).all()
    assert decoded.frames == 3


@pytest.mark.parametrize("orientation", STORED_AS)
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF"])
def test_all_eight_exif_orientations_give_the_same_upright_pixels(
    format_name: str, orientation: int
):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options: dict[str, Any] = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "AVIF": {"quality": 95},
        "WEBP": {"lossless": True},
    }.get(format_name, {})
    turned = np.ascontiguousarray(STORED_AS[orientation](GRADIENT))
    decoded = decode(encoded(turned, format_name, exif=exif, **options))
    assert difference(decoded.pixels, GRADIENT) <= (8 if format_name in ("JPEG", "AVIF") else 0)
    assert decoded.exif_orientation == orientation


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_cost_the_picture():
    data = encoded(GRADIENT, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x12garbage")
    decoded = decode(data)
    assert decoded.pixels.shape == GRADIENT.shape
    assert decoded.exif_orientation == 1


def test_how_a_picture_was_stored_is_told():
    decoded = decode(cmyk("JPEG"))
    assert (decoded.format, decoded.mode, decoded.frames) == ("JPEG", "CMYK", 1)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
JPEG, PNG, WEBP = (encoded(NOISE, name) for name in ("JPEG", "PNG", "WEBP"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty_file", id="empty"),
        pytest.param(b"just some words\n", "not_an_image", id="text"),
        pytest.param(b"%PDF-1.7 ...", "not_an_image", id="PDF"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_an_image", id="EPS"),
        pytest.param(JPEG[: len(JPEG) // 2], "truncated", id="half a JPEG"),
        pytest.param(PNG[: len(PNG) // 2], "truncated", id="half a PNG"),
        pytest.param(encoded(NOISE, "BMP")[:3000], "truncated", id="half a BMP"),
        pytest.param(JPEG[:20], "unreadable", id="the first bytes of a JPEG"),
        pytest.param(WEBP[:40], "unreadable", id="the first bytes of a WebP"),
        pytest.param(PNG[:60] + bytes(500) + PNG[560:], "unreadable", id="a PNG with a hole"),
        pytest.param(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unreadable", id="HEIC"),
    ],
)
def test_what_cannot_be_read_has_a_stable_reason(data: bytes, reason: str):
    with pytest.raises(ImageError) as caught:
        read_image(data)
    assert caught.value.reason == reason
    assert caught.value.detail


PROGRESSIVE = encoded(GRADIENT, "JPEG", progressive=True)


def with_scans(count: int) -> bytes:
    """A JPEG whose last scan, and the table before it, stand there so often again."""
    last = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xc4") : -2]
    return PROGRESSIVE[:-2] + last * count + PROGRESSIVE[-2:]


def test_a_jpeg_that_goes_over_its_pixels_again_and_again_is_not_decoded():
    assert read_image(with_scans(20)).shape == GRADIENT.shape
    with pytest.raises(ImageError, match="more than 50 scans") as caught:
        read_image(with_scans(50))
    assert caught.value.reason == "unreadable"


def test_what_only_looks_like_scans_costs_no_jpeg():
    video = np.random.default_rng(5).bytes(100_000) + b"\xff\xda" * 99
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 198) + b"\xff\xda" * 99
    for data in (PROGRESSIVE + video, PROGRESSIVE[:2] + comment + PROGRESSIVE[2:]):
        assert (read_image(data) == read_image(PROGRESSIVE)).all()


def test_of_all_formats_only_those_that_are_named_are_opened():
    assert read_image(encoded(GRADIENT, "PNG"), ["JPEG", "PNG"]).shape == GRADIENT.shape
    with pytest.raises(ImageError) as caught:
        read_image(encoded(GRADIENT, "PCX"), ["JPEG", "PNG"])
    assert caught.value.reason == "not_an_image"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side_px", [10_000, 20_000])
def test_more_pixels_than_the_limit_are_an_error_every_time(side_px: int):
    data = encoded(Image.new("1", (side_px, side_px)), "PNG")
    for _ in range(2):
        with pytest.raises(ImageError) as caught:
            read_image(data)
        assert caught.value.reason == "too_large"


@pytest.mark.parametrize(
    "wrapped",
    [
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", id="EPS"),
        pytest.param(encoded(Image.new("L", (16, 16)), "PNG"), id="PNG"),
    ],
)
def test_no_file_smuggles_in_another_of_any_format(wrapped: bytes):
    assert Image.open(io.BytesIO(iptc(wrapped))).format == "IPTC"
    with pytest.raises(ImageError) as caught:
        read_image(iptc(wrapped))
    assert caught.value.reason == "not_an_image"


def test_a_file_that_is_not_there_costs_that_image_only(tmp_path: Path):
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "gone.jpg")
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("orientation", STORED_AS)
def test_heic_is_turned_upright_once(orientation: int):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turned = np.ascontiguousarray(STORED_AS[orientation](GRADIENT))
    decoded = decode(heic(Image.fromarray(turned), quality=95, exif=exif.tobytes()))
    assert decoded.format == "HEIF"
    assert difference(decoded.pixels, GRADIENT) <= 12


def test_without_its_reader_a_heic_file_names_the_fix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("labeling_pipeline.images.reading._can_read_heif", lambda: False)
    with pytest.raises(ImageError, match="pip install pi-heif") as caught:
        read_image(heic(Image.fromarray(GRADIENT)))
    assert caught.value.reason == "unreadable"


WIDE = gradient(1500, 2000)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: encoded(WIDE, "JPEG", quality=95), id="JPEG"),
        pytest.param(lambda: encoded(WIDE, "PNG"), id="PNG"),
        pytest.param(lambda: encoded(Image.fromarray(WIDE).convert("RGBA"), "PNG"), id="alpha"),
        pytest.param(lambda: encoded(Image.fromarray(WIDE).convert("CMYK"), "TIFF"), id="CMYK"),
        pytest.param(lambda: grey16(WIDE[:, :, 0] * 257.0, "PNG"), id="16-bit"),
        pytest.param(lambda: floats(WIDE[:, :, 0] / 255), id="floats"),
    ],
)
def test_a_small_picture_is_the_whole_one_averaged(make: Callable[[], bytes]):
    data = make()
    whole, small = decode(data), decode(data, at_least_px=320)
    assert (whole.width_px, whole.height_px) == (small.width_px, small.height_px) == (2000, 1500)
    assert whole.pixels.shape == (1500, 2000, 3)
    assert 320 <= max(small.pixels.shape) < 640
    averaged = Image.fromarray(whole.pixels).resize(small.pixels.shape[1::-1], Image.Resampling.BOX)
    # JPEG leaves out high frequencies, which at an edge is not quite an average.
    tolerance = 16 if small.format == "JPEG" else 3
    assert difference(small.pixels, np.asarray(averaged)) <= tolerance


def test_a_turned_picture_is_small_and_upright():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encoded(np.ascontiguousarray(np.rot90(WIDE, 1)), "JPEG", exif=exif, quality=95)
    small = decode(data, at_least_px=320)
    assert (small.width_px, small.height_px) == (2000, 1500)
    assert small.pixels.shape == (375, 500, 3)


def test_a_side_may_be_no_longer_than_the_limit():
    assert read_image(encoded(Image.new("L", (MAX_SIDE_PX, 1)), "PNG")).shape[1] == MAX_SIDE_PX
    with pytest.raises(ImageError) as caught:
        read_image(encoded(Image.new("L", (MAX_SIDE_PX + 1, 1)), "PNG"))
    assert caught.value.reason == "too_large"


def test_leave_is_asked_before_pixels_are_decoded_and_for_what_they_will_be():
    asked: list[int] = []
    jpeg = encoded(WIDE, "JPEG")
    decode(jpeg, admit=asked.append)
    decode(jpeg, 320, asked.append)
    decode(encoded(WIDE, "JPEG", progressive=True), 320, asked.append)
    assert asked == [2000 * 1500, 500 * 375, 2000 * 1500]
