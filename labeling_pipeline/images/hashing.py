"""Names for contents: exact (SHA-256) and approximate (a fingerprint of what a picture shows).

A fingerprint has two parts, joined by a colon:

- 16 hex digits, a 64-bit perceptual hash: signs of the lowest 8 x 8 DCT coefficients of a 32 x 32
  luma thumbnail, against their median (Krawetz, "Looks Like It", 2011). Cheap to compare, but
  on plain pictures distinct ones can share it.
- the picture itself, small: 12 x 12 luma and 6 x 6 of each chroma, a byte each. Slow to search,
  but it tells apart what the hash confuses.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

HASH_BITS = 64
_LUMA_SIDE, _CHROMA_SIDE = 12, 6
THUMBNAIL_SIZE = _LUMA_SIDE**2 + 2 * _CHROMA_SIDE**2
_HASH_SIZE = HASH_BITS // 8
FINGERPRINT_SIZE = _HASH_SIZE + THUMBNAIL_SIZE
"""Bytes of a fingerprint."""


def content_hash(data: bytes) -> str:
    """SHA-256 of the bytes, 64 hex digits: the image_id."""
    return hashlib.sha256(data).hexdigest()


def perceptual_hash(luma: Image.Image) -> int:
    """64-bit hash of what a picture shows; near for pictures that look alike.

    luma: of mode L, of any size.
    """
    small = luma.resize((_DCT_SIDE, _DCT_SIDE), Image.Resampling.BOX)
    coefficients = (_DCT @ np.asarray(small, dtype=np.float64) @ _DCT.T).ravel()
    bits = coefficients > np.median(coefficients)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hamming(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Number of differing bits, uint8, of uint64 hashes; the two are broadcast."""
    return np.bitwise_count(np.bitwise_xor(left, right))


def fingerprint(bands: Sequence[Image.Image]) -> str:
    """Fingerprint of a picture, as stored in the column ``perceptual_hash``.

    bands: of YCbCr, three images of mode L.
    """
    sides = (_LUMA_SIDE, _CHROMA_SIDE, _CHROMA_SIDE)
    small = b"".join(
        band.resize((side, side), Image.Resampling.BOX).tobytes()
        for band, side in zip(bands, sides, strict=True)
    )
    return f"{perceptual_hash(bands[0]):016x}:{small.hex()}"


def unpack_fingerprints(packed: bytes | memoryview) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (n,) uint64 and thumbnails (n, THUMBNAIL_SIZE) uint8 of n fingerprints.

    packed: in bytes instead of hex, end to end and without colons.
    """
    rows = np.frombuffer(packed, dtype=np.uint8).reshape(-1, FINGERPRINT_SIZE)
    hashes = np.ascontiguousarray(rows[:, :_HASH_SIZE]).view(">u8").ravel().astype(np.uint64)
    return hashes, rows[:, _HASH_SIZE:]


_DCT_SIDE = 32


def _low_frequencies(side: int, count: int) -> np.ndarray:
    """The first rows (count, side) of the DCT-II matrix."""
    steps = (np.arange(side) + 0.5) * np.pi / side
    return np.cos(np.arange(count)[:, None] * steps)


_DCT = _low_frequencies(_DCT_SIDE, 8)
