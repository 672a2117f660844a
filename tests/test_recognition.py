import math
from itertools import count, repeat

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from labeling_pipeline.__main__ import app
from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import load_model
from labeling_pipeline.recognition import score_images, score_labels
from labeling_pipeline.sample.scenes import POSTURE_LABELS, POSTURES, draw_scene

IMAGE = np.zeros((60, 80, 3), np.uint8)
LABELS = ("cat", "dog", "owl")


def says(label: str, body: str) -> str:
    return f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>{body}<|box_end|>"


def model_of(name: str, **settings):
    return load_model(name, ModelSettings(**settings))


# The scripted model measures a presence of 0.9 where it says a box, and of 0.1 where it says None.
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param(
            {"boxes": {"dog": [[1, 2, 300, 400]]}}, (0.1 / 1.1, 0.9 / 1.1, 0.1 / 1.1), id="one"
        ),
        pytest.param({}, (1 / 3, 1 / 3, 1 / 3), id="none, all alike"),
        pytest.param(
            {"raw_text": f"{says('dog', '<1><2><3><4>')}, {says('owl', 'None')}"},
            (0.0, 0.9, 0.1),
            id="a label that the answer passes over",
        ),
        pytest.param({"raw_text": ""}, (0.0, 0.0, 0.0), id="all of them passed over"),
        pytest.param(
            {"raw_text": f"{says('dog', 'None')}, {says('ow', 'None')}"[:-40]}
            | {"finish_reason": "length"},
            (math.nan, 1.0, math.nan),
            id="an answer that was cut before it came to the others",
        ),
        pytest.param(
            {"raw_text": says("owl", ", ".join(["<1><2><3><4>"] * 9)), "finish_reason": "loop"},
            (math.nan, math.nan, 1.0),
            id="an answer that went in circles before it came to the others",
        ),
        pytest.param(
            {"raw_text": "I see a dog."}, (math.nan, math.nan, math.nan), id="not understood"
        ),
    ],
)
def test_presence_is_normalised_over_the_candidates(script, keys, expected):
    scores = score_labels(IMAGE, LABELS, model_of(script(**keys)))
    assert tuple(scores) == LABELS
    assert tuple(scores.values()) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param((), "got none", id="none"),
        pytest.param(("cat", "dog", "cat"), "twice: cat", id="one twice"),
        pytest.param(("cat", "zebra"), "'zebra' is outside the vocabulary", id="never to be asked"),
        pytest.param(("cat", "a, b"), "comma", id="one that would break the prompt"),
    ],
)
def test_labels_that_cannot_be_scored_are_refused_before_any_image_is_taken(
    script, labels, message
):
    model = model_of(script(vocabulary=["cat", "dog"]))
    untaken = count()
    with pytest.raises(ConfigurationError, match=message):
        score_images((IMAGE for _ in untaken), labels, model)
    assert next(untaken) == 0


def test_a_model_that_cannot_detect_is_refused_and_those_that_can_are_named(script):
    model = model_of(script())
    poses = type(model)(model.card.model_copy(update={"tasks": ("keypoint",)}), model.settings)
    with pytest.raises(ConfigurationError, match=r"cannot do detection; models that can: .*rex"):
        score_labels(IMAGE, LABELS, poses)


def test_many_images_are_scored_in_batches_each_with_one_prompt_for_all_labels(script, tmp_path):
    log = tmp_path / "asked.jsonl"
    model = model_of(script(log=str(log)), batch_size=4)
    scores = score_images(repeat(IMAGE, 10), LABELS, model)
    next(scores)
    assert len(log.read_text().splitlines()) == 4, "images are taken as they are needed"
    assert len(list(scores)) == 9
    assert len(log.read_text().splitlines()) == 10


@pytest.mark.checkpoint
def test_the_embedded_model_recognizes_the_posture_of_a_lone_person():
    postures = [POSTURES[number % len(POSTURES)] for number in range(40)]
    images = (
        draw_scene(np.random.default_rng([10, number]), 168, 168, [posture]).image
        for number, posture in enumerate(postures)
    )
    guesses = [max(s, key=s.__getitem__) for s in score_images(images, [*POSTURE_LABELS.values()])]
    right = [g == POSTURE_LABELS[p] for g, p in zip(guesses, postures, strict=True)]
    assert np.mean(right) >= 0.95


def test_the_verb_prints_the_best_label_first(script, tmp_path, monkeypatch):
    Image.fromarray(IMAGE).save(tmp_path / "one.png")
    monkeypatch.setenv("LABELING_MODEL", script(boxes={"dog": [[1, 2, 300, 400]]}))
    arguments = ["recognize", str(tmp_path / "one.png")]
    result = CliRunner().invoke(app, [*arguments, "--label", "cat", "--label", "dog"])
    assert result.exit_code == 0
    assert result.output.index("dog") < result.output.index("cat")
    assert "0.900" in result.output


def test_the_verb_says_what_is_wrong_and_fails(script, tmp_path, monkeypatch):
    Image.fromarray(IMAGE).save(tmp_path / "one.png")
    monkeypatch.setenv("LABELING_MODEL", script())
    result = CliRunner().invoke(app, ["recognize", str(tmp_path / "one.png"), "--label", "a, b"])
    assert result.exit_code == 1
    assert "comma" in result.output
