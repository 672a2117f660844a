import os
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.cleaning import CleaningSummary, clean
from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import FoundFile, SourceSettings, listing, open_source
from labeling_pipeline.inventory import (
    FileNote,
    InventorySummary,
    held_out_images,
    update_inventory,
)
from labeling_pipeline.plan import class_slug
from labeling_pipeline.sample.dataset import write_sample
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

RULES = CleaningRules()


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    return AnnotationStore(tmp_path / "home" / "annotations.duckdb")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pets").mkdir()
    return tmp_path / "pets"


def put(path: Path, seed: int, quality: int = 92, size: tuple[int, int] = (120, 90)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scene = draw_scene(np.random.default_rng(seed), 120, 90)
    Image.fromarray(scene.image).resize(size).save(path, "JPEG", quality=quality)
    return path


def inventory(
    store: AnnotationStore,
    root: Path,
    plan_classes: Sequence[str] = (),
    test_folder: str | None = None,
    **settings: Any,
) -> InventorySummary:
    return update_inventory(
        *(store, open_source(root), plan_classes, SourceSettings(**settings)),
        test_folder=test_folder,
    )


def cleaned(store: AnnotationStore, root: Path, rules: CleaningRules = RULES) -> CleaningSummary:
    return clean(store, open_source(root), rules)


def rows(store: AnnotationStore, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in store.query(sql).to_pylist()]


def classes(store: AnnotationStore) -> dict[str, bool]:
    """Slug -> retired, in order of registration."""
    return dict(rows(store, "SELECT class, retired FROM classes ORDER BY class_number"))


def image_ids(store: AnnotationStore) -> dict[str, str]:
    return dict(rows(store, "SELECT path, image_id FROM dataset_files"))


def statuses(store: AnnotationStore) -> dict[str, str]:
    """Path -> status, or the reason where there is one."""
    return dict(rows(store, "SELECT path, coalesce(reason, status) FROM files"))


def images(store: AnnotationStore) -> list[tuple[Any, ...]]:
    return rows(store, "SELECT * FROM images ORDER BY image_id")


def test_the_sample_folder_is_inventoried_and_cleaned(store: AnnotationStore, tmp_path: Path):
    sample = write_sample(tmp_path / "sample", images_per_class=3)
    found = inventory(store, sample.image_root)
    assert found.added == found.files.total == sample.files
    assert found.files.statuses == {"new": sample.files - 3, "skipped": 3}
    assert found.classes_affected == found.classes_added
    assert len(found.classes_added) == 10

    cleaning = cleaned(store, sample.image_root)
    assert cleaning.images == sample.files - 3 - 2
    assert cleaning.files.reasons == {
        "blank": 1,
        "empty_file": 1,
        "exact_duplicate": 2,
        "near_duplicate": 3,
        "not_an_image": 1,
        "system_file": 3,
        "too_small": 1,
        "truncated": 1,
    }
    assert cleaning.files.statuses["accepted"] == sample.files - 13
    notes = {note.path: note for note in cleaning.files.not_accepted}
    assert len(notes) == 13
    assert notes["star/star_001_resized.jpg"] == FileNote(
        "star/star_001_resized.jpg",
        "rejected",
        "near_duplicate",
        "looks like star/star_001.jpg, which is kept",
    )
    assert notes["circle/circle_001_copy.jpg"].detail == "same content as circle/circle_001.jpg"


def test_a_second_run_reads_and_decodes_nothing_and_changes_no_row(
    store: AnnotationStore, root: Path
):
    for seed in range(6):
        put(root / f"cats/{seed}.jpg", seed)
    put(root / "cats/0_worse.jpg", 0, quality=40)
    (root / "cats/broken.jpg").write_bytes(b"broken")
    inventory(store, root)
    cleaned(store, root)
    written = store.path.stat().st_mtime_ns
    before = (image_ids(store), images(store))

    found, cleaning = inventory(store, root), cleaned(store, root)
    assert (found.added, found.changed, found.removed) == (0, 0, 0)
    assert found.classes_affected == ()
    assert (cleaning.decoded, cleaning.judged_anew) == (0, 0)
    assert (image_ids(store), images(store)) == before
    assert store.path.stat().st_mtime_ns == written, "nothing due, yet the store was written"


def test_only_new_and_changed_files_are_new_to_cleaning(store: AnnotationStore, root: Path):
    for seed in range(3):
        put(root / f"cats/{seed}.jpg", seed)
    inventory(store, root)
    cleaned(store, root)
    put(root / "cats/1.jpg", 11)
    put(root / "dogs/3.jpg", 3)
    found = inventory(store, root)
    assert (found.added, found.changed, found.files.statuses["new"]) == (1, 1, 2)
    assert found.classes_affected == ("cats", "dogs")
    assert cleaned(store, root).files.statuses == {"accepted": 4}


def test_a_file_that_was_only_touched_is_read_again_and_stays_the_same_image(
    store: AnnotationStore, root: Path
):
    path = put(root / "cats/0.jpg", 0)
    inventory(store, root)
    cleaned(store, root)
    os.utime(path, ns=(1, 1))
    before = images(store)
    found = inventory(store, root)
    assert (found.changed, found.files.statuses) == (1, {"new": 1})
    cleaned(store, root)
    assert images(store) == before


def test_a_moved_file_keeps_its_image(store: AnnotationStore, root: Path):
    path = put(root / "cats/0.jpg", 0)
    inventory(store, root)
    cleaned(store, root)
    before = images(store)
    (root / "dogs").mkdir()
    path.rename(root / "dogs/moved.jpg")
    found = inventory(store, root)
    assert (found.added, found.removed) == (1, 1)
    cleaned(store, root)
    assert images(store) == before
    assert image_ids(store) == {"dogs/moved.jpg": before[0][0]}


def test_an_image_without_a_file_remains_and_is_known_when_it_comes_back(
    store: AnnotationStore, root: Path
):
    path = put(root / "cats/0.jpg", 0)
    put(root / "cats/1.jpg", 1)
    inventory(store, root)
    cleaned(store, root)
    data = path.read_bytes()
    path.unlink()
    assert inventory(store, root).removed == 1
    assert cleaned(store, root).images == 1
    assert len(images(store)) == 2
    path.write_bytes(data)
    inventory(store, root)
    assert cleaned(store, root).decoded == 0
    assert set(statuses(store).values()) == {"accepted"}


def test_a_gone_image_does_not_stand_in_the_way_of_its_near_duplicate(
    store: AnnotationStore, root: Path
):
    put(root / "cats/copy.jpg", 0, quality=40)
    best = put(root / "cats/best.jpg", 0)
    inventory(store, root)
    cleaned(store, root)
    assert statuses(store) == {"cats/best.jpg": "accepted", "cats/copy.jpg": "near_duplicate"}
    best.unlink()
    inventory(store, root)
    assert cleaned(store, root).judged_anew == 1
    assert statuses(store) == {"cats/copy.jpg": "accepted"}


def test_a_better_copy_takes_the_place_of_the_one_kept_before(store: AnnotationStore, root: Path):
    put(root / "cats/small.jpg", 0)
    inventory(store, root)
    cleaned(store, root)
    put(root / "dogs/large.jpg", 0, size=(240, 180))
    inventory(store, root)
    summary = cleaned(store, root)
    assert (summary.decoded, summary.judged_anew) == (1, 1)
    assert summary.files.not_accepted == (
        FileNote(
            "cats/small.jpg",
            "rejected",
            "near_duplicate",
            "looks like dogs/large.jpg, which is kept",
        ),
    )


def test_a_changed_threshold_judges_anew_without_decoding(store: AnnotationStore, root: Path):
    put(root / "cats/small.jpg", 0, size=(60, 45))
    put(root / "cats/large.jpg", 1)
    put(root / "cats/large_copy.jpg", 1, quality=40)
    inventory(store, root)
    cleaned(store, root)
    numbers = rows(store, "SELECT image_id, image_number FROM images ORDER BY ALL")
    for rules, expected in (
        (RULES, ["near_duplicate"]),
        (CleaningRules(min_side_px=50), ["near_duplicate", "too_small"]),
        (CleaningRules(only_flag=("near_duplicate",)), []),
        (CleaningRules(near_duplicate_difference=0, near_duplicate_distance=0), []),
        (CleaningRules(max_aspect=1), ["extreme_aspect"] * 3),
        (RULES, ["near_duplicate"]),
    ):
        summary = cleaned(store, root, rules)
        assert summary.decoded == 0
        assert sorted(note.reason for note in summary.files.not_accepted) == expected
    assert rows(store, "SELECT image_id, image_number FROM images ORDER BY ALL") == numbers
    put(root / "cats/new.jpg", 2)
    inventory(store, root)
    cleaned(store, root)
    highest = rows(store, "SELECT max(image_number) FROM images")
    assert highest == [(4,)], "judging anew should use up no numbers"


def test_the_measurements_are_stored(store: AnnotationStore, root: Path):
    put(root / "cats/0.jpg", 0)
    inventory(store, root)
    cleaned(store, root)
    (row,) = store.query("SELECT * FROM images").to_pylist()
    assert (row["width_px"], row["height_px"], row["format"], row["mode"]) == (
        *(120, 90),
        *("JPEG", "RGB"),
    )
    assert row["cluster"] == row["image_id"]
    assert min(row["brightness"], row["contrast"], row["sharpness"]) > 0


def test_equal_contents_are_one_image_and_the_first_path_stands_for_it(
    store: AnnotationStore, root: Path
):
    put(root / "dogs/b.jpg", 0)
    put(root / "cats/a.jpg", 0)
    inventory(store, root)
    assert cleaned(store, root).images == 1
    assert statuses(store) == {"cats/a.jpg": "accepted", "dogs/b.jpg": "exact_duplicate"}


def test_a_file_that_vanished_or_changed_since_the_inventory_is_rejected_for_that(
    store: AnnotationStore, root: Path
):
    put(root / "cats/0.jpg", 0)
    gone = put(root / "cats/1.jpg", 1)
    changed = put(root / "cats/2.jpg", 2)
    inventory(store, root)
    gone.unlink()
    put(changed, 3)
    summary = cleaned(store, root)
    assert (summary.decoded, summary.unread) == (1, 2)
    assert summary.files.rejected == {"changed": 1, "vanished": 1}
    inventory(store, root)
    assert cleaned(store, root).files.statuses == {"accepted": 2}


def test_a_copy_is_measured_where_the_first_file_has_vanished(store: AnnotationStore, root: Path):
    put(root / "cats/a.jpg", 0)
    put(root / "cats/b.jpg", 0)
    inventory(store, root)
    (root / "cats/a.jpg").unlink()
    assert cleaned(store, root).decoded == 1


def test_classes_come_from_the_plan_then_from_folders_and_retire_without_files(
    store: AnnotationStore, root: Path
):
    zebra = put(root / "zebra/0.jpg", 0)
    put(root / "ant/1.jpg", 1)
    (root / "notes").mkdir()
    (root / "notes/read.txt").write_text("no image, no class")
    first = inventory(store, root, ["walrus", "Große Katze"])
    assert first.classes_added == ("walrus", class_slug("Große Katze"), "ant", "zebra")
    assert not any(classes(store).values())

    data = zebra.read_bytes()
    zebra.unlink()
    second = inventory(store, root, ["walrus"])
    assert second.classes_retired == (first.classes_added[1], "zebra")
    zebra.write_bytes(data)
    third = inventory(store, root, ["walrus"])
    assert third.classes_returned == ("zebra",)
    assert list(classes(store)) == list(first.classes_added)
    assert [slug for slug, retired in classes(store).items() if retired] == [first.classes_added[1]]


@pytest.mark.parametrize(
    ("plan_classes", "expected"), [([], "pets"), (["cats"], None), (["pets"], None)]
)
def test_a_file_in_no_folder_belongs_to_the_root_or_with_a_plan_to_no_class_of_its_own(
    store: AnnotationStore, root: Path, plan_classes: list[str], expected: str | None
):
    put(root / "0.jpg", 0)
    put(root / "dogs/1.jpg", 1)
    inventory(store, root, plan_classes)
    assert rows(store, "SELECT path, class FROM dataset_files ORDER BY path") == [
        ("0.jpg", expected),
        ("dogs/1.jpg", "dogs"),
    ]
    assert set(classes(store)) == {"dogs", *(plan_classes or ["pets"])}


def test_a_plan_that_begins_to_name_classes_moves_files_without_reading_them(
    store: AnnotationStore, root: Path
):
    put(root / "0.jpg", 0)
    inventory(store, root)
    cleaned(store, root)
    before = image_ids(store)
    summary = inventory(store, root, ["cats"])
    assert (summary.changed, summary.classes_affected) == (1, ("cats",))
    assert image_ids(store) == before
    assert classes(store) == {"pets": True, "cats": False}


def test_a_class_keeps_its_display_name(store: AnnotationStore, root: Path):
    put(root / "Große Katzen/0.jpg", 0)
    inventory(store, root)
    assert rows(store, "SELECT display_name FROM classes") == [("Große Katzen",)]


def test_two_classes_with_one_key_are_refused(store: AnnotationStore, root: Path):
    slug = inventory(store, put(root / "Cats!/0.jpg", 0).parents[1]).classes_added[0]
    put(root / slug / "1.jpg", 1)
    with pytest.raises(ConfigurationError, match="rename one of them"):
        inventory(store, root)


def test_a_missing_root_leaves_the_store_as_it_was(store: AnnotationStore, root: Path):
    put(root / "cats/0.jpg", 0)
    inventory(store, root)
    with pytest.raises(ConfigurationError, match="does not exist"):
        inventory(store, root / "elsewhere")
    assert list(image_ids(store)) == ["cats/0.jpg"]


# Other ways to a class


def classed(store: AnnotationStore) -> dict[str, str | None]:
    """Path -> class, or the reason why the file does not count."""
    return dict(rows(store, "SELECT path, coalesce(skipped_reason, class) FROM dataset_files"))


def test_a_manifest_gives_files_their_classes_and_tells_of_what_is_missing(
    store: AnnotationStore, root: Path
):
    for path in ("cats/0.jpg", "cats/1.jpg", "dogs/2.jpg"):
        put(root / path, 0)
    (root / "cats/.hidden.jpg").touch()
    (root / "classes.csv").write_text(
        "path,class\ncats/0.jpg,dogs\ndogs/2.jpg,Große Katze\ncats/9.jpg,cats\n"
        "cats/.hidden.jpg,cats\n"
    )
    found = inventory(store, root, manifest="classes.csv")
    large = class_slug("Große Katze")
    assert classed(store) == {
        "cats/0.jpg": "dogs",
        "cats/1.jpg": "not_in_manifest",
        "dogs/2.jpg": large,
        "cats/.hidden.jpg": "hidden_file",
        "classes.csv": "not_an_image",
    }
    assert (found.missing, found.first_missing) == (1, ("cats/9.jpg",))
    assert classes(store) == {large: False, "dogs": False}


def test_a_manifest_finds_a_file_however_its_letters_are_stored(store: AnnotationStore, root: Path):
    decomposed = unicodedata.normalize("NFD", "Kühe.jpg")
    put(root / decomposed, 0)
    (root / "classes.csv").write_text("path,class\nKühe.jpg,cows\n")
    assert inventory(store, root, manifest="classes.csv").missing == 0
    assert classed(store)[decomposed] == "cows"


def test_a_changed_manifest_moves_files_without_reading_them(store: AnnotationStore, root: Path):
    for seed in range(3):
        put(root / f"{seed}.jpg", seed)
    manifest = root.parent / "classes.csv"
    manifest.write_text("path,class\n0.jpg,cats\n1.jpg,cats\n2.jpg,dogs\n")
    inventory(store, root, manifest="../classes.csv")
    cleaned(store, root)
    before = image_ids(store)
    manifest.write_text("path,class\n0.jpg,dogs\n1.jpg,cats\n2.jpg,dogs\n")
    found = inventory(store, root, manifest="../classes.csv")
    assert (found.changed, found.classes_affected) == (1, ("dogs",))
    assert image_ids(store) == before


def test_in_a_flat_folder_every_class_of_the_plan_is_affected(store: AnnotationStore, root: Path):
    put(root / "2024/0.jpg", 0)
    put(root / "1.jpg", 1)
    found = inventory(store, root, ["cats", "dogs"], layout="flat")
    assert classed(store) == {"2024/0.jpg": None, "1.jpg": None}
    assert found.classes_affected == ("cats", "dogs")
    assert inventory(store, root, ["cats", "dogs"], layout="flat").classes_affected == ()


def test_a_test_folder_gives_files_the_class_of_their_second_folder(
    store: AnnotationStore, root: Path
):
    accents = unicodedata.normalize("NFD", "Kühe")
    files = ("cats/0.jpg", "test/cats/1.jpg", f"test/{accents}/deep/2.jpg", "test/3.jpg", "4.jpg")
    for seed, path in enumerate(files):
        put(root / path, seed)
    (root / "test/cats/.DS_Store").touch()
    (root / "test/notes.txt").touch()
    found = inventory(store, root, test_folder="test")
    cows = class_slug("Kühe")
    assert classed(store) == {
        "cats/0.jpg": "cats",
        "test/cats/1.jpg": "cats",
        f"test/{accents}/deep/2.jpg": cows,
        "test/3.jpg": "not_in_class_folder",
        "4.jpg": root.name,
        "test/cats/.DS_Store": "system_file",
        "test/notes.txt": "not_an_image",
    }
    assert classes(store) == {cows: False, "cats": False, root.name: False}
    assert found.files.skipped["not_in_class_folder"] == 1

    cleaned(store, root)
    again = inventory(store, root, test_folder="test")
    assert (again.added, again.changed) == (0, 0)
    named = inventory(store, root, ["cats"], test_folder="test")
    assert (named.changed, classed(store)["4.jpg"]) == (1, None)
    without = inventory(store, root)
    assert without.changed == 6  # all but cats/0.jpg are of another class, or of one again
    assert classed(store)["test/3.jpg"] == classed(store)["test/cats/1.jpg"] == "test"


def test_a_manifest_says_the_class_of_a_file_in_the_test_folder(store: AnnotationStore, root: Path):
    put(root / "test/a.jpg", 0)
    put(root / "b.jpg", 1)
    (root / "classes.csv").write_text("path,class\ntest/a.jpg,cats\nb.jpg,cats\n")
    inventory(store, root, test_folder="test", manifest="classes.csv")
    cleaned(store, root)
    assert {k: v for k, v in classed(store).items() if k.endswith("jpg")} == {
        "test/a.jpg": "cats",
        "b.jpg": "cats",
    }
    assert held_out(store, "test") == {"test/a.jpg": True}


def held_out(store: AnnotationStore, folder: str | None) -> dict[str, bool]:
    """First path of each image that is held out -> whether it is a test image itself."""
    return {
        row["path"]: row["is_test"]
        for row in store.query(
            "SELECT min(path) AS path, is_test FROM held_out JOIN dataset_files USING (image_id) "
            "GROUP BY image_id, is_test",
            tables={"held_out": held_out_images(store, folder)},
        ).to_pylist()
    }


def test_images_of_a_test_folder_their_copies_and_what_looks_like_them_are_held_out(
    store: AnnotationStore, root: Path
):
    put(root / "cats/alone.jpg", 0)
    shutil.copy(put(root / "cats/copied.jpg", 1), put(root / "test/cats/copy.jpg", 1))
    put(root / "cats/large.jpg", 2, size=(180, 135))
    put(root / "test/cats/small.jpg", 2)
    put(root / "test/cats/own.jpg", 3)
    put(root / "tester/4.jpg", 4)
    inventory(store, root, test_folder="test")
    cleaned(store, root)
    assert statuses(store)["test/cats/small.jpg"] == "near_duplicate"
    assert held_out(store, "test") == {
        "cats/copied.jpg": True,
        "cats/large.jpg": False,
        "test/cats/small.jpg": True,
        "test/cats/own.jpg": True,
    }
    assert held_out(store, None) == {}


def test_of_each_reason_the_first_files_are_named_and_all_are_counted(
    store: AnnotationStore, root: Path
):
    for number in range(203):
        (root / f"{number:03}.txt").touch()
    (root / "z.DS_Store").touch()
    (root / ".z").touch()
    files = inventory(store, root).files
    assert files.skipped == {"not_an_image": 204, "hidden_file": 1}
    assert [note.path for note in files.not_accepted] == [
        ".z",
        *(f"{number:03}.txt" for number in range(200)),
    ]


def test_an_unreadable_file_that_changes_is_new_again(store: AnnotationStore, root: Path):
    path = put(root / "0.jpg", 0)
    inventory(store, root)
    with store.transaction() as tx:
        tx.execute("UPDATE dataset_files SET unread_reason = 'unreadable', unread_detail = 'x'")
    assert inventory(store, root).files.statuses == {"rejected": 1}
    os.utime(path, ns=(1, 1))
    assert inventory(store, root).files.statuses == {"new": 1}


class Bucket:
    """A source whose storage gives contents names."""

    name = "bucket"

    def __init__(self, *files: FoundFile) -> None:
        self.files = files

    def scan(self) -> Any:
        return listing(self.files)


@pytest.mark.parametrize(
    ("now", "is_new"),
    [
        (FoundFile("a.jpg", "cats", 5, 1, etag="x"), False),
        (FoundFile("a.jpg", "cats", 5, 2, etag="x"), False),
        (FoundFile("a.jpg", "cats", 5, 1, etag="y"), True),
        (FoundFile("a.jpg", "cats", 6, 1, etag="x"), True),
    ],
)
def test_the_name_of_a_content_tells_more_than_its_time(
    store: AnnotationStore, now: FoundFile, is_new: bool
):
    update_inventory(store, Bucket(FoundFile("a.jpg", "cats", 5, 1, etag="x")))  # type: ignore[arg-type]
    with store.transaction() as tx:
        tx.execute("UPDATE dataset_files SET image_id = 'known'")
    found = update_inventory(store, Bucket(now))  # type: ignore[arg-type]
    assert (found.changed, found.classes_affected) == ((1, ("cats",)) if is_new else (0, ()))
    assert image_ids(store) == {"a.jpg": None if is_new else "known"}
    assert rows(store, "SELECT mtime_ns FROM dataset_files") == [(now.mtime_ns,)]
