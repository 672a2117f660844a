import numpy as np
import pandas as pd
import pytest

from labeling_pipeline.evaluation.intervals import wilson_interval
from labeling_pipeline.evaluation.text import evaluate_text, reading_order

BOX = ["x0_px", "y0_px", "x1_px", "y1_px"]
FIRST, SECOND, THIRD = (0, 0, 90, 10), (0, 20, 90, 30), (0, 40, 90, 50)


def found(*rows):
    """(image_id, text, box)"""
    return pd.DataFrame(
        [(image, "line", 0.9, text, *box) for image, text, box in rows],
        columns=["image_id", "label", "score", "text", *BOX],
    )


def asked(*images):
    return pd.DataFrame({"image_id": images, "label": "line"})


def edits(one, other):
    """Levenshtein's distance by its definition: a table of all prefixes."""
    distance = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    distance[:, 0], distance[0, :] = range(len(one) + 1), range(len(other) + 1)
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            distance[i, j] = min(
                distance[i - 1, j] + 1,
                distance[i, j - 1] + 1,
                distance[i - 1, j - 1] + (one[i - 1] != other[j - 1]),
            )
    return int(distance[-1, -1])


def counts(rate):
    return (rate.substitutions, rate.deletions, rate.insertions, rate.length)


def test_a_page_by_hand():
    """Two lines found, one of them misread by a letter, a third one missed, a fourth made up."""
    evaluation = evaluate_text(
        found(
            ("a", "Mind the stop", FIRST), ("a", "Desk 3", SECOND), ("a", "oh", (300, 0, 390, 10))
        ),
        found(("a", "Mind the step", FIRST), ("a", "Desk 3", SECOND), ("a", "Exit", THIRD)),
        asked("a"),
    )
    assert counts(evaluation.lines.characters) == (1, 4, 0, 13 + 6 + 4)
    assert counts(evaluation.lines.words) == (1, 1, 0, 3 + 2 + 1)
    assert counts(evaluation.found_lines.characters) == (1, 0, 0, 13 + 6)
    assert (evaluation.lines.texts, evaluation.found_lines.texts) == (3, 2)
    # What was made up stands in the first line of the page, behind what is there.
    pages = "Mind the step Desk 3 Exit", "Mind the stop oh Desk 3"
    assert evaluation.pages.characters.errors == edits(*pages)
    assert evaluation.pages.words.errors == edits(*(page.split() for page in pages)) == 3
    assert evaluation.pages.characters.length == len(pages[0])
    assert evaluation.misread[["true_text", "read_text", "errors"]].to_numpy().tolist() == [
        ["Exit", "", 4],
        ["Mind the step", "Mind the stop", 1],
    ]
    assert evaluation.misread["cer"].tolist() == [1.0, pytest.approx(1 / 13)]
    assert evaluation.misread["iou"].isna().tolist() == [True, False]


@pytest.mark.parametrize("seed", range(4))
def test_error_rates_are_levenshteins(seed):
    rng = np.random.default_rng(seed)
    lines = []
    for image in "abc":
        for row in range(rng.integers(0, 4)):
            text = "".join(rng.choice(list("abc 猫é"), 12))
            read = "".join(c for c in text if rng.random() > 0.2) + "".join(
                rng.choice(["", "x"], 3)
            )
            lines.append((image, text, read, (0, 20 * row, 90, 20 * row + 10)))
    evaluation = evaluate_text(
        found(*((image, read, box) for image, _, read, box in lines)),
        found(*((image, text, box) for image, text, _, box in lines)),
        asked("a", "b", "c"),
    )
    pairs = [(" ".join(text.split()), " ".join(read.split())) for _, text, read, _ in lines]
    assert evaluation.lines.characters.errors == sum(edits(*pair) for pair in pairs)
    assert evaluation.lines.characters.length == sum(len(text) for text, _ in pairs)
    assert evaluation.lines.words.errors == sum(
        edits(text.split(), read.split()) for text, read in pairs
    )


@pytest.mark.parametrize(
    ("read", "true", "errors", "length"),
    [
        pytest.param([], [("a", "Exit", FIRST)], 4, 4, id="nothing was read"),
        pytest.param([("a", "Exit", FIRST)], [], 4, 0, id="there is nothing to read"),
        pytest.param([], [], 0, 0, id="neither"),
        pytest.param([("a", "exit", FIRST)], [("a", "Exit", FIRST)], 1, 4, id="case counts"),
        pytest.param(
            [("a", "a  b ", FIRST)], [("a", " a\tb", FIRST)], 0, 3, id="runs of space are one space"
        ),
        pytest.param(
            [("a", "e\u0301", FIRST)], [("a", "é", FIRST)], 0, 1, id="an accent in two characters"
        ),
        pytest.param([("a", None, FIRST)], [("a", "Exit", FIRST)], 4, 4, id="a box without text"),
        pytest.param(
            [("a", "Mind", (0, 0, 40, 10)), ("a", "the step", (45, 0, 90, 10))],
            [("a", "Mind the step", FIRST)],
            *(0, 13),
            id="a line in two parts costs a page nothing",
        ),
    ],
)
def test_edges_of_a_page(read, true, errors, length):
    pages = evaluate_text(found(*read), found(*true), asked("a")).pages.characters
    assert (pages.errors, pages.length) == (errors, length)
    assert pages.rate == (errors / length if length else None)


def test_what_was_not_asked_and_what_nobody_could_read_does_not_count():
    true = found(("a", "Exit", FIRST), ("a", "blurred", SECOND), ("b", "Desk", FIRST))
    evaluation = evaluate_text(
        found(("a", "Exit", FIRST), ("a", "bluebird", SECOND), ("b", "Disk", FIRST)),
        true.assign(iscrowd=[False, True, False]),
        asked("a"),
    )
    assert (
        counts(evaluation.pages.characters) == counts(evaluation.lines.characters) == (0, 0, 0, 4)
    )
    assert evaluation.misread.empty


def test_text_without_places_is_judged_page_by_page():
    nowhere = (np.nan,) * 4
    read = found(("a", "Mind step\nDesk 3", nowhere), ("b", "", nowhere))
    true = found(("a", "Desk 3", SECOND), ("a", "Mind the step", FIRST), ("b", "Exit", FIRST))
    evaluation = evaluate_text(read, true, asked("a", "b"), has_places=False)
    assert counts(evaluation.pages.characters) == (0, 4 + 4, 0, 20 + 4)
    assert (evaluation.lines, evaluation.found_lines) == (None, None)
    assert evaluation.misread["image_id"].tolist() == ["a", "b"]


def test_the_interval_is_over_pages():
    images = [str(i) for i in range(20)]
    true = found(*((image, "abcd", FIRST) for image in images))
    right = evaluate_text(true, true, asked(*images)).pages.characters
    assert (right.rate, right.interval) == (0, wilson_interval(0, 20))
    half = found(*((image, "abcd" if int(image) % 2 else "abxd", FIRST) for image in images))
    measured = evaluate_text(half, true, asked(*images)).pages.characters
    assert measured.rate == 0.125
    assert 0.05 < measured.interval.low < 0.125 < measured.interval.high < 0.2


@pytest.mark.parametrize(
    ("boxes", "order"),
    [
        pytest.param([SECOND, FIRST, THIRD], [1, 0, 2], id="from top to bottom"),
        pytest.param(
            [(50, 2, 90, 12), (0, 0, 40, 10), (0, 20, 90, 30)],
            [1, 0, 2],
            id="left to right in a line",
        ),
        pytest.param(
            [(0, 0, 40, 30), (50, 0, 90, 10), (50, 20, 90, 30)],
            [0, 1, 2],
            id="a tall box belongs to the first line beside it",
        ),
        pytest.param([], [], id="nothing"),
        pytest.param([[np.nan] * 4, [np.nan] * 4], [0, 1], id="without places as they come"),
    ],
)
def test_boxes_are_read_line_by_line(boxes, order):
    assert reading_order(np.array(boxes, dtype=float).reshape(-1, 4)).tolist() == order
