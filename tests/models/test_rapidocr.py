"""The OCR engine itself, on pages with known text, and the parser on any text."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from labeling_pipeline.annotations import Annotation, FinishReason, Generation, State, box_iou
from labeling_pipeline.drawing import CJK_FONT, default_font
from labeling_pipeline.errors import MissingDependencyError, ModelError
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.rapidocr import TEXT_LINE, WORD, RapidOcr
from labeling_pipeline.models.registry import find_card, load_model
from labeling_pipeline.sample.documents import CHINESE, JAPANESE, LATIN, draw_page
from labeling_pipeline.tasks import Request, Task

CARD, SETTINGS = find_card("rapidocr"), ModelSettings()
FONT_PX = 30


@pytest.fixture(scope="module")
def model() -> RapidOcr:
    return load_model("rapidocr", SETTINGS)


def read(model: RapidOcr, image: np.ndarray, label: str, task: Task = Task.OCR_BOX):
    (generation,) = model.generate([Request(image, task, (label,))])
    size_px = image.shape[1], image.shape[0]
    return model.parse(generation, task, (label,), size_px).labels[label].annotations


def line_of(text: str, size_px: tuple[int, int] = (520, 400)) -> Image.Image:
    """A picture with one line of text that begins at (40, 45)."""
    image = Image.new("RGB", size_px, "white")
    font = font_of(text)
    ImageDraw.Draw(image).text((40, 45), text, font=font, fill="black")
    return image


def font_of(text: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(default_font() if text.isascii() else CJK_FONT, FONT_PX)


def edits(one: str, two: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements of a character."""
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(two, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


# Reading


@pytest.mark.parametrize(
    "texts", [LATIN, CHINESE, JAPANESE], ids=["Latin script", "Chinese", "Japanese"]
)
def test_pages_are_read_with_few_wrong_characters_in_the_right_places(model: RapidOcr, texts):
    wrong = total = 0
    for seed in range(3):
        page = draw_page(np.random.default_rng([5, seed]), texts)
        found = read(model, page.image, TEXT_LINE)
        true = "\n".join(line.text for line in page.lines)
        wrong += edits(true, "\n".join(str(a.text) for a in found))
        total += len(true)
        for line in page.lines:
            overlaps = [box_iou(tuple(line.bbox_px.tolist()), a.bbox) for a in found if a.bbox]
            assert max(overlaps) > 0.5, line.text
        assert all(a.score is not None and 0.5 < a.score <= 1 for a in found)
    assert wrong / total < 0.03


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("Mind the last step", ["Mind", "the", "last", "step"], id="spaces part"),
        pytest.param("出口在二楼", ["出", "口", "在", "二", "楼"], id="Chinese has no spaces"),
        pytest.param("出口 Platform 4", ["出", "口", "Platform", "4"], id="both in one line"),
    ],
)
def test_words_are_what_spaces_part_or_single_characters_where_there_are_none(
    model: RapidOcr, text: str, words: list[str]
):
    found = read(model, np.asarray(line_of(text)), WORD)
    assert [a.text for a in found] == words
    font = font_of(text)
    position = 0
    for annotation in found:
        assert annotation.text is not None
        start = text.index(annotation.text, position)
        position = start + len(annotation.text)
        x0, x1 = (40 + font.getlength(text[:end]) for end in (start, position))
        assert annotation.bbox is not None
        assert box_iou((x0, 45, x1, 85), (annotation.bbox[0], 45, annotation.bbox[2], 85)) > 0.6


@pytest.mark.parametrize("turned_deg", [0, 90, 180, 270, 10])
def test_words_lie_where_they_are_read_however_the_line_runs(model: RapidOcr, turned_deg: int):
    """The engine's own words do not: it turns lines before it reads them."""
    text = "Reading room closes"
    turned = line_of(text, (520, 520)).rotate(-turned_deg, fillcolor="white")
    found = read(model, np.asarray(turned), WORD, Task.OCR_POLYGON)
    assert [a.text for a in found] == text.split()
    angle = np.radians(turned_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    font = font_of(text)
    for annotation in found:
        before = text[: text.index(str(annotation.text))]
        upright = np.array([40 + font.getlength(before) + 5, 50])
        top_left = turn @ (upright - 260) + 260
        # The first corner is the top left of the text, as it is read.
        distances = np.linalg.norm(np.array(annotation.polygon) - top_left, axis=1)
        assert distances.argmin() == 0
        assert distances[0] < 25


def test_every_word_has_the_confidence_of_its_own_characters(model: RapidOcr):
    image = line_of("clear smeared clear")
    smear = font_of("x").getlength("clear ")
    draw = ImageDraw.Draw(image)
    for x in range(0, 110, 6):
        draw.line((40 + smear + x, 45, 40 + smear + x, 85), fill=(120, 120, 120), width=2)
    first, second, third = read(model, np.asarray(image), WORD)
    assert (first.text, third.text) == ("clear", "clear")
    assert min(first.score or 0, third.score or 0) > (second.score or 0)


def test_a_picture_without_text_is_absent(model: RapidOcr):
    image = np.full((200, 300, 3), 200, np.uint8)
    (generation,) = model.generate([Request(image, Task.OCR_BOX, (WORD,))])
    answer = model.parse(generation, Task.OCR_BOX, (WORD,), (300, 200))
    assert json.loads(generation.raw_text) == {"lines": []}
    assert answer.complete
    assert answer.labels[WORD].state is State.ABSENT


def test_a_stored_answer_yields_words_lines_boxes_and_outlines_without_the_engine(model: RapidOcr):
    image = np.asarray(line_of("Total 38.50"))
    (generation,) = model.generate([Request(image, Task.OCR_BOX, (WORD,))])
    stored = answer_of(generation.raw_text)
    fresh = RapidOcr(CARD, SETTINGS)
    size_px = image.shape[1], image.shape[0]
    for task in (Task.OCR_BOX, Task.OCR_POLYGON):
        for label, texts in ((WORD, ["Total", "38.50"]), (TEXT_LINE, ["Total 38.50"])):
            found = fresh.parse(stored, task, (label,), size_px).labels[label].annotations
            assert [(a.label, a.text) for a in found] == [(label, text) for text in texts]
            assert all(len(a.polygon) == (4 if task is Task.OCR_POLYGON else 0) for a in found)
    assert fresh._engine is None


def test_threads_share_one_engine_and_do_not_disturb_each_other():
    texts = ["Lost and found", "Mind the step", "Total 38.50", "Platform 4"]
    model = RapidOcr(CARD, SETTINGS)
    images = [np.asarray(line_of(text)) for text in texts]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda image: read(model, image, TEXT_LINE), images))
    assert [[a.text for a in annotations] for annotations in found] == [[text] for text in texts]


def test_larger_pictures_cost_more_up_to_the_size_that_the_engine_works_in(model: RapidOcr):
    sizes = [(300, 200), (1200, 900), (2000, 1500)]
    costs = [model.input_tokens(size) for size in sizes]
    assert costs == sorted(costs)
    assert len(set(costs)) == 3
    assert model.input_tokens((8000, 6000)) == costs[-1]
    assert model.batch_limit.images >= 1
    assert RapidOcr(CARD, ModelSettings(batch_size=2)).batch_limit.images == 2


@pytest.mark.soak
def test_a_tall_strip_is_read_where_its_text_stands(model: RapidOcr):
    """Enlarged as it is, it would fill gigabytes."""
    strip = Image.new("RGB", (90, 1600), "white")
    font = ImageFont.truetype(default_font(), 20)
    tops_px = (200, 600, 1200)
    for top_px in tops_px:
        ImageDraw.Draw(strip).text((10, top_px), "Gate 7", font=font, fill="black")
    found = read(model, np.asarray(strip), TEXT_LINE)
    assert [a.text for a in found] == ["Gate 7"] * 3
    for top_px, annotation in zip(tops_px, found, strict=True):
        assert annotation.bbox is not None
        # As high as the font: from its ascent to its descent.
        assert box_iou(annotation.bbox, (10, top_px, 77, top_px + 24)) > 0.5
    assert model.input_tokens((90, 1600)) == model.input_tokens((200, 1600))


# Parsing

SQUARE = [[10, 10], [30, 10], [30, 20], [10, 20]]


def answer_of(raw_text: str) -> Generation:
    nothing = (float("nan"),)
    return Generation(
        "", (raw_text,), nothing, nothing, (), FinishReason.STOP, (100, 50), latency_s=0.0
    )


def lines(*polygons: Any, **changes: Any) -> str:
    words = [{"text": "Gate", "score": 0.9, "polygon": polygon} for polygon in polygons]
    return json.dumps({"lines": [{**word, "words": [word], **changes} for word in words]})


@pytest.mark.parametrize(
    ("raw_text", "state", "dropped"),
    [
        pytest.param(lines(SQUARE), State.FOUND, [], id="a line"),
        pytest.param(lines(), State.ABSENT, [], id="no line"),
        pytest.param("", State.UNPARSED, ["garbled"], id="nothing at all"),
        pytest.param(lines(SQUARE)[:-9], State.UNPARSED, ["garbled"], id="cut"),
        pytest.param(lines(SQUARE[:3]), State.UNPARSED, ["garbled"], id="three corners"),
        pytest.param(lines(SQUARE, score=1.5), State.UNPARSED, ["garbled"], id="a score over 1"),
        pytest.param(lines(SQUARE, score=float("nan")), State.UNPARSED, ["garbled"], id="no score"),
        pytest.param(
            lines([[x + 500, y] for x, y in SQUARE]),
            State.UNPARSED,
            ["empty_box"],
            id="only outside the picture",
        ),
        pytest.param(
            lines(SQUARE, [[x, y + 900] for x, y in SQUARE]),
            State.FOUND,
            ["empty_box"],
            id="one of two outside",
        ),
        pytest.param("\ud800", State.UNPARSED, ["garbled"], id="half a character"),
        pytest.param("[" * 5000, State.UNPARSED, ["garbled"], id="nested without end"),
    ],
)
@pytest.mark.parametrize("label", [WORD, TEXT_LINE])
def test_what_is_not_understood_is_said(model: RapidOcr, label, raw_text, state, dropped):
    answer = model.parse(answer_of(raw_text), Task.OCR_BOX, (label,), (100, 50))
    assert answer.labels[label].state is state
    assert [reason.split(":")[0] for reason in answer.dropped] == dropped
    assert answer.complete == ("garbled" not in dropped)


def test_boxes_are_cut_at_the_borders_of_the_picture(model: RapidOcr):
    raw_text = lines([[-5, -5], [120, -5], [120, 20], [-5, 20]])
    answer = model.parse(answer_of(raw_text), Task.OCR_POLYGON, (TEXT_LINE,), (100, 50))
    assert answer.labels[TEXT_LINE].annotations == (
        Annotation(
            TEXT_LINE,
            (0, 0, 100, 20),
            polygon=((0, 0), (100, 0), (100, 20), (0, 20)),
            text="Gate",
            score=0.9,
        ),
    )


@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["lines", "text"]), inner),
    ).map(json.dumps)
)
def test_no_text_breaks_the_parser(raw_text: str):
    model = load_model("rapidocr", SETTINGS)
    answer = model.parse(answer_of(raw_text), Task.OCR_BOX, (WORD,), (100, 50))
    assert set(answer.labels) == {WORD}


# What may be asked, and what it takes


@pytest.mark.parametrize("label", ["cat", "Word", "text lines", ""])
def test_a_label_that_is_neither_word_nor_text_line_is_not_asked(model: RapidOcr, label: str):
    reason = model.why_unsupported(label)
    assert reason is not None
    for part in (repr(label), "word, text line", "`ask`"):
        assert part in reason


def test_words_and_text_lines_may_be_asked(model: RapidOcr):
    assert model.why_unsupported(WORD) is model.why_unsupported(TEXT_LINE) is None


def test_the_model_key_names_the_package_and_its_networks_and_no_setting_changes_it(
    model: RapidOcr,
):
    assert model.parameters["revision"].count(".") == 2
    assert len(model.parameters["networks"]) == 3
    assert all(digest for digest in model.parameters["networks"].values())
    settings = ModelSettings(device="cuda", dtype="float16", batch_size=2)
    assert RapidOcr(CARD, settings).model_key == model.model_key


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a package of that name before the real one, which carries the named networks."""

    def install(*networks: str, version: str = "9.9.9") -> None:
        info = tmp_path / f"rapidocr-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: rapidocr\nVersion: {version}")
        (info / "RECORD").write_text("".join(f"rapidocr/models/{n},sha256=x,1\n" for n in networks))
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_another_version_is_another_model(model: RapidOcr, package):
    package("a_det_b.onnx", "a_cls_b.onnx", "a_rec_b.onnx")
    other = RapidOcr(CARD, SETTINGS)
    assert other.parameters["revision"] == "9.9.9"
    assert other.model_key != model.model_key


def test_a_network_that_is_not_there_is_named_and_not_downloaded(package, tmp_path: Path):
    package("a_det_b.onnx", "a_cls_b.onnx", "a_rec_b.onnx")
    model = RapidOcr(CARD, SETTINGS)
    request = Request(np.zeros((40, 40, 3), np.uint8), Task.OCR_BOX, (WORD,))
    with pytest.raises(ModelError, match=r"rapidocr/models/a_det_b\.onnx.*--force-reinstall"):
        model.generate([request])
    assert not (tmp_path / "rapidocr").exists()


def test_a_package_without_networks_is_refused_before_it_could_download_them(package):
    package()
    with pytest.raises(MissingDependencyError, match=r"\*_det_\*\.onnx.*labeling-pipeline\[ocr\]"):
        RapidOcr(CARD, SETTINGS)


@pytest.mark.parametrize("name", ["rapidocr", "onnxruntime"])
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setitem(sys.modules, name, None)  # as if there were none
    with pytest.raises(MissingDependencyError, match=rf"{name}.*labeling-pipeline\[ocr\]"):
        RapidOcr(CARD, SETTINGS)
