"""The one reader of images: bytes in, upright RGB out. Every other part reads through it.

One conversion for everything that is stored in another way:

- EXIF orientation is applied, so that pixels and boxes mean what a person sees.
- Of animations and multi-page files, the first frame; of HEIC, the image that the file calls
  primary.
- 16-bit grey is scaled from its full range, 0..65535, to 0..255. 32-bit integers are taken as
  16-bit if all of them fit into it. Floats within 0..1 are scaled by 255, floats within 0..255 are
  taken as they are. Whatever fits none of these is stretched from its smallest to its largest
  finite value; what is not finite becomes black. Of 16-bit colour, Pillow keeps the upper byte.
- Transparency, also of a palette, is composited over white.
- CMYK, YCbCr, palette, Lab and HSV go through Pillow's conversion.
- Embedded colour profiles are ignored, as the loaders do that models were trained with.

Only formats that decode in-process are opened: Pillow would hand EPS to Ghostscript, and opens
whatever an IPTC file wraps, EPS too. The header is judged before anything is decoded.
"""

import functools
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from labeling_pipeline.errors import ImageError

# Pillow's names, with the extensions of each. Multi-picture files (MPO) are opened as JPEG first.
# The formats from IM on have no signature that tells them from other files, so they come last.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "HEIF": (".heic", ".heif", ".heics", ".heifs", ".hif"),
    "AVIF": (".avif", ".avifs"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "BLP": (".blp",),
    "CUR": (".cur",),
    "DCX": (".dcx",),
    "DDS": (".dds",),
    "FITS": (".fit", ".fits"),
    "FLI": (".flc", ".fli"),
    "FTEX": (".ftc", ".ftu"),
    "GBR": (".gbr",),
    "ICNS": (".icns",),
    "ICO": (".ico",),
    "MCIDAS": (),
    "MSP": (".msp",),
    "PCX": (".pcx",),
    "PIXAR": (".pxr",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".bw", ".rgb", ".rgba"),
    "SUN": (".ras",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "XVTHUMB": (),
    "IM": (".im",),
    "IMT": (),
    "PCD": (".pcd",),
    "SPIDER": (),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
EXTENSIONS = frozenset(extension for of_format in FORMATS.values() for extension in of_format)
"""What the names of image files end with, in lower case."""

MAX_SIDE_PX = 65_535
"""The longest side that is decoded: what a JPEG can have at most."""

MAX_JPEG_SCANS = 50
"""How often a JPEG may go over its pixels. Encoders write about ten scans; each is a few bytes in
the file that may cost as much time as the whole image."""

# How files begin that are images, but not ones that can be opened. Offset, bytes, name.
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"BM", "BMP"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"qoif", "QOI"),
    (8, b"WEBP", "WebP"),
    (4, b"ftypavi", "AVIF"),
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
)
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}
# In the data of a scan FF 00 stands for the byte FF, and D0..D7 say where decoding may restart.
_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_JPEG_END, _JPEG_SCAN = b"\xd9", b"\xda"
_JPEG_WITHOUT_LENGTH = (b"\x01", b"\xd8")
_TRUNCATION_WORDS = ("truncated", "not enough", "unexpected end", "end of file", "eof")
# Converted at once, so that no conversion needs memory for a whole image beside it.
_STRIP_PIXELS = 1 << 20


@dataclass(frozen=True)
class DecodedImage:
    """An image and how it was stored."""

    pixels: np.ndarray  # (height, width, 3) uint8, RGB, upright; smaller where that was asked for
    width_px: int  # of the whole upright image
    height_px: int
    format: str  # Pillow's name: JPEG, PNG, ...
    mode: str  # Pillow's name of how pixels are stored: RGB, CMYK, I;16, ...
    frames: int | None  # more than one: the first was taken; None where a later one is damaged
    exif_orientation: int  # 1..8, 1 where the file says nothing


def read_image(source: Path | str | bytes, formats: Sequence[str] | None = None) -> np.ndarray:
    """Read an image as everything in this package sees it.

    Args:
        source: a path, or the bytes of a file.
        formats: those of `FORMATS` that may be opened; default: all.

    Returns:
        (height, width, 3) uint8, RGB, EXIF-upright.

    Raises:
        ImageError: with reason ``empty_file``, ``not_an_image``, ``truncated``, ``too_large``
            (more pixels than Pillow's limit against decompression bombs, or a side of more than
            `MAX_SIDE_PX`), ``decoder_memory`` or ``unreadable``.
    """
    if isinstance(source, bytes):
        return decode(source, formats=formats).pixels
    try:
        data = Path(source).read_bytes()
    except OSError as error:
        raise ImageError("unreadable", f"the file cannot be read: {error.strerror}") from error
    return decode(data, formats=formats).pixels


def decode(
    data: bytes,
    at_least_px: int | None = None,
    admit: Callable[[int], None] = lambda pixels: None,
    formats: Sequence[str] | None = None,
) -> DecodedImage:
    """Decode the bytes of a file; `read_image` with the facts of how it was stored.

    Args:
        data: the bytes.
        at_least_px: a picture whose longer side has this many pixels, or up to twice as many, is
            enough. JPEG then decodes a fraction of its coefficients; others are averaged.
        admit: called when the header is known and before pixels are decoded, with how many of them
            will be in memory; it may wait, or raise.
        formats: those of `FORMATS` that may be opened; default: all.

    Raises:
        ImageError: as `read_image` does.
    """
    if not data:
        raise ImageError("empty_file", "the file has no bytes")
    try:
        with Image.open(io.BytesIO(data), formats=readable_formats(formats)) as image:
            if image.format in ("JPEG", "MPO") and _is_scanned_too_often(data):
                raise ImageError(
                    "unreadable", f"a JPEG of more than {MAX_JPEG_SCANS} scans; save it anew"
                )
            decoded = _decode_opened(image, at_least_px, admit)
        if decoded.format == "PNG":
            # Loading skips the checksums: pixels lost inside the file would go unnoticed.
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
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
        # Libraries in C say in words that there was none left.
        if isinstance(error, MemoryError) or "memory" in message.lower():
            raise ImageError(
                "decoder_memory", "decoding needs more memory than there is; scale the image down"
            ) from error
        cut = isinstance(error, EOFError) or any(w in message.lower() for w in _TRUNCATION_WORDS)
        reason = "truncated" if cut else "unreadable"
        raise ImageError(reason, f"decoding failed: {message}") from error


def readable_formats(formats: Sequence[str] | None = None) -> list[str]:
    """Which of some formats can be opened here. formats: of `FORMATS`; default: all."""
    wanted = FORMATS if formats is None else formats
    return [name for name in wanted if name != "HEIF" or _can_read_heif()]


@functools.cache
def _can_read_heif() -> bool:
    try:
        from pi_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _is_scanned_too_often(data: bytes) -> bool:
    """Whether a JPEG goes over the pixels of its first image more often than it may."""
    # What follows that image, or a picture within its metadata, may look like scans, too.
    if data.count(b"\xff" + _JPEG_SCAN) <= MAX_JPEG_SCANS:
        return False
    scans, at = 0, 2
    while scans <= MAX_JPEG_SCANS:
        marker = _JPEG_MARKER.search(data, at)
        if marker is None or marker[1] == _JPEG_END:
            return False
        scans += marker[1] == _JPEG_SCAN
        at = marker.end()
        if marker[1] not in _JPEG_WITHOUT_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")
    return True


def _decode_opened(
    image: Image.Image, at_least_px: int | None, admit: Callable[[int], None]
) -> DecodedImage:
    # Up to twice its limit Pillow only warns, once a process; a limit should hold every time.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(
            "too_large",
            f"{image.width} x {image.height} px are more than the limit of {limit} pixels; "
            "scale it down",
        )
    if max(image.size) > MAX_SIDE_PX:
        raise ImageError(
            "too_large",
            f"{image.width} x {image.height} px, a side may have {MAX_SIDE_PX}; scale it down",
        )
    format_name, mode = str(image.format), image.mode
    orientation = _orientation(image)
    size = whole = image.size
    if at_least_px is not None:
        scale = at_least_px / max(size)
        image.draft(None, (math.ceil(size[0] * scale), math.ceil(size[1] * scale)))
        # A progressive JPEG keeps all its coefficients until it is drawn, at whatever scale.
        size = size if "progressive" in image.info else image.size
    admit(size[0] * size[1])
    drawn = image.size
    image.load()
    # Some formats tell their real size when they are loaded.
    whole = whole if drawn == image.size else image.size
    fits = max(image.size) // at_least_px if at_least_px else 1
    # A power of two, as JPEG has it: then one picture in two formats is one picture when small.
    factor = 1 << max(0, fits.bit_length() - 1)
    stored = _to_rgb(image, factor)
    # Loading a TIFF applies its orientation and forgets it; other formats leave it to the caller.
    turn = _orientation(image)
    width, height = whole if turn < 5 else whole[::-1]
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception:
        frames = None
    pixels = np.ascontiguousarray(_UPRIGHT[turn](stored))
    return DecodedImage(pixels, width, height, format_name, mode, frames, orientation)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    # A damaged EXIF block says nothing about orientation and nothing against the pixels.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image, factor: int) -> np.ndarray:
    """Convert a loaded image in any mode, each square of ``factor`` pixels averaged to one.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    scale = _Scale.of(image) if _is_wide(image) else None
    width, height = (-(-side // factor) for side in image.size)
    rgb = np.empty((height, width, 3), np.uint8)
    row = 0
    for strip in _strips(image, factor):
        part = _strip_to_rgb(strip) if scale is None else scale.applied_to(strip)
        averaged = part.reduce(factor) if factor > 1 else part
        rgb[row : row + averaged.height] = np.asarray(averaged)
        row += averaged.height
    return rgb


def _strips(image: Image.Image, factor: int) -> Iterator[Image.Image]:
    """The image in pieces of its full width, each but the last a multiple of ``factor`` high."""
    rows = max(1, _STRIP_PIXELS // (image.width * factor)) * factor
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_wide(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


@dataclass(frozen=True)
class _Scale:
    """How the numbers of a wider range become 0..255: ``(value - low) * factor``."""

    low: float
    factor: float

    @classmethod
    def of(cls, image: Image.Image) -> "_Scale":
        """The scale of an image of integers or floats, see the module."""
        lows, highs, is_finite = [], [], True
        for strip in _strips(image, 1):
            values = np.asarray(strip)
            finite = values[np.isfinite(values)]
            is_finite &= finite.size == values.size
            if finite.size:
                lows.append(float(finite.min()))
                highs.append(float(finite.max()))
        low, high = min(lows, default=0.0), max(highs, default=0.0)
        # What is not finite becomes 0, so it counts as 0.
        least, most = (low, high) if is_finite else (min(low, 0.0), max(high, 0.0))
        if image.mode != "F" and least >= 0 and most <= 65535:
            return cls(0.0, 1 / 257)
        if least >= 0 and most <= 1:
            return cls(0.0, 255.0)
        if least >= 0 and most <= 255:
            return cls(0.0, 1.0)
        return cls(low, 255 / max(high - low, 1e-300))

    def applied_to(self, image: Image.Image) -> Image.Image:
        """The image as RGB."""
        values = np.asarray(image).astype(np.float64)
        grey = np.rint((values - self.low) * self.factor)
        grey[~np.isfinite(values)] = 0
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")


def _unidentified(data: bytes) -> ImageError:
    names = [name for offset, magic, name in _SIGNATURES if data.startswith(magic, offset)]
    if not names:
        return ImageError("not_an_image", "the content is in no image format that can be read")
    if names[0] == "HEIC" and "HEIF" not in readable_formats():
        return ImageError("unreadable", "a HEIC file: `pip install pi-heif`, or convert it to JPEG")
    return ImageError("unreadable", f"begins like a {names[0]} file, but its header is damaged")
