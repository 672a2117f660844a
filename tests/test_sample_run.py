"""The path of a newcomer: the sample dataset through the embedded checkpoint, twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import report_files
from labeling_pipeline.plan import load_plan
from labeling_pipeline.reporting.actions import evaluate_stored_actions
from labeling_pipeline.reporting.detection import evaluate_entries
from labeling_pipeline.sample.dataset import DOCUMENTS, write_sample
from labeling_pipeline.store.annotation_store import AnnotationStore

REPOSITORY = Path(__file__).parent.parent
PLAN = REPOSITORY / "plans" / "sample.yaml"

pytestmark = pytest.mark.checkpoint


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample") / "dataset")


def run(dataset, home) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LABELING_")}
    result = subprocess.run(
        [sys.executable, "run.py", str(dataset.image_root), "--plan", str(PLAN)],
        cwd=REPOSITORY,
        env=environment | {"LABELING_HOME": str(home), "COLUMNS": "250"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def labeled(dataset, tmp_path_factory):
    """The home after one run, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    return home, run(dataset, home)


@pytest.fixture(scope="module")
def store(labeled):
    return AnnotationStore(labeled[0] / "annotations.duckdb")


def test_boxes_agree_with_the_ground_truth(store, dataset):
    evaluation = evaluate_entries(store, load_plan(PLAN), open_source(dataset.image_root))["object"]
    accepted = report_files(store).statuses["accepted"] - len(list(pages(dataset)))
    assert len(evaluation.boxes.judged_images) == accepted >= 9 * 12
    assert evaluation.boxes.overall.f1 >= 0.90


def test_the_pages_are_read_line_by_line_and_nothing_else_is(store, dataset):
    rows = store.query(
        "SELECT DISTINCT path FROM annotations JOIN class_images USING (image_id) "
        "WHERE entry = 'text' AND score >= 0.5"
    )
    assert set(rows["path"].to_pylist()) == set(pages(dataset))
    evaluation = evaluate_entries(store, load_plan(PLAN), open_source(dataset.image_root))["text"]
    assert evaluation.boxes.overall.f1 >= 0.95
    assert evaluation.text.pages.characters.length > 500
    assert evaluation.text.pages.characters.rate < 0.03
    assert evaluation.text.lines.characters.rate < 0.03


def pages(dataset) -> list[str]:
    folder = dataset.image_root / DOCUMENTS
    return [f"{DOCUMENTS}/{path.name}" for path in folder.iterdir()]


def test_keypoints_are_where_the_drawing_has_them(store, dataset):
    evaluation = evaluate_entries(store, load_plan(PLAN), open_source(dataset.image_root))
    keypoints = evaluation["posture"].keypoints
    assert keypoints.matched >= 5 * 12
    assert keypoints.pck >= 0.85
    assert keypoints.oks >= 0.75


def test_postures_are_told_apart_by_their_keypoints_and_by_asking_for_them(store, labeled):
    home, printed = labeled
    report = (home / "reports/report.html").read_text()
    assert "Keypoint action accuracy" in report
    assert "Zero-shot action accuracy" in report
    lines = " ".join(printed.split())
    for one in evaluate_stored_actions(store, load_plan(PLAN)):
        scores = one.evaluation.scores
        assert scores.images >= 5 * 12
        assert scores.accuracy.value >= {"keypoints": 0.80, "zero_shot": 0.95}[one.method]
        assert scores.accuracy.interval.low >= 0.70
        assert f"recognition, {one.title}: accuracy {scores.accuracy.value:.3f} (" in lines
        assert (home / f"reports/har/{one.key}_confusion_matrix.png").is_file()


def test_every_flawed_file_is_accounted_for_by_name_and_reason(store, labeled):
    notes = {note.path: note.reason for note in report_files(store).not_accepted}
    assert notes == {
        "arms_raised/notes.jpg": "not_an_image",
        "circle/.DS_Store": "system_file",
        "circle/circle_001_copy.jpg": "exact_duplicate",
        "lying/empty.jpg": "empty_file",
        "lying/truncated.jpg": "truncated",
        "running/._running_001.jpg": "system_file",
        "sitting/blank.jpg": "blank",
        "square/Thumbs.db": "system_file",
        "square/circle_and_square.jpg": "exact_duplicate",
        "standing/standing_001_recompressed.jpg": "near_duplicate",
        "star/icon.png": "too_small",
        "star/star_001_resized.jpg": "near_duplicate",
        "triangle/triangle_001_recompressed.jpg": "near_duplicate",
    }
    for path, reason in notes.items():
        line = next(line for line in labeled[1].splitlines() if path in line)
        assert reason in line


def test_every_image_of_every_class_has_an_outcome_and_a_picture(store, labeled):
    rows = store.query(
        """
        SELECT i.class, i.image_number, count(o.state) AS outcomes
        FROM class_images i LEFT JOIN outcomes o USING (image_id, class)
        GROUP BY ALL
        """
    ).to_pylist()
    for row in rows:
        assert row["outcomes"] >= 1
        folder = labeled[0] / "auto_labeling_results" / row["class"]
        assert (folder / f"vis_{row['image_number']}.jpg").is_file()


def test_running_again_asks_nothing_and_changes_no_file(dataset, labeled):
    home, _ = labeled
    results = sorted((home / "auto_labeling_results").rglob("*.j*"))
    before = {path: path.stat().st_mtime_ns for path in results if path.name != ".drawn.json"}
    assert "Generations in this run: 0" in run(dataset, home)
    assert {path: path.stat().st_mtime_ns for path in before} == before
