import os
import unicodedata
from pathlib import Path

import pytest

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.images.sources import FoundFile, scan


def put(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def by_path(root: Path) -> dict[str, FoundFile]:
    return {file.path: file for file in scan(root)}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("cats/a.jpg", None),
        ("cats/UPPER.JPEG", None),
        ("cats/deep/er/a.png", None),
        ("a.webp", None),
        ("cats/photo.heic", None),
        ("cats/._a.jpg", "system_file"),
        ("cats/.DS_Store", "system_file"),
        ("cats/Thumbs.db", "system_file"),
        ("cats/desktop.ini", "system_file"),
        ("__MACOSX/cats/a.jpg", "system_file"),
        ("cats/__MACOSX/a.jpg", "system_file"),
        ("cats/.hidden.jpg", "hidden_file"),
        (".git/objects/a.jpg", "hidden_file"),
        ("cats/.thumbnails/a.jpg", "hidden_file"),
        ("cats/labels.txt", "not_an_image"),
        ("annotations.json", "not_an_image"),
        ("cats/no_extension", "not_an_image"),
    ],
)
def test_every_file_is_listed_with_the_reason_why_it_does_not_count(
    tmp_path: Path, path: str, reason: str | None
):
    put(tmp_path, path)
    assert {file.path: file.skipped_reason for file in scan(tmp_path)} == {path: reason}


def test_files_come_sorted_by_path_with_size_and_time(tmp_path: Path):
    put(tmp_path, "b/2.jpg", "b.jpg", "b/10.jpg", "a/1.jpg")
    os.utime(tmp_path / "b.jpg", ns=(5, 7_000_000_001))
    found = scan(tmp_path)
    assert [file.path for file in found] == ["a/1.jpg", "b.jpg", "b/10.jpg", "b/2.jpg"]
    assert found[1] == FoundFile("b.jpg", None, len("b.jpg"), 7_000_000_001)


@pytest.mark.parametrize(
    ("path", "class_name"),
    [
        ("Große Katzen/a.jpg", "Große Katzen"),
        ("cats/siamese/old/a.jpg", "cats"),
        ("a.jpg", None),
        (".cache/a.jpg", None),
        (unicodedata.normalize("NFD", "café") + "/a.jpg", unicodedata.normalize("NFC", "café")),
    ],
)
def test_a_class_is_the_nfc_name_of_the_top_sub_folder(
    tmp_path: Path, path: str, class_name: str | None
):
    put(tmp_path, path)
    assert by_path(tmp_path)[path].class_name == class_name


def test_links_count_only_where_they_lead_to_a_file_inside_the_root(tmp_path: Path):
    root = tmp_path / "root"
    put(tmp_path, "root/cats/a.jpg", "elsewhere/b.jpg")
    for name, target in {
        "inside.jpg": root / "cats/a.jpg",
        "outside.jpg": tmp_path / "elsewhere/b.jpg",
        "outside_folder": tmp_path / "elsewhere",
        "dangling.jpg": root / "cats/gone.jpg",
        "dangling_outside.jpg": tmp_path / "gone.jpg",
        "itself.jpg": root / "itself.jpg",
        "cats/round_in_circles": root,
    }.items():
        (root / name).symlink_to(target)
    found = by_path(root)
    assert {path: file.skipped_reason for path, file in found.items()} == {
        "cats/a.jpg": None,
        "cats/round_in_circles": "link_to_folder",
        "dangling.jpg": "broken_link",
        "dangling_outside.jpg": "broken_link",
        "inside.jpg": None,
        "itself.jpg": "broken_link",
        "outside.jpg": "link_outside",
        "outside_folder": "link_outside",
    }
    assert found["inside.jpg"].size_bytes == found["cats/a.jpg"].size_bytes


def test_the_root_may_be_a_link_itself(tmp_path: Path):
    put(tmp_path, "real/cats/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert scan(tmp_path / "link") == scan(tmp_path / "real")


def test_pipes_are_never_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert by_path(tmp_path)["pipe.jpg"].skipped_reason == "not_a_file"


def test_names_that_are_not_utf8_are_spelled_out(tmp_path: Path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (file,) = scan(tmp_path)
    assert file.path == r"caf\xe9.jpg"
    assert file.skipped_reason == "undecodable_name"


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_root_that_cannot_be_walked_says_what_to_do(tmp_path: Path, kind: str):
    root = tmp_path / "photos"
    if kind == "a file":
        root.touch()
    with pytest.raises(ConfigurationError, match=r"photos .*; name a folder of images"):
        scan(root)


def test_an_empty_root_has_no_files(tmp_path: Path):
    assert scan(tmp_path) == []
