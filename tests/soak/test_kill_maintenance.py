"""A backup, compaction or restoration that is killed leaves a whole store behind."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.database_file import DatabaseFile
from labeling_pipeline.store.maintenance import back_up, check

pytestmark = pytest.mark.soak

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = 8
ROWS = 60_000

WORKER = """
import sys
from pathlib import Path
from labeling_pipeline.store.database_file import DatabaseFile
from labeling_pipeline.store import maintenance
file = DatabaseFile(Path(sys.argv[1]))
print("working", flush=True)
while True:
    {work}
"""


@pytest.mark.parametrize(
    "work",
    ["maintenance.back_up(file)", "maintenance.compact(file)", "maintenance.restore(file)"],
    ids=["backup", "compact", "restore"],
)
def test_a_killed_command_leaves_every_row_in_a_sound_file(tmp_path: Path, work: str):
    store = AnnotationStore(tmp_path / "annotations.duckdb")
    with store.transaction() as tx:
        tx.execute(
            "INSERT INTO classes (class, display_name) SELECT md5(i::VARCHAR), repeat('x', 200) "
            f"FROM range({ROWS}) t(i)"
        )
    back_up(DatabaseFile(store.path))
    moments = random.Random(3)
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER.format(work=work), str(store.path)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        time.sleep(moments.uniform(0.0, 0.6))
        assert process.poll() is None, "the command ended by itself"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        condition = check(DatabaseFile(store.path))
        assert not condition.problems
        assert condition.rows["classes"] == ROWS
    for backup in (tmp_path / "backups").glob("*.duckdb"):
        condition = check(DatabaseFile(backup))
        assert (condition.problems, condition.rows["classes"]) == ([], ROWS)
    with store.transaction() as tx:
        tx.execute("DELETE FROM classes")
    assert store.query("SELECT count(*) AS n FROM classes")["n"].to_pylist() == [0]
