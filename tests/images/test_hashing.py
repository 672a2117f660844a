import hashlib

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.images.hashing import (
    THUMBNAIL_SIZE,
    content_hash,
    fingerprint,
    hamming,
    perceptual_hash,
    unpack_fingerprints,
)
from labeling_pipeline.sample.scenes import draw_scene


def picture(seed: int, width: int = 160, height: int = 120) -> np.ndarray:
    return draw_scene(np.random.default_rng(seed), width, height).image


def bands(image: np.ndarray) -> tuple[Image.Image, ...]:
    return Image.fromarray(image).convert("YCbCr").split()


def test_the_content_hash_is_the_sha256_of_the_bytes():
    assert content_hash(b"abc") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [(0, 0, 0), (0, 1, 1), (0b1010, 0b0101, 4), (0, 2**64 - 1, 64), (2**63, 0, 1)],
)
def test_hamming_counts_differing_bits(left: int, right: int, distance: int):
    assert hamming(np.uint64(left), np.uint64(right)) == distance


def test_hamming_broadcasts_to_all_pairs():
    hashes = np.array([0, 1, 3], dtype=np.uint64)
    assert hamming(hashes[:, None], hashes).tolist() == [[0, 1, 2], [1, 0, 1], [2, 1, 0]]


def test_a_fingerprint_holds_the_hash_and_a_thumbnail():
    pictures = [picture(1), picture(2), picture(3, 64, 200)]
    marks = "".join(fingerprint(bands(p)) for p in pictures)
    hashes, thumbnails = unpack_fingerprints(bytes.fromhex(marks.replace(":", "")))
    assert hashes.tolist() == [perceptual_hash(bands(p)[0]) for p in pictures]
    assert thumbnails.shape == (3, THUMBNAIL_SIZE)


def test_the_hash_hardly_changes_with_brightness_and_much_with_the_picture():
    image = picture(4)
    dimmed = (image * 0.8).astype(np.uint8)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    hashes = np.array(
        [perceptual_hash(bands(p)[0]) for p in (image, dimmed, mirrored)], dtype=np.uint64
    )
    assert hamming(hashes[0], hashes[1]) <= 4
    assert hamming(hashes[0], hashes[2]) >= 16


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (7, 3, 3)])
def test_the_smallest_pictures_have_a_fingerprint(shape: tuple[int, int, int]):
    assert len(fingerprint(bands(np.zeros(shape, np.uint8)))) == 16 + 1 + 2 * THUMBNAIL_SIZE


def test_no_fingerprints_unpack_to_nothing():
    hashes, thumbnails = unpack_fingerprints(b"")
    assert hashes.shape == (0,)
    assert thumbnails.shape == (0, THUMBNAIL_SIZE)
