"""A service that is killed under a pipeline and started again: the run ends as if it never was."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from benchmarks.service import free_port, serving
from labeling_pipeline.home import Home
from labeling_pipeline.models.remote import PATIENCE_S
from labeling_pipeline.store.annotation_store import AnnotationStore
from tests.soak.datasets import asked_of, write_classes, write_script
from tests.soak.live_server import REPOSITORY, wait_for

pytestmark = pytest.mark.soak

IMAGES = 60
KILLS = 3
BATCH = 16
"""Questions that are under way at once, in two requests."""
BOXES = {"cat": [[100, 100, 500, 500], [10, 20, 300, 400]], "person": [[0, 0, 900, 900]]}
PLAN = f"""
model: MODEL
runtime: {{batch_size: {BATCH}}}
entries:
  - {{name: object, task: detection, ask: {{"*": cat}}}}
  - {{name: pose, task: keypoint, ask: {{"*": person}}}}
"""


def started_run(images: Path, home: Path, model: str, output: Path) -> subprocess.Popen:
    """A headless run of the plan with this model."""
    home.mkdir()
    plan = home / "plan.yaml"
    plan.write_text(PLAN.replace("MODEL", f'"{model}"'))
    with output.open("w") as file:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "run.py"), str(images), "--plan", str(plan)],
            cwd=home,
            env=os.environ | {"LABELING_HOME": str(home)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def table(home: Path, name: str) -> pd.DataFrame:
    """All that does not say when, and in which run."""
    frame = AnnotationStore(Home(home).store_path).query(f"SELECT * FROM {name}").to_pandas()
    frame = frame.drop(columns=[*{"run_id", "created_at", "latency_s"} & {*frame.columns}])
    for column in frame.select_dtypes("object").columns:
        frame[column] = frame[column].map(str)
    return frame.sort_values(list(frame.columns), ignore_index=True)


def test_a_run_outlives_the_service_it_asks_and_nothing_is_there_twice(tmp_path: Path):
    images, script, log = (tmp_path / name for name in ("images", "script.json", "asked.jsonl"))
    sizes = [(64 + i, 150 - i) for i in range(IMAGES)]
    write_classes(images, {"a": sizes[:40], "b": sizes[40:]})
    write_script(script, boxes=BOXES)
    calm = started_run(images, tmp_path / "calm", f"scripted:{script}", tmp_path / "calm.txt")
    assert calm.wait(timeout=240) == 0, (tmp_path / "calm.txt").read_text()

    write_script(script, boxes=BOXES, delay_s=0.4, log=str(log))
    port, stormy, output = free_port(), tmp_path / "stormy", tmp_path / "stormy.txt"
    with ExitStack() as services:
        service = services.enter_context(serving(f"scripted:{script}", port=port))
        run = started_run(images, stormy, f"remote:http://127.0.0.1:{port}", output)
        services.callback(run.kill)
        for kill in range(1, KILLS + 1):
            wait_for(lambda enough=20 * kill: len(asked_of(log)) >= enough or run.poll())
            assert run.poll() is None, output.read_text()
            service.process.send_signal(signal.SIGKILL)
            service.process.wait(timeout=30)
            time.sleep(1)
            service = services.enter_context(serving(f"scripted:{script}", port=port))
        assert run.wait(timeout=300) == 0, output.read_text()

    for name in ("generations", "outcomes", "annotations"):
        expected = table(tmp_path / "calm", name)
        assert len(expected) >= 2 * IMAGES
        pd.testing.assert_frame_equal(table(stormy, name), expected)
    asked = Counter(asked_of(log))
    assert len(asked) == 2 * IMAGES
    # The model may have answered what was lost with the connection, and nothing else.
    assert asked.total() <= 2 * IMAGES + KILLS * BATCH
    with dg.DagsterInstance.from_config(str(Home(stormy).dagster)) as instance:
        for asset in ("object_annotations", "pose_annotations", "visualizations", "class_exports"):
            assert instance.get_materialized_partitions(dg.AssetKey(asset)) == {"a", "b"}
        assert all(run.status is dg.DagsterRunStatus.SUCCESS for run in instance.get_runs())


def test_a_service_that_never_comes_back_fails_the_classes_and_a_second_run_does_the_rest(
    tmp_path: Path,
):
    images, script, log = (tmp_path / name for name in ("images", "script.json", "asked.jsonl"))
    write_classes(images, {"a": [(64 + i, 90 - i) for i in range(20)], "b": [(100, 50)]})
    write_script(script, boxes=BOXES, delay_s=0.4, log=str(log))
    home, output, port = tmp_path / "home", tmp_path / "output.txt", free_port()
    with serving(f"scripted:{script}", port=port) as service:
        run = started_run(images, home, f"remote:http://127.0.0.1:{port}", output)
        wait_for(lambda: len(asked_of(log)) >= 22 or run.poll())
        service.process.send_signal(signal.SIGKILL)
        service.process.wait(timeout=30)
        # It is waited for as long as a restart may take, and then by no class any more.
        assert run.wait(timeout=300) == 1, output.read_text()
        said = output.read_text()
    in_vain = rf"http://127.0.0.1:{port} gave no answer, after (\d+) s of waiting"
    waited_s = [int(seconds) for seconds in re.findall(in_vain, " ".join(said.split()))]
    # The next pause, of up to five seconds, would have ended too late.
    assert PATIENCE_S - 5 <= max(waited_s) <= PATIENCE_S + 10
    assert "Traceback" not in said
    kept = len(table(home, "generations"))
    assert 0 < kept < 42
    before = len(asked_of(log))
    with serving(f"scripted:{script}", port=port):
        run = subprocess.run(
            [sys.executable, str(REPOSITORY / "run.py"), str(images)],
            cwd=home,
            env=os.environ | {"LABELING_HOME": str(home), "LABELING_PLAN": str(home / "plan.yaml")},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert run.returncode == 0, run.stdout
    assert len(asked_of(log)) - before == 42 - kept
    assert len(table(home, "generations")) == 42
