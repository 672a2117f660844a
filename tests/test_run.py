import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labeling_pipeline.store.annotation_store import AnnotationStore
from run import Ran, _print_failures

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path):
    """Call run.py as a user does, with a home of its own."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        import os

        inherited = {k: v for k, v in os.environ.items() if not k.startswith("LABELING_")}
        return subprocess.run(
            [sys.executable, "run.py", *arguments],
            cwd=REPOSITORY,
            env=inherited
            | {"LABELING_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
            | environment,
            capture_output=True,
            text=True,
        )

    return call


@pytest.fixture
def plan(tmp_path, script):
    """Write a one-entry plan for the scripted model; returns its path."""

    def write(**keys) -> str:
        path = tmp_path / "plan.yaml"
        model = json.dumps(script(**keys))
        path.write_text(f"model: {model}\nentries:\n  - {{name: object, task: detection}}\n")
        return str(path)

    return write


def test_a_folder_is_labeled_from_the_command_line(run, plan, image_root, tmp_path):
    result = run(str(image_root), "--plan", plan(boxes={"cat": [[0, 0, 500, 500]]}))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "12 accepted" in result.stdout
    assert "Generations in this run: 12" in result.stdout
    assert (tmp_path / "home/auto_labeling_results/cat/cat.json").is_file()
    again = run(str(image_root), "--plan", plan(boxes={"cat": [[0, 0, 500, 500]]}))
    assert again.returncode == 0
    assert "Generations in this run: 0" in again.stdout


@pytest.mark.soak
def test_an_archive_that_the_plan_names_is_labeled_from_the_command_line(
    run, plan, image_root, tmp_path
):
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", image_root)
    path = Path(plan(boxes={"cat": [[0, 0, 500, 500]]}))
    text = path.read_text()
    path.write_text(f"source: {{url: {archive}}}\n{text}")
    result = run("--plan", str(path), "--class", "cat")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "12 accepted" in result.stdout
    assert f"LABELING_IMAGES=zip::file://{archive}" in result.stdout

    path.write_text(text)
    result = run("--plan", str(path))
    assert result.returncode == 1
    assert "name it on the command line, in LABELING_IMAGES or as source.url" in result.stdout


def test_a_failed_class_gives_exit_code_1_and_the_command_that_re_runs_it(run, plan, image_root):
    result = run(str(image_root), "--plan", plan(fail_size_px=[130, 100]))
    assert result.returncode == 1
    assert "failed object_annotations[dog]" in result.stdout
    assert "all 4 images failed" in result.stdout
    assert f"python run.py {image_root} --plan" in result.stdout
    assert "--class dog" in result.stdout


def test_where_more_classes_failed_than_are_named_the_command_covers_all(
    capsys: pytest.CaptureFixture[str],
):
    ran = Ran(failures={"object_annotations": {"cat": "broken", "dog": "broken"}})
    _print_failures(ran, "photos", Path("plan.yaml"))
    assert "run.py photos --plan plan.yaml --class cat --class dog\n" in capsys.readouterr().out
    ran.unlisted["object_annotations"] = 7
    _print_failures(ran, "photos", Path("plan.yaml"))
    said = capsys.readouterr().out
    assert "and 7 classes more" in said
    assert said.endswith("run.py photos --plan plan.yaml\n")


@pytest.mark.soak
def test_what_the_checks_found_is_told(run, plan, image_root):
    plan_file = Path(plan(boxes={"cat": [[0, 0, 500, 500]]}))
    entries = plan_file.read_text()
    plan_file.write_text(entries + "cleaning: {min_side_px: 5000}\n")
    result = run(str(image_root), "--plan", str(plan_file))
    assert result.returncode == 1
    assert "failed clean_images" in result.stdout
    assert "no image was accepted: 12 were rejected" in result.stdout
    assert "object_annotations" not in result.stdout

    plan_file.write_text(entries + "checks: {max_duplicate_share: 0.05}\n")
    shutil.copy(image_root / "cat/0.png", image_root / "cat/copy.png")
    result = run(str(image_root), "--plan", str(plan_file))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "check clean_images: rejected_share" in result.stdout
    assert "of 13 images 8% are duplicates (expected at most 5%)" in result.stdout


@pytest.mark.soak
def test_only_the_classes_that_are_named_are_labeled(run, plan, image_root, tmp_path):
    result = run(str(image_root), "--plan", plan(), "--class", "Über Kühe", "--class", "cat")
    assert result.returncode == 0, result.stdout + result.stderr
    store = AnnotationStore(tmp_path / "home/annotations.duckdb")
    assert store.query("SELECT count(*) AS n FROM generations").to_pylist() == [{"n": 8}]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["no/such/folder"], "expected a folder of images", id="no folder"),
        pytest.param([".", "--plan", "no.yaml"], "no.yaml: expected a plan", id="no plan"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_without_a_trace(run, arguments, expected):
    result = run(*arguments)
    assert result.returncode == 1
    assert expected in " ".join(result.stdout.split())
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.soak
@pytest.mark.checkpoint
def test_photos_that_the_tiny_model_knows_nothing_of_are_a_result_not_an_error(run, image_root):
    result = run(str(image_root))
    assert result.returncode == 0, result.stdout + result.stderr
    text = " ".join(result.stdout.split())
    assert "12 accepted" in text
    assert "'cat' is outside the vocabulary of tiny-rex-omni" in text
    assert "LABELING_MODEL=rex-omni" in text
    assert "Generations in this run: 0" in text
