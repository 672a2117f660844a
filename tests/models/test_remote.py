"""A remote model against the real service: in this process behind a layer of faults."""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from PIL import Image
from pydantic import SecretStr
from tenacity import RetryCallState, Retrying

from definitions import build_definitions
from labeling_pipeline.asks import model_keys
from labeling_pipeline.cleaning import clean
from labeling_pipeline.errors import (
    ConfigurationError,
    ImageError,
    MissingDependencyError,
    ModelError,
    UnknownModelError,
)
from labeling_pipeline.home import Environment
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import ClassSummary, label_class
from labeling_pipeline.models import remote
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import EMBEDDED, find_card, load_model
from labeling_pipeline.models.remote import RemoteModel
from labeling_pipeline.plan import Plan, parse_plan
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.service.app import create_app
from labeling_pipeline.service.config import ServiceConfig
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.tasks import Request, Task

KEY = "correct-horse-battery-staple"
BOXES = {"cat": [[100, 100, 500, 500], [10, 20, 300, 400]], "person": [[200, 50, 800, 950]]}
POISON_PX = (90, 70)
FAST = ModelSettings()
HANGS = "hangs"


class Service:
    """The real service, and what goes wrong on the way to it.

    faults: each spoils one request, the first that comes: a status with headers and a body,
    ``None`` for a connection that ends without an answer, or ``HANGS`` for one that stays open.
    seen: method and path of every request. meeting: where all questions wait for each other.
    """

    def __init__(self, url: str, app: Any) -> None:
        self.url = url
        self.app = app
        self.faults: list[tuple[int, dict[str, str], bytes] | str | None] = []
        self.seen: list[str] = []
        self.meeting: asyncio.Barrier | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        self.seen.append(f"{scope['method']} {scope['path']}")
        if self.meeting is not None and scope["method"] == "POST":
            async with asyncio.timeout(20):
                await self.meeting.wait()
        if not self.faults:
            return await self.app(scope, receive, send)
        fault = self.faults.pop(0)
        if fault == HANGS:
            while (await receive())["type"] != "http.disconnect":
                pass
            return None
        while (await receive()).get("more_body"):
            pass
        # Where less comes than was announced, the server ends the connection.
        status, headers, body = fault or (200, {"Content-Length": "99"}, b"")
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    def model(self, name: str = "", **given: Any) -> RemoteModel:
        """A remote model that knows nothing yet."""
        fragment = f"#{name}" if name else ""
        return RemoteModel(find_card(f"remote:{self.url}{fragment}"), ModelSettings(**given))


@contextmanager
def serving(*models: str, port: int = 0, **config: Any) -> Iterator[Service]:
    """A service in a thread, ready to answer."""
    listener = socket.create_server(("127.0.0.1", port))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    service = Service(url, create_app(ServiceConfig(models=models, **config)))
    server = uvicorn.Server(uvicorn.Config(service, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not (server.started and service.app.state.service.is_ready):
            assert thread.is_alive()
            time.sleep(0.01)
        yield service
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()


@pytest.fixture(autouse=True)
def prompt(monkeypatch):
    """Retries follow at once, no key is set."""
    monkeypatch.setattr(remote, "_PAUSE", lambda state: 0.01)
    monkeypatch.delenv("LABELING_API_KEY", raising=False)


@pytest.fixture
def impatient(monkeypatch):
    """A service that is away is soon given up."""
    monkeypatch.setattr(remote, "PATIENCE_S", 0.5)


@pytest.fixture
def service(script) -> Iterator[Service]:
    with serving(script(boxes=BOXES)) as running:
        yield running


def picture(seed: int = 3, size_px: tuple[int, int] = (120, 100)) -> np.ndarray:
    return draw_scene(np.random.default_rng(seed), *size_px).image


def question(seed: int = 3, **given: Any) -> Request:
    return Request(picture(seed), Task.DETECTION, ("cat", "dog"), **given)


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return free.getsockname()[1]


# Names


@pytest.mark.parametrize(
    "address",
    ["host:6996", "ftp://host", "http://", "http://host:0", "http://host:many", "http://[::1", ""],
)
def test_a_name_that_is_no_address_is_refused_with_an_example(address: str):
    with pytest.raises(UnknownModelError, match=r"remote:http://host:6996"):
        find_card(f"remote:{address}")


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ConfigurationError, match="LABELING_API_KEY") as caught:
        find_card(f"remote:http://me:{KEY}@host:6996")
    assert KEY not in str(caught.value)


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(remote, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"labeling-pipeline\[service\]"):
        RemoteModel(find_card("remote:http://host:6996"), FAST)


# The same model


def test_card_parameters_and_key_are_those_of_the_model_there(script):
    name = script(boxes=BOXES, vocabulary=["cat", "person"])
    local = load_model(name, FAST)
    with serving(name) as service:
        model = service.model()
        assert model.model_key == local.model_key
        assert model.parameters == local.parameters
        assert model.protocol_version == local.protocol_version
        assert model.parser_version == local.parser_version
        assert model.card.vocabulary == ("cat", "person")
        assert "outside the vocabulary" in str(model.why_unsupported("dog"))
        assert model.why_unsupported("cat") is None
        assert model.prompt(Task.DETECTION, ("cat",)) == local.prompt(Task.DETECTION, ("cat",))
        assert service.seen == ["GET /health"]


@given(
    np_st.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))),
)
@settings(deadline=None, max_examples=50)
def test_what_is_sent_decodes_to_the_same_pixels(image: np.ndarray):
    assert np.array_equal(unpacked(image), image)


def test_a_panorama_too_long_for_the_usual_format_keeps_its_pixels_too():
    image = np.random.default_rng(1).integers(0, 256, (2, 20_000, 3), dtype=np.uint8)
    assert np.array_equal(unpacked(image), image)


def unpacked(image: np.ndarray) -> np.ndarray:
    """An image as the service will see it."""
    model = RemoteModel(find_card("remote:http://host:6996"), FAST)
    return read_image(model.prepare(Request(image, Task.DETECTION, ("cat",))).file)


def test_large_images_wait_in_smaller_batches():
    model = RemoteModel(find_card("remote:http://host:6996"), FAST)
    small, large = ([model.input_tokens(size)] * 99 for size in ((640, 480), (6000, 4000)))
    assert model.batch_limit.fitting(small) == remote.BATCH
    assert model.batch_limit.fitting(large) == 2


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param("task: detection, ask: {'*': cat}, distractors: [dog]", id="boxes"),
        pytest.param("task: detection, tiles: {size_px: 64}, ask: {'*': cat}", id="tiles"),
        pytest.param("task: keypoint, ask: {'*': person}", id="keypoints"),
        pytest.param("task: keypoint, top_down: true, ask: {'*': person}", id="crops"),
        pytest.param("task: visual_prompting, references: {REFERENCES}", id="reference boxes"),
        pytest.param("task: caption", id="text of another family"),
    ],
)
def test_labels_of_a_remote_model_are_those_of_the_local_one(
    tmp_path: Path, image_root: Path, script, entry: str
):
    boxes = "[[10.25, 20, 60, 70.5], [3, 3, 9, 9]]"
    entry = entry.replace("REFERENCES", f"cat/0.png: {boxes}, cat/1.png: {boxes}")
    name = script(boxes=BOXES)
    local = Labels(tmp_path / "local.duckdb", image_root, name, entry)
    local.label("cat", "dog")
    with serving(name) as service:
        far = Labels(tmp_path / "far.duckdb", image_root, f"remote:{service.url}", entry)
        far.label("cat", "dog")
    assert len(local.table("generations")) > 0
    for table in ("models", "generations", "outcomes", "annotations"):
        pd.testing.assert_frame_equal(far.table(table), local.table(table))


def test_going_from_local_to_remote_and_back_asks_nothing(tmp_path: Path, image_root: Path, script):
    log = tmp_path / "asked.jsonl"
    name = script(boxes=BOXES, log=str(log))
    labels = Labels(tmp_path / "one.duckdb", image_root, name, "task: detection")
    labels.label("cat")
    assert len(log.read_text().splitlines()) == 4
    with serving(name) as service:
        labels.use(f"remote:{service.url}")
        labels.label("cat")
        assert service.seen == ["GET /health"]
        labels.label("dog")
        assert len(log.read_text().splitlines()) == 8
    labels.use(name)
    labels.label("cat", "dog")
    assert len(log.read_text().splitlines()) == 8
    assert len(labels.table("models")) == 1


@pytest.mark.checkpoint
def test_the_embedded_model_answers_the_same_from_afar():
    local = load_model(EMBEDDED, FAST)
    requests = [Request(picture(seed), Task.DETECTION, ("circle", "star")) for seed in range(3)]
    with serving(EMBEDDED) as service:
        model = service.model()
        assert model.model_key == local.model_key
        for request in requests:
            (near,), (far,) = local.generate([request]), model.generate([request])
            assert (far.raw_text, far.prompt) == (near.raw_text, near.prompt)
            for column in ("token_logprobs", "token_window_mass", "none_probs"):
                # One at a time on both sides, so that not even the last bit differs.
                np.testing.assert_array_equal(getattr(far, column), getattr(near, column))
            assert far.finish_reason is near.finish_reason
            assert far.frame_size_px == near.frame_size_px


class Labels:
    """One home, and a plan with one entry."""

    def __init__(self, path: Path, root: Path, model: str, entry: str) -> None:
        self.source = open_source(root)
        self.entry = entry
        self.plan = self._plan(model)
        self.store = AnnotationStore(path)
        update_inventory(self.store, self.source)
        clean(self.store, self.source, self.plan.cleaning)

    def _plan(self, model: str) -> Plan:
        return parse_plan(f"model: {model}\nentries: [{{name: thing, {self.entry}}}]\n")

    def use(self, model: str) -> None:
        self.plan = self._plan(model)

    def label(self, *classes: str) -> list[ClassSummary]:
        entry = self.plan.entries[0]
        return [
            label_class(self.store, self.plan, entry, slug, self.source, "run") for slug in classes
        ]

    def table(self, name: str) -> pd.DataFrame:
        """All that does not say when, how fast, and where a file lies."""
        changing = {"created_at", "latency_s"} | (
            {"name", "checkpoint"} if name == "models" else set()
        )
        frame = self.store.query(f"SELECT * FROM {name} ORDER BY ALL").to_pandas()
        return frame.drop(columns=[*changing & {*frame.columns}])


# One image at a time


def test_an_image_that_breaks_the_model_fails_alone_and_no_other_is_asked_twice(
    tmp_path: Path, script
):
    log = tmp_path / "asked.jsonl"
    root = tmp_path / "images"
    (root / "cat").mkdir(parents=True)
    for number in range(11):
        size_px = POISON_PX if number == 5 else (100 + number, 80)
        Image.fromarray(picture(number)).resize(size_px).save(root / "cat" / f"{number:02}.png")
    name = script(boxes=BOXES, fail_size_px=POISON_PX, log=str(log))
    with serving(name) as service:
        labels = Labels(tmp_path / "one.duckdb", root, f"remote:{service.url}", "task: detection")
        (summary,) = labels.label("cat")
    assert dict(summary.states) == {"found": 10, "failed": 1}
    assert list(summary.errors) == ["cat/05.png"]
    asked = [tuple(json.loads(line)["size_px"]) for line in log.read_text().splitlines()]
    assert sorted(asked) == [(100 + number, 80) for number in range(11) if number != 5]


def test_requests_that_are_refused_together_are_cut_until_one_image_is_to_blame(
    tmp_path: Path, image_root: Path, service: Service
):
    labels = Labels(tmp_path / "one.duckdb", image_root, f"remote:{service.url}", "task: detection")
    assert model_keys(labels.plan)
    service.faults = [(413, {}, b"")] * 3  # four images, two of them, one of them
    (summary,) = labels.label("cat")
    assert dict(summary.states) == {"found": 3, "failed": 1}


def test_many_images_go_in_several_requests_of_few(service: Service):
    model = service.model()
    requests = [question(seed) for seed in range(19)]
    answers = model.generate(requests)
    assert len(answers) == 19
    assert [answer.frame_size_px for answer in answers] == [(120, 100)] * 19
    assert service.seen == ["GET /health", *["POST /generations"] * 3]


def test_several_requests_are_under_way_at_once(service: Service, impatient):
    model = service.model()
    assert model.model_key
    service.meeting = asyncio.Barrier(3)
    assert len(model.generate([question(seed) for seed in range(19)])) == 19


def test_large_images_travel_alone(service: Service, monkeypatch):
    monkeypatch.setattr(remote, "_BYTES_PER_REQUEST", 1000)
    assert len(service.model().generate([question(seed) for seed in range(3)])) == 3
    assert service.seen.count("POST /generations") == 3


# What may pass by itself


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param((503, {"Retry-After": "0"}, b""), id="full"),
        pytest.param((429, {"Retry-After": "0"}, b""), id="too many requests"),
        pytest.param((500, {}, b"oops"), id="broken"),
        pytest.param((502, {}, b"<html>bad gateway</html>"), id="a proxy without a service"),
        pytest.param((408, {}, b""), id="too slow"),
        pytest.param(None, id="a connection that ends"),
    ],
)
@pytest.mark.parametrize("known", [True, False], ids=["asking", "getting to know"])
def test_what_may_pass_is_asked_again(service: Service, fault: Any, known: bool):
    model = service.model()
    if known:
        assert model.model_key
    service.faults = [fault, fault]
    (answer,) = model.generate([question()])
    assert "cat" in answer.raw_text
    repeated = "POST /generations" if known else "GET /health"
    assert service.seen.count(repeated) == 3


@pytest.mark.parametrize("known", [True, False], ids=["asking", "getting to know"])
def test_who_never_answers_is_asked_again(service: Service, known: bool, monkeypatch):
    monkeypatch.setattr(remote, "_ANSWER_S", 0.5)
    model = service.model()
    if known:
        assert model.model_key
    service.faults = [HANGS]
    (answer,) = model.generate([question()])
    assert "cat" in answer.raw_text
    assert service.faults == []


def test_the_service_says_when_to_come_back():
    def pause_after(error: Exception) -> float:
        state = RetryCallState(Retrying(), None, (), {})
        state.set_exception((type(error), error, None))
        return remote._pause(state)

    assert pause_after(remote._AwayError("full", 7.0)) >= 7
    assert pause_after(remote._AwayError("gone")) < 7


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (400, ImageError, "boxes are upside down"),
        (413, ImageError, "boxes are upside down"),
        (422, ImageError, "boxes are upside down"),
        (401, ConfigurationError, "LABELING_API_KEY"),
        (403, ConfigurationError, "LABELING_API_KEY"),
        (404, ModelError, "expected a labeling service"),
        (405, ModelError, "expected a labeling service"),
    ],
)
def test_what_cannot_pass_is_never_asked_again(
    service: Service, status: int, error: type[Exception], message: str
):
    model = service.model()
    assert model.model_key
    problem = json.dumps({"title": "No", "detail": "boxes are upside down"}).encode()
    service.faults = [(status, {"Content-Type": "application/problem+json"}, problem)]
    with pytest.raises(error, match=message) as caught:
        model.generate([question()])
    assert "boxes are upside down" in str(caught.value)
    assert service.seen.count("POST /generations") == 1


def test_a_service_that_starts_again_in_time_is_waited_for(script):
    name, port = script(boxes=BOXES), free_port()
    with serving(name, port=port) as service:
        model = service.model()
        model.generate([question()])
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.extend(model.generate([question()])))
    asking.start()
    time.sleep(0.3)
    with serving(name, port=port):
        asking.join(timeout=30)
    assert len(answers) == 1


def test_a_service_that_stays_away_is_waited_for_once_and_the_error_says_what_to_do(
    impatient, monkeypatch
):
    model = RemoteModel(find_card(f"remote:http://127.0.0.1:{free_port()}"), FAST)
    tries: list[float] = []
    once = remote._Service._once
    monkeypatch.setattr(remote._Service, "_once", lambda *args: tries.append(0) or once(*args))
    with pytest.raises(ModelError, match=r"127\.0\.0\.1.*gave no answer.*Start the service"):
        model.generate([question()])
    assert len(tries) > 1
    waited = len(tries)
    with pytest.raises(ModelError, match="gave no answer"):
        model.generate([question()])
    assert len(tries) == waited + 1


def test_where_one_request_has_failed_for_good_no_other_is_waited_for(
    service: Service, monkeypatch
):
    monkeypatch.setattr(remote, "_PER_REQUEST", 1)
    model = service.model()
    assert model.model_key
    away = (503, {"Retry-After": "0"}, b"")
    service.faults = [away, (404, {}, b""), *[away] * 5000]
    with pytest.raises(ModelError, match="404"):
        model.generate([question(1), question(2)])
    assert len(service.faults) > 4000


# Definitions


def test_definitions_load_while_the_service_is_down_and_the_class_fails_with_the_reason(
    tmp_path: Path, image_root: Path, impatient
):
    port = free_port()
    plan = parse_plan(
        f"model: remote:http://127.0.0.1:{port}\nentries: [{{name: object, task: detection}}]\n"
    )
    definitions = build_definitions(plan, Environment(tmp_path / "home", Path("none"), image_root))
    (node,) = [one for one in definitions.assets if one.key == dg.AssetKey("object_annotations")]
    assert node.op.pool is None, "a model elsewhere takes no GPU here"
    assert f"http://127.0.0.1:{port}" in next(iter(node.descriptions_by_key.values()))
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(definitions, instance, "raw_images", "clean_images")
        assert result.success
        result = materialize(definitions, instance, "object_annotations", classes=("cat", "dog"))
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    reasons = failure.step_failure_data.user_failure_data.metadata["failed"].value
    assert set(reasons) == {"cat", "dog"}
    assert all("gave no answer" in reason for reason in reasons.values())


def test_assets_on_a_remote_model_record_what_those_on_the_local_one_do(
    tmp_path: Path, image_root: Path, script
):
    name = script(boxes=BOXES)
    stores = {}
    with serving(name) as service:
        for model in (name, f"remote:{service.url}"):
            home = tmp_path / f"home-{len(stores)}"
            plan = parse_plan(
                f"model: {model}\nentries: [{{name: object, task: detection, ask: {{'*': cat}}}}]\n"
            )
            definitions = build_definitions(plan, Environment(home, Path("none"), image_root))
            with dg.DagsterInstance.ephemeral() as instance:
                assert materialize(definitions, instance, "raw_images", "clean_images").success
                assert materialize(
                    definitions,
                    instance,
                    *("object_annotations", "visualizations", "class_exports"),
                    classes=("cat", "dog"),
                ).success
            stores[model] = AnnotationStore(home / "annotations.duckdb")
    for sql in (
        "SELECT generation_id, model_key, raw_text, tokens, token_logprobs FROM generations",
        "SELECT * FROM annotations",
        "SELECT model_key, revision, licence, parameters FROM models",
    ):
        near, far = (store.query(f"{sql} ORDER BY ALL").to_pandas() for store in stores.values())
        assert len(near) > 0
        pd.testing.assert_frame_equal(far, near)


def materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    *names: str,
    classes: tuple[str, ...] = (),
) -> dg.ExecuteInProcessResult:
    tags = {}
    if classes:
        tags["dagster/asset_partition_range_start"] = classes[0]
        tags["dagster/asset_partition_range_end"] = classes[-1]
    return dg.materialize(
        list(definitions.assets),
        selection=list(names),
        instance=instance,
        resources=definitions.resources,
        tags=tags,
        raise_on_error=False,
    )


# What does not fit


def test_a_service_that_comes_back_with_another_model_ends_the_run(
    tmp_path: Path, image_root: Path, script
):
    with serving(script(boxes=BOXES)) as service:
        labels = Labels(
            tmp_path / "one.duckdb", image_root, f"remote:{service.url}", "task: detection"
        )
        labels.label("cat")
        (key,) = model_keys(labels.plan).values()
        with serving(script(boxes={})) as other:
            service.app = other.app
            with pytest.raises(ModelError, match=rf"began with {key}.*another model"):
                labels.label("dog")
    assert labels.table("generations")["model_key"].unique().tolist() == [key]
    assert len(labels.table("generations")) == 4


def test_of_several_models_one_must_be_named(script):
    names = script(boxes=BOXES), script(boxes={})
    keys = {load_model(name, FAST).model_key for name in names}
    with serving(*names) as service:
        with pytest.raises(ConfigurationError, match=rf"several models.*remote:{service.url}#"):
            _ = service.model().card
        with pytest.raises(ConfigurationError, match="no model called 'yolo': expected one of"):
            _ = service.model("yolo").card
        public = [Path(name).name for name in names]
        models = [service.model(name) for name in public]
        assert {model.model_key for model in models} == keys
        texts = {model.generate([question()])[0].raw_text for model in models}
        assert len(texts) == 2


def test_a_setting_that_changes_answers_must_be_the_one_there(script):
    name = script(boxes=BOXES)
    with serving(name, settings=ModelSettings(max_pixels=5000)) as service:
        with pytest.raises(ConfigurationError, match="LABELING_MAX_PIXELS=6000, or leave"):
            _ = service.model(max_pixels=6000).card
        here = load_model(name, ModelSettings(max_pixels=5000)).model_key
        assert service.model(max_pixels=5000).model_key == here
        # The others say how weights are loaded, and none are here.
        assert service.model(device="cuda", batch_size=2).model_key == here
        assert service.model(device="cuda", batch_size=2).batch_limit.images == 2


def test_a_task_that_the_model_there_cannot_do_fails_before_any_image_is_read(
    tmp_path: Path, image_root: Path, service: Service, monkeypatch
):
    (served,) = service.app.state.service.models.values()
    card = served.card.model_copy(update={"tasks": (Task.DETECTION,)})
    monkeypatch.setattr(served, "card", card)
    labels = Labels(tmp_path / "one.duckdb", image_root, f"remote:{service.url}", "task: face")
    with pytest.raises(ConfigurationError, match=r"script_0\.json cannot do face"):
        labels.label("cat")
    assert service.seen == ["GET /health"]


def doctored(service: Service, change: Callable[[dict], None]) -> None:
    """The next answer is what /health says, changed."""
    import httpx

    health = httpx.get(f"{service.url}/health").json()
    (served,) = health["models"].values()
    change(served)
    service.faults = [(200, {"Content-Type": "application/json"}, json.dumps(health).encode())]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(
            lambda served: served["card"].update(adapter="os:system"),
            ConfigurationError,
            "speaks through os:system, which no model here does",
            id="code that is not registered",
        ),
        pytest.param(
            lambda served: served.update(protocol_version=99),
            ConfigurationError,
            "speaks version 99.*install the same version",
            id="another version of the protocol",
        ),
        pytest.param(
            lambda served: served.pop("card"),
            ModelError,
            r"expected a labeling service.*GET /health: models\..*card: Field required",
            id="no card",
        ),
    ],
)
def test_a_service_that_does_not_fit_is_refused(
    service: Service, change: Callable[[dict], None], error: type[Exception], message: str
):
    doctored(service, change)
    with pytest.raises(error, match=message):
        _ = service.model().card


def test_a_page_that_is_no_service_is_told_apart(service: Service):
    service.faults = [(200, {"Content-Type": "text/html"}, b"<html>log in</html>")]
    with pytest.raises(ModelError, match="expected a labeling service"):
        _ = service.model().card


# The key


def test_the_key_of_the_environment_opens_the_service_and_no_error_repeats_it(script, monkeypatch):
    with serving(script(boxes=BOXES), api_key=SecretStr(KEY)) as service:
        monkeypatch.setenv("LABELING_API_KEY", KEY)
        model = service.model()
        assert len(model.generate([question()])) == 1
        for wrong in (f"{KEY}r", f"{KEY}\nX: y", f"{KEY}ß"):
            monkeypatch.setenv("LABELING_API_KEY", wrong)
            with pytest.raises(ConfigurationError, match="LABELING_API_KEY") as caught:
                service.model().generate([question()])
            error: BaseException | None = caught.value
            while error is not None:
                assert KEY not in f"{error!r} {error}"
                error = error.__cause__ or error.__context__
    assert os.environ["LABELING_API_KEY"] != KEY
