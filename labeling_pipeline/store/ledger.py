"""What is due and what holds now: the set-based questions asked of the store.

The atom is the outcome of image x entry x class x model key. Nothing here loads a model or knows
of Dagster.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from labeling_pipeline.scores import ScoreMap
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.corrections import SHAPE, Correction, Row, apply_corrections

MAX_ATTEMPTS = 3
"""A failed outcome is asked again until this many attempts failed; then it is held."""


@dataclass(frozen=True)
class View:
    """Which of the stored answers hold, which of their annotations count, and what scores mean.

    Thresholds are about scores as they were measured. What has no score passes every one.

    model_keys: entry -> the plan's model key; entries outside it are left out.
    thresholds: entry -> lowest score kept; default: all are.
    label_thresholds: (entry, model key, label) -> lowest score kept of what that model answered,
        in place of the entry's.
    score_maps: (entry, model key) -> what the scores of that model mean.
    only: where that model has no answer, none holds; else the newest of another one does.
    """

    model_keys: Mapping[str, str]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    label_thresholds: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    score_maps: Mapping[tuple[str, str], ScoreMap] = field(default_factory=dict)
    only: bool = False

    @property
    def measured(self) -> "View":
        """The same annotations, with scores as they were measured."""
        return replace(self, score_maps={})

    @property
    def limits(self) -> dict[str, pa.Table]:
        """The thresholds as tables, for ``_WITH_LIMIT``."""
        by_label = [(*key, threshold) for key, threshold in self.label_thresholds.items()]
        return {
            "entry_limits": _table(["entry"], list(self.thresholds.items())),
            "label_limits": _table(["entry", "model_key", "label"], by_label),
        }

    def calibrate(self, annotations: pd.DataFrame) -> pd.DataFrame:
        """Annotations with ``score`` calibrated where a map says what it means,
        ``measured_score``, and ``is_calibrated``.

        annotations: with ``entry, model_key, score``, as measured.
        """
        measured = annotations["score"].to_numpy(dtype=float, na_value=np.nan)
        score = measured.copy()
        is_calibrated = np.zeros(len(annotations), dtype=bool)
        for (entry, model_key), score_map in self.score_maps.items():
            here = (annotations["entry"] == entry) & (annotations["model_key"] == model_key)
            known = here.to_numpy(dtype=bool) & ~np.isnan(measured)
            score[known] = score_map.apply(measured[known])
            is_calibrated |= known
        return annotations.assign(score=score, measured_score=measured, is_calibrated=is_calibrated)


def _table(keys: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    schema = pa.schema([*((key, pa.string()) for key in keys), ("threshold", pa.float64())])
    return pa.Table.from_pylist(
        [dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema
    )


# Outcomes with the lowest score that counts of what answers them; reads what `View.limits` holds.
_WITH_LIMIT = """
SELECT o.*, coalesce(l.threshold, e.threshold, 0) AS threshold
FROM ({outcomes}) o
LEFT JOIN label_limits l USING (entry, model_key, label)
LEFT JOIN entry_limits e USING (entry)
"""


@dataclass(frozen=True)
class Ask:
    """What an entry asks for a class.

    request_hash: of the prompt; or image_id -> hash, where each image is asked something of its
        own, and images outside the mapping are asked nothing.
    """

    entry: str
    class_slug: str
    model_key: str
    request_hash: str | Mapping[str, str]


# What is asked, image by image: of every image of a class, or of single images. One path stands
# for all files of the same content, and with its class for all their classes.
_ASKED = """
asked AS (
    SELECT unnest($1::VARCHAR[]) AS entry, unnest($2::VARCHAR[]) AS class,
        unnest($3::VARCHAR[]) AS model_key, unnest($4::VARCHAR[]) AS request_hash,
        unnest($5::VARCHAR[]) AS image_id
),
members AS NOT MATERIALIZED (
    SELECT image_id, class FROM dataset_files
    WHERE class IS NOT NULL AND image_id IS NOT NULL AND skipped_reason IS NULL
    UNION ALL
    SELECT f.image_id, c.class FROM dataset_files f CROSS JOIN classes c
    WHERE f.class IS NULL AND f.image_id IS NOT NULL AND f.skipped_reason IS NULL
),
pairs AS (
    SELECT m.image_id, a.entry, a.class, a.model_key, a.request_hash
    FROM members m JOIN asked a USING (class) WHERE a.image_id IS NULL
    UNION ALL
    SELECT a.image_id, a.entry, a.class, a.model_key, a.request_hash
    FROM members m JOIN asked a USING (class, image_id)
)
"""
_SETTLED = (
    "(SELECT * FROM outcomes WHERE state <> 'failed') "
    "USING (image_id, entry, class, model_key, request_hash)"
)
_OF_THEIR_CLASS = """
standing AS (
    SELECT image_id, min(path) AS path, arg_min_null(class, path) AS class
    FROM dataset_files SEMI JOIN {pairs} USING (image_id)
    WHERE skipped_reason IS NULL
    GROUP BY image_id
),
{name} AS (
    SELECT DISTINCT p.*, s.path, i.width_px, i.height_px
    FROM {pairs} p
    JOIN standing s ON s.image_id = p.image_id AND coalesce(s.class, p.class) = p.class
    JOIN images i ON i.image_id = p.image_id AND i.status = 'accepted'
    JOIN classes c ON c.class = p.class AND NOT c.retired
)
"""
_DUE = f"""
WITH {_ASKED},
open_pairs AS (SELECT * FROM pairs {{unsettled}}),
{_OF_THEIR_CLASS.format(pairs="open_pairs", name="candidates")},
past AS (
    SELECT image_id, entry, model_key, max(attempt) AS attempts
    FROM outcomes SEMI JOIN candidates USING (image_id, entry, model_key)
    GROUP BY ALL
),
failures AS (
    SELECT image_id, entry, class, model_key, request_hash, count(*) AS failed
    FROM outcomes SEMI JOIN candidates USING (image_id, entry, class, model_key, request_hash)
    WHERE state = 'failed'
    GROUP BY ALL
),
judged AS (
    SELECT c.*, coalesce(p.attempts, 0) + 1 AS attempt,
        coalesce(f.failed, 0) >= {MAX_ATTEMPTS} AS held
    FROM candidates c
    LEFT JOIN past p USING (image_id, entry, model_key)
    LEFT JOIN failures f USING (image_id, entry, class, model_key, request_hash)
)
"""


def due_images(store: AnnotationStore, ask: Ask, *, force: bool = False) -> pa.Table:
    """Accepted images of a class that this prompt has not settled for this model key.

    Returns columns image_id, path, width_px, height_px, request_hash, attempt (number of the
    attempt to come), in order of aspect and size.
    """
    unsettled = "" if force else f"ANTI JOIN {_SETTLED}"
    sql = f"""{_DUE.format(unsettled=unsettled)}
    SELECT image_id, path, width_px, height_px, request_hash, attempt
    FROM judged WHERE {"true" if force else "NOT held"}
    ORDER BY width_px::DOUBLE / height_px, width_px, path
    """
    return store.query(sql, _columns([ask]))


def count_due(store: AnnotationStore, asks: Sequence[Ask]) -> pa.Table:
    """How many images are due for each entry and class, in one query.

    Returns columns entry, class, due, held (failed too often to be asked again unforced); pairs
    with nothing of either are left out.
    """
    sql = f"""{_DUE.format(unsettled=f"ANTI JOIN {_SETTLED}")}
    SELECT entry, class, count(*) FILTER (NOT held) AS due, count(*) FILTER (held) AS held
    FROM judged GROUP BY entry, class ORDER BY entry, class
    """
    return store.query(sql, _columns(asks))


def new_files(store: AnnotationStore) -> dict[str | None, str]:
    """Class -> a digest of its files that cleaning has not looked at yet; ``None`` stands for
    files that count for every class. Classes without new files are left out."""
    rows = store.query(
        "SELECT class, md5(string_agg(concat_ws('|', path, size_bytes, mtime_ns), chr(10) "
        "ORDER BY path)) AS digest FROM files WHERE status = 'new' GROUP BY class"
    )
    return dict(zip(rows["class"].to_pylist(), rows["digest"].to_pylist(), strict=True))


_SUPERSEDED = f"""
WITH {_ASKED},
answered_pairs AS (SELECT * FROM pairs SEMI JOIN {_SETTLED}),
{_OF_THEIR_CLASS.format(pairs="answered_pairs", name="candidates")},
latest AS (
    SELECT image_id, entry, class, model_key, request_hash
    FROM outcomes SEMI JOIN candidates USING (image_id, entry, class, model_key)
    WHERE state <> 'failed'
    QUALIFY row_number() OVER (
        PARTITION BY image_id, entry, class, model_key ORDER BY attempt DESC
    ) = 1
),
superseded AS (
    SELECT * FROM candidates
    ANTI JOIN latest USING (image_id, entry, class, model_key, request_hash)
),
past AS (
    SELECT image_id, entry, model_key, max(attempt) AS attempts
    FROM outcomes SEMI JOIN superseded USING (image_id, entry, model_key)
    GROUP BY ALL
)
SELECT o.* REPLACE (p.attempts + 1 AS attempt, $6 AS run_id, $7 AS created_at)
FROM outcomes o
SEMI JOIN superseded USING (image_id, entry, class, model_key, request_hash)
JOIN past p USING (image_id, entry, model_key)
WHERE o.state <> 'failed'
QUALIFY row_number() OVER (
    PARTITION BY o.image_id, o.entry, o.class, o.model_key
    ORDER BY o.attempt DESC, o.parser_version DESC
) = 1
"""


def restore_earlier_answers(store: AnnotationStore, ask: Ask, run_id: str) -> int:
    """Let the answer to this very prompt hold again where a later one, to another prompt, does.

    So a plan can be changed and changed back, and nothing is asked twice. The outcome is recorded
    once more, as a further attempt with the same generation. Returns how many images that are.
    """
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = store.query(_SUPERSEDED, (*_columns([ask]), run_id, now))
    if rows.num_rows:
        with store.transaction() as tx:
            tx.insert("outcomes", rows, skip_existing=True)
    return rows.num_rows


def _columns(asks: Sequence[Ask]) -> tuple[list[str | None], ...]:
    """Parameters $1 to $5 of ``_ASKED``."""

    def rows() -> Iterator[tuple[str, str, str, str, str | None]]:
        for ask in asks:
            key = (ask.entry, ask.class_slug, ask.model_key)
            if isinstance(ask.request_hash, str):
                yield *key, ask.request_hash, None
            else:
                for image_id, request_hash in ask.request_hash.items():
                    yield *key, request_hash, image_id

    return tuple(map(list, zip(*rows(), strict=True))) or ([],) * 5


_STANDING = f"""
WITH latest AS (
    SELECT state, generation_id, label, parser_version, entry, model_key
    FROM outcomes SEMI JOIN (SELECT image_id FROM class_images WHERE class = $1) USING (image_id)
    WHERE class = $1 AND entry = $2 AND model_key = $3
    QUALIFY row_number() OVER (
        PARTITION BY image_id
        ORDER BY state <> 'failed' DESC, created_at DESC, attempt DESC, parser_version DESC
    ) = 1
)
SELECT state, count(*) AS images, sum(annotations)::BIGINT AS annotations
FROM (
    SELECT state, (
        SELECT count(*) FROM annotations a
        WHERE a.generation_id = h.generation_id AND a.label = h.label
          AND a.parser_version = h.parser_version
          AND (a.score IS NULL OR a.score >= h.threshold)
    ) AS annotations
    FROM ({_WITH_LIMIT.format(outcomes="FROM latest")}) h
)
GROUP BY state ORDER BY state
"""


def class_standing(
    store: AnnotationStore, view: View, *, entry: str, class_slug: str, model_key: str
) -> pa.Table:
    """Where one class stands with one model key, whichever run it comes from.

    Returns columns state, images (accepted ones of the class, by their latest outcome) and
    annotations (of the class's label, those that count).
    """
    return store.query(_STANDING, (class_slug, entry, model_key), view.limits)


# Per image x entry x class: the plan's model key if it has an outcome, else the newest; a failed
# attempt never hides an earlier answer.
_CURRENT_OUTCOMES = """
SELECT o.*, i.path, i.image_number, c.display_name, f.class IS NOT NULL AS belongs
FROM (
    SELECT o.* FROM {outcomes} o LEFT JOIN ({current_keys}) k USING (entry)
    QUALIFY row_number() OVER (
        PARTITION BY o.image_id, o.entry, o.class
        ORDER BY o.model_key IS NOT DISTINCT FROM k.current_key DESC,
                 o.state <> 'failed' DESC, o.created_at DESC, o.attempt DESC,
                 o.parser_version DESC
    ) = 1
) o
JOIN classes c USING (class)
JOIN (SELECT DISTINCT image_id, path, image_number FROM class_images) i USING (image_id)
LEFT JOIN class_images f ON f.image_id = o.image_id AND f.class = o.class
WHERE NOT c.retired AND o.entry IN ({entries})
"""


def current_sql(model_keys: Mapping[str, str], outcomes: str = "outcomes") -> str:
    """The query behind `current_outcomes`, for those that go on from it.

    model_keys: as there. outcomes: what it chooses from, by default the whole table; of an image,
    entry and class it has all rows or none.
    """
    return _CURRENT_OUTCOMES.format(
        outcomes=outcomes,
        current_keys=_keys_sql(model_keys),
        entries=", ".join(map(repr, model_keys)),
    )


def current_outcomes(
    store: AnnotationStore, model_keys: Mapping[str, str], *, only: bool = False
) -> pd.DataFrame:
    """The outcome that holds for every accepted image x entry x class.

    model_keys, only: as in `View`.
    Columns: those of table ``outcomes``, the image's ``path`` and ``image_number``, the class's
    ``display_name``, and ``belongs``: whether the image is one of that class's own (a group asks
    every image for the labels of all its classes).
    """
    outcomes = _given_by(model_keys) if only else "outcomes"
    return store.query(
        f"{current_sql(model_keys, outcomes)} ORDER BY entry, class, path"
    ).to_pandas()


def other_models(
    store: AnnotationStore, entry: str, classes: Sequence[str], model_key: str
) -> list[Row]:
    """The models other than this one that answered an entry of these classes, the newest answer
    first: ``model_key``, and its ``name`` if it is known."""
    sql = """
    SELECT model_key, any_value(m.name) AS name
    FROM outcomes o LEFT JOIN models m USING (model_key)
    WHERE o.entry = $1 AND list_contains($2::VARCHAR[], o.class) AND model_key <> $3
        AND o.generation_id IS NOT NULL
    GROUP BY model_key ORDER BY max(o.created_at) DESC, model_key
    """
    return store.query(sql, (entry, list(classes), model_key)).to_pylist()


NESTED = ["point", "polygon", "keypoints"]
"""Columns of annotations that take most of the time to read: points, one or many."""


def current_annotations(
    store: AnnotationStore, view: View, class_slug: str | None = None, *, nested: bool = True
) -> pd.DataFrame:
    """Annotations behind the current outcomes, one row for each annotation x class it answers.

    Corrections are applied, see `apply_corrections`; a class shows those of the label that was
    asked for it.

    Columns: those of table ``annotations``, of the outcome ``class``, ``display_name``, ``path``,
    ``image_number``, ``belongs``, ``model_key``, ``corrected_by``: who gave the annotation, NULL if
    a model did; and ``measured_score`` and ``is_calibrated``, see `View.calibrate`.

    nested: whether ``NESTED`` columns are among them; without them it is three times as fast.
    """
    corrections = stored_corrections(store, list(view.model_keys))
    rows = answered_annotations(store, view, class_slug, nested=nested or bool(corrections))
    if corrections:
        rows = _corrected(store, view.model_keys, rows, corrections, class_slug)
    if corrections and not nested:
        rows = rows.drop_columns(NESTED)
    return view.calibrate(rows.to_pandas())


def answered_annotations(
    store: AnnotationStore,
    view: View,
    class_slug: str | None = None,
    image_ids: Sequence[str] | None = None,
    *,
    nested: bool = True,
) -> pa.Table:
    """What models answered, before corrections, scored as it was measured: otherwise rows as of
    `current_annotations`.

    image_ids: of these images only.
    """
    left_out = "" if nested else f"EXCLUDE ({', '.join(NESTED)})"
    outcomes = _given_by(view.model_keys) if view.only else "outcomes"
    if image_ids is not None:
        outcomes = f"(SELECT * FROM {outcomes} WHERE image_id IN (SELECT unnest($2::VARCHAR[])))"
    current = current_sql(view.model_keys, outcomes)
    sql = f"""
    WITH holding AS (
        SELECT * FROM ({_WITH_LIMIT.format(outcomes=current)}) WHERE class = $1 OR $1 IS NULL
    )
    SELECT a.* {left_out}, h.class, h.display_name, h.path, h.image_number, h.belongs, h.model_key,
        NULL::VARCHAR AS corrected_by
    FROM holding h JOIN annotations a USING (generation_id, parser_version)
    WHERE a.label = h.label AND (a.score IS NULL OR a.score >= h.threshold)
    ORDER BY a.entry, h.class, h.path, a.position
    """
    params = (class_slug,) if image_ids is None else (class_slug, list(image_ids))
    return store.query(sql, params, view.limits)


def stored_corrections(
    store: AnnotationStore, entries: Sequence[str] | None = None
) -> list[Correction]:
    """What people corrected, in order of time. entries: of these only."""
    rows = store.query(
        "SELECT * FROM corrections WHERE $1::VARCHAR[] IS NULL OR entry IN (SELECT unnest($1)) "
        "ORDER BY created_at, correction_id",
        (None if entries is None else list(entries),),
    )
    return [Correction.of(row) for row in rows.to_pylist()]


_OF_ANSWER = ("class", "display_name", "path", "image_number", "belongs", "model_key")


def _corrected(
    store: AnnotationStore,
    model_keys: Mapping[str, str],
    rows: pa.Table,
    corrections: Sequence[Correction],
    class_slug: str | None,
) -> pa.Table:
    """Corrections on top of the rows of `answered_annotations`."""
    edits = _by_image_and_entry(corrections)
    outcomes = "(SELECT * FROM outcomes SEMI JOIN corrections USING (image_id, entry))"
    held = store.query(
        f"SELECT c.*, i.width_px, i.height_px FROM ({current_sql(model_keys, outcomes)}) c "
        "JOIN images i USING (image_id) WHERE class = $1 OR $1 IS NULL",
        (class_slug,),
    ).to_pylist()
    is_touched = pc.is_in(
        rows["image_id"], pa.array([row["image_id"] for row in held], pa.string())
    )
    answered: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows.filter(is_touched).to_pylist():
        answered.setdefault((row["image_id"], row["entry"], row["class"]), []).append(row)
    corrected = []
    for outcome in held:
        image_id, entry = outcome["image_id"], outcome["entry"]
        found = apply_corrections(
            answered.pop((image_id, entry, outcome["class"]), []),
            edits[image_id, entry],
            (outcome["width_px"], outcome["height_px"]),
        )
        of_answer = {name: outcome[name] for name in _OF_ANSWER}
        corrected += [row | of_answer for row in found if row["label"] == outcome["label"]]
    # Other entries' annotations of these images are as they were.
    corrected += [row for others in answered.values() for row in others]
    return pa.concat_tables(
        [rows.filter(pc.invert(is_touched)), pa.Table.from_pylist(corrected, schema=rows.schema)]
    ).sort_by([(name, "ascending") for name in ("entry", "class", "path", "position")])


def _by_image_and_entry(
    corrections: Sequence[Correction],
) -> dict[tuple[str, str], list[Correction]]:
    edits: dict[tuple[str, str], list[Correction]] = {}
    for correction in corrections:
        edits.setdefault((correction.image_id, correction.entry), []).append(correction)
    return edits


def current_regions(store: AnnotationStore, view: View, entry: str, label: str) -> pa.Table:
    """The boxes that an entry found of a label, on every image that it was asked of.

    Corrections are applied. Returns columns image_id, annotation_id, x0_px, y0_px, x1_px, y1_px,
    text; an image without boxes has one row with NULL in all but the first.
    """
    current = current_sql({entry: view.model_keys[entry]})
    sql = f"""
    WITH holding AS (
        SELECT DISTINCT image_id, generation_id, parser_version, threshold
        FROM ({_WITH_LIMIT.format(outcomes=current)})
        WHERE label = $1 AND state <> 'failed'
    ),
    boxes AS (SELECT * FROM annotations WHERE label = $1 AND x0_px IS NOT NULL)
    SELECT h.image_id, a.annotation_id, a.x0_px, a.y0_px, a.x1_px, a.y1_px, a.text,
        h.generation_id, h.parser_version, a.position
    FROM holding h LEFT JOIN boxes a
        ON a.generation_id = h.generation_id AND a.parser_version = h.parser_version
        AND (a.score IS NULL OR a.score >= h.threshold)
    ORDER BY h.image_id, a.position
    """
    rows = store.query(sql, (label,), view.limits)
    corrections = stored_corrections(store, [entry])
    if corrections:
        rows = _corrected_regions(store, rows, corrections, entry, label)
    return rows.select(_REGION)


_REGION = ["image_id", "annotation_id", "x0_px", "y0_px", "x1_px", "y1_px", "text"]


def _corrected_regions(
    store: AnnotationStore,
    rows: pa.Table,
    corrections: Sequence[Correction],
    entry: str,
    label: str,
) -> pa.Table:
    """Corrections on top of the boxes of `current_regions`."""
    edits = _by_image_and_entry(corrections)
    sizes = store.query(
        "SELECT image_id, width_px, height_px FROM images SEMI JOIN corrections USING (image_id)"
    ).to_pylist()
    size_of = {size["image_id"]: (size["width_px"], size["height_px"]) for size in sizes}
    is_touched = pc.is_in(rows["image_id"], pa.array([image_id for image_id, _ in edits]))
    answers: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows.filter(is_touched).to_pylist():
        answer = answers.setdefault(
            (row["image_id"], row["generation_id"], row["parser_version"]), []
        )
        if row["annotation_id"]:
            answer.append(dict.fromkeys(SHAPE) | row | {"label": label, "corrected_by": None})
    corrected: list[Row] = []
    for (image_id, *_), answer in answers.items():
        found = apply_corrections(answer, edits[image_id, entry], size_of[image_id])
        boxes = [row for row in found if row["label"] == label and row["x0_px"] is not None]
        corrected += boxes or [{"image_id": image_id}]
    return pa.concat_tables(
        [rows.filter(pc.invert(is_touched)), pa.Table.from_pylist(corrected, schema=rows.schema)]
    ).sort_by([("image_id", "ascending"), ("position", "ascending")])


def _given_by(model_keys: Mapping[str, str]) -> str:
    """The outcomes of these model keys, as a table in SQL."""
    return (
        f"(SELECT o.* FROM outcomes o SEMI JOIN ({_keys_sql(model_keys)}) k "
        "ON o.entry = k.entry AND o.model_key = k.current_key)"
    )


def _keys_sql(model_keys: Mapping[str, str]) -> str:
    rows = ", ".join(f"('{entry}', '{key}')" for entry, key in model_keys.items())
    return f"SELECT * FROM (VALUES {rows}) AS t(entry, current_key)"
