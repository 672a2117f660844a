"""A killed labeling run, resumed, ends where an undisturbed one ends, and repeats no answer."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import dagster as dg
import pandas as pd
import pytest

from labeling_pipeline.cleaning import clean
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.plan import load_plan
from labeling_pipeline.store.annotation_store import AnnotationStore
from tests.soak.datasets import Asked, asked_of, write_classes, write_script

pytestmark = pytest.mark.soak

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH_SIZE = 4
KILLS = 8

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
    write_script(script, boxes=boxes, delay_s=0.3, log="asked.jsonl")
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.replace("SCRIPT", str(script)))
    return path


def ingested_home(home: Path, images: Path, plan_file: Path) -> AnnotationStore:
    store = AnnotationStore(Home(home).store_path)
    source = open_source(images)
    update_inventory(store, source)
    summary = clean(store, source, load_plan(plan_file).cleaning)
    assert summary.files.statuses == {"accepted": 40}
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


def table(store: AnnotationStore, name: str, without: Sequence[str]) -> pd.DataFrame:
    frame = store.query(f"SELECT * FROM {name}").to_pandas().drop(columns=list(without))
    for column in frame.select_dtypes("object").columns:
        frame[column] = frame[column].map(str)
    return frame.sort_values(list(frame.columns), ignore_index=True)


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
                time.sleep(moments.uniform(0.2, 1.2))
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
    for name, without in (
        ("generations", ("run_id", "created_at", "latency_s")),
        ("outcomes", ("run_id", "created_at")),
        ("annotations", ()),
    ):
        expected = table(calm_store, name, without)
        assert len(expected) >= 80
        pd.testing.assert_frame_equal(table(store, name, without), expected)


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
