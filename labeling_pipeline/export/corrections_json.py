"""Corrections as people and annotation tools write them: JSON.

::

    {"corrections": [
      {"kind": "delete", "image": "cat/1.jpg", "entry": "object", "label": "cat",
       "bbox": [10.0, 12.5, 90.0, 80.0], "author": "Ann"},
      {"kind": "change", ..., "values": {"bbox": [12, 12, 90, 80], "label": "dog"}},
      {"kind": "add", "image": "cat/2.jpg", "entry": "object", "label": "cat",
       "values": {"bbox": [5, 5, 40, 40]}, "author": "Ann"}]}

What is corrected is named by its place, as the JSON of its class shows it, or by ``annotation_id``.
An exported file says more: ``id``, ``created_at``, ``image_id``, and the ``target`` as it was then.
Coordinates are pixels of the upright image.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from labeling_pipeline.annotations import Box
from labeling_pipeline.errors import CorrectionsError
from labeling_pipeline.store.corrections import Correction, Kind, Row

EDGES = ("x0_px", "y0_px", "x1_px", "y1_px")
_MOST_PROBLEMS = 20

Text = Annotated[str, Field(min_length=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Corner = tuple[Number, Number]
Edges = tuple[Number, Number, Number, Number]


def _in_utc(time: datetime) -> datetime:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def given(self) -> tuple[str, ...]:
        """Names of the fields that say something."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


class Values(_Written):
    """What a person says of a thing. keypoints: name -> place; ``None``: it is not visible."""

    label: Text | None = None
    bbox: Edges | None = None
    point: Corner | None = None
    polygon: Annotated[tuple[Corner, ...], Field(min_length=3)] | None = None
    text: str | None = None
    keypoints: dict[str, Corner | None] | None = None


class Target(Values):
    """What was corrected, as it was then, and the answer that held it."""

    generation_id: str | None = None
    parser_version: int = 0
    score: Number | None = None


class Item(_Written):
    """One correction. image: path under the image root, or image id."""

    kind: Kind
    image: Text
    image_id: Text | None = None
    entry: Text
    label: Text
    annotation_id: Text | None = None
    bbox: Edges | None = None
    point: Corner | None = None
    target: Target | None = None
    values: Values | None = None
    author: Text | None = None
    created_at: Annotated[datetime, AfterValidator(_in_utc)] | None = None
    id: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        about = [n for n in ("annotation_id", "bbox", "point", "target") if n in self.given()]
        if self.kind is Kind.ADD and about:
            raise ValueError(
                f"expected the place of what is added in values, got {about[0]}, which names what "
                "is corrected"
            )
        if self.kind is Kind.DELETE and self.values is not None:
            raise ValueError("expected no values with delete, got some: drop them, or use change")
        if self.kind is not Kind.DELETE and not (self.values and self.values.given()):
            raise ValueError(f"expected values with {self.kind}, got none")
        if self.target and not self.annotation_id:
            raise ValueError("expected annotation_id beside target, got none")
        return self


class File(_Written):
    """A whole file."""

    corrections: tuple[Item, ...]


def read_items(path: Path) -> tuple[Item, ...]:
    """Read a file, without regard to any dataset.

    Raises:
        CorrectionsError: names the file, the positions, what was expected and what came.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorrectionsError(
            f"{path}: expected corrections in JSON, but {error.strerror}"
        ) from error
    try:
        return File.model_validate_json(content).corrections
    except ValidationError as error:
        problems = [f"{path}: {_explain(problem)}" for problem in error.errors()]
        raise CorrectionsError(listed(problems)) from None


def to_json(corrections: Iterable[Correction], path_of: Mapping[str, str]) -> str:
    """A file with everything that is known of these corrections. path_of: image id -> path."""
    items = [
        Item.model_construct(
            **_present(
                kind=one.kind,
                image=path_of.get(one.image_id, one.image_id),
                image_id=one.image_id,
                entry=one.entry,
                label=one.label,
                annotation_id=one.annotation_id,
                target=_target_of(one.target) if one.target else None,
                values=_values_of(one.values) if one.values else None,
                author=one.author,
                created_at=one.created_at.replace(tzinfo=UTC),
                id=one.correction_id,
            )
        )
        for one in corrections
    ]
    file = File.model_construct(corrections=tuple(items))
    return file.model_dump_json(indent=2, exclude_unset=True) + "\n"


def row_of(values: Values) -> Row:
    """What stands in a file, as columns of table ``annotations``."""
    return {
        "label": values.label,
        **dict(zip(EDGES, values.bbox or (None,) * 4, strict=True)),
        "point": _point(values.point) if values.point else None,
        "polygon": [_point(corner) for corner in values.polygon] if values.polygon else None,
        "text": values.text,
        "keypoints": [keypoint(name, at) for name, at in values.keypoints.items()]
        if values.keypoints
        else None,
    }


def keypoint(name: str, at: Corner | None) -> Row:
    """A named point that a person placed, or did not."""
    x_px, y_px = at or (None, None)
    return {"name": name, "x_px": x_px, "y_px": y_px, "score": None}


def bbox_of(row: Mapping[str, Any]) -> Box | None:
    """The box of an annotation."""
    if row["x0_px"] is None:
        return None
    return row["x0_px"], row["y0_px"], row["x1_px"], row["y1_px"]


def xy(point: Mapping[str, Any]) -> Corner:
    """The place of a point."""
    return point["x_px"], point["y_px"]


def listed(problems: Sequence[str]) -> str:
    """One problem a line, and not too many."""
    more = len(problems) - _MOST_PROBLEMS
    return "\n".join(
        [*problems[:_MOST_PROBLEMS], *([f"... and {more} problems more"] if more > 0 else [])]
    )


def _values_of(row: Row) -> Values:
    # The box of an outline follows from it.
    bbox = None if row["polygon"] else bbox_of(row)
    return Values.model_construct(**_present(bbox=bbox, **_shape_of(row)))


def _target_of(row: Row) -> Target:
    origin = {name: row[name] for name in ("generation_id", "parser_version", "score")}
    return Target.model_construct(**_present(bbox=bbox_of(row), **_shape_of(row), **origin))


def _shape_of(row: Row) -> dict[str, Any]:
    places = [(p["name"], None if p["x_px"] is None else xy(p)) for p in row["keypoints"] or ()]
    return {
        "label": row["label"],
        "point": xy(row["point"]) if row["point"] else None,
        "polygon": tuple(map(xy, row["polygon"])) if row["polygon"] else None,
        "text": row["text"],
        "keypoints": dict(places) or None,
    }


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _point(corner: Corner) -> dict[str, float]:
    return {"x_px": corner[0], "y_px": corner[1]}


_MODELS: dict[str, type[BaseModel]] = {"values": Values, "target": Target, "corrections": Item}


def _explain(problem: Any) -> str:
    """One validation problem as ``where: expected ..., got ...``."""
    location = problem["loc"]
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
    where = f"{where}: " if where else ""
    kind, context, got = problem["type"], problem.get("ctx", {}), problem.get("input")
    if kind == "json_invalid":
        return f"expected JSON, but {context['error']}"
    if kind == "extra_forbidden":
        names = [part for part in location[:-1] if part in _MODELS]
        model = _MODELS[names[-1]] if names else File
        known = ", ".join(model.model_fields)
        return f"{where}expected one of the keys {known}, got {location[-1]!r}"
    if kind == "missing":
        return f"{where}expected a value here, got none"
    if kind == "value_error":
        return f"{where}{context['error']}"
    message = str(problem["msg"]).removeprefix("Input should be ")
    message = message.replace("a valid array", "a list").replace("an object", "a mapping")
    message = message.replace("String should", "text that should")
    message = message.replace("Tuple should", "a list that should")
    return f"{where}expected {message}, got {got!r}"
