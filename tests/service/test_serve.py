"""How the service starts, and what it says when something of its own is wrong."""

import os
import re
import subprocess
import sys
import time
from threading import Event

import httpx
import pytest
from typer.testing import CliRunner

from labeling_pipeline.__main__ import app
from labeling_pipeline.errors import ModelError
from labeling_pipeline.models.scripted import ScriptedModel
from tests.service.conftest import image_bytes, wait_until_ready

KEY = "correct horse battery staple"
LISTENS = re.compile(r"running on http://0\.0\.0\.0:(\d+)")


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


def test_the_key_of_the_environment_guards_the_service_that_is_started(script, tmp_path):
    options = ["--model", script(), "--host", "0.0.0.0", "--port", "0"]
    said = tmp_path / "log.txt"
    with said.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "labeling_pipeline", "serve", *options],
            env=os.environ | {"LABELING_API_KEY": KEY},
            stderr=log,
        )
        try:
            deadline = time.monotonic() + 120
            while not (at := LISTENS.search(said.read_text())):
                assert process.poll() is None
                assert time.monotonic() < deadline, "the service does not listen"
                time.sleep(0.1)
            url = f"http://127.0.0.1:{at[1]}/tasks"
            with_key = {"Authorization": f"Bearer {KEY}"}
            assert httpx.get(url, timeout=60).status_code == 401
            assert httpx.get(url, headers=with_key, timeout=60).status_code == 200
        finally:
            process.kill()
            process.wait()
        assert KEY not in said.read_text()


def test_while_models_load_it_says_so_and_is_asked_again_later(serve, monkeypatch):
    loads = Event()
    forward = ScriptedModel.forward

    def load_slowly(self, prepared):
        loads.wait()
        return forward(self, prepared)

    monkeypatch.setattr(ScriptedModel, "forward", load_slowly)
    client = serve(ready=False)
    try:
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        (model,) = health.json()["models"].values()
        assert model["loaded"] is False
        refused = ask(client)
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert "is being loaded" in refused.json()["detail"]
        for reply in (health, refused):
            assert int(reply.headers["retry-after"]) >= 1
        assert client.get("/").status_code == 200
    finally:
        loads.set()
    wait_until_ready(client.app)
    assert client.get("/health").json()["status"] == "ready"
    assert ask(client).status_code == 200


@pytest.mark.checkpoint
@pytest.mark.soak
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
