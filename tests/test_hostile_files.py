"""The corpus of hostile and odd files, through the inventory and cleaning, as a run of its own."""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from labeling_pipeline.images.reading import FORMATS
from labeling_pipeline.store.annotation_store import AnnotationStore
from tests.images.corpus import CHANGING, changing, write_corpus, write_decoder
from tests.images.formats import extension

REPOSITORY = Path(__file__).parent.parent
PASS = """
import json, sys, time
from pathlib import Path
from labeling_pipeline.cleaning import clean, clusters_sheet, rejects_sheet
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.store.annotation_store import AnnotationStore

def files():
    return store.query("SELECT path, status, reason FROM files ORDER BY path").to_pylist()

store, source = AnnotationStore(Path(sys.argv[1])), open_source(sys.argv[2])
times = [time.monotonic()]
update_inventory(store, source)
clean(store, source, CleaningRules(), lambda done, total: times.append(time.monotonic()))
before = files()
again = clean(store, source, CleaningRules())
print(json.dumps({
    "gaps_s": [after - before for before, after in zip(times, times[1:])],
    "again": [again.decoded, again.judged_anew, files() == before],
    "sheets": [sheet(store, source) is not None for sheet in (rejects_sheet, clusters_sheet)],
}))
"""


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The store after one pass, how many files there are, and what the pass took and told."""
    folder = tmp_path_factory.mktemp("hostile")
    root, decoder = folder / "images", folder / "decoder"
    files = write_corpus(root)
    decoder.mkdir()
    write_decoder(decoder)
    store = folder / "home" / "annotations.duckdb"
    with (
        changing(root),
        subprocess.Popen(
            [sys.executable, "-c", PASS, str(store), str(root)],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": f"{decoder}{os.pathsep}{REPOSITORY}"},
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=begin_small,
        ) as process,
    ):
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.02)
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0
    told = json.loads(output)
    return {"store": AnnotationStore(store), "files": files, "peak_bytes": peak} | told


def begin_small() -> None:
    """Before the pass begins: at most four cores, for each more takes a process of 30 MiB; and
    nothing of what lets root read every file."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:4])
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def memory_of(pid: int) -> int:
    """Bytes that a process and its children hold, what they share counted once."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = next((line for line in rollup.splitlines() if line.startswith("Pss:")), "Pss: 0")
    return int(own.split()[1]) * 1024 + sum(memory_of(int(child)) for child in children)


def files(passed: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    """Path -> status and reason."""
    rows = passed["store"].query("SELECT path, status, reason FROM files").to_pylist()
    return {row["path"]: (row["status"], row["reason"]) for row in rows}


def test_every_file_ends_accepted_or_with_a_reason(passed: dict[str, Any]):
    found = files(passed)
    assert len(found) == passed["files"] >= 200
    for path, (status, reason) in found.items():
        assert status in ("accepted", "rejected", "skipped"), path
        assert (reason is None) == (status == "accepted"), path
    assert len(Counter(reason for _, reason in found.values())) >= 15
    details = passed["store"].query(
        "SELECT path FROM files WHERE status = 'rejected' AND coalesce(detail, '') = ''"
    )
    assert details["path"].to_pylist() == []


def test_no_file_holds_the_run_up_or_fills_the_memory(passed: dict[str, Any]):
    # The last file hangs, and nearly all of that time no other is under way.
    assert 4 < max(passed["gaps_s"]) < 10
    assert passed["peak_bytes"] < 2**30
    assert passed["sheets"] == [True, True]


def test_of_every_format_the_valid_file_is_measured_and_its_first_bytes_are_rejected(
    passed: dict[str, Any],
):
    rows = passed["store"].query(
        "SELECT path, f.status, format FROM files f LEFT JOIN images USING (image_id)"
    )
    found = {row["path"]: row for row in rows.to_pylist()}
    for name in FORMATS:
        assert str(found[f"valid/{name}{extension(name)}"]["format"]).upper() == name
        assert found[f"truncated/{name}_0.02{extension(name)}"]["status"] == "rejected"


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("worst/hangs.png", "rejected", "decoder_timeout"),
        ("worst/crashes.png", "rejected", "decoder_crashed"),
        ("worst/eats_memory.png", "rejected", "decoder_memory"),
        ("bombs/50000.png", "rejected", "too_large"),
        ("bombs/million_wide.png", "rejected", "too_large"),
        ("bombs/two_billion.png", "rejected", "too_large"),
        ("bombs/large.png", "rejected", "blank"),
        ("bombs/large_progressive.jpg", "rejected", "blank"),
        ("bombs/large.tif", "rejected", "blank"),
        ("bombs/text.png", "rejected", "unreadable"),
        ("bombs/packed.fits", "rejected", "blank"),
        ("nonsense/empty.jpg", "rejected", "empty_file"),
        ("nonsense/text.jpg", "rejected", "not_an_image"),
        ("nonsense/drawing.webp", "rejected", "not_an_image"),
        ("nonsense/wrapped_drawing.jpg", "rejected", "not_an_image"),
        ("nonsense/notes.txt", "skipped", "not_an_image"),
        ("nonsense/Thumbs.db", "skipped", "system_file"),
        ("nonsense/really_PNG.bmp", "accepted", None),
        ("nonsense/exif.jpg", "accepted", None),
        (".hidden/inside.jpg", "skipped", "hidden_file"),
        ("names/new\nline.jpg", "accepted", None),
        ("names/bad\\xff\\xfe.jpg", "skipped", "undecodable_name"),
        ("names/" + "deep/" * 40 + "down.jpg", "accepted", None),
        ("links/dangling.jpg", "skipped", "broken_link"),
        ("links/itself.jpg", "skipped", "broken_link"),
        ("links/outside.jpg", "skipped", "link_outside"),
        ("links/endless.jpg", "skipped", "link_outside"),
        ("links/round", "skipped", "link_to_folder"),
        ("specials/pipe.jpg", "skipped", "not_a_file"),
        ("specials/socket.jpg", "skipped", "not_a_file"),
        ("specials/sparse.jpg", "rejected", "file_too_large"),
        ("specials/forbidden.jpg", "rejected", "unreadable"),
        ("specials/locked", "skipped", "unreadable_folder"),
        (CHANGING, "rejected", "changed"),
        ("poor/best.png", "accepted", None),
        ("poor/copy.png", "rejected", "exact_duplicate"),
        ("poor/worse.png", "rejected", "near_duplicate"),
        ("poor/small.png", "rejected", "too_small"),
        ("poor/wide.png", "rejected", "extreme_aspect"),
        ("poor/blank.png", "rejected", "blank"),
        ("poor/dark.png", "rejected", "too_dark"),
        ("poor/bright.png", "rejected", "too_bright"),
        ("poor/blurred.png", "rejected", "blurred"),
        ("poor/two_tones.png", "rejected", "low_information"),
        ("valid/JPEG_CMYK.jpg", "accepted", None),
        ("valid/TIFF_LAB.tif", "accepted", None),
        ("valid/PNG_I16.png", "accepted", None),
        ("valid/TIFF_F.tif", "accepted", None),
    ],
)
def test_what_a_file_is_decides_how_it_ends(
    passed: dict[str, Any], path: str, status: str, reason: str | None
):
    assert files(passed)[path] == (status, reason)


def test_of_several_frames_the_record_says_how_many_there_were(passed: dict[str, Any]):
    rows = passed["store"].query(
        "SELECT path, frames FROM dataset_files JOIN images USING (image_id) "
        "WHERE path LIKE 'valid/frames.%'"
    )
    assert dict(zip(*(column.to_pylist() for column in rows.columns), strict=True)) == {
        f"valid/frames.{extension}": 3 for extension in ("gif", "png", "webp", "tif", "avif")
    }


def test_a_second_pass_decodes_nothing(passed: dict[str, Any]):
    assert passed["again"] == [0, 0, True]
