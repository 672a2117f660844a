from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling_pipeline.store.corrections import (
    SAME_THING,
    SHAPE,
    Correction,
    Kind,
    Row,
    apply_corrections,
    likeness,
)

SIZE = (100, 100)
NOON = datetime(2024, 5, 1, 12)

LEFT, LEFT_MOVED = (10, 10, 30, 30), (11, 10, 31, 30)
RIGHT, RIGHT_MOVED = (60, 60, 90, 90), (60, 62, 90, 92)
TALL = (10, 10, 30, 60)  # holds LEFT: 0.4 of it is shared
LEFT_NEIGHBOUR = (15, 10, 35, 30)  # beside LEFT: 0.6 of both is shared


def shape(box: tuple | None = None, label: str = "cat", **values: Any) -> Row:
    edges = dict(zip(("x0_px", "y0_px", "x1_px", "y1_px"), box or (None,) * 4, strict=True))
    return dict.fromkeys(SHAPE) | {"label": label} | edges | values


def found(*things: Row, answer: str = "a", version: int = 1, first: int = 0) -> list[Row]:
    """What a model said, as rows."""
    return [
        thing
        | {
            "annotation_id": f"{answer}-{version}-{position}",
            "generation_id": answer,
            "parser_version": version,
            "position": position,
            "score": 0.9,
            "corrected_by": None,
        }
        for position, thing in enumerate(things, first)
    ]


def corrections(*edits: tuple[str, str, Row | None, Row | None]) -> list[Correction]:
    """(id, id of the target, target, values), in order of time."""
    return [
        Correction(
            correction_id=correction_id,
            image_id="image",
            entry="object",
            label=(target or values or {})["label"],
            kind=Kind.ADD if not target else Kind.CHANGE if values else Kind.DELETE,
            annotation_id=target_id or None,
            target=target,
            values=values,
            author="Ann",
            created_at=NOON + timedelta(minutes=number),
        )
        for number, (correction_id, target_id, target, values) in enumerate(edits)
    ]


def what_holds(annotations: list[Row], edits: list[Correction]) -> list[tuple]:
    """(id, label, first edges of the box) of what is left."""
    return [
        (row["annotation_id"], row["label"], row["x0_px"], row["y0_px"])
        for row in apply_corrections(annotations, edits, SIZE)
    ]


A_LEFT, A_RIGHT = found(shape(LEFT), shape(RIGHT))


@pytest.mark.parametrize(
    ("annotations", "edits", "expected"),
    [
        pytest.param(
            [A_LEFT, A_RIGHT],
            [("c1", "a-1-0", A_LEFT, None)],
            [("a-1-1", "cat", 60, 60)],
            id="a deletion takes its target away",
        ),
        pytest.param(
            found(shape(RIGHT_MOVED), shape(LEFT_MOVED), answer="b"),
            [("c1", "a-1-0", A_LEFT, None)],
            [("b-1-0", "cat", 60, 62)],
            id="another model's answer: the same thing is deleted by its place",
        ),
        pytest.param(
            found(shape(LEFT), version=2, first=3),
            [("c1", "a-1-0", A_LEFT, None)],
            [],
            id="another parser: the same thing under another id is deleted",
        ),
        pytest.param(
            found(shape(RIGHT), answer="b"),
            [("c1", "a-1-0", A_LEFT, None)],
            [("b-1-0", "cat", 60, 60)],
            id="a deletion of what no model finds any more takes nothing else",
        ),
        pytest.param(
            found(shape(LEFT_NEIGHBOUR), first=1),
            [("c1", "a-1-0", A_LEFT, None)],
            [("a-1-1", "cat", 15, 10)],
            id="the target fell below the threshold: its neighbour of the same answer stays",
        ),
        pytest.param(
            found(shape(LEFT, "dog"), answer="b"),
            [("c1", "a-1-0", A_LEFT, None)],
            [("b-1-0", "dog", 10, 10)],
            id="the same place under another label is another thing",
        ),
        pytest.param(
            [A_LEFT, A_RIGHT],
            [("c1", "a-1-0", A_LEFT, shape(TALL))],
            [("a-1-1", "cat", 60, 60), ("c1", "cat", 10, 10)],
            id="a change puts the person's version in place of its target",
        ),
        pytest.param(
            found(shape(TALL), answer="b"),
            [("c1", "a-1-0", A_LEFT, shape(TALL))],
            [("c1", "cat", 10, 10)],
            id="a better model finds what the person said: it does not stand there twice",
        ),
        pytest.param(
            found(shape(LEFT_MOVED), shape(TALL), answer="b"),
            [("c1", "a-1-0", A_LEFT, shape(TALL))],
            [("c1", "cat", 10, 10)],
            id="a model finds both what was wrong and what is right: neither comes back",
        ),
        pytest.param(
            [],
            [("c1", "a-1-0", A_LEFT, shape(TALL))],
            [("c1", "cat", 10, 10)],
            id="a changed thing stays where no model finds it any more",
        ),
        pytest.param(
            [A_LEFT],
            [("c1", "a-1-0", A_LEFT, shape(LEFT, "dog"))],
            [("c1", "dog", 10, 10)],
            id="a changed label",
        ),
        pytest.param(
            found(shape(LEFT_MOVED, "dog"), shape(LEFT_MOVED, "cat"), answer="b"),
            [("c1", "a-1-0", A_LEFT, shape(LEFT, "dog"))],
            [("c1", "dog", 10, 10)],
            id="a changed label: neither the wrong name nor the right one stands there twice",
        ),
        pytest.param(
            [A_LEFT],
            [("c1", "", None, shape(RIGHT))],
            [("a-1-0", "cat", 10, 10), ("c1", "cat", 60, 60)],
            id="an added thing",
        ),
        pytest.param(
            found(shape(RIGHT_MOVED), answer="b"),
            [("c1", "", None, shape(RIGHT))],
            [("c1", "cat", 60, 60)],
            id="a model finds what a person added: it does not stand there twice",
        ),
        pytest.param(
            found(shape(RIGHT_MOVED, "dog"), answer="b"),
            [("c1", "", None, shape(RIGHT))],
            [("b-1-0", "dog", 60, 62), ("c1", "cat", 60, 60)],
            id="what a person added gives way to nothing, nor does another label give way to it",
        ),
        pytest.param(
            [],
            [("c1", "", None, shape(LEFT)), ("c2", "", None, shape(LEFT_MOVED))],
            [("c1", "cat", 10, 10), ("c2", "cat", 11, 10)],
            id="two people's additions never take each other away",
        ),
        pytest.param(
            found(shape(LEFT_MOVED), answer="b"),
            [
                ("c1", "a-1-0", A_LEFT, shape(TALL)),
                ("c2", "c1", shape(TALL), shape(RIGHT)),
                ("c3", "c2", shape(RIGHT), None),
            ],
            [],
            id="what a person gave is changed and deleted like anything else",
        ),
        pytest.param(
            found(shape(RIGHT_MOVED), answer="b"),
            [("c1", "", None, shape(RIGHT)), ("c2", "c1", shape(RIGHT), None)],
            [],
            id="what a person added and another deleted no model brings back",
        ),
        pytest.param(
            [A_LEFT],
            [("c1", "a-1-0", A_LEFT, shape(TALL)), ("c2", "a-1-0", A_LEFT, shape(RIGHT))],
            [("c2", "cat", 60, 60)],
            id="two edits of one target: the later one goes on from the earlier",
        ),
        pytest.param(
            found(shape(LEFT_MOVED), shape(LEFT_NEIGHBOUR), answer="b"),
            [("c1", "a-1-0", A_LEFT, None), ("c2", "a-1-0", A_LEFT, None)],
            [("b-1-1", "cat", 15, 10)],
            id="two deletions of one target take one thing away",
        ),
        pytest.param(
            [A_LEFT],
            [("c1", "a-1-0", A_LEFT, None), ("c2", "a-1-0", A_LEFT, shape(TALL))],
            [("c2", "cat", 10, 10)],
            id="deleted by one person and changed later by another: it is there",
        ),
        pytest.param(
            found(shape(LEFT_MOVED), shape(LEFT_NEIGHBOUR), answer="b"),
            [
                ("c1", "a-1-1", *found(shape(LEFT_NEIGHBOUR)), None),
                ("c2", "a-1-0", A_LEFT, None),
            ],
            [],
            id="two deletions beside each other take a thing each",
        ),
        pytest.param(
            # Both targets are most like the first thing; the second is like one of them only.
            found(shape((12, 10, 32, 30)), shape((20, 10, 40, 30)), answer="b"),
            [("c1", "a-1-1", *found(shape(LEFT_NEIGHBOUR)), None), ("c2", "a-1-0", A_LEFT, None)],
            [],
            id="one thing is taken by the edit that fits it best, and another by the next",
        ),
        pytest.param(
            found(shape(LEFT_MOVED), shape(LEFT_NEIGHBOUR), answer="b"),
            [
                ("c1", "a-1-0", A_LEFT, None),
                ("c2", "b-1-0", *found(shape(LEFT_MOVED), answer="b"), None),
            ],
            [],
            id="what is named by its id is never taken for another thing",
        ),
    ],
)
def test_what_people_said_holds(annotations: list[Row], edits: list[tuple], expected: list[tuple]):
    assert what_holds(annotations, corrections(*edits)) == expected


def test_a_persons_annotation_is_complete_and_has_no_score():
    (edit,) = corrections(("c1", "a-1-0", A_LEFT, shape(RIGHT)))
    (row,) = apply_corrections([A_LEFT], [edit], SIZE)
    assert row == shape(RIGHT) | {
        "annotation_id": "c1",
        "generation_id": None,
        "answered_in": None,
        "image_id": "image",
        "entry": "object",
        "parser_version": 0,
        "position": 1,
        "score": None,
        "geometric_mean": None,
        "window_mass": None,
        "corrected_by": "Ann",
    }


def test_without_corrections_nothing_changes():
    assert apply_corrections([A_LEFT, A_RIGHT], [], SIZE) == [A_LEFT, A_RIGHT]


def at(x_px: float, y_px: float) -> dict[str, float]:
    return {"x_px": x_px, "y_px": y_px}


SQUARE = [at(10, 10), at(30, 10), at(30, 30), at(10, 30)]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param(shape(LEFT), shape(LEFT_NEIGHBOUR), 0.6, id="boxes by their overlap"),
        pytest.param(shape(LEFT), shape(RIGHT), 0.0, id="boxes apart"),
        pytest.param(shape((5, 5, 5, 9)), shape((5, 5, 5, 9)), 1.0, id="equal boxes without area"),
        pytest.param(
            shape(polygon=SQUARE), shape(LEFT_NEIGHBOUR, polygon=SQUARE), 0.6, id="by the box"
        ),
        pytest.param(shape(point=at(3, 4)), shape(point=at(3, 4)), 1.0, id="equal points"),
        pytest.param(
            shape(point=at(0, 0)),
            shape(point=at(3, 4)),
            1 - 0.5 * 5 / (0.05 * 100 * 2**0.5),
            id="points by their distance",
        ),
        pytest.param(shape(point=at(0, 0)), shape(point=at(99, 99)), 0.0, id="points far apart"),
        pytest.param(shape(text="a cat"), shape(text="a dog"), 1.0, id="of the whole image"),
        pytest.param(shape(text="a cat"), shape(LEFT, text="a cat"), 0.0, id="a box or the whole"),
        pytest.param(shape(point=at(20, 20)), shape(LEFT), 0.0, id="a point and a box"),
    ],
)
def test_likeness_goes_by_the_place(one: Row, other: Row, expected: float):
    assert likeness(one, other, SIZE) == likeness(other, one, SIZE) == pytest.approx(expected)


def test_a_caption_is_changed_whatever_the_next_model_says():
    (before,) = found(shape(text="a cat"))
    edits = corrections(("c1", "a-1-0", before, shape(text="two cats")))
    rows = apply_corrections(found(shape(text="a dog on a mat"), answer="b"), edits, SIZE)
    assert [row["text"] for row in rows] == ["two cats"]


def test_a_stored_row_is_read_back_as_it_was():
    (edit,) = corrections(("c1", "a-1-0", A_LEFT, shape((0.1, 0.2, 1 / 3, 7e-9), text="Größe")))
    assert Correction.of(edit.row()) == edit
    assert isinstance(edit.row()["values"], str)


boxes = st.builds(
    lambda x, y, width, height: shape((x, y, x + width, y + height)),
    *(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40)),
)
answers = st.lists(boxes, max_size=5)


@st.composite
def edited(draw: st.DrawFn) -> tuple[list[Row], list[Correction]]:
    """An answer, and what people did to it and to what they gave before."""
    rows = found(*draw(st.lists(boxes, min_size=1, max_size=5)))
    there = {row["annotation_id"]: row for row in rows}
    edits = []
    for number in range(draw(st.integers(1, 4))):
        values = draw(st.none() | boxes)
        target_id = draw(st.sampled_from(sorted(there))) if there else None
        if values and draw(st.booleans()):
            target_id = None
        if not (values or target_id):
            continue
        edits.append((f"c{number}", target_id or "", there.pop(target_id or "", None), values))
        if values:
            there[f"c{number}"] = values | {"generation_id": None, "parser_version": 0}
    return rows, corrections(*edits)


@given(case=edited(), other=answers)
def test_whatever_a_model_answers_people_gave_the_same_and_nothing_stands_there_twice(
    case: tuple[list[Row], list[Correction]], other: list[Row]
):
    rows, edits = case
    given_by_people = []
    for answer in (rows, found(*other, answer="b"), found(*other, version=2), []):
        held = apply_corrections(answer, edits, SIZE)
        persons = [row for row in held if row["corrected_by"]]
        models = [row for row in held if not row["corrected_by"]]
        given_by_people.append([(row["annotation_id"], row["x0_px"]) for row in persons])
        assert all(row in answer for row in models), "models' answers are never altered"
        assert not {row["annotation_id"] for row in models} & {c.annotation_id for c in edits}
        assert not [
            (model, person)
            for model in models
            for person in persons
            if likeness(model, person, SIZE) >= SAME_THING
        ]
    assert all(given == given_by_people[0] for given in given_by_people)
