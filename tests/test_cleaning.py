from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter

from labeling_pipeline.annotations import box_iou
from labeling_pipeline.asks import class_names
from labeling_pipeline.cleaning import (
    CleaningSummary,
    _read_here,
    clean,
    clusters_sheet,
    rejects_sheet,
)
from labeling_pipeline.images.quality import CHECKS, CleaningRules
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore
from tests.images.orientations import STORED_AS


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    return AnnotationStore(tmp_path / "home" / "annotations.duckdb")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pets" / "cats").mkdir(parents=True)
    return tmp_path / "pets"


def scene(seed: int) -> np.ndarray:
    return draw_scene(np.random.default_rng([31, seed]), 240, 160).image


def put(path: Path, image: np.ndarray, quality: int = 92) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "JPEG", quality=quality)


def cleaned(
    store: AnnotationStore, root: Path, rules: CleaningRules | None = None
) -> CleaningSummary:
    source = open_source(root)
    update_inventory(store, source)
    return clean(store, source, rules or CleaningRules())


def rows(store: AnnotationStore, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in store.query(sql).to_pylist()]


def test_eight_orientations_of_a_photo_are_one_picture_and_boxes_land_in_the_same_place(
    store: AnnotationStore, root: Path, script: Any
):
    photos = {"png": scene(0), "jpg": scene(1)}
    for extension, upright in photos.items():
        for orientation, stored_as in STORED_AS.items():
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            stored = Image.fromarray(np.ascontiguousarray(stored_as(upright)))
            path = root / f"cats/{orientation}.{extension}"
            stored.save(path, exif=exif, quality=95, subsampling=0)
            # What JPEG loses of noise is more than what the turns do to it.
            lost = np.abs(read_image(path).astype(int) - upright)
            assert lost.mean() <= (2 if extension == "jpg" else 0)
    summary = cleaned(store, root)
    assert (summary.clusters, summary.files.statuses) == (2, {"accepted": 2, "rejected": 14})
    assert rows(
        store, "SELECT format, count(DISTINCT cluster) FROM images GROUP BY ALL ORDER BY ALL"
    ) == [("JPEG", 1), ("PNG", 1)]
    assert rows(store, "SELECT DISTINCT width_px, height_px FROM images") == [(240, 160)]

    # All of them labeled: the model answers in bins of what it sees.
    cleaned(store, root, CleaningRules(only_flag=("near_duplicate",)))
    model = script(boxes={"cats": [[100, 250, 500, 750]]})
    plan = parse_plan(f"model: '{model}'\nentries: [{{name: object, task: detection}}]")
    (slug,) = class_names(store)
    label_class(store, plan, plan.entries[0], slug, open_source(root), "run")
    boxes = rows(store, "SELECT x0_px, y0_px, x1_px, y1_px FROM annotations")
    assert len(boxes) == 16
    expected = (0.1 * 240, 0.25 * 160, 0.5 * 240, 0.75 * 160)
    assert all(box_iou(box, expected) > 0.97 for box in boxes)
    assert len(set(boxes)) == 1


def test_a_check_that_only_flags_accepts_and_says_so(store: AnnotationStore, root: Path):
    put(root / "cats/flat.jpg", np.full((120, 160, 3), 99, np.uint8))
    put(root / "cats/best.jpg", scene(1))
    put(root / "cats/copy.jpg", scene(1), quality=40)
    strict = cleaned(store, root)
    assert strict.files.rejected == {"blank": 1, "near_duplicate": 1}
    assert strict.flags == {}

    checks = ("blank", "blurred", "low_information", "near_duplicate")
    flagging = cleaned(store, root, CleaningRules(only_flag=checks))
    assert flagging.decoded == 0
    assert flagging.files.statuses == {"accepted": 3}
    assert flagging.flags == {
        "blank": 1,
        "blurred": 1,
        "low_information": 1,
        "near_duplicate": 1,
    }
    flags = dict(rows(store, "SELECT path, flags FROM class_images"))
    assert flags["cats/flat.jpg"] == ["blank", "blurred", "low_information"]
    assert flags["cats/copy.jpg"] == ["near_duplicate"]
    assert flags["cats/best.jpg"] == []
    assert cleaned(store, root).files.rejected == strict.files.rejected


def test_every_check_rejects_or_flags_as_the_plan_says(store: AnnotationStore, root: Path):
    put(root / "cats/poor.jpg", scene(0))
    (root / "cats/broken.jpg").write_bytes(b"text")
    cleaned(store, root)
    thresholds = {
        **{"min_side_px": 10**6, "max_aspect": 1, "min_contrast": 200, "min_brightness": 255},
        **{"max_brightness": 0, "min_sharpness": 1e9, "min_entropy_bits": 8},
    }
    for check in (*CHECKS, None):
        others = [name for name in CHECKS if name != check]
        rules = CleaningRules.model_validate(thresholds | {"only_flag": others})
        summary = cleaned(store, root, rules)
        assert (summary.decoded, list(summary.flags)) == (0, sorted(others))
        (poor,) = rows(store, "SELECT reason, detail <> '' FROM files WHERE path LIKE '%poor%'")
        assert poor == ((check, True) if check else (None, None))
        # What could not be decoded stays rejected for that under any rules.
        (broken,) = rows(store, "SELECT reason FROM files WHERE path LIKE '%broken%'")
        assert broken == ("not_an_image",)


def test_clusters_are_recorded_across_classes_and_name_the_best(store: AnnotationStore, root: Path):
    put(root / "cats/small.jpg", scene(2))
    put(root / "dogs/large.jpg", np.asarray(Image.fromarray(scene(2)).resize((480, 320))))
    put(root / "cats/other.jpg", scene(3))
    assert cleaned(store, root).clusters == 1
    assert rows(
        store,
        """
        SELECT f.path, best.path AS kept FROM dataset_files f JOIN images i USING (image_id)
        JOIN dataset_files best ON best.image_id = i.cluster ORDER BY ALL
        """,
    ) == [
        ("cats/other.jpg", "cats/other.jpg"),
        ("cats/small.jpg", "dogs/large.jpg"),
        ("dogs/large.jpg", "dogs/large.jpg"),
    ]


def test_of_a_cluster_the_largest_then_the_sharpest_is_kept(store: AnnotationStore, root: Path):
    small, large = scene(4), Image.fromarray(scene(5)).resize((480, 320))
    soft = Image.fromarray(small).filter(ImageFilter.GaussianBlur(1))
    put(root / "cats/a_soft.jpg", np.asarray(soft))
    put(root / "cats/b_sharp.jpg", small)
    put(root / "cats/c_sharp.jpg", scene(5))
    put(root / "cats/d_large_soft.jpg", np.asarray(large.filter(ImageFilter.GaussianBlur(2))))
    assert cleaned(store, root).clusters == 2
    assert rows(
        store, "SELECT path, detail FROM files WHERE status = 'rejected' ORDER BY path"
    ) == [
        ("cats/a_soft.jpg", "looks like cats/b_sharp.jpg, which is kept"),
        ("cats/c_sharp.jpg", "looks like cats/d_large_soft.jpg, which is kept"),
    ]


def test_what_was_measured_before_a_crash_is_not_measured_again(
    store: AnnotationStore, root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("labeling_pipeline.cleaning._COMMIT_FILES", 4)
    for seed in range(10):
        put(root / f"cats/{seed}.jpg", scene(seed))

    def crash(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    source = open_source(root)
    update_inventory(store, source)
    with pytest.raises(KeyboardInterrupt):
        clean(store, source, CleaningRules(), crash)
    assert rows(store, "SELECT count(*) FROM images") == [(8,)]
    assert rows(store, "SELECT DISTINCT status FROM files") == [("new",)]
    assert rows(store, "SELECT * FROM class_images") == []
    summary = clean(store, source, CleaningRules())
    assert (summary.decoded, summary.judged_anew) == (2, 0)
    assert summary.files.statuses == {"accepted": 10}


def test_images_that_were_measured_in_another_way_are_measured_anew(
    store: AnnotationStore, root: Path
):
    for seed in range(3):
        put(root / f"cats/{seed}.jpg", scene(seed))
    cleaned(store, root)
    before = rows(store, "SELECT * FROM images ORDER BY image_number")
    with store.transaction() as tx:
        tx.execute("UPDATE images SET size_bytes = NULL, entropy = NULL, sharpness = 1")
    assert cleaned(store, root).decoded == 3
    assert rows(store, "SELECT * FROM images ORDER BY image_number") == before


def test_a_file_that_could_not_be_read_is_tried_again_each_time(store: AnnotationStore, root: Path):
    put(root / "cats/0.jpg", scene(0))
    put(root / "cats/1.jpg", scene(1))
    source = open_source(root)
    update_inventory(store, source)
    hidden = (root / "cats/1.jpg").rename(root / "away")
    for _ in range(2):
        summary = clean(store, source, CleaningRules())
        assert (summary.unread, summary.files.rejected) == (1, {"vanished": 1})
    hidden.rename(root / "cats/1.jpg")
    summary = clean(store, source, CleaningRules())
    assert (summary.unread, summary.files.statuses) == (0, {"accepted": 2})


def test_where_nothing_changed_nothing_is_judged_or_written(store: AnnotationStore, root: Path):
    put(root / "cats/0.jpg", scene(0))
    put(root / "cats/1.jpg", scene(1))
    cleaned(store, root)
    written = store.path.stat().st_mtime_ns
    cleaned(store, root)
    assert store.path.stat().st_mtime_ns == written
    with store.transaction() as tx:
        tx.execute("UPDATE images SET status = 'new'")
    assert cleaned(store, root).files.statuses == {"accepted": 2}
    (root / "cats/1.jpg").unlink()
    assert cleaned(store, root).files.statuses == {"accepted": 1}


@pytest.mark.parametrize(("size_bytes", "most"), [(1, 8), (40, 2), (1000, 1)])
def test_files_from_elsewhere_are_read_ahead_as_far_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch, size_bytes: int, most: int
):
    monkeypatch.setattr("labeling_pipeline.cleaning._READ_AHEAD_BYTES", 100)
    begun: list[str] = []

    class Elsewhere:
        def read(self, path: str, expected: Any) -> bytes:
            begun.append(path)
            return bytes(size_bytes)

    known = {"size_bytes": size_bytes, "mtime_ns": 0, "etag": None, "image_ids": None}
    found = [{"path": f"{number}.jpg"} | known for number in range(20)]
    taken = []
    for job in _read_here(Elsewhere(), iter(found), deque()):  # type: ignore[arg-type]
        assert len(begun) <= len(taken) + most
        taken.append(job.key)
    assert taken == [row["path"] for row in found]


def test_contact_sheets_show_the_pictures_that_were_judged(store: AnnotationStore, root: Path):
    put(root / "cats/best.jpg", scene(0))
    put(root / "dogs/copy.jpg", scene(0), quality=40)
    put(root / "cats/flat.jpg", np.full((120, 160, 3), 99, np.uint8))
    cleaned(store, root)
    source = open_source(root)
    rejects, clusters = rejects_sheet(store, source), clusters_sheet(store, source)
    assert rejects is not None
    assert clusters is not None
    assert rejects.shape == clusters.shape
    put(root / "cats/flat.jpg", scene(1))
    put(root / "dogs/copy.jpg", scene(2))
    assert rejects_sheet(store, source) is None
    one = clusters_sheet(store, source)
    assert one is not None
    assert one.shape[1] < clusters.shape[1]
