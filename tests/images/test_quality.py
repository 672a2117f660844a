import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter
from pydantic import ValidationError

from labeling_pipeline.images.hashing import content_hash
from labeling_pipeline.images.inspection import inspect_image
from labeling_pipeline.images.quality import CHECKS, CleaningRules, failed_checks
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


def failing(data: bytes, rules: CleaningRules = RULES) -> list[str]:
    """The checks that an image fails, in their order."""
    measured = vars(inspect_image(data))
    failed = [name for name, fails in failed_checks(measured, rules).items() if fails]
    assert all(CHECKS[name].detail(measured, rules) for name in failed)
    return failed


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(jpeg(scene(0)), [], id="a drawn scene"),
        pytest.param(jpeg(scene(1), quality=20), [], id="a poor JPEG"),
        pytest.param(jpeg(scene(0), scale=0.1), ["too_small"], id="24 px"),
        pytest.param(jpeg(scene(0)[:40]), ["extreme_aspect"], id="8 : 1"),
        pytest.param(jpeg(flat(128)), ["blank", "blurred", "low_information"], id="one colour"),
        pytest.param(jpeg(speckled(0)), ["too_dark"], id="nearly black"),
        pytest.param(jpeg(speckled(255)), ["too_bright"], id="nearly white"),
        pytest.param(jpeg(blurred()), ["blurred"], id="blurred"),
    ],
)
def test_each_check_fails_for_what_it_is_there_for(data: bytes, expected: list[str]):
    assert failing(data) == expected


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
    assert record.status == "new"


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


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_side_px", 300), ("max_aspect", 1.2), ("min_sharpness", 1e6), ("min_entropy_bits", 8)],
)
def test_a_stricter_threshold_rejects_what_a_laxer_one_accepts(field: str, value: float):
    assert failing(jpeg(scene(0))) == []
    assert len(failing(jpeg(scene(0)), CleaningRules.model_validate({field: value}))) == 1


def test_two_tones_are_low_in_information_whatever_their_contrast():
    image = flat(60)
    image[100:110, 100:110] = 200
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    record = inspect_image(buffer.getvalue())
    share = 100 / (320 * 240)
    bits = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert record.entropy == pytest.approx(bits)
    assert failing(buffer.getvalue()) == ["low_information"]


def test_a_misspelt_rule_is_refused():
    with pytest.raises(ValidationError, match="min_side"):
        CleaningRules.model_validate({"min_side": 10})


def test_every_rule_is_described():
    fields = CleaningRules.model_fields.items()
    assert [name for name, field in fields if not field.description] == []
