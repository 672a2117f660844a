import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from labeling_pipeline.cleaning import clean
from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.images.inspection import inspect_image
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.sample.dataset import DOCUMENTS, MARKER, SampleSummary, write_sample
from labeling_pipeline.sample.documents import CHINESE, JAPANESE, LATIN, TEXT_LINE
from labeling_pipeline.sample.scenes import POSTURES, SHAPES
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.tasks import PERSON

PER_CLASS = 4


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleSummary:
    return write_sample(tmp_path_factory.mktemp("sample") / "sample", images_per_class=PER_CLASS)


@pytest.fixture(scope="module")
def truth(sample: SampleSummary) -> dict[str, Any]:
    return json.loads(sample.ground_truth.read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_there_is_a_folder_for_each_posture_and_shape_and_one_for_documents(
    sample: SampleSummary,
):
    folders = {path.name for path in sample.image_root.iterdir()}
    assert folders == {*POSTURES, *SHAPES, DOCUMENTS}


def test_the_summary_counts_what_lies_there(sample: SampleSummary, truth: dict[str, Any]):
    assert sample.files == len([p for p in sample.image_root.rglob("*") if p.is_file()])
    assert sample.good_images == len(truth["images"])
    assert sample.annotations == len(truth["annotations"])
    assert sample.written == sample.files + 1


def test_every_image_of_the_ground_truth_reads_upright_in_its_stated_size(
    sample: SampleSummary, truth: dict[str, Any]
):
    for image in truth["images"]:
        pixels = read_image(sample.image_root / image["file_name"])
        assert pixels.shape == (image["height"], image["width"], 3), image["file_name"]


def test_boxes_and_keypoints_lie_within_their_image(truth: dict[str, Any]):
    size = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    categories = {category["id"]: category for category in truth["categories"]}
    for annotation in truth["annotations"]:
        width, height = size[annotation["image_id"]]
        x, y, box_width, box_height = annotation["bbox"]
        assert min(x, y) >= 0
        assert x + box_width <= width
        assert y + box_height <= height
        assert annotation["area"] == pytest.approx(box_width * box_height, abs=0.01)
        if categories[annotation["category_id"]]["name"] == "person":
            points = np.reshape(annotation["keypoints"], (17, 3))
            assert annotation["num_keypoints"] == 17
            assert (points[:, :2] >= [x - 0.02, y - 0.02]).all()
            assert (points[:, :2] <= [x + box_width + 0.02, y + box_height + 0.02]).all()
            assert (points[:, 2] == 2).all()
        else:
            assert "keypoints" not in annotation


def test_each_folder_shows_what_it_is_called(truth: dict[str, Any]):
    name_of = {category["id"]: category["name"] for category in truth["categories"]}
    shown: dict[int, Counter[str]] = {image["id"]: Counter() for image in truth["images"]}
    for annotation in truth["annotations"]:
        shown[annotation["image_id"]][name_of[annotation["category_id"]]] += 1
    for image in truth["images"]:
        class_name = PurePosixPath(image["file_name"]).parts[0]
        if class_name in POSTURES:
            assert shown[image["id"]]["person"] == 1, image["file_name"]
            assert image["action"] == class_name
        elif class_name == DOCUMENTS:
            assert shown[image["id"]].keys() == {TEXT_LINE}
            assert shown[image["id"]][TEXT_LINE] >= 4
            assert image["action"] is None
        else:
            assert shown[image["id"]][class_name] >= 1, image["file_name"]
            assert shown[image["id"]]["person"] == 0
            assert image["action"] is None


def test_boxes_are_where_the_reader_sees_the_things(sample: SampleSummary, truth: dict[str, Any]):
    """Also of rotated, CMYK, 16-bit, palette, animated and transparent pictures."""
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        boxes[annotation["image_id"]].append(annotation["bbox"])
    for image in truth["images"]:
        pixels = read_image(sample.image_root / image["file_name"]).astype(float)
        things = np.zeros(pixels.shape[:2], bool)
        for x, y, width, height in boxes[image["id"]]:
            things[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1] = True
        background = np.median(pixels[~things], axis=0)
        contrast = np.abs(pixels - background).sum(axis=2)
        inside, outside = contrast[things], contrast[~things]
        assert inside.mean() > 1.5 * outside.mean(), image["file_name"]


def test_the_person_category_names_its_skeleton_counted_from_one(truth: dict[str, Any]):
    person = next(c for c in truth["categories"] if c["name"] == "person")
    assert person["keypoints"] == list(PERSON.keypoints)
    assert np.array(person["skeleton"]).min() == 1
    assert np.array(person["skeleton"]).max() == 17
    assert [c["name"] for c in truth["categories"]] == ["person", *SHAPES, TEXT_LINE]


def test_text_lines_and_they_alone_say_what_is_written_there(truth: dict[str, Any]):
    (text_line,) = [c["id"] for c in truth["categories"] if c["name"] == TEXT_LINE]
    written = [a["text"] for a in truth["annotations"] if "text" in a]
    assert len(written) == sum(a["category_id"] == text_line for a in truth["annotations"])
    for texts in (LATIN, CHINESE, JAPANESE):
        assert set(texts) & set(written)


def test_cleaning_finds_exactly_the_odd_files(sample: SampleSummary, tmp_path: Path):
    store, source = AnnotationStore(tmp_path / "a.duckdb"), open_source(sample.image_root)
    update_inventory(store, source)
    clean(store, source, CleaningRules())
    odd = {
        row["path"]: row["reason"] if row["kept"] is None else f"{row['reason']} of {row['kept']}"
        for row in store.query(
            """
            SELECT f.path, f.reason, best.path AS kept
            FROM files f
            LEFT JOIN images i ON i.image_id = f.image_id AND f.reason = 'near_duplicate'
            LEFT JOIN files best ON best.image_id = i.cluster AND best.status = 'accepted'
            WHERE f.reason IS NOT NULL
            """
        ).to_pylist()
    }
    assert odd == {
        "arms_raised/notes.jpg": "not_an_image",
        "circle/.DS_Store": "system_file",
        "circle/circle_001_copy.jpg": "exact_duplicate",
        "lying/empty.jpg": "empty_file",
        "lying/truncated.jpg": "truncated",
        "running/._running_001.jpg": "system_file",
        "sitting/blank.jpg": "blank",
        "square/Thumbs.db": "system_file",
        "square/circle_and_square.jpg": "exact_duplicate",
        "standing/standing_001_recompressed.jpg": "near_duplicate of standing/standing_001.jpg",
        "star/icon.png": "too_small",
        "star/star_001_resized.jpg": "near_duplicate of star/star_001.jpg",
        "triangle/triangle_001_recompressed.jpg": "near_duplicate of triangle/triangle_001.jpg",
    }


def test_the_formats_are_as_odd_as_their_names_say(sample: SampleSummary):
    expected = {
        "running/animated.gif": ("GIF", None, 2, 1),
        "standing/rotated_photo.jpg": ("JPEG", "RGB", 1, 6),
        "triangle/cmyk_photo.jpg": ("JPEG", "CMYK", 1, 1),
        "square/grey_16bit.png": ("PNG", "I;16", 1, 1),
        "star/palette.png": ("PNG", "P", 1, 1),
        "arms_raised/transparent.png": ("PNG", "RGBA", 1, 1),
    }
    for path, (format_name, mode, frames, orientation) in expected.items():
        record = inspect_image((sample.image_root / path).read_bytes())
        assert (record.format, record.frames) == (format_name, frames), path
        assert record.exif_orientation == orientation, path
        assert mode is None or record.mode == mode, path


def test_the_default_sample_is_large_enough_to_learn_from(tmp_path: Path):
    summary = write_sample(tmp_path / "sample")
    good = json.loads(summary.ground_truth.read_bytes())["images"]
    per_class = Counter(PurePosixPath(image["file_name"]).parts[0] for image in good)
    assert min(per_class.values()) >= 12
    aspects = {round(image["width"] / image["height"], 1) for image in good}
    assert {1.0, 1.3, 0.6, 2.2} <= aspects


def test_a_second_run_rewrites_nothing(tmp_path: Path):
    folder = tmp_path / "sample"
    write_sample(folder, images_per_class=3)
    before = times(folder)
    again = write_sample(folder, images_per_class=3)
    assert times(folder) == before
    assert (again.written, again.removed) == (0, 0)


def test_a_changed_file_is_restored_and_the_others_are_left_alone(tmp_path: Path):
    folder = tmp_path / "sample"
    write_sample(folder, images_per_class=3)
    before = contents(folder)
    (folder / "images/star/star_000.jpg").write_bytes(b"scribble")
    assert write_sample(folder, images_per_class=3).written == 1
    assert contents(folder) == before


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_sample(tmp_path / name, images_per_class=3, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    pictures = [
        {contents(tmp_path / name)[f"images/{c}/{c}_000.jpg"] for c in SHAPES} for name in "ac"
    ]
    assert pictures[0].isdisjoint(pictures[1])


def test_a_larger_sample_begins_with_the_smaller_one(tmp_path: Path):
    write_sample(tmp_path / "small", images_per_class=3)
    write_sample(tmp_path / "large", images_per_class=5)
    small, large = contents(tmp_path / "small" / "images"), contents(tmp_path / "large" / "images")
    assert small.items() <= large.items()


def test_a_smaller_sample_takes_back_its_own_files_and_no_others(tmp_path: Path):
    folder = tmp_path / "sample"
    write_sample(folder, images_per_class=4)
    (folder / "images/star/mine.jpg").write_bytes(b"mine")
    summary = write_sample(folder, images_per_class=3)
    assert summary.removed == 10
    assert not (folder / "images/star/star_003.jpg").exists()
    assert (folder / "images/star/mine.jpg").read_bytes() == b"mine"


def test_a_run_that_was_cut_short_is_completed(tmp_path: Path):
    folder = tmp_path / "sample"
    write_sample(folder, images_per_class=3)
    whole = contents(folder)
    for path in list(whole)[::2]:
        if path != MARKER:
            (folder / path).unlink()
    write_sample(folder, images_per_class=3)
    assert contents(folder) == whole


@pytest.mark.parametrize("name", ["images/cats/tom.jpg", "readme.txt", MARKER])
def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ConfigurationError, match="name an empty or a new folder"):
        write_sample(tmp_path, images_per_class=3)
    assert contents(tmp_path) == {name: b"precious"}


def test_too_few_images_to_derive_the_odd_ones_from_are_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="at least 3"):
        write_sample(tmp_path / "sample", images_per_class=2)


def test_a_negative_seed_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="0 or more"):
        write_sample(tmp_path / "sample", seed=-1)
