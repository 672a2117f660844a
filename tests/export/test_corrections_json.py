from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling_pipeline.export.corrections_json import EDGES, read_items, row_of, to_json
from labeling_pipeline.store.corrections import Correction, Kind, Row, bounds

numbers = st.floats(allow_nan=False, allow_infinity=False)
points = st.tuples(numbers, numbers)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def as_point(corner: tuple[float, float]) -> dict[str, float]:
    return {"x_px": corner[0], "y_px": corner[1]}


@st.composite
def shapes(draw: st.DrawFn) -> Row:
    """Anything that can stand in table annotations."""
    edges: Any = (None,) * 4
    polygon = draw(st.none() | st.lists(points, min_size=3, max_size=5))
    if polygon:
        edges = bounds(polygon)
    elif draw(st.booleans()):
        edges = draw(st.tuples(*[numbers] * 4))
    names = draw(st.lists(texts, unique=True, max_size=3))
    places = [draw(st.none() | points) or (None, None) for _ in names]
    return {
        "label": draw(texts),
        **dict(zip(EDGES, edges, strict=True)),
        "point": as_point(draw(points)) if draw(st.booleans()) else None,
        "polygon": [as_point(corner) for corner in polygon] if polygon else None,
        "text": draw(st.none() | texts),
        "keypoints": [
            {"name": name, **as_point(at), "score": None}
            for name, at in zip(names, places, strict=True)
        ]
        or None,
    }


@st.composite
def corrections(draw: st.DrawFn) -> Correction:
    kind = draw(st.sampled_from(Kind))
    origin = {
        "generation_id": draw(st.none() | texts),
        "parser_version": draw(st.integers(0, 99)),
        "score": draw(st.none() | numbers),
    }
    return Correction(
        correction_id=draw(texts),
        image_id=draw(texts),
        entry=draw(texts),
        label=draw(texts),
        kind=kind,
        annotation_id=None if kind is Kind.ADD else draw(texts),
        target=None if kind is Kind.ADD else draw(shapes()) | origin,
        values=None if kind is Kind.DELETE else draw(shapes()),
        author=draw(texts),
        created_at=draw(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1))),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corrections") / "corrections.json"


@settings(deadline=None)
@given(written=st.lists(corrections(), max_size=3))
def test_what_is_written_is_read_back_to_the_last_bit(file: Path, written: list[Correction]):
    file.write_text(to_json(written, {one.image_id: "some/path.jpg" for one in written}))
    items = read_items(file)
    assert [item.image for item in items] == ["some/path.jpg"] * len(written)
    for item, one in zip(items, written, strict=True):
        assert item.created_at is not None
        target, values = item.target and row_of(item.target), item.values and row_of(item.values)
        if target and item.target:
            target |= item.target.model_dump(include={"generation_id", "parser_version", "score"})
        if values and item.values and item.values.polygon:
            values |= dict(zip(EDGES, bounds(item.values.polygon), strict=True))
        assert one == Correction(
            correction_id=str(item.id),
            image_id=str(item.image_id),
            entry=item.entry,
            label=item.label,
            kind=item.kind,
            annotation_id=item.annotation_id,
            target=target,
            values=values,
            author=str(item.author),
            created_at=item.created_at.replace(tzinfo=None),
        )
