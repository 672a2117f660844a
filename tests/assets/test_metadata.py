from collections import Counter
from collections.abc import Sequence
from typing import Any

import dagster as dg
import pytest

from assets.metadata import MAX_CHARACTERS, MAX_ROWS, class_metadata, table
from labeling_pipeline.labeling import ClassSummary

LAST = 20
"""The row that says how many were left out may take so many characters more."""


def records(value: dg.MetadataValue) -> list[dict[str, Any]]:
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


def characters(rows: Sequence[dict[str, Any]]) -> int:
    return sum(len(str(cell)) for row in rows for cell in row.values())


@pytest.mark.parametrize(
    ("rows", "shown", "last"),
    [
        pytest.param([{"n": i} for i in range(MAX_ROWS)], MAX_ROWS, {"n": 19}, id="as many as may"),
        pytest.param(
            [{"n": i, "file": "x"} for i in range(MAX_ROWS + 1)],
            MAX_ROWS,
            {"n": "and 2 more", "file": ""},
            id="one too many",
        ),
        pytest.param(
            [{"n": i, "error": "e" * 500} for i in range(12)],
            8,
            {"n": "and 5 more", "error": ""},
            id="too long together",
        ),
        pytest.param(
            [{"error": "e" * 100_000}], 1, {"error": "e" * 599 + "…"}, id="one that is too long"
        ),
    ],
)
def test_a_table_keeps_within_what_the_ui_shows_well(
    rows: list[dict[str, Any]], shown: int, last: dict[str, Any]
):
    there = records(table(rows))
    assert len(there) == shown
    assert there[-1] == last
    assert characters(there) <= MAX_CHARACTERS + LAST


def test_numbers_stay_numbers_where_nothing_is_left_out():
    assert records(table([{"n": 3, "share": 0.5, "name": "猫"}])) == [
        {"n": 3, "share": 0.5, "name": "猫"}
    ]


def test_a_materialization_tells_rate_tokens_generations_and_outcomes_by_state():
    summary = ClassSummary(
        "object", "cat", "cat", "key", due=30, answered=20, generations=25, tokens=700, seconds=4.0
    )
    summary.standing = {"failed": (10, 0), "found": (20, 31)}
    summary.states = Counter(found=20, failed=10)
    summary.errors = {f"cat/{n}.jpg": "RuntimeError: " + "broken " * 200 for n in range(10)}
    summary.notes = ("one thing " * 200, "another")
    metadata = class_metadata(summary)
    assert {
        name: metadata[name].value
        for name in ("images", "annotations", "generations", "tokens", "images_per_second")
    } == {"images": 30, "annotations": 31, "generations": 25, "tokens": 700, "images_per_second": 5}
    assert records(metadata["outcomes"]) == [
        {"state": "failed", "images": 10, "annotations": 0},
        {"state": "found", "images": 20, "annotations": 31},
    ]
    assert records(metadata["errors"])[-1]["image"] == "and 4 more"
    assert len(str(metadata["notes"].value)) < 1000


def test_where_nothing_was_due_it_says_so_and_gives_no_rate():
    metadata = class_metadata(ClassSummary("object", "cat", "cat", "key", seconds=0.5))
    assert "images_per_second" not in metadata
    assert "nothing was due" in str(metadata["notes"].value)
