"""A file in each format that can be read, also in those that Pillow reads and does not write."""

import io
import struct

import numpy as np
import pillow_heif
from PIL import Image

from labeling_pipeline.images.reading import FORMATS

OF_MODE = {
    **{"BLP": "P", "FLI": "P", "GIF": "P", "XPM": "P", "MSP": "1", "XBM": "1", "SPIDER": "F"},
    **dict.fromkeys(("FITS", "IMT", "MCIDAS"), "L"),
}
"""Formats that cannot store RGB -> the mode of what they store."""


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    """The bytes of a file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def heic(image: Image.Image, **options: object) -> bytes:
    """The bytes of a file as phones write them."""
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **options)
    return buffer.getvalue()


def stored(image: Image.Image, format_name: str) -> Image.Image:
    """An RGB image as what a format can store."""
    mode = OF_MODE.get(format_name, "RGB")
    return image.quantize(64) if mode == "P" else image.convert(mode)


def in_format(image: Image.Image, format_name: str) -> bytes:
    """The bytes of a file in a format of `FORMATS`. image: RGB; stored as `stored` says."""
    image = stored(image, format_name)
    return _WRITERS[format_name](image) if format_name in _WRITERS else encoded(image, format_name)


def extension(format_name: str) -> str:
    """What a file is named by, with its dot; content counts, so any will do where there is none."""
    return next(iter(FORMATS[format_name]), ".png")


def iptc(wrapped: bytes) -> bytes:
    """The bytes of a file that wraps another one, of whatever format; none that is to be read."""
    fields = {(3, 60): b"\1\0", (3, 20): b"P", (3, 30): b"<", (3, 120): b"\5", (8, 10): wrapped}
    return b"".join(
        bytes([0x1C, *tag]) + len(value).to_bytes(2, "big") + value for tag, value in fields.items()
    )


def _cur(image: Image.Image) -> bytes:
    icon = encoded(image, "ICO", bitmap_format="bmp", sizes=[image.size])
    return icon[:2] + b"\2" + icon[3:]


def _dcx(image: Image.Image) -> bytes:
    return struct.pack("<III", 0x3ADE68B1, 12, 0) + encoded(image, "PCX")


def _fits(image: Image.Image) -> bytes:
    cards = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 2, "NAXIS1": image.width, "NAXIS2": image.height}
    header = "".join(f"{key:<8}= {value:>20}".ljust(80) for key, value in cards.items()) + "END"
    # Rows go from the bottom up.
    pixels = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes()
    return header.encode().ljust(2880) + pixels.ljust(-(-len(pixels) // 2880) * 2880, b"\0")


def _fli(image: Image.Image) -> bytes:
    palette = bytes(image.getpalette() or ()).ljust(768, b"\0")
    chunks = [(4, struct.pack("<HBB", 1, 0, 0) + palette), (16, image.tobytes())]
    frame = b"".join(struct.pack("<IH", 6 + len(data), kind) + data for kind, data in chunks)
    frame = struct.pack("<IHH8x", 16 + len(frame), 0xF1FA, len(chunks)) + frame
    size = (128 + len(frame), 0xAF12, 1, image.width, image.height, 8, 3, 40)
    return struct.pack("<IHHHHHHI", *size).ljust(128, b"\0") + frame


def _ftex(image: Image.Image) -> bytes:
    pixels = image.tobytes()
    header = struct.pack("<4s7i", b"FTEX", 9, *image.size, 1, 1, 1, 32)
    return header + struct.pack("<i", len(pixels)) + pixels


def _gbr(image: Image.Image) -> bytes:
    name = b"brush\0"
    header = struct.pack(">5I4sI", 28 + len(name), 2, *image.size, 4, b"GIMP", 10)
    return header + name + image.convert("RGBA").tobytes()


def _icns(image: Image.Image) -> bytes:
    png = encoded(image.resize((128, 128)), "PNG")
    return struct.pack(">4sI4sI", b"icns", 16 + len(png), b"ic07", 8 + len(png)) + png


def _imt(image: Image.Image) -> bytes:
    header = f"width {image.width}\nheight {image.height}\npixel n8\n"
    return header.encode() + b"\x0c" + image.tobytes()


def _mcidas(image: Image.Image) -> bytes:
    words = {2: 4, 9: image.height, 10: image.width, 11: 1, 14: 1, 34: 256}
    return struct.pack(">64i", *(words.get(n, 0) for n in range(1, 65))) + image.tobytes()


def _pcd(image: Image.Image) -> bytes:
    # Two rows of luma, then one of each chroma at half the resolution.
    luma, *chroma = image.resize((768, 512)).convert("YCbCr").split()
    halves = [np.asarray(band.resize((384, 256), Image.Resampling.BOX)) for band in chroma]
    rows = np.asarray(luma).reshape(256, 2 * 768)
    head = bytearray(96 * 2048)
    head[2048:2055] = b"PCD_IPI"
    return bytes(head) + np.hstack([rows, *halves]).tobytes()


def _pixar(image: Image.Image) -> bytes:
    header = bytearray(1024)
    header[:4] = b"\200\350\0\0"
    header[416:428] = struct.pack("<HH4xHH", image.height, image.width, 14, 2)
    return bytes(header) + image.tobytes()


def _psd(image: Image.Image) -> bytes:
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, image.height, image.width, 8, 3)
    return header + bytes(12) + bytes(2) + b"".join(band.tobytes() for band in image.split())


def _sun(image: Image.Image) -> bytes:
    pixels = np.asarray(image)[:, :, ::-1].tobytes()
    header = (0x59A66A95, image.width, image.height, 24, len(pixels), 1, 0, 0)
    return struct.pack(">8I", *header) + pixels


def _xpm(image: Image.Image) -> bytes:
    colors = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    keys = [chr(48 + number) for number in range(len(colors))]
    lines = [f"{image.width} {image.height} {len(keys)} 1"]
    lines += [f"{key} c #{bytes(color).hex()}" for key, color in zip(keys, colors, strict=True)]
    lines += ["".join(keys[value] for value in row) for row in np.asarray(image)]
    quoted = ",\n".join(f'"{line}"' for line in lines)
    return f"/* XPM */\nstatic char *picture[] = {{\n{quoted}\n}};\n".encode("latin-1")


def _xvthumb(image: Image.Image) -> bytes:
    red, green, blue = (np.asarray(band) for band in image.split())
    values = (red & 0xE0) | (green >> 5 << 2) | (blue >> 6)
    header = (
        f"P7 332\n#XVVERSION:Version 2.28\n#END_OF_COMMENTS\n{image.width} {image.height} 255\n"
    )
    return header.encode() + values.tobytes()


_WRITERS = {
    "CUR": _cur,
    "DCX": _dcx,
    "FITS": _fits,
    "FLI": _fli,
    "FTEX": _ftex,
    "GBR": _gbr,
    "HEIF": heic,
    "ICNS": _icns,
    "ICO": lambda image: encoded(image, "ICO", sizes=[image.size]),
    "IMT": _imt,
    "MCIDAS": _mcidas,
    "PCD": _pcd,
    "PIXAR": _pixar,
    "PSD": _psd,
    "SUN": _sun,
    "WEBP": lambda image: encoded(image, "WEBP", quality=95),
    "XPM": _xpm,
    "XVTHUMB": _xvthumb,
}
