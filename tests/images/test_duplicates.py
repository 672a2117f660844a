import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.images.duplicates import represent
from labeling_pipeline.images.hashing import THUMBNAIL_SIZE, hamming, unpack_fingerprints
from labeling_pipeline.images.inspection import ImageRecord, inspect_image
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.sample.scenes import draw_scene

RULES = CleaningRules()
SIZES_PX = ((320, 240), (240, 320), (320, 320), (384, 216))


def jpeg(image: np.ndarray | Image.Image, quality: int = 92, scale: float = 1.0) -> bytes:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if scale != 1:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def scene(seed: int) -> np.ndarray:
    return draw_scene(np.random.default_rng(seed), *SIZES_PX[seed % len(SIZES_PX)]).image


def unpacked(records: list[ImageRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and thumbnails."""
    marks = "".join(str(record.perceptual_hash) for record in records)
    return unpack_fingerprints(bytes.fromhex(marks.replace(":", "")))


def stand_for(records: list[ImageRecord], rules: CleaningRules) -> list[int]:
    """For each image, which one stands for it. records: from the best to the worst."""
    aspects = np.array([(one.width_px or 1) / (one.height_px or 1) for one in records])
    return represent(*unpacked(records), aspects, rules).tolist()


@pytest.fixture(scope="module")
def distinct() -> list[ImageRecord]:
    return [inspect_image(jpeg(scene(seed))) for seed in range(200)]


def test_distinct_scenes_are_not_taken_for_each_other_even_where_hashes_are_near(
    distinct: list[ImageRecord],
):
    rules = CleaningRules(near_duplicate_distance=16)
    hashes, _ = unpacked(distinct)
    pairs = np.triu_indices(len(hashes), 1)
    near = hamming(hashes[:, None], hashes)[pairs] <= rules.near_duplicate_distance
    assert near.sum() > 20, "the hash alone should be fooled, else this proves nothing"
    assert stand_for(distinct, rules) == list(range(len(distinct)))


@pytest.mark.parametrize(
    ("quality", "scale", "least_found"),
    [(92, 1.0, 60), (50, 1.0, 58), (30, 1.0, 58), (85, 0.9, 58), (85, 0.5, 58)],
)
def test_copies_are_found_and_nothing_else_is(
    distinct: list[ImageRecord], quality: int, scale: float, least_found: int
):
    copies = [inspect_image(jpeg(scene(seed), quality, scale)) for seed in range(60)]
    stands_for = stand_for(distinct + copies, RULES)
    first_copy = len(distinct)
    pairs = [(stands_for[i], stands_for[first_copy + i]) for i in range(60)]
    assert sum(original == copy for original, copy in pairs) >= least_found
    assert all({*pair} <= {i, first_copy + i} for i, pair in enumerate(pairs))


def test_the_same_picture_in_another_shape_is_not_a_duplicate():
    image = Image.fromarray(scene(5))
    squeezed = image.resize((image.width // 2, image.height))
    records = [inspect_image(jpeg(image)), inspect_image(jpeg(squeezed))]
    assert stand_for(records, RULES) == [0, 1]


def test_every_image_is_like_the_one_kept_for_it_not_only_like_one_in_between():
    base = inspect_image(jpeg(scene(0)))
    assert base.perceptual_hash is not None

    def shade(level: int) -> ImageRecord:
        mark = f"{0x55 << 8:016x}:" + f"{level:02x}" * ((len(base.perceptual_hash or "") - 17) // 2)
        return replace(base, perceptual_hash=mark)

    # 100 ~ 110 ~ 120, but 100 and 120 differ by more than the limit of 12.
    assert stand_for([shade(100), shade(110), shade(120)], RULES) == [0, 0, 2]


def first_alike(near: np.ndarray) -> list[int]:
    """What stands for each of n pictures, from all pairs (n, n) that are alike."""
    expected: list[int] = []
    for i in range(len(near)):
        kept = [j for j in range(i) if expected[j] == j and near[i, j]]
        expected.append(kept[0] if kept else i)
    return expected


def relatives(rng: np.random.Generator, count: int, flips: int) -> np.ndarray:
    """Hashes (count,), most of them few bits away from others."""
    hashes = rng.integers(0, 2**64, count // 4, dtype=np.uint64)
    while len(hashes) < count:
        bits = rng.integers(0, 64, (len(hashes), max(flips, 1))).astype(np.uint64)
        hashes = np.r_[hashes, hashes ^ np.bitwise_or.reduce(np.uint64(1) << bits, axis=1)]
    return hashes[rng.permutation(len(hashes))[:count]]


@pytest.mark.parametrize("distance", [0, 1, 3, 8, 20, 32])
@pytest.mark.parametrize("count", [200, 3000])
def test_the_index_finds_every_pair_that_a_full_search_finds(distance: int, count: int):
    rng = np.random.default_rng(distance)
    hashes = relatives(rng, count, distance // 3)
    thumbnails = np.full((count, THUMBNAIL_SIZE), 128, np.uint8)
    rules = CleaningRules(near_duplicate_distance=distance)
    found = represent(hashes, thumbnails, np.ones(count), rules)
    assert found.tolist() == first_alike(hamming(hashes[:, None], hashes) <= distance)


@pytest.mark.parametrize(
    ("spread", "hashes"),
    [
        pytest.param(0, "one", id="all alike"),
        pytest.param(8, "one", id="one hash, some alike"),
        pytest.param(120, "one", id="one hash, none alike"),
        pytest.param(8, "near", id="hashes that crowd together, some alike"),
        pytest.param(120, "near", id="hashes that crowd together, none alike"),
    ],
)
def test_crowds_are_searched_as_exactly_as_others(spread: int, hashes: str):
    rng = np.random.default_rng(spread)
    count = 2500
    near = relatives(rng, 4 * count, 1)[:count] if hashes == "near" else np.zeros(count, np.uint64)
    if hashes == "near":
        bits = rng.integers(0, 64, (count, 3)).astype(np.uint64)
        near = np.bitwise_or.reduce(np.uint64(1) << bits, axis=1)
    # Few bytes differ, so that chance makes some pictures alike and some not.
    thumbnails = np.full((count, THUMBNAIL_SIZE), 128, np.uint8)
    thumbnails[:, :5] += rng.integers(-spread, spread + 1, (count, 5)).astype(np.uint8)
    values = thumbnails[:, :5].astype(int)
    difference = np.abs(values[:, None] - values).max(axis=2)
    alike = (hamming(near[:, None], near) <= 8) & (difference <= 12)
    found = represent(near, thumbnails, np.ones(count), RULES)
    assert found.tolist() == first_alike(alike)


def test_nothing_has_no_duplicates():
    assert stand_for([], RULES) == []
