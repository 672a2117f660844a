"""What the disk refuses: each met by a process of its own, with the real refusal."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labeling_pipeline.cleaning import clean
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import load_plan
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.database_file import DatabaseFile
from labeling_pipeline.store.maintenance import back_up, check
from tests.soak.datasets import write_classes, write_script
from tests.store.stores import COMMIT_AND_DIE, REPOSITORY, insert, names, start

# What may not be written


@pytest.fixture
def store() -> Iterator[AnnotationStore]:
    """A store where every user of this machine can reach it."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        Path(folder).chmod(0o755)
        store = AnnotationStore(Home(home).store_path)
        insert(store, "cats")
        home.chmod(0o777)
        yield store


AS_ANOTHER_USER = """
from labeling_pipeline.errors import StoreError
AnnotationStore(Path({warm_up!r})).query("SELECT 1")
if os.getuid() == 0:
    # No mode holds for root.
    os.setuid(65534)
try:
    {work}
except StoreError as error:
    print("StoreError:", error)
"""
READ = "print(store.query('SELECT class FROM classes')['class'].to_pylist())"
WRITE = "with store.transaction() as tx: tx.execute('UPDATE classes SET retired = true')"
BACK_UP = "maintenance.back_up(file)"
COMPACT = "maintenance.compact(file)"
REFUSED = r"StoreError: .*Permission denied.*right to write to .*LABELING_HOME"


def the_file(store: AnnotationStore) -> None:
    store.path.chmod(0o444)


def the_folder(store: AnnotationStore) -> None:
    store.path.with_name(store.path.name + ".lock").unlink(missing_ok=True)
    store.path.parent.chmod(0o555)


def everything(store: AnnotationStore) -> None:
    store.path.chmod(0)


def the_parent_of_a_new_home(store: AnnotationStore) -> None:
    shutil.rmtree(store.path.parent)


@pytest.mark.parametrize(
    ("protect", "work", "expected"),
    [
        (the_file, READ, r"\['cats'\]"),
        (the_file, WRITE, REFUSED),
        (the_file, COMPACT, REFUSED),
        (the_folder, READ, r"\['cats'\]"),
        (the_folder, WRITE, REFUSED),
        (the_folder, BACK_UP, REFUSED),
        (everything, READ, REFUSED),
        (the_parent_of_a_new_home, READ, REFUSED),
    ],
)
def test_what_may_not_be_written_can_be_read_and_says_what_is_missing(
    store: AnnotationStore,
    protect: Callable[[AnnotationStore], None],
    work: str,
    expected: str,
    tmp_path: Path,
):
    protect(store)
    warm_up = str(tmp_path / "warm_up.duckdb")
    process = start(store, AS_ANOTHER_USER.format(warm_up=warm_up, work=work))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert re.match(expected, output.replace("\n", " ")), output
    if protect is not the_parent_of_a_new_home:
        # So that it can be looked into, and removed.
        store.path.parent.chmod(0o777)
        store.path.chmod(0o666)
        assert store.query("SELECT class, retired FROM classes").to_pylist() == [
            {"class": "cats", "retired": False}
        ]


ON_A_READ_ONLY_DISK = f"""
from labeling_pipeline.errors import StoreError
{READ}
def write():
    {WRITE}
for work in (
    write,
    lambda: maintenance.back_up(file),
    lambda: maintenance.compact(file),
    lambda: maintenance.restore(file),
    lambda: AnnotationStore(store.path.parent / "new" / "annotations.duckdb").query("SELECT 1"),
):
    try:
        work()
    except StoreError as error:
        print("StoreError:", error)
"""


def test_a_read_only_disk_can_be_read_and_says_what_is_missing(small_disk: Path):
    store = AnnotationStore(Home(small_disk / "home").store_path)
    insert(store, "cats")
    back_up(DatabaseFile(store.path))
    # What is only in its log is read, too.
    start(store, COMMIT_AND_DIE).communicate(timeout=60)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    output, errors = start(store, ON_A_READ_ONLY_DISK).communicate(timeout=60)
    first, *refused = output.splitlines()
    assert first == "['cats', 'logged']", errors
    assert len(refused) == 5, output
    for line in refused:
        assert re.match(r"StoreError: .*Read-only file system.*LABELING_HOME", line), line


# A full disk

PLAN = """
model: scripted:SCRIPT
runtime: {batch_size: 4}
entries:
  - {name: object, task: detection, ask: {"*": cat}}
"""
LABELER = """
import resource, runpy, signal, sys
if {limit}:
    # Where no file may grow beyond its limit, none of them can be written further.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of six megabytes, mounted where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"only root mounts a disk: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Labeling:
    """Twelve images of a, which are labeled, and twenty of b, which are due."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.home = Home(home)
        self.images, self.plan_file = folder / "images", folder / "plan.yaml"
        sizes = [(64 + i, 90 - i) for i in range(32)]
        write_classes(self.images, {"a": sizes[:12], "b": sizes[12:]})
        write_script(
            folder / "script.json", boxes={"cat": [[100, 100, 500, 500], [10, 20, 300, 400]]}
        )
        self.plan_file.write_text(PLAN.replace("SCRIPT", str(folder / "script.json")))
        self.store = AnnotationStore(self.home.store_path)
        plan = load_plan(self.plan_file)
        source = open_source(self.images)
        update_inventory(self.store, source)
        clean(self.store, source, plan.cleaning)
        label_class(self.store, plan, plan.entries[0], "a", source, "first")

    def run(self, limit: int = 0) -> subprocess.CompletedProcess[str]:
        """Label everything, in another process. limit: how large a file may grow, in bytes."""
        script = str(REPOSITORY / "tests/soak/labeler.py")
        return subprocess.run(
            [
                *(sys.executable, "-c", LABELER.format(limit=limit, script=script)),
                *map(str, (self.home.path, self.images, self.plan_file)),
            ],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def found(self) -> int:
        """How many images have their outcome, each with all its annotations."""
        table = self.store.query(
            "SELECT DISTINCT image_id, n FROM ("
            "SELECT o.image_id, o.class, count(*) AS n FROM outcomes o "
            "JOIN annotations USING (generation_id) GROUP BY ALL)"
        )
        assert set(table["n"].to_pylist()) == {2}
        return table.num_rows

    def is_interrupted_and_goes_on(self, full: Callable[[], str], room: Callable[[], None]) -> None:
        assert self.found() == 12
        errors = full()
        assert re.search(r"StoreError: .*the disk is full.*the same command", errors), errors
        assert 12 <= self.found() < 32
        assert check(DatabaseFile(self.store.path)).problems == []
        room()
        done = self.run()
        assert done.returncode == 0, done.stderr
        assert self.found() == 32


def test_a_full_disk_costs_the_batch_in_flight_and_the_same_command_goes_on(
    small_disk: Path, tmp_path: Path
):
    labeling = Labeling(tmp_path, small_disk / "home")
    ballast = small_disk / "ballast"

    def fill() -> str:
        state = os.statvfs(small_disk)
        ballast.write_bytes(bytes(state.f_bavail * state.f_frsize - 50_000))
        return labeling.run().stderr.replace("\n", " ")

    labeling.is_interrupted_and_goes_on(fill, ballast.unlink)


def test_a_file_that_may_not_grow_is_like_a_full_disk(tmp_path: Path):
    labeling = Labeling(tmp_path, tmp_path / "home")
    limit = labeling.store.path.stat().st_size
    labeling.is_interrupted_and_goes_on(
        lambda: labeling.run(limit).stderr.replace("\n", " "), lambda: None
    )


def test_a_backup_or_compaction_without_room_changes_nothing(tmp_path: Path):
    store = AnnotationStore(tmp_path / "annotations.duckdb")
    insert(store, *(f"class_{i}" for i in range(2000)))
    kept = back_up(DatabaseFile(store.path))
    body = """
from labeling_pipeline.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
for work in (maintenance.back_up, maintenance.compact):
    try:
        work(file)
    except StoreError as error:
        print("the disk is full" in str(error))
# The process goes on with the store, and with more room it succeeds.
print(store.query("SELECT count(*) AS n FROM classes")["n"][0])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
maintenance.compact(file)
print(store.query("SELECT count(*) AS n FROM classes")["n"][0])
"""
    output, errors = start(store, body).communicate(timeout=60)
    assert output.split() == ["True", "True", "2000", "2000"], errors
    assert [*tmp_path.rglob("*.new*")] == []
    assert names(AnnotationStore(kept)) == names(store)
