import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.images.hashing import content_hash
from labeling_pipeline.images.inspection import (
    Inspected,
    Job,
    Limits,
    inspect_files,
    inspect_image,
)
from labeling_pipeline.images.opening import MAX_FILE_BYTES, Stamp
from tests.images.corpus import CRASHES, EATS_MEMORY, HANGS, HUNGRY, picture, write_decoder
from tests.images.formats import encoded

HASTY = Limits(time_s=2.5)
LEAN = Limits(time_s=60, memory_bytes=128 << 20)


@pytest.fixture
def faulty_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that inspect images have a decoder that hangs, crashes and eats memory."""
    folder = tmp_path / "decoder"
    folder.mkdir()
    write_decoder(folder)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number:02}.jpg" for number in range(40)]
    for path in paths:
        path.write_bytes(encoded(picture(rng), "JPEG"))
    return paths


def by_name(results: Iterator[Inspected]) -> dict[str, Inspected]:
    found = {}
    for result in results:
        assert result.key not in found, "answered twice"
        found[result.key] = result
    return found


def reason_of(result: Inspected) -> str | None:
    return result.problem[0] if result.problem else result.record and result.record.reason


def test_processes_measure_what_this_process_would(photos: list[Path]):
    found = by_name(inspect_files(Job(path.name, path) for path in photos))
    assert found == {
        path.name: Inspected(path.name, content_hash(data), inspect_image(data))
        for path in photos
        for data in [path.read_bytes()]
    }


def test_bytes_from_elsewhere_are_measured_like_files(photos: list[Path]):
    large = photos[0].read_bytes() + os.urandom(5_000_000)
    jobs = [Job("large", large), *(Job(path.name, path) for path in photos), Job("too", large)]
    found = by_name(inspect_files(jobs, processes=2))
    assert found["large"].record == found["too"].record == inspect_image(large)
    assert len(found) == len(photos) + 2


@pytest.mark.parametrize(
    ("begins", "limits", "reason", "detail"),
    [
        pytest.param(CRASHES, LEAN, "decoder_crashed", "SIGSEGV", id="crashes"),
        pytest.param(HANGS, HASTY, "decoder_timeout", "over 2.5 s", id="hangs"),
        pytest.param(EATS_MEMORY, LEAN, "decoder_memory", "scale", id="eats memory"),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.usefixtures("faulty_decoder")
def test_a_decoder_that_fails_costs_its_file_and_no_other(
    tmp_path: Path,
    photos: list[Path],
    begins: bytes,
    limits: Limits,
    reason: str,
    detail: str,
    processes: int,
):
    bad = [tmp_path / "bad_1.png", tmp_path / "bad_2.png"]
    for number, path in enumerate(bad):
        path.write_bytes(begins + bytes([number]))
    order = [*photos[:5], bad[0], *photos[5:20], bad[1], *photos[20:]]
    found = by_name(inspect_files((Job(p.name, p) for p in order), limits, processes))
    for path in bad:
        record = found[path.name].record
        assert record is not None
        assert (record.status, record.reason) == ("rejected", reason)
        assert detail in (record.detail or "")
        assert record.image_id == content_hash(path.read_bytes())
    assert [reason_of(found[path.name]) for path in photos] == [None] * len(photos)


@pytest.mark.parametrize("format_name", ["PNG", "AVIF"])
def test_a_decoder_that_gets_too_little_memory_is_understood_whatever_it_says(format_name: str):
    data = encoded(Image.linear_gradient("L").resize((2000, 1500)).convert("RGB"), format_name)
    little = Limits(time_s=60, memory_bytes=13 << 20)
    (found,) = inspect_files([Job(0, data)], little)
    assert reason_of(found) == "decoder_memory"


@pytest.mark.usefixtures("faulty_decoder")
def test_a_file_that_turns_out_to_need_much_memory_gets_it(tmp_path: Path, photos: list[Path]):
    hungry = [tmp_path / f"hungry_{number}.png" for number in range(3)]
    for number, path in enumerate(hungry):
        path.write_bytes(HUNGRY + bytes([number]))
    found = by_name(inspect_files((Job(p.name, p) for p in [*hungry, *photos]), processes=2))
    records = [found[path.name].record for path in hungry]
    assert [record and record.width_px for record in records] == [64] * 3
    assert [reason_of(found[path.name]) for path in photos] == [None] * len(photos)


def test_a_known_content_is_not_decoded(photos: list[Path]):
    image_id = content_hash(photos[0].read_bytes())
    jobs = [Job("known", photos[0], known=("other", image_id)), Job("new", photos[1])]
    found = by_name(inspect_files(jobs))
    assert found["known"] == Inspected("known", image_id)
    assert found["new"].record is not None


def test_a_file_that_cannot_be_read_has_a_reason_and_no_record(tmp_path: Path):
    sparse, pipe = tmp_path / "sparse.jpg", tmp_path / "pipe.jpg"
    sparse.touch()
    os.truncate(sparse, MAX_FILE_BYTES + 1)
    os.mkfifo(pipe)
    changed = tmp_path / "changed.jpg"
    changed.write_bytes(b"new")
    jobs = [
        Job("sparse", sparse),
        Job("pipe", pipe),
        Job("gone", tmp_path / "gone.jpg"),
        Job("folder", tmp_path),
        Job("changed", changed, Stamp(3, 1)),
    ]
    found = by_name(inspect_files(jobs))
    assert {name: reason_of(result) for name, result in found.items()} == {
        "sparse": "file_too_large",
        "pipe": "not_a_file",
        "gone": "vanished",
        "folder": "not_a_file",
        "changed": "changed",
    }
    assert not any(result.record or result.image_id for result in found.values())


def test_a_file_that_is_being_written_never_costs_more_than_itself(tmp_path: Path):
    path, stop = tmp_path / "growing.jpg", threading.Event()
    path.write_bytes(b"x")

    def write() -> None:
        while not stop.is_set():
            with path.open("ab") as file:
                file.write(os.urandom(100_000))
            if path.stat().st_size > 20_000_000:
                os.truncate(path, 1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = by_name(inspect_files(Job(number, path) for number in range(50)))
    finally:
        stop.set()
        writer.join()
    reasons = {reason_of(result) for result in found.values()}
    assert "changed" in reasons
    assert reasons <= {"changed", "not_an_image"}


def test_large_images_are_decoded_one_at_a_time_and_all_of_them(tmp_path: Path):
    data = encoded(Image.new("L", (4100, 4100), 77), "PNG")
    jobs = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data + bytes([number]))
        jobs.append(Job(path.name, path))
    found = by_name(inspect_files(jobs, processes=2))
    assert [found[job.key].record.width_px for job in jobs] == [4100] * 6


def test_whoever_stops_listening_leaves_no_process_behind(photos: list[Path]):
    results = inspect_files((Job(p.name, p) for p in photos * 20), processes=2)
    next(results)
    children = _children()
    assert children
    results.close()
    for _ in range(100):
        if not children & _children():
            break
        time.sleep(0.05)
    assert not children & _children()


def _children() -> set[int]:
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return {int(number) for number in found.split()}


def test_no_jobs_need_no_process():
    assert list(inspect_files([])) == []


def test_processes_that_cannot_start_are_an_error_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: list[Path]
):
    (tmp_path / "PIL.py").write_text("raise ImportError('no Pillow here')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match="no Pillow here"):
        list(inspect_files([Job(0, photos[0])]))


def test_measuring_a_scaled_decode_is_near_to_measuring_the_whole():
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    image = coarse.resize((1600, 1200), Image.Resampling.BICUBIC)
    jpeg = inspect_image(encoded(image, "JPEG", quality=95))
    png = inspect_image(encoded(image, "PNG"))
    assert (jpeg.width_px, jpeg.height_px) == (png.width_px, png.height_px) == (1600, 1200)
    for name in ("brightness", "contrast", "sharpness", "entropy"):
        assert getattr(jpeg, name) == pytest.approx(getattr(png, name), rel=0.05), name


def test_the_smallest_picture_is_measured():
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(buffer, "PNG")
    record = inspect_image(buffer.getvalue())
    assert (record.width_px, record.sharpness, record.contrast, record.entropy) == (1, 0, 0, 0)
