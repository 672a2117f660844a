"""The corpus of hostile and odd files, through the inventory and cleaning, as a run of its own."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from labeling_pipeline.cleaning import clean
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.store.annotation_store import AnnotationStore
from tests.images.corpus import write_corpus, write_decoder

REPOSITORY = Path(__file__).parent.parent
PASS = """
import json, sys, time
from pathlib import Path
from labeling_pipeline.cleaning import clean
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.store.annotation_store import AnnotationStore

store, source = AnnotationStore(Path(sys.argv[1])), open_source(sys.argv[2])
times = [time.monotonic()]
update_inventory(store, source)
clean(store, source, CleaningRules(), lambda done, total: times.append(time.monotonic()))
print(json.dumps(max(after - before for before, after in zip(times, times[1:]))))
"""


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The store after one pass, the root, how many files there are, and what the pass took."""
    folder = tmp_path_factory.mktemp("hostile")
    root, decoder = folder / "images", folder / "decoder"
    files = write_corpus(root)
    decoder.mkdir()
    write_decoder(decoder)
    store = folder / "home" / "annotations.duckdb"
    with subprocess.Popen(
        [sys.executable, "-c", PASS, str(store), str(root)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{decoder}{os.pathsep}{REPOSITORY}"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.02)
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0
    return {
        "store": AnnotationStore(store),
        "root": root,
        "files": files,
        "longest_s": json.loads(output),
        "peak_bytes": peak,
    }


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
    assert passed["longest_s"] < 10
    assert passed["peak_bytes"] < 2**30


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("decoders/0.png", "rejected", "decoder_timeout"),
        ("decoders/1.png", "rejected", "decoder_crashed"),
        ("decoders/2.png", "rejected", "decoder_memory"),
        ("bombs/50000.png", "rejected", "too_large"),
        ("bombs/million_wide.png", "rejected", "too_large"),
        ("bombs/two_billion.png", "rejected", "too_large"),
        ("bombs/large.png", "rejected", "blank"),
        ("bombs/large_progressive.jpg", "rejected", "blank"),
        ("bombs/text.png", "rejected", "unreadable"),
        ("nonsense/empty.jpg", "rejected", "empty_file"),
        ("nonsense/text.jpg", "rejected", "not_an_image"),
        ("nonsense/drawing.webp", "rejected", "not_an_image"),
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
        ("valid/heic.heic", "accepted", None),
        ("valid/AVIF_RGB.avif", "accepted", None),
        ("valid/JPEG_CMYK.jpg", "accepted", None),
        ("valid/TIFF_LAB.tif", "accepted", None),
        ("valid/PNG_I16.png", "accepted", None),
        ("valid/TIFF_F.tif", "accepted", None),
    ],
)
def test_what_a_file_is_decides_how_it_ends(
    passed: dict[str, Any], path: str, status: str, reason: str | None
):
    found = files(passed)[path]
    # One of its damaged copies may stand for it.
    if status == "accepted" and str(found[1]).endswith("_duplicate"):
        return
    assert found == (status, reason)


def test_of_several_frames_the_record_says_how_many_there_were(passed: dict[str, Any]):
    rows = passed["store"].query(
        "SELECT path, frames FROM dataset_files JOIN images USING (image_id) "
        "WHERE path LIKE 'valid/frames.%'"
    )
    assert dict(zip(*(column.to_pylist() for column in rows.columns), strict=True)) == {
        f"valid/frames.{extension}": 3 for extension in ("gif", "png", "webp", "tif", "avif")
    }


def test_a_second_pass_decodes_nothing(passed: dict[str, Any]):
    before = files(passed)
    summary = clean(passed["store"], open_source(passed["root"]), CleaningRules())
    assert (summary.decoded, summary.judged_anew) == (0, 0)
    assert files(passed) == before
