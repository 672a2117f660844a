"""The one reader of images: bytes in, upright RGB out. Every other part reads through it.

One conversion for everything that is stored in another way:

- EXIF orientation is applied, so that pixels and boxes mean what a person sees.
- Of animations and multi-page files, the first frame.
- 16-bit grey is scaled from its full range, 0..65535, to 0..255. 32-bit integers are taken as
  16-bit if all of them fit into it. Floats within 0..1 are scaled by 255, floats within 0..255 are
  taken as they are. Whatever fits none of these is stretched from its smallest to its largest
  finite value; what is not finite becomes black.
- Transparency, also of a palette, is composited over white.
- CMYK, YCbCr, palette, Lab and HSV go through Pillow's conversion.
- Embedded colour profiles are ignored, as the loaders do that models were trained with.

Only formats that decode in-process are opened: Pillow would hand EPS to Ghostscript.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from labeling_pipeline.errors import ImageError

# Pillow opens multi-picture files (MPO) as JPEG first.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")

# How files begin that are images, but not ones that can be opened. Offset, bytes, name.
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (8, b"WEBP", "WebP"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"8BPS", "Photoshop"),
)
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRUNCATION_WORDS = ("truncated", "not enough", "unexpected end", "end of file", "eof")


@dataclass(frozen=True)
class DecodedImage:
    """An image and how it was stored."""

    pixels: np.ndarray  # (height, width, 3) uint8, RGB, upright
    format: str  # Pillow's name: JPEG, PNG, ...
    mode: str  # Pillow's name of how pixels are stored: RGB, CMYK, I;16, ...
    frames: int | None  # None where a later frame is damaged
    exif_orientation: int  # 1..8, 1 where the file says nothing


def read_image(source: Path | str | bytes) -> np.ndarray:
    """Read an image as everything in this package sees it.

    Args:
        source: a path, or the bytes of a file.

    Returns:
        (height, width, 3) uint8, RGB, EXIF-upright.

    Raises:
        ImageError: with reason ``empty_file``, ``not_an_image``, ``truncated``, ``too_large``
            (more pixels than Pillow's limit against decompression bombs) or ``unreadable``.
    """
    if isinstance(source, bytes):
        return decode(source).pixels
    try:
        data = Path(source).read_bytes()
    except OSError as error:
        raise ImageError("unreadable", f"the file cannot be read: {error.strerror}") from error
    return decode(data).pixels


def decode(data: bytes) -> DecodedImage:
    """Decode the bytes of a file; `read_image` with the facts of how it was stored.

    Raises:
        ImageError: as `read_image` does.
    """
    if not data:
        raise ImageError("empty_file", "the file has no bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            decoded = _decode_opened(image)
        if decoded.format == "PNG":
            # Loading skips the checksums: pixels lost inside the file would go unnoticed.
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.verify()
        return decoded
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too_large", f"{error}; scale it down") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    # Damaged files make Pillow raise nearly anything: SyntaxError, KeyError, struct.error.
    except Exception as error:
        message = str(error) or type(error).__name__
        cut = isinstance(error, EOFError) or any(w in message.lower() for w in _TRUNCATION_WORDS)
        reason = "truncated" if cut else "unreadable"
        raise ImageError(reason, f"decoding failed: {message}") from error


def _decode_opened(image: Image.Image) -> DecodedImage:
    # Up to twice its limit Pillow only warns, once a process; a limit should hold every time.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(
            "too_large",
            f"{image.width} x {image.height} px are more than the limit of {limit} pixels; "
            "scale it down",
        )
    format_name, mode = str(image.format), image.mode
    orientation = _orientation(image)
    image.load()
    # Loading a TIFF applies its orientation and forgets it; other formats leave it to the caller.
    turn = _TO_UPRIGHT.get(_orientation(image))
    pixels = _to_rgb(image if turn is None else image.transpose(turn))
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception:
        frames = None
    return DecodedImage(pixels, format_name, mode, frames, orientation)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    # A damaged EXIF block says nothing about orientation and nothing against the pixels.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> np.ndarray:
    """(height, width, 3) uint8 RGB of a loaded image in any mode."""
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _eight_bit(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"))


def _eight_bit(values: np.ndarray) -> np.ndarray:
    """Scale (height, width) integers or floats of a wider range to uint8."""
    finite = np.isfinite(values)
    numbers = np.where(finite, values, 0).astype(np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    if np.issubdtype(values.dtype, np.integer) and low >= 0 and high <= 65535:
        scaled = numbers / 257
    elif low >= 0 and high <= 1:
        scaled = numbers * 255
    elif low >= 0 and high <= 255:
        scaled = numbers
    else:
        low, high = float(numbers[finite].min()), float(numbers[finite].max())
        scaled = (numbers - low) * (255 / max(high - low, 1e-300))
        scaled[~finite] = 0
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _unidentified(data: bytes) -> ImageError:
    names = [name for offset, magic, name in _SIGNATURES if data.startswith(magic, offset)]
    if not names:
        return ImageError("not_an_image", "the content is in no image format that can be read")
    if names[0] in ("HEIC", "Photoshop"):
        return ImageError("unreadable", f"a {names[0]} file; convert it to JPEG or PNG")
    return ImageError("unreadable", f"begins like a {names[0]} file, but its header is damaged")
