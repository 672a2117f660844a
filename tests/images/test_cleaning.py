import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter
from pydantic import ValidationError

from labeling_pipeline.images.cleaning import (
    CleaningRules,
    ImageRecord,
    inspect_image,
    judge,
    near_duplicates,
)
from labeling_pipeline.images.hashing import content_hash, hamming, parse_fingerprints
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


def flat(color: int, width: int = 320, height: int = 240) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def speckled(color: int) -> np.ndarray:
    """Nearly one colour, but not blank."""
    image = flat(color)
    image[::16, ::16] = 255 - color
    return image


def blurred() -> Image.Image:
    return Image.fromarray(scene(0)).filter(ImageFilter.GaussianBlur(15))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(jpeg(scene(0)), None, id="a drawn scene"),
        pytest.param(jpeg(scene(1), quality=20), None, id="a poor JPEG"),
        pytest.param(b"", "empty_file", id="empty"),
        pytest.param(b"text", "not_an_image", id="text"),
        pytest.param(jpeg(scene(0))[:4000], "truncated", id="truncated"),
        pytest.param(jpeg(scene(0), scale=0.1), "too_small", id="24 px"),
        pytest.param(jpeg(scene(0)[:40]), "extreme_aspect", id="8 : 1"),
        pytest.param(jpeg(flat(128)), "blank", id="one colour"),
        pytest.param(jpeg(flat(0)), "blank", id="black"),
        pytest.param(jpeg(speckled(0)), "too_dark", id="nearly black"),
        pytest.param(jpeg(speckled(255)), "too_bright", id="nearly white"),
        pytest.param(jpeg(blurred()), "blurred", id="blurred"),
    ],
)
def test_each_rule_has_its_reason(data: bytes, reason: str | None):
    verdict = judge(inspect_image(data), RULES)
    assert (verdict and verdict[0]) == reason
    assert verdict is None or verdict[1]


def test_an_inspection_measures_the_upright_picture():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    Image.fromarray(scene(0)).convert("CMYK").save(buffer, "JPEG", exif=exif)
    record = inspect_image(buffer.getvalue())
    assert record.image_id == content_hash(buffer.getvalue())
    assert (record.width_px, record.height_px) == (240, 320)
    assert (record.format, record.mode, record.frames) == ("JPEG", "CMYK", 1)
    assert record.exif_orientation == 6
    assert record.status == "accepted"


def test_metrics_mean_what_they_say():
    halves = flat(50)
    halves[:, 160:] = 150
    buffer = io.BytesIO()
    Image.fromarray(halves).save(buffer, "PNG")
    record = inspect_image(buffer.getvalue())
    assert record.brightness == pytest.approx(100)
    assert record.contrast == pytest.approx(50)
    # Two of 318 columns have a Laplacian, +100 and -100.
    assert record.sharpness == pytest.approx(2 * 100**2 / 318)


def test_an_image_that_cannot_be_decoded_stays_rejected_for_that_under_any_rules():
    record = inspect_image(b"text")
    assert (record.status, record.reason, record.width_px) == ("rejected", "not_an_image", None)
    lax = CleaningRules(min_side_px=1, min_contrast=0, min_sharpness=0)
    assert judge(record, lax) == ("not_an_image", record.detail)


@pytest.mark.parametrize(
    ("field", "value"), [("min_side_px", 300), ("max_aspect", 1.2), ("min_sharpness", 1e6)]
)
def test_a_stricter_threshold_rejects_what_a_laxer_one_accepts(field: str, value: float):
    record = inspect_image(jpeg(scene(0)))
    assert judge(record, RULES) is None
    assert judge(record, CleaningRules.model_validate({field: value})) is not None


def test_a_misspelt_rule_is_refused():
    with pytest.raises(ValidationError, match="min_side"):
        CleaningRules.model_validate({"min_side": 10})


def test_every_rule_is_described():
    fields = CleaningRules.model_fields.items()
    assert [name for name, field in fields if not field.description] == []


@pytest.fixture(scope="module")
def distinct() -> list[ImageRecord]:
    return [inspect_image(jpeg(scene(seed))) for seed in range(200)]


def test_distinct_scenes_are_not_taken_for_each_other_even_where_hashes_are_near(
    distinct: list[ImageRecord],
):
    rules = CleaningRules(near_duplicate_distance=16)
    hashes, _ = parse_fingerprints([str(record.perceptual_hash) for record in distinct])
    pairs = np.triu_indices(len(hashes), 1)
    near = hamming(hashes[:, None], hashes)[pairs] <= rules.near_duplicate_distance
    assert near.sum() > 20, "the hash alone should be fooled, else this proves nothing"
    assert near_duplicates(distinct, rules) == list(range(len(distinct)))


@pytest.mark.parametrize(
    ("quality", "scale", "least_found"),
    [(92, 1.0, 60), (50, 1.0, 58), (30, 1.0, 58), (85, 0.9, 58), (85, 0.5, 58)],
)
def test_copies_are_found_and_nothing_else_is(
    distinct: list[ImageRecord], quality: int, scale: float, least_found: int
):
    copies = [inspect_image(jpeg(scene(seed), quality, scale)) for seed in range(60)]
    # At equal quality the copy is the same file; another name makes it another image.
    copies = [replace(copy, image_id=copy.image_id + "'") for copy in copies]
    stands_for = near_duplicates(distinct + copies, RULES)
    first_copy = len(distinct)
    pairs = [(stands_for[i], stands_for[first_copy + i]) for i in range(60)]
    assert sum(original == copy for original, copy in pairs) >= least_found
    assert all({*pair} <= {i, first_copy + i} for i, pair in enumerate(pairs))


def test_the_largest_then_the_sharpest_stands_for_its_cluster():
    image = scene(3)
    large, small = inspect_image(jpeg(image)), inspect_image(jpeg(image, scale=0.8))
    soft = inspect_image(jpeg(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1))))
    assert near_duplicates([small, soft, large], RULES) == [2, 2, 2]


def test_the_same_picture_in_another_shape_is_not_a_duplicate():
    image = Image.fromarray(scene(5))
    squeezed = image.resize((image.width // 2, image.height))
    records = [inspect_image(jpeg(image)), inspect_image(jpeg(squeezed))]
    assert near_duplicates(records, RULES) == [0, 1]


def test_every_image_is_like_the_one_kept_for_it_not_only_like_one_in_between():
    base = inspect_image(jpeg(scene(0)))
    assert base.perceptual_hash is not None

    def shade(level: int, sharpness: float) -> ImageRecord:
        mark = f"{0x55 << 8:016x}:" + f"{level:02x}" * ((len(base.perceptual_hash or "") - 17) // 2)
        return replace(base, image_id=f"{level}", sharpness=sharpness, perceptual_hash=mark)

    # 100 ~ 110 ~ 120, but 100 and 120 differ by more than the limit of 12.
    assert near_duplicates([shade(100, 9), shade(110, 8), shade(120, 7)], RULES) == [0, 0, 2]


@pytest.mark.parametrize("distance", [0, 3, 8, 20, 32])
def test_banding_finds_every_pair_that_a_full_search_finds(distance: int):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 40, dtype=np.uint64)
    for _ in range(4):
        flips = rng.integers(0, 64, (len(hashes), max(distance // 3, 1)))
        masks = np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), axis=1)
        hashes = np.concatenate([hashes, hashes[: len(masks)] ^ masks])[:200]
    base = inspect_image(jpeg(scene(0)))
    records = [
        replace(base, image_id=f"{i:03d}", perceptual_hash=f"{int(h):016x}:" + "80" * 216)
        for i, h in enumerate(hashes)
    ]
    near = hamming(hashes[:, None], hashes) <= distance
    expected: list[int] = []
    for i in range(len(hashes)):
        kept = [j for j in range(i) if expected[j] == j and near[i, j]]
        expected.append(kept[0] if kept else i)
    assert near_duplicates(records, CleaningRules(near_duplicate_distance=distance)) == expected


def test_nothing_has_no_duplicates():
    assert near_duplicates([], RULES) == []
