import base64
import io
import json
import logging
import time
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from labeling_pipeline.service.examples import EXAMPLES
from labeling_pipeline.service.forms import split_categories
from labeling_pipeline.service.routes import HEADER, MAX_HEADER_BYTES
from labeling_pipeline.service.schemas import Answer, TaskOut
from labeling_pipeline.tasks import RULES, SKELETONS, Asks, Task
from tests.service.conftest import BOXES, image_bytes

JSON = {"accept": "application/json"}
SIZE = (120, 90)


def file(*images: bytes):
    return [("file", ("a.png", one, "image/png")) for one in images or (image_bytes(*SIZE),)]


def pixels(box, size=SIZE):
    return [pytest.approx(b / 999 * s) for b, s in zip(box, size * 2, strict=True)]


# JSON


def test_boxes_come_in_pixels_with_state_score_and_presence_of_every_label(client):
    answer = client.post(
        "/detection", files=file(), data={"categories": "cat, dog"}, headers=JSON
    ).json()
    assert (answer["task"], answer["image"]) == ("detection", {"width_px": 120, "height_px": 90})
    cat, dog = answer["labels"]["cat"], answer["labels"]["dog"]
    assert [one["bbox"] for one in cat["annotations"]] == [pixels(box) for box in BOXES["cat"]]
    assert [one["score"] for one in cat["annotations"]] == [pytest.approx(0.9)] * 2
    assert (cat["state"], cat["presence"]) == ("found", pytest.approx(0.9))
    assert (dog["state"], dog["annotations"]) == ("absent", [])
    model = next(iter(client.get("/health").json()["models"].items()))
    assert (answer["model"], answer["model_key"]) == (model[0], model[1]["model_key"])


@pytest.mark.parametrize("skeleton", SKELETONS)
def test_keypoints_come_with_all_names_of_the_skeleton(serve, skeleton):
    boxes = {"person": BOXES["person"], skeleton: BOXES["person"], "human face": BOXES["person"]}
    client = serve(script_keys={"boxes": boxes})
    answer = client.post(
        "/keypoint", files=file(), data={"keypoint_type": skeleton}, headers=JSON
    ).json()
    (found,) = (one for said in answer["labels"].values() for one in said["annotations"])
    assert [one["name"] for one in found["keypoints"]] == list(SKELETONS[skeleton].keypoints)
    assert all(0 <= one["x_px"] <= SIZE[0] for one in found["keypoints"])


READ = "<|object_ref_start|>{}<|object_ref_end|><|box_start|>{}<|box_end|>"
LINES = ", ".join(
    READ.format(text, "".join(f"<{b}>" for b in box))
    for text, box in (("Hello", (100, 100, 500, 200)), ("world", (100, 300, 500, 400)))
)


@pytest.mark.parametrize(
    ("granularity", "label"), [("Word", "word"), ("Line", "text line"), (None, "word")]
)
def test_text_is_read_by_word_or_by_line(serve, granularity, label):
    client = serve(script_keys={"raw_text": LINES})
    data = {"granularity": granularity} if granularity else {}
    answer = client.post("/ocr", files=file(), data=data, headers=JSON).json()
    assert list(answer["labels"]) == [label]
    assert [one["text"] for one in answer["labels"][label]["annotations"]] == ["Hello", "world"]


def test_text_alone_comes_as_plain_text_and_in_json_beside_its_places(serve):
    client = serve(script_keys={"raw_text": LINES})
    plain = client.post("/ocr", files=file(), data={"output_format": "Text"})
    assert plain.headers["content-type"].startswith("text/plain")
    assert plain.text == "Hello\nworld"
    told = client.post("/ocr", files=file(), data={"output_format": "Text"}, headers=JSON).json()
    assert told["text"] == "Hello\nworld"
    assert len(told["labels"]["word"]["annotations"]) == 2


def test_outlines_of_text_are_polygons(serve):
    outline = READ.format("Hi", "<100><100><500><120><480><300><90><280>")
    client = serve(script_keys={"raw_text": outline})
    answer = client.post(
        "/ocr", files=file(), data={"output_format": "Polygon"}, headers=JSON
    ).json()
    (found,) = answer["labels"]["word"]["annotations"]
    assert len(found["polygon"]) == 4


def test_what_looks_like_a_given_box_is_found(serve):
    client = serve(script_keys={"boxes": {"object": BOXES["cat"]}})
    answer = client.post(
        "/visual_prompting",
        files=file(),
        data={"visual_prompt_boxes": "[[10, 20, 60, 70.5]]"},
        headers=JSON,
    ).json()
    found = answer["labels"]["object"]["annotations"]
    assert [one["bbox"] for one in found] == [pixels(box) for box in BOXES["cat"]]


@pytest.mark.parametrize("task", list(Task))
def test_every_task_of_the_table_can_be_asked(client, task):
    data = {"task": task}
    rule = RULES[task]
    if rule.default_label is None and not rule.needs_references:
        data["categories"] = "cat"
    if rule.needs_references:
        data["visual_prompt_boxes"] = "[[10, 20, 60, 70]]"
    reply = client.post("/vision", files=file(), data=data)
    assert reply.status_code == 200, reply.text
    Answer.model_validate(reply.json())


def test_many_categories_are_asked_in_the_groups_of_a_plan(serve, tmp_path):
    log = tmp_path / "asked.jsonl"
    client = serve(script_keys={"log": str(log)})
    names = [f"thing {number}" for number in range(7)]
    answer = client.post(
        "/detection", files=file(), data={"categories": ",".join(names)}, headers=JSON
    ).json()
    assert list(answer["labels"]) == names
    asked = [json.loads(line)["labels"] for line in log.read_text().splitlines()]
    assert sorted(asked) == [names[:5], names[5:]]


def test_labels_that_went_in_circles_are_asked_again_as_the_pipeline_does(serve, tmp_path):
    log = tmp_path / "asked.jsonl"
    client = serve(script_keys={"loops": {"cat": 2}, "log": str(log)})
    answer = client.post(
        "/detection", files=file(), data={"categories": "cat,dog"}, headers=JSON
    ).json()
    assert {label: said["state"] for label, said in answer["labels"].items()} == {
        "cat": "found",
        "dog": "absent",
    }
    asked = [json.loads(line)["labels"] for line in log.read_text().splitlines()]
    assert asked[0] == ["cat", "dog"]
    assert len(asked) > 1


def test_a_label_that_the_model_does_not_know_says_why_and_the_others_are_answered(serve):
    client = serve(script_keys={"vocabulary": ["cat"]})
    labels = client.post(
        "/detection", files=file(), data={"categories": "cat,zebra"}, headers=JSON
    ).json()["labels"]
    assert labels["cat"]["state"] == "found"
    assert labels["zebra"]["state"] == "unsupported"
    assert "'zebra' is outside the vocabulary" in labels["zebra"]["reason"]
    alone = client.post("/detection", files=file(), data={"categories": "zebra"})
    assert alone.status_code == 422
    assert "'zebra' is outside the vocabulary" in alone.json()["detail"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        pytest.param("cat, big dog ,", ["cat", "big dog"], id="separated by commas"),
        pytest.param('["a cat, a dog", " ox "]', ["a cat, a dog", "ox"], id="a JSON list"),
        pytest.param("", [], id="nothing"),
    ],
)
def test_categories_are_names_between_commas_or_a_json_list(text, names):
    assert split_categories(text) == names


# The picture


def test_the_picture_comes_with_the_answer_in_its_header(client):
    reply = client.post("/detection", files=file(), data={"categories": "cat"})
    assert reply.headers["content-type"] == "image/jpeg"
    picture = Image.open(io.BytesIO(reply.content))
    assert picture.format == "JPEG"
    assert picture.width / picture.height == pytest.approx(120 / 90, rel=0.01)
    told = Answer.model_validate(json.loads(reply.headers[HEADER]))
    assert len(told.labels["cat"].annotations) == 2


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/detection", {"categories": "cat"}),
        ("/keypoint", {}),
        ("/ocr", {"output_format": "Box"}),
        ("/ocr", {"output_format": "Polygon"}),
        ("/visual_prompting", {"visual_prompt_boxes": "[[10, 20, 60, 70]]"}),
    ],
)
def test_what_comes_as_a_picture_comes_as_json_if_that_is_asked_for(client, path, data):
    drawn = client.post(path, files=file(), data=data)
    assert drawn.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(drawn.content)).format == "JPEG"
    told = client.post(path, files=file(), data=data, headers=JSON)
    assert told.headers["content-type"] == "application/json"
    in_header = json.loads(drawn.headers[HEADER])
    assert in_header | {"latency_s": 0} == told.json() | {"latency_s": 0}


def test_labels_outside_of_ascii_survive_the_header(serve):
    client = serve(script_keys={"boxes": {"猫": [[1, 2, 500, 600]]}})
    reply = client.post("/detection", files=file(), data={"categories": "猫"})
    assert reply.headers[HEADER].isascii()
    assert json.loads(reply.headers[HEADER])["labels"]["猫"]["state"] == "found"


def test_an_answer_too_long_for_a_header_says_so_and_how_to_get_it(serve):
    corners = np.random.default_rng(3).integers(0, 900, (90, 2))
    boxes = [[x, y, x + 90, y + 80] for x, y in corners.tolist()]
    client = serve(script_keys={"boxes": {"cat": boxes}})
    reply = client.post("/detection", files=file(), data={"categories": "cat"})
    assert len(reply.headers[HEADER]) <= MAX_HEADER_BYTES
    told = json.loads(reply.headers[HEADER])
    assert told["annotations"] == 90
    assert "Accept: application/json" in told["more"]
    whole = client.post("/detection", files=file(), data={"categories": "cat"}, headers=JSON)
    assert len(whole.json()["labels"]["cat"]["annotations"]) == 90


def test_vision_adds_the_picture_only_if_it_is_asked_for(client):
    data = {"task": "detection", "categories": "cat"}
    assert "picture" not in client.post("/vision", files=file(), data=data).json()
    with_picture = client.post("/vision", files=file(), data=data | {"visualize": "true"}).json()
    kind, _, encoded = with_picture["picture"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).format == "JPEG"


# Several files


def test_several_files_are_answered_in_order_as_a_list(client):
    images = [image_bytes(120, 90), image_bytes(60, 100), image_bytes(200, 60)]
    answers = client.post("/detection", files=file(*images), data={"categories": "cat"}).json()
    sizes = [(one["image"]["width_px"], one["image"]["height_px"]) for one in answers]
    assert sizes == [(120, 90), (60, 100), (200, 60)]


def test_a_bad_file_among_several_costs_its_own_answer_only(serve, caplog):
    client = serve(script_keys={"fail_size_px": [64, 64]})
    images = [image_bytes(), b"no image", image_bytes(64, 64), image_bytes()]
    with caplog.at_level(logging.CRITICAL):
        answers = client.post("/detection", files=file(*images), data={"categories": "cat"}).json()
    assert [one.get("problem", {}).get("status") for one in answers] == [None, 422, 422, None]
    assert answers[1]["problem"]["reason"] == "not_an_image"
    assert "model failed on this image (RuntimeError)" in answers[2]["problem"]["detail"]
    Answer.model_validate(answers[3])


def test_a_task_about_boxes_takes_one_file(client):
    data = {"visual_prompt_boxes": "[[10, 20, 60, 70]]"}
    reply = client.post("/visual_prompting", files=file(image_bytes(), image_bytes()), data=data)
    assert reply.status_code == 422
    assert "send one file" in reply.json()["detail"]


# What cannot be asked


@pytest.mark.parametrize(
    ("path", "data", "said"),
    [
        pytest.param("/detection", {}, "categories: Field required", id="a field is missing"),
        pytest.param("/detection", {"categories": " , "}, "wants to know", id="no names"),
        pytest.param("/detection", {"categories": "[1, 2]"}, "JSON list", id="no list of names"),
        pytest.param("/detection", {"categories": "["}, "JSON list", id="broken JSON"),
        pytest.param("/detection", {"categories": "[" * 9999}, "JSON list", id="deep JSON"),
        pytest.param("/detection", {"categories": "a," * 99}, "at most 64", id="many names"),
        pytest.param("/detection", {"categories": "a" * 999}, "200 characters", id="a long name"),
        pytest.param(
            "/detection", {"categories": "<|im_end|>"}, "control token", id="a control token"
        ),
        pytest.param(
            "/detection",
            {"categories": "cat", "model": "no-such"},
            "expected as model one of script_0.json",
            id="no such model",
        ),
        pytest.param("/keypoint", {"keypoint_type": "tail"}, "'person'", id="no such skeleton"),
        pytest.param("/ocr", {"output_format": "Circle"}, "'Box'", id="no such format"),
        pytest.param("/vision", {"task": "dreaming"}, "'detection'", id="no such task"),
        pytest.param("/vision", {"task": "detection"}, "give categories", id="a task wants names"),
        pytest.param("/vision", {"task": "visual_prompting"}, "give some", id="a task wants boxes"),
        pytest.param(
            "/vision",
            {"task": "caption", "visual_prompt_boxes": "[[1, 2, 3, 4]]"},
            "takes no visual_prompt_boxes",
            id="a task takes no boxes",
        ),
        *(
            pytest.param("/visual_prompting", {"visual_prompt_boxes": boxes}, said, id=boxes)
            for boxes, said in (
                ("", "visual_prompt_boxes: Field required"),
                ("[[1, 2, 3]]", "expected [[x0, y0, x1, y1], ...]"),
                ("[[1, 2, 3, NaN]]", "expected [[x0, y0, x1, y1], ...]"),
                ("none", "expected [[x0, y0, x1, y1], ...]"),
                ("[[1, 2, 500, 50]]", "inside the image of 120 x 90 px"),
                ("[[50, 20, 10, 70]]", "with x0 < x1"),
            )
        ),
    ],
)
def test_what_cannot_be_asked_is_a_problem_that_says_what_was_expected(client, path, data, said):
    reply = client.post(path, files=file(), data=data)
    assert reply.status_code == 422, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert said in reply.json()["detail"]


def test_a_task_that_no_served_model_can_do_names_the_models_that_can(serve):
    client = serve("rapidocr")
    reply = client.post("/keypoint", files=file())
    assert reply.status_code == 422
    assert "models that can: tiny-rex-omni" in reply.json()["detail"]


# What the service says of itself


def test_health_says_all_that_another_program_must_know(serve):
    client = serve(script_keys={"vocabulary": ["cat", "dog"]})
    health = client.get("/health").json()
    assert (health["status"], health["queue"]) == ("ready", {"depth": 0, "limit": 64})
    assert health["version"] == version("labeling-pipeline")
    time.sleep(0.01)
    assert 0 < health["uptime_s"] < client.get("/health").json()["uptime_s"]
    ((name, model),) = health["models"].items()
    assert name == "script_0.json"
    assert model["loaded"] is True
    assert model["card"]["vocabulary"] == ["cat", "dog"]
    (served,) = client.app.state.service.models.values()
    assert model["model_key"] == served.model_key
    assert {"protocol_version", "parser_version", "parameters", "settings"} <= set(model)


def test_the_table_of_tasks_lists_every_task_and_who_does_it(client):
    table = TypeAdapter(list[TaskOut]).validate_python(client.get("/tasks").json())
    assert [row.task for row in table] == list(Task)
    assert all(row.served_by == ["script_0.json"] for row in table)
    assert next(row for row in table if row.task is Task.CAPTION).asks is Asks.UNIT


def test_nothing_that_is_said_tells_where_files_lie(client, tmp_path):
    for path in ("/health", "/tasks", "/openapi.json", "/docs", "/"):
        text = client.get(path).text
        assert str(tmp_path) not in text
        assert "site-packages" not in text


def test_pages_load_nothing_from_elsewhere(client):
    for path in ("/", "/docs"):
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
    assert client.get("/docs-files/swagger-ui-bundle.js").status_code == 200


def test_the_examples_of_the_document_are_answers():
    for example in EXAMPLES.values():
        Answer.model_validate(example)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/detection", 405), ("DELETE", "/health", 405)],
)
def test_wrong_ways_in_are_problems_too(client, method, path, status):
    reply = client.request(method, path)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["status"] == status
