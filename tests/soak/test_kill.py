"""A killed labeling run, resumed, ends where an undisturbed one ends, and repeats no answer."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from labeling_pipeline.cleaning import clean
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.plan import load_plan
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.schema import KEYS
from tests.soak.datasets import Asked, asked_of, write_classes, write_script

pytestmark = pytest.mark.soak

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH_SIZE = 4
KILLS = 20

PLAN = f"""
model: scripted:SCRIPT
runtime: {{batch_size: {BATCH_SIZE}}}
entries:
  - {{name: object, task: detection, ask: {{"*": cat}}}}
  - {{name: pose, task: keypoint, ask: {{"*": person}}}}
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty images in two classes."""
    root = tmp_path / "images"
    sizes = [(64 + i, 90 - i) for i in range(40)]
    write_classes(root, {"a": sizes[:25], "b": sizes[25:]})
    return root


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    """A slow model that finds two cats and one person; it logs into the working folder."""
    script = tmp_path / "script.json"
    boxes = {"cat": [[100, 100, 500, 500], [10, 20, 300, 400]], "person": [[0, 0, 900, 900]]}
    write_script(script, boxes=boxes, delay_s=0.4, log="asked.jsonl")
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.replace("SCRIPT", str(script)))
    return path


def ingested_home(home: Path, images: Path, plan_file: Path) -> AnnotationStore:
    store = AnnotationStore(Home(home).store_path)
    source = open_source(images)
    update_inventory(store, source)
    summary = clean(store, source, load_plan(plan_file).cleaning)
    assert set(summary.files.statuses) == {"accepted"}
    return store


def labeler(home: Path, images: Path, plan_file: Path, errors: IO[str]) -> subprocess.Popen:
    """A started labeling process that has loaded everything and begins to ask."""
    script = Path(__file__).with_name("labeler.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(home), str(images), str(plan_file)],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "labeling\n"
    return process


def answered(store: AnnotationStore) -> set[Asked]:
    """What has a stored generation."""
    rows = store.query(
        "SELECT labels, width_px, height_px FROM generations JOIN images USING (image_id)"
    ).to_pylist()
    return {(tuple(row["labels"]), (row["width_px"], row["height_px"])) for row in rows}


def assert_same_rows(store: AnnotationStore, expected: AnnotationStore) -> None:
    """Everything but times, latency and run ids is equal, floats within 1e-4."""
    for name, key in KEYS.items():
        query = f"SELECT * FROM {name} ORDER BY {', '.join(key)}"
        rows, expected_rows = (one.query(query).to_pandas() for one in (store, expected))
        assert len(expected_rows) > 0
        for column in expected_rows.columns.difference(["run_id", "created_at", "latency_s"]):
            values, expected_values = (
                pd.Series([x for value in frame[column] for x in parts(value)])
                for frame in (rows, expected_rows)
            )
            pd.testing.assert_series_equal(
                values, expected_values, rtol=0, atol=1e-4, obj=f"{name}.{column}"
            )


def parts(value: Any) -> Iterator[Any]:
    """A value, or what a list or structure is made of."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from parts(one)
    elif isinstance(value, list | np.ndarray):
        yield len(value)
        for one in value:
            yield from parts(one)
    else:
        yield value


def test_a_run_killed_at_random_moments_ends_like_one_that_never_was(
    tmp_path: Path, images: Path, plan_file: Path
):
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    calm_store = ingested_home(calm, images, plan_file)
    store = ingested_home(stormy, images, plan_file)
    log = stormy / "asked.jsonl"
    moments = random.Random(11)
    with (tmp_path / "errors.txt").open("w+") as errors:
        undisturbed = labeler(calm, images, plan_file, errors)
        kills = 0
        while True:
            stored, asked_before = answered(store), len(asked_of(log))
            process = labeler(stormy, images, plan_file, errors)
            if kills < KILLS:
                time.sleep(moments.uniform(0.1, 0.9))
                assert process.poll() is None, "the run ended before it could be killed"
                process.send_signal(signal.SIGKILL)
            status = process.wait(timeout=120)
            asked = asked_of(log)[asked_before:]
            assert not stored.intersection(asked), "what was answered and stored was asked again"
            if status == 0:
                break
            assert status == -signal.SIGKILL, errors.seek(0) or errors.read()
            kills += 1
            unwritten = len(asked) - len(answered(store) - stored)
            # One batch is being written while the next is asked.
            assert 0 <= unwritten <= 2 * BATCH_SIZE
        assert undisturbed.wait(timeout=120) == 0, errors.seek(0) or errors.read()
    assert kills == KILLS
    assert len(asked_of(calm / "asked.jsonl")) == len(answered(store)) == 80
    assert len(asked_of(log)) <= 80 + KILLS * BATCH_SIZE
    assert_same_rows(store, calm_store)


CHECKPOINT_PLAN = """
runtime: {batch_size: 2}
entries:
  - {name: object, task: detection, ask: {"*": circle}, distractors: [square]}
"""


@pytest.mark.checkpoint
def test_a_killed_run_of_a_real_checkpoint_ends_like_one_that_never_was(
    tmp_path: Path, image_root: Path
):
    plan_file = tmp_path / "plan.yaml"
    plan_file.write_text(CHECKPOINT_PLAN)
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    calm_store, store = (ingested_home(home, image_root, plan_file) for home in (calm, stormy))
    moments = random.Random(12)
    finished = "SELECT generation_id, created_at FROM generations"
    survivors: set[tuple] = set()
    with (tmp_path / "errors.txt").open("w+") as errors:
        for stored_when_killed in (2, 6):
            process = labeler(stormy, image_root, plan_file, errors)
            deadline = time.monotonic() + 120
            while store.query(finished).num_rows < stored_when_killed:
                assert process.poll() is None, errors.seek(0) or errors.read()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            assert process.wait(timeout=60) == -signal.SIGKILL, "it ended before it was killed"
            survivors |= {tuple(row.values()) for row in store.query(finished).to_pylist()}
        for home in (calm, stormy):
            process = labeler(home, image_root, plan_file, errors)
            assert process.wait(timeout=240) == 0, errors.seek(0) or errors.read()
    ended = {tuple(row.values()) for row in store.query(finished).to_pylist()}
    assert survivors < ended, "a finished answer was asked again, or none was left to ask"
    assert_same_rows(store, calm_store)


def test_a_killed_headless_run_is_resumed_by_the_same_command(
    tmp_path: Path, images: Path, plan_file: Path
):
    home = tmp_path / "home"
    home.mkdir()
    log = home / "asked.jsonl"
    command = [sys.executable, str(REPOSITORY / "run.py"), str(images), "--plan", str(plan_file)]
    with (tmp_path / "output.txt").open("w+") as output:

        def start() -> subprocess.Popen:
            environment = os.environ | {"LABELING_HOME": str(home)}
            return subprocess.Popen(
                command, cwd=home, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

        for asked_when_killed in (10, 50):
            process = start()
            deadline = time.monotonic() + 120
            while len(asked_of(log)) < asked_when_killed and time.monotonic() < deadline:
                assert process.poll() is None, output.seek(0) or output.read()
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)
        stored = answered(AnnotationStore(Home(home).store_path))
        asked_before = len(asked_of(log))
        assert start().wait(timeout=240) == 0, output.seek(0) or output.read()
    assert len(stored) >= 40
    assert not stored.intersection(asked_of(log)[asked_before:])
    assert len(answered(AnnotationStore(Home(home).store_path))) == 80
    with dg.DagsterInstance.from_config(str(Home(home).dagster)) as instance:
        for asset in ("object_annotations", "pose_annotations", "visualizations", "class_exports"):
            assert instance.get_materialized_partitions(dg.AssetKey(asset)) == {"a", "b"}
        statuses = [run.status for run in instance.get_runs()]
        assert statuses.count(dg.DagsterRunStatus.FAILURE) == 2
        assert statuses.count(dg.DagsterRunStatus.SUCCESS) == len(statuses) - 2


def test_ctrl_c_ends_a_headless_run_at_once_and_keeps_what_was_answered(
    tmp_path: Path, images: Path, plan_file: Path
):
    home = tmp_path / "home"
    home.mkdir()
    log = home / "asked.jsonl"
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "run.py"), str(images), "--plan", str(plan_file)],
        cwd=home,
        env=os.environ | {"LABELING_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(asked_of(log)) < 10 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in output
    assert "Traceback" not in output
    assert 4 <= len(answered(AnnotationStore(Home(home).store_path))) < 40
    assert all(labels == ("cat",) for labels, _ in asked_of(log))
