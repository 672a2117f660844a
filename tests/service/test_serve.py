"""How the service starts, and what it says when something of its own is wrong."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from labeling_pipeline.__main__ import app
from labeling_pipeline.errors import ModelError
from tests.service.conftest import image_bytes


def ask(client):
    return client.post("/detection", files={"file": image_bytes()}, data={"categories": "cat"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--host", "0.0.0.0"], "set LABELING_API_KEY", id="open to anybody"),
        pytest.param(["--model", "no-such"], "no model is called 'no-such'", id="no such model"),
        pytest.param(["--queue", "3"], "a queue at least as long", id="a queue too short"),
        pytest.param(["--max-file-mb", "99"], "at least as large as a file", id="sizes"),
    ],
)
def test_what_cannot_be_served_is_told_before_anything_starts(monkeypatch, options, said):
    monkeypatch.delenv("LABELING_API_KEY", raising=False)
    result = CliRunner().invoke(app, ["serve", *options])
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())


@pytest.mark.checkpoint
def test_a_model_that_cannot_be_loaded_ends_the_service_with_the_reason():
    environment = os.environ | {"LABELING_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "labeling_pipeline", "serve", "--port", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "torch sees no CUDA GPU here" in " ".join(done.stdout.split())


def test_a_model_that_cannot_answer_any_more_is_a_503_that_tells_no_details(client, monkeypatch):
    (model,) = client.app.state.service.models.values()

    def fail(prepared):
        raise ModelError("lost the weights in /secret/place")

    monkeypatch.setattr(model, "forward", fail)
    reply = ask(client)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) > 0
    assert "secret" not in reply.text
    monkeypatch.undo()
    assert ask(client).status_code == 200


def test_a_fault_of_the_service_tells_no_details_and_the_next_request_works(client, monkeypatch):
    def fail(*arguments):
        raise KeyError("/secret/place")

    monkeypatch.setattr(client.app.state.service, "model_for", fail)
    reply = ask(client)
    assert reply.status_code == 500
    assert reply.headers["content-type"] == "application/problem+json"
    assert "secret" not in reply.text
    monkeypatch.undo()
    assert ask(client).status_code == 200
