"""Hostile and odd files of every kind that an image folder may hold, made anew each time.

python -m tests.images.corpus FOLDER
"""

import gzip
import os
import shutil
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFilter

from labeling_pipeline.images.reading import FORMATS
from tests.images.formats import encoded, extension, in_format, iptc

MODES = {
    "1": ("PNG", "TIFF"),
    "L": ("JPEG", "PNG", "WEBP"),
    "LA": ("PNG",),
    "P": ("PNG", "BMP"),
    "RGBA": ("PNG", "WEBP", "AVIF", "TIFF", "ICO", "SGI", "DDS"),
    "CMYK": ("JPEG", "TIFF"),
    "YCbCr": ("JPEG", "TIFF"),
    "LAB": ("TIFF",),
    "I;16": ("PNG", "TIFF", "PPM"),
    "I": ("TIFF",),
    "F": ("TIFF",),
}
"""Ways to store a picture, beside the usual one of each format -> formats that can."""
LARGE_SIDE_PX = 9000

CHANGING = "specials/changing.jpg"
"""What `changing` writes to."""
HANGS, CRASHES, EATS_MEMORY = b"XV hangs ", b"XV crashes ", b"XV eats memory "
"""How files begin that the decoder of `write_decoder` cannot bear."""
HUNGRY, HUNGER_BYTES = b"XV hungry ", 450 << 20
"""And one that it can, if it gets so much memory."""


def write_corpus(root: Path, seed: int = 0) -> int:
    """Fill a folder; returns how many files lie in it, links and the like included."""
    rng = np.random.default_rng(seed)
    for name, data in _files(rng):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    _write_odd_names(root / "names")
    _write_links(root / "links")
    _write_what_is_no_file(root / "specials")
    count = sum(len(files) + _links_to_folders(Path(top)) for top, _, files in os.walk(root))
    # Whoever may not list it sees the folder in place of the one file in it.
    (root / "specials/locked").chmod(0)
    return count


def _links_to_folders(folder: Path) -> int:
    return sum(path.is_symlink() and path.is_dir() for path in folder.iterdir())


@contextmanager
def changing(root: Path) -> Iterator[None]:
    """Write to one file of the corpus again and again, all the time."""
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.001):
            with (root / CHANGING).open("ab") as file:
                file.write(b"more")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def _files(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    for name in FORMATS:
        valid = in_format(picture(rng), name)
        yield f"valid/{name}{extension(name)}", valid
        yield from _damaged(rng, name, valid)
    for mode, formats in MODES.items():
        for name in formats:
            data = encoded(picture(rng, mode), name)
            yield f"valid/{name}_{mode.replace(';', '')}{extension(name)}", data
    yield "valid/progressive.jpg", encoded(picture(rng), "JPEG", progressive=True)
    for name in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        frames = [picture(rng) for _ in range(3)]
        data = encoded(frames[0], name, save_all=True, append_images=frames[1:])
        yield f"valid/frames{extension(name)}", data
    yield from _poor(rng)
    yield from _bombs(rng)
    yield from _nonsense(rng)


def _damaged(rng: np.random.Generator, name: str, valid: bytes) -> Iterator[tuple[str, bytes]]:
    for part in (0.02, 0.3, 0.7, 0.98):
        yield f"truncated/{name}_{part}{extension(name)}", valid[: int(len(valid) * part)]
    for number in range(7):
        data = bytearray(valid)
        # Headers are where flips do most.
        within = len(data) if number % 2 else min(len(data), 200)
        for place in rng.integers(0, within, 1 + number):
            data[place] ^= 1 << int(rng.integers(8))
        yield f"flipped/{name}_{number}{extension(name)}", bytes(data)
    middle = len(valid) // 2
    yield f"flipped/{name}_hole{extension(name)}", valid[:middle] + bytes(len(valid) - middle)
    yield f"flipped/{name}_tail{extension(name)}", valid + rng.bytes(50_000)


def _poor(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Sound files of pictures that are of no use."""
    photo = picture(rng)
    speckled, tones = np.zeros((60, 80), np.uint8), np.full((60, 80), 60, np.uint8)
    speckled[::16, ::16], tones[:5, :3] = 255, 200
    for name, image in {
        "best": photo,
        "worse": photo.resize((60, 45)),
        "small": photo.resize((24, 20)),
        "wide": photo.resize((400, 40)),
        "blank": Image.new("RGB", (80, 60), "grey"),
        "dark": Image.fromarray(speckled),
        "bright": Image.fromarray(255 - speckled),
        "blurred": photo.resize((800, 600)).filter(ImageFilter.GaussianBlur(50)),
        "two_tones": Image.fromarray(tones),
    }.items():
        yield f"poor/{name}.png", encoded(image, "PNG")
    yield "poor/copy.png", encoded(photo, "PNG")


def _bombs(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    yield "bombs/50000.png", _png(50_000, 50_000)
    yield "bombs/million_wide.png", _png(1_000_000, 1)
    yield "bombs/tall.png", _png(1, 80_000)
    yield "bombs/no_size.png", _png(0, 0)
    yield "bombs/two_billion.png", _png(2**31 - 1, 2**31 - 1)
    # Just under the limit, and small as files: the most that decoding may take.
    large = Image.new("RGB", (LARGE_SIDE_PX, LARGE_SIDE_PX), (9, 99, 199))
    yield "bombs/large.png", encoded(large, "PNG")
    yield "bombs/large.tif", encoded(large, "TIFF", compression="tiff_deflate")
    yield "bombs/large_progressive.jpg", encoded(large, "JPEG", quality=30, progressive=True)
    text = zlib.compress(bytes(80_000_000))
    valid = encoded(picture(rng), "PNG")
    yield "bombs/text.png", valid[:33] + _chunk(b"zTXt", b"a\0\0" + text) + valid[33:]
    profile = _chunk(b"iCCP", b"a\0\0" + text)
    yield "bombs/profile.png", valid[:33] + profile + valid[33:]
    yield "bombs/long_row.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    yield "bombs/loop.tif", b"II*\0\x08\0\0\0" + b"\0\0" + struct.pack("<I", 8)
    yield "bombs/many_frames.gif", _many_frames(5000)
    yield "bombs/wide.bmp", b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 60_000, 60_000, 1, 24)
    yield "bombs/negative.bmp", b"BM" + bytes(12) + struct.pack("<IiiHH", 40, -5, 7, 1, 24)
    yield "bombs/huge.ppm", b"P6 70000 70000 255\n"
    yield "bombs/packed.fits", _packed_fits(80, 60, bytes(200_000_000))
    yield "bombs/digits.ppm", b"P6 " + b"9" * 5000 + b" 1 255\n"


def _nonsense(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    yield "nonsense/empty.jpg", b""
    yield "nonsense/one_byte.png", b"\x89"
    yield "nonsense/zeros.jpg", bytes(100_000)
    yield "nonsense/endless.jpg", b"\xff\xd8" + b"\xff\xfe\0\x02" * 200_000
    yield "nonsense/text.jpg", b"It was a dark and stormy night.\n" * 50
    yield "nonsense/page.png", b"<!doctype html><title>404</title>"
    yield "nonsense/drawing.webp", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    yield "nonsense/vector.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    yield "nonsense/archive.jpg", b"PK\x03\x04" + rng.bytes(500)
    yield "nonsense/pdf.tif", b"%PDF-1.7\n"
    for number in range(8):
        yield f"nonsense/random_{number}.jpg", rng.bytes(int(rng.integers(1, 20_000)))
    for name in ("tga", "pcd", "im", "ico", "icns", "psd", "dds", "sgi", "pcx", "xbm", "fits"):
        yield f"nonsense/random.{name}", rng.bytes(5000)
    for name in ("JPEG", "PNG", "WEBP", "AVIF", "GIF"):
        wrong = encoded(picture(rng), name)
        yield f"nonsense/really_{name}.bmp", wrong
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff" + rng.bytes(300)
    yield "nonsense/exif.jpg", encoded(picture(rng), "JPEG", exif=exif)
    yield "nonsense/orientation_99.jpg", encoded(picture(rng), "JPEG", exif=_turned(99))
    yield "nonsense/notes.txt", b"not an image"
    yield "nonsense/Thumbs.db", b"\0"
    yield ".hidden/inside.jpg", encoded(picture(rng), "JPEG")
    yield (
        "nonsense/wrapped_drawing.jpg",
        iptc(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    )
    # Last by name: while it hangs, no other file makes progress.
    yield "worst/crashes.png", CRASHES + rng.bytes(50)
    yield "worst/eats_memory.png", EATS_MEMORY + rng.bytes(50)
    yield "worst/hangs.png", HANGS + rng.bytes(50)


def _write_odd_names(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(77)
    names = [
        *("new\nline.jpg", "tab\t.jpg", "quote'\".jpg", "semi;colon.jpg", "percent%s.jpg", " .jpg"),
        *("-rf.jpg", "$(reboot).jpg", "cafe\u0301.jpg", "\u202egpj.exe.jpg", "x" * 240 + ".jpg"),
        *("..jpg.jpg", "UPPER.JPG", "a,b.jpg", "a...b.jpg", "\U0001f600.jpg"),
    ]
    for name in names:
        (folder / name).write_bytes(encoded(picture(rng), "JPEG"))
    for raw in (b"bad\xff\xfe.jpg", b"latin\xe9.jpg"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + raw)).write_bytes(
            encoded(picture(rng), "JPEG")
        )
    deep = folder.joinpath(*["deep"] * 40)
    deep.mkdir(parents=True)
    (deep / "down.jpg").write_bytes(encoded(picture(rng), "JPEG"))


def _write_links(folder: Path) -> None:
    folder.mkdir()
    (folder / "inside.jpg").symlink_to("../valid/JPEG.jpg")
    (folder / "dangling.jpg").symlink_to("nothing.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "outside.jpg").symlink_to("/etc/hostname")
    (folder / "endless.jpg").symlink_to("/dev/zero")
    (folder / "round").symlink_to("..")
    (folder / "there.jpg").symlink_to("back.jpg")
    (folder / "back.jpg").symlink_to("there.jpg")


def _write_what_is_no_file(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "pipe.jpg")
    here = Path.cwd()
    os.chdir(folder)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
    os.chdir(here)
    (folder / "folder.jpg").mkdir()
    sparse = folder / "sparse.jpg"
    sparse.touch()
    os.truncate(sparse, 1 << 40)
    forbidden = folder / "forbidden.jpg"
    forbidden.write_bytes(b"secret")
    forbidden.chmod(0)
    (folder / "locked").mkdir()
    (folder / "locked/inside.jpg").write_bytes(b"secret")
    (folder / "changing.jpg").write_bytes(b"at first")


def write_decoder(folder: Path) -> None:
    """Write a module that Python imports as it starts, where the folder is on its path.

    It gives Pillow a decoder with three faults. Real faults of this kind exist, but each is mended
    in the next version of its library.
    """
    (folder / "sitecustomize.py").write_text(
        f"""
import os, signal, time
from PIL import Image, ImageFile

class Faulty(ImageFile.ImageFile):
    format, format_description = "FAULTY", "on purpose"

    def _open(self):
        self._head = self.fp.read(20)
        self._mode, self._size = "RGB", (64, 64)

    def load(self):
        if self._head.startswith({HANGS!r}):
            time.sleep(1000)
        if self._head.startswith({CRASHES!r}):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._head.startswith({HUNGRY!r}):
            bytearray({HUNGER_BYTES})
            self.im = Image.new("RGB", self.size, "red").im
            return Image.Image.load(self)
        taken = []
        while True:
            taken.append(bytearray(16 << 20))

def opened(fp, name):
    faulty = fp.read(3) == b"XV "
    fp.seek(0)
    return (Faulty if faulty else thumbnail)(fp, name)

Image.init()
thumbnail, accepts = Image.OPEN["XVTHUMB"]
Image.OPEN["XVTHUMB"] = opened, lambda head: head.startswith(b"XV ") or accepts(head)
"""
    )


def picture(rng: np.random.Generator, mode: str = "RGB") -> Image.Image:
    """A picture like no other, 80 x 60."""
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).astype(int) + rng.integers(-9, 10, (60, 80, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    wide = {"I;16": (np.uint16, 257), "I": (np.int32, 257), "F": (np.float32, 1 / 255)}
    if mode in wide:
        kind, factor = wide[mode]
        return Image.fromarray((np.asarray(image.convert("L"), np.float64) * factor).astype(kind))
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    return image.quantize(64) if mode == "P" else image.convert(mode)


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def _png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(5_000_000))
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _packed_fits(width: int, height: int, pixels: bytes) -> bytes:
    cards = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 0, "END": ""}
    table = {
        **{"XTENSION": "'BINTABLE'", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 1},
        **{"ZIMAGE": "T", "ZCMPTYPE": "'GZIP_1  '", "ZBITPIX": 8, "ZNAXIS": 2},
        **{"ZNAXIS1": width, "ZNAXIS2": height, "END": ""},
    }
    parts = [
        "".join(f"{key:<8}= {value:>20}".ljust(80) for key, value in part.items()).ljust(2880)
        for part in (cards, table)
    ]
    return "".join(parts).encode() + bytes(8) + gzip.compress(pixels)


def _many_frames(count: int) -> bytes:
    frames = [Image.new("P", (8, 8), number) for number in (1, 2)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    last = data.rindex(b"\x2c")
    return data[:last] + data[last:-1] * count + data[-1:]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    print(write_corpus(target), "files in", target)
