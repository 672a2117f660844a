"""Every command of docs/service.md, run as it stands there beside the service that it starts."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from labeling_pipeline.service.examples import EXAMPLES
from labeling_pipeline.service.schemas import Answer

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = (REPOSITORY / "docs/service.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.S) for line in block.splitlines()
]
MODELS = ("tiny-rex-omni", "tiny-florence-2", "rapidocr")
PORT = 6996
AS_JSON = "-H 'Accept: application/json'"

pytestmark = [
    pytest.mark.soak,
    pytest.mark.checkpoint,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


def said(folder: Path, command: str) -> str:
    """What a command of the document prints, run in a folder of the reader's own."""
    bin_and_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=os.environ | {"PATH": bin_and_path, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder beside a service as ``make serve`` starts it."""
    with socket.socket() as free:
        if free.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"something else listens on port {PORT}")
    makefile = (REPOSITORY / "Makefile").read_text()
    named = re.search(r"DEMO_MODELS := (.*)", makefile)
    assert named is not None
    options = named[1].split()
    assert options[1::2] == list(MODELS)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LABELING_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "labeling_pipeline", "serve", *options],
        cwd=REPOSITORY,
        env=environment,
    )
    try:
        deadline = time.monotonic() + 120
        while not is_ready():
            assert process.poll() is None
            assert time.monotonic() < deadline, "the service is not ready"
            time.sleep(0.3)
        yield tmp_path_factory.mktemp("reader")
        process.send_signal(signal.SIGINT)
        # 0 where whoever started the tests lets nobody interrupt them.
        assert process.wait(timeout=30) in (0, 130)
    finally:
        process.kill()
        process.wait()


def is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"http://localhost:{PORT}/health", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.fixture(scope="module")
def outputs(folder) -> dict[str, str]:
    """Command -> what it printed, all of them run in the order of the document."""
    return {command: said(folder, command) for command in COMMANDS}


def output_of(outputs: dict[str, str], *words: str) -> str:
    (found,) = (text for command, text in outputs.items() if all(w in command for w in words))
    return found


def test_boxes_are_found_and_drawn(folder, outputs):
    assert Image.open(folder / "labeled.jpg").format == "JPEG"
    answer = Answer.model_validate_json(output_of(outputs, "Accept: application/json"))
    assert answer.labels["star"].state == "found"
    assert answer.labels["circle"].state == "absent"


def test_the_answer_that_the_document_shows_is_the_one_that_comes(outputs):
    (shown,) = re.findall(r"```json\n(.*?)```", DOCUMENT, re.S)
    expected, told = json.loads(shown), json.loads(output_of(outputs, "Accept: application/json"))
    assert expected.keys() == told.keys()
    for key in ("task", "model", "model_key", "image", "dropped"):
        assert expected[key] == told[key]
    for label, one in expected["labels"].items():
        assert told["labels"][label]["state"] == one["state"]
        assert told["labels"][label]["presence"] == pytest.approx(one["presence"], abs=1e-3)
    (box,) = expected["labels"]["star"]["annotations"]
    assert told["labels"]["star"]["annotations"][0]["bbox"] == pytest.approx(box["bbox"], abs=0.1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("detection", "-o labeled.jpg"),
        ("keypoint", "-o pose.jpg"),
        ("ocr", "output_format=Text"),
        ("vision", "task=caption"),
    ],
)
def test_the_examples_of_the_openapi_document_were_really_given(folder, outputs, name, words):
    (command,) = (one for one in outputs if words in one)
    command = re.sub(r"-o \S+ ", "", command).replace("=Text", "=Box")
    told = json.loads(said(folder, command.replace("curl", f"curl {AS_JSON}", 1)))
    example = EXAMPLES[name]
    assert told | {"labels": None, "latency_s": 0} == example | {"labels": None, "latency_s": 0}
    assert told["labels"].keys() == example["labels"].keys()
    for label, one in example["labels"].items():
        assert told["labels"][label]["state"] == one["state"]
        found = told["labels"][label]["annotations"]
        assert [without_scores(a) for a in found] == [without_scores(a) for a in one["annotations"]]


def without_scores(annotation: dict) -> dict:
    """What is the same to the last bit on every machine."""
    points = [{**point, "score": None} for point in annotation.get("keypoints", [])]
    return annotation | {"score": None, "keypoints": points}


def test_keypoints_are_drawn(folder, outputs):
    assert Image.open(folder / "pose.jpg").format == "JPEG"


def test_text_is_read_line_by_line(outputs):
    lines = output_of(outputs, "output_format=Text").splitlines()
    assert len(lines) > 2
    assert all(line.strip() for line in lines)


def test_other_models_do_other_tasks(outputs):
    caption = Answer.model_validate_json(output_of(outputs, "task=caption"))
    assert caption.model == "tiny-florence-2"
    assert "star" in (caption.labels["caption"].annotations[0].text or "")
    region = Answer.model_validate_json(output_of(outputs, "task=region_to_description"))
    assert region.labels["region"].annotations[0].text
    tasks = json.loads(output_of(outputs, "/tasks"))
    assert next(row for row in tasks if row["task"] == "caption")["served_by"] == [MODELS[1]]


def test_several_files_come_back_in_order(outputs):
    star, circle = json.loads(output_of(outputs, "circle_000.jpg"))
    assert star["labels"]["star"]["state"] == "found"
    assert circle["labels"]["circle"]["state"] == "found"


def test_what_the_small_models_cannot_do_is_a_problem_that_says_which_can(outputs):
    problem = json.loads(output_of(outputs, "/visual_prompting"))
    assert problem["status"] == 422
    assert "models that can: rex-omni" in problem["detail"]


def test_health_names_the_models(outputs):
    health = json.loads(output_of(outputs, "/health"))
    assert health["status"] == "ready"
    assert tuple(health["models"]) == MODELS


def test_the_document_tells_of_every_endpoint_option_and_limit():
    helped = said(REPOSITORY, f"{sys.executable} -m labeling_pipeline serve --help")
    for option in re.findall(r"`(--[a-z-]+)`", DOCUMENT):
        assert option in helped
    for path in ("/detection", "/keypoint", "/ocr", "/visual_prompting", "/vision", "/tasks"):
        assert f":{PORT}{path}" in "".join(COMMANDS)
