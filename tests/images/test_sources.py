import errno
import functools
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import ValidationError
from s3fs import S3FileSystem

from labeling_pipeline.errors import ConfigurationError, ImageError, SourceError
from labeling_pipeline.images.sources import (
    FolderSource,
    FoundFile,
    ImageSource,
    SourceSettings,
    Stamp,
    UrlSource,
    find_companion,
    open_source,
    path_within,
)


def put(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def found(source: ImageSource) -> list[FoundFile]:
    """What a scan lists, by path."""
    return sorted(FoundFile(**row) for row in source.scan().to_pylist())


def scan(root: Path) -> list[FoundFile]:
    return found(open_source(root))


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


def test_files_come_with_size_and_time(tmp_path: Path):
    put(tmp_path, "b/2.jpg", "b.jpg", "b/10.jpg", "a/1.jpg")
    os.utime(tmp_path / "b.jpg", ns=(5, 7_000_000_001))
    files = scan(tmp_path)
    assert [file.path for file in files] == ["a/1.jpg", "b.jpg", "b/10.jpg", "b/2.jpg"]
    assert files[1] == FoundFile("b.jpg", None, len("b.jpg"), 7_000_000_001)


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
    files = by_path(root)
    assert {path: file.skipped_reason for path, file in files.items()} == {
        "cats/a.jpg": None,
        "cats/round_in_circles": "link_to_folder",
        "dangling.jpg": "broken_link",
        "dangling_outside.jpg": "broken_link",
        "inside.jpg": None,
        "itself.jpg": "broken_link",
        "outside.jpg": "link_outside",
        "outside_folder": "link_outside",
    }
    assert files["inside.jpg"].size_bytes == files["cats/a.jpg"].size_bytes


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


# Reading from a folder


def stamp_of(path: Path) -> Stamp:
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns)


def reason(source: ImageSource, path: str, expected: Stamp | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        source.read(path, expected)
    return caught.value.reason


def test_a_file_that_is_as_it_was_is_read(tmp_path: Path):
    put(tmp_path, "cats/a.jpg")
    (file,) = scan(tmp_path)
    source = open_source(tmp_path)
    assert source.read("cats/a.jpg", Stamp(file.size_bytes, file.mtime_ns)) == b"cats/a.jpg"
    assert source.read("cats/a.jpg") == b"cats/a.jpg"
    assert source.locate("cats/a.jpg") == str(tmp_path / "cats/a.jpg")


def test_what_cannot_be_read_says_why(tmp_path: Path):
    put(tmp_path, "cats/a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = open_source(tmp_path)
    seen = stamp_of(tmp_path / "cats/a.jpg")
    assert reason(source, "cats/b.jpg") == "vanished"
    assert reason(source, "cats/a.jpg/b.jpg") == "vanished"
    assert reason(source, "cats") == "not_a_file"
    assert reason(source, "pipe.jpg") == "not_a_file"
    assert reason(source, "cats/a.jpg", seen._replace(size_bytes=3)) == "changed"
    os.utime(tmp_path / "cats/a.jpg", ns=(1, 1))
    assert reason(source, "cats/a.jpg", seen) == "changed"


def test_a_file_too_large_for_the_memory_is_not_read(tmp_path: Path):
    with (tmp_path / "endless.jpg").open("wb") as file:
        file.truncate(2**40)
    assert reason(open_source(tmp_path), "endless.jpg") == "file_too_large"


# URLs


@dataclass
class Place:
    """A URL source, and how a test writes into it and removes from it."""

    source: UrlSource
    write: Callable[[str, bytes], None]
    remove: Callable[[str], None]


@pytest.fixture(params=["memory", "zip", "s3", "zip on s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if "s3" in request.param:
        bucket = request.getfixturevalue("bucket")
    if request.param == "memory":
        files = fsspec.filesystem("memory")
        base = f"/{tmp_path.name}/photos"
        source = open_source(f"memory:/{base}")
    elif request.param == "s3":
        files, base = bucket.files, f"{bucket.name}/photos"
        source = open_source(f"{bucket.url}/photos/", bucket.options)
    else:
        return zip_place(tmp_path, bucket if "s3" in request.param else None)
    assert isinstance(source, UrlSource)
    return Place(
        source,
        lambda path, data: files.pipe_file(f"{base}/{path}", data),
        lambda path: files.rm_file(f"{base}/{path}"),
    )


def zip_place(folder: Path, bucket: Any) -> Place:
    archive = folder / "photos.zip"
    contents: dict[str, bytes] = {}

    def pack() -> None:
        with zipfile.ZipFile(archive, "w") as file:
            for path, data in contents.items():
                file.writestr(path, data)
        if bucket:
            bucket.files.put_file(str(archive), f"{bucket.name}/photos.zip")

    def write(path: str, data: bytes) -> None:
        contents[path] = data
        pack()

    def remove(path: str) -> None:
        del contents[path]
        pack()

    source: ImageSource
    if bucket:
        source = open_source(f"zip::{bucket.url}/photos.zip", {"s3": bucket.options})
    else:
        source = open_source(f"zip://{archive}")
    assert isinstance(source, UrlSource)
    return Place(source, write, remove)


def test_a_url_is_listed_with_classes_sizes_and_reasons(place: Place):
    place.write("cats/deep/er/a.png", b"1234")
    place.write("a.jpg", b"12")
    place.write("Große Katzen/b.jpg", b"1")
    place.write("cats/.hidden.jpg", b"1")
    place.write(".git/c.jpg", b"1")
    place.write("__MACOSX/cats/._a.jpg", b"1")
    place.write("cats/labels.txt", b"1")
    assert [
        (f.path, f.class_name, f.size_bytes, f.skipped_reason) for f in found(place.source)
    ] == [
        (".git/c.jpg", None, 1, "hidden_file"),
        ("Große Katzen/b.jpg", "Große Katzen", 1, None),
        ("__MACOSX/cats/._a.jpg", None, 1, "system_file"),
        ("a.jpg", None, 2, None),
        ("cats/.hidden.jpg", "cats", 1, "hidden_file"),
        ("cats/deep/er/a.png", "cats", 4, None),
        ("cats/labels.txt", "cats", 1, "not_an_image"),
    ]
    assert place.source.name == "photos"
    assert place.source.folder is None


def stamps(source: ImageSource) -> dict[str, Stamp]:
    return {f.path: Stamp(f.size_bytes, f.mtime_ns, f.etag) for f in found(source)}


def test_a_file_at_a_url_is_read_if_it_is_as_it_was(place: Place):
    place.write("cats/a.jpg", b"meow")
    seen = stamps(place.source)["cats/a.jpg"]
    assert seen.mtime_ns > 0
    assert place.source.read("cats/a.jpg", seen) == b"meow"
    assert not stamps(place.source)["cats/a.jpg"].differs(seen)

    place.write("cats/a.jpg", b"purr")
    assert stamps(place.source)["cats/a.jpg"].differs(seen)
    assert reason(place.source, "cats/a.jpg", seen) == "changed"
    assert place.source.read("cats/a.jpg") == b"purr"


def test_a_file_that_vanished_from_a_url_is_told_as_such(place: Place):
    place.write("cats/a.jpg", b"meow")
    place.write("cats/b.jpg", b"meow")
    seen = stamps(place.source)["cats/a.jpg"]
    place.remove("cats/a.jpg")
    assert list(stamps(place.source)) == ["cats/b.jpg"]
    assert reason(place.source, "cats/a.jpg", seen) == "vanished"
    assert reason(place.source, "cats/a.jpg") == "vanished"


def test_a_url_is_read_by_threads_and_other_processes(place: Place):
    if place.source.url.startswith("memory"):
        pytest.skip("its files live in one process")
    contents = {f"cats/{i}.jpg": bytes([i]) * 5000 for i in range(8)}
    for path, data in contents.items():
        place.write(path, data)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(place.source.read, contents)) == list(contents.values())
    code = (
        "import pickle, sys; source = pickle.loads(sys.stdin.buffer.read()); "
        "sys.stdout.buffer.write(source.read('cats/7.jpg'))"
    )
    read = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(place.source),
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert read.stdout == contents["cats/7.jpg"]


def test_threads_that_meet_at_an_archive_nobody_has_opened_yet_all_find_their_files(tmp_path: Path):
    paths = [f"{i}.jpg" for i in range(20_000)]
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for path in paths:
            file.writestr(path, path)
    source = open_source(tmp_path / "photos.zip")
    wanted = paths[::500]
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(source.read, reversed(wanted)))
    assert read == [path.encode() for path in reversed(wanted)]


def test_the_options_of_a_chain_go_by_protocol():
    source = open_source("zip::s3://bucket/photos.zip", {"anon": True})
    with pytest.raises(ConfigurationError, match=r"options of a chain go by protocol.*'anon'"):
        source.scan()


def test_what_other_tools_get_is_a_url_that_opens(place: Place):
    place.write("cats/a.jpg", b"meow")
    url = place.source.locate("cats/a.jpg")
    with fsspec.open(url, "rb", **place.source.options) as file:
        assert file.read() == b"meow"


def test_a_companion_lies_within_the_url_beside_it_on_this_machine_or_at_another_url(
    place: Place, tmp_path: Path
):
    place.write("cats/a.jpg", b"meow")
    place.write("classes.csv", b"inside")
    assert place.source.read_companion("classes.csv") == b"inside"
    (tmp_path / "mine.csv").write_bytes(b"here")
    assert place.source.read_companion(str(tmp_path / "mine.csv")) == b"here"
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/truth.json", b"elsewhere")
    other = f"memory://{tmp_path.name}/truth.json"
    assert place.source.read_companion(other) == b"elsewhere"
    with pytest.raises(ConfigurationError, match=r"none\.csv"):
        place.source.read_companion("none.csv")


def test_a_companion_that_is_not_there_is_none_and_one_that_cannot_be_read_an_error(
    place: Place, tmp_path: Path
):
    place.write("cats/a.txt", b"0 0.5 0.5 1 1")
    assert find_companion(place.source, "cats/a.txt") == b"0 0.5 0.5 1 1"
    assert find_companion(place.source, "cats/b.txt") is None
    assert find_companion(place.source, "cats/a.txt/c.txt") is None
    assert find_companion(place.source, str(tmp_path / "none.txt")) is None
    with pytest.raises(ConfigurationError):
        find_companion(place.source, str(tmp_path))


@pytest.mark.parametrize(
    ("root", "path"),
    [
        ("/data/photos", "/data/photos"),
        ("s3://bucket/photos", "bucket/photos"),
        ("zip://images::s3://bucket/photos.zip", "images"),
        ("zip::file:///data/images/photos.zip", ""),
    ],
)
def test_the_path_of_a_root_is_the_one_within_its_storage(root: str, path: str):
    assert path_within(root) == path


def test_a_ground_truth_may_lie_beside_the_images_in_a_bucket(bucket: Any):
    bucket.files.pipe_file(f"{bucket.name}/photos/a.jpg", b"1")
    bucket.files.pipe_file(f"{bucket.name}/truth.json", b"{}")
    source = open_source(f"{bucket.url}/photos", bucket.options)
    assert source.read_companion("../truth.json") == b"{}"


def test_names_in_an_archive_that_lead_elsewhere_do_not_count(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for path in (
            "../evil.jpg",
            "/etc/evil.jpg",
            "cats/../../evil.jpg",
            "cats//a.jpg",
            "ok.jpg",
        ):
            file.writestr(path, b"1")
        file.writestr("line\nbreak.jpg", b"1")
    files = {f.path: f.skipped_reason for f in found(open_source(tmp_path / "photos.zip"))}
    assert {path for path, reason in files.items() if reason is None} == {
        "ok.jpg",
        "line\nbreak.jpg",
    }
    assert set(files.values()) == {None, "unsafe_name"}


def test_a_damaged_file_of_an_archive_costs_that_file(tmp_path: Path):
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.jpg", b"0123456789")
        file.writestr("b.jpg", b"sound")
    archive.write_bytes(archive.read_bytes().replace(b"0123456789", b"012345678X"))
    source = open_source(archive)
    assert [f.path for f in found(source)] == ["a.jpg", "b.jpg"]
    assert reason(source, "a.jpg") == "unreadable"
    assert source.read("b.jpg") == b"sound"


def test_of_a_file_that_an_archive_lies_about_no_more_is_unpacked_than_it_says(tmp_path: Path):
    archive, size_bytes = tmp_path / "photos.zip", 200 << 20
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.jpg", bytes(size_bytes))
        file.writestr("b.jpg", b"sound")
    said = archive.read_bytes().replace(struct.pack("<I", size_bytes), struct.pack("<I", 1000))
    archive.write_bytes(said)
    source = open_source(archive)
    assert {file.path: file.size_bytes for file in found(source)} == {"bomb.jpg": 1000, "b.jpg": 5}
    tracemalloc.start()
    try:
        assert reason(source, "bomb.jpg") == "unreadable"
        assert source.read("b.jpg") == b"sound"
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


class Endless(SimpleHTTPRequestHandler):
    """Serves a folder, and in it a file that has no end, and so no size."""

    protocol_version = "HTTP/1.1"

    def send_head(self) -> Any:
        if not self.path.endswith("endless.jpg"):
            return super().send_head()
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        return None

    def do_GET(self) -> None:
        super().do_GET()
        with suppress(OSError):  # whoever has enough hangs up
            while self.path.endswith("endless.jpg"):
                self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def log_message(self, *args: Any) -> None:
        pass


def test_what_a_web_server_lists_is_read_but_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put(tmp_path, "cats/deep/a b.jpg", "endless.jpg")
    monkeypatch.setattr("labeling_pipeline.images.opening.MAX_FILE_BYTES", 5 << 20)
    handler = functools.partial(Endless, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = open_source(f"http://127.0.0.1:{server.server_port}/")
        seen = stamps(source)
        assert seen == dict.fromkeys(("cats/deep/a%20b.jpg", "endless.jpg"), Stamp(-1, 0))
        for path, stamp in seen.items():
            if path == "endless.jpg":
                assert reason(source, path, stamp) == "file_too_large"
            else:
                assert source.read(path, stamp) == b"cats/deep/a b.jpg"
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://nothing/here", "Check the URL"),
        ("zip:///nothing/here.zip", "Check the URL"),
        ("nonsense://a/b", "Protocol not known: nonsense"),
    ],
)
def test_a_url_that_leads_nowhere_says_what_to_check(url: str, expected: str):
    with pytest.raises(ConfigurationError, match=expected):
        open_source(url).scan()


def test_a_bucket_that_does_not_exist_and_a_prefix_without_files_are_refused(bucket: Any):
    for url in ("s3://no-such-bucket/photos", f"{bucket.url}/misspelt"):
        with pytest.raises(ConfigurationError, match="heck the URL"):
            open_source(url, bucket.options).scan()


def test_an_archive_named_as_a_folder_is_told_from_one(bucket: Any):
    bucket.files.pipe_file(f"{bucket.name}/photos.zip", b"PK")
    with pytest.raises(ConfigurationError, match=r"zip::s3://"):
        open_source(f"{bucket.url}/photos.zip", bucket.options).scan()


def test_a_server_that_is_down_is_no_image_s_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    config = {"retries": {"max_attempts": 1}}
    source = open_source("s3://photos", {"endpoint_url": endpoint, "config_kwargs": config})
    with pytest.raises(SourceError, match="could not be reached"):
        source.read("a.jpg")


class Shaky(MemoryFileSystem):
    """Fails twice before each answer, as networks do."""

    protocol = "shaky"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).removeprefix("shaky://"))

    calls = 0
    error: Exception = TimeoutError("slow")

    def ls(self, path: str, detail: bool = True, **named: Any) -> Any:
        return self._answer(lambda: super(Shaky, self).ls(path, detail=detail, **named))

    def cat_file(self, path: str, *args: Any, **named: Any) -> bytes:
        return self._answer(lambda: super(Shaky, self).cat_file(path, *args, **named))

    def _answer(self, call: Callable[[], Any]) -> Any:
        Shaky.calls += 1
        if Shaky.calls % 3:
            raise self.error
        return call()


@pytest.mark.parametrize(
    "error", [TimeoutError("slow"), ConnectionResetError("reset"), OSError(errno.EBUSY, "SlowDown")]
)
def test_what_can_pass_by_itself_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
):
    fsspec.register_implementation("shaky", Shaky, clobber=True)
    monkeypatch.setattr(Shaky, "calls", 0)
    monkeypatch.setattr(Shaky, "error", error)
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/a.jpg", b"meow")
    source = open_source(f"shaky://{tmp_path.name}")
    assert [file.path for file in found(source)] == ["a.jpg"]
    assert source.read("a.jpg") == b"meow"


# Which source


@pytest.mark.parametrize(
    ("root", "url"),
    [
        ("s3://bucket/photos/", "s3://bucket/photos"),
        ("zip::s3://bucket/a.zip", "zip::s3://bucket/a.zip"),
        ("zip:///data/a.zip", "zip::file:///data/a.zip"),
        ("zip::/data/a.zip", "zip::/data/a.zip"),
        ("zip://cats::s3://bucket/a.zip", "zip://cats::s3://bucket/a.zip"),
    ],
)
def test_a_url_opens_a_url_source(root: str, url: str):
    assert open_source(root) == UrlSource(url)


def test_folders_file_urls_and_archives_open_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert open_source("photos") == FolderSource(tmp_path / "photos")
    assert open_source(f"file://{tmp_path}/photos") == FolderSource(tmp_path / "photos")
    assert open_source("/data/odd::name") == FolderSource(Path("/data/odd::name"))
    Path("photos.zip").touch()
    assert open_source("photos.zip") == UrlSource(f"zip::file://{tmp_path}/photos.zip")


def test_a_password_is_neither_taken_nor_shown():
    with pytest.raises(ConfigurationError, match="environment") as caught:
        open_source("sftp://me:hush@host/photos")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"secret": "x"},
        {"key": "x"},
        {"s3": {"aws_session_token": "x"}},
        {"client_kwargs": {"aws_secret_access_key": "x"}},
        {"password": "x"},
        {"account_key": "x"},
        {"connection_string": "x"},
    ],
)
def test_secrets_do_not_stand_in_a_plan(options: dict[str, Any]):
    with pytest.raises(ValidationError, match="leave it to the environment"):
        SourceSettings(options=options)


def test_other_options_may():
    SourceSettings(options={"endpoint_url": "http://localhost", "anon": True, "profile": "me"})
