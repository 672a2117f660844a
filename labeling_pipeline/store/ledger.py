"""What is due and what holds now: the set-based questions asked of the store.

The atom is the outcome of image x entry x class x model key. Nothing here loads a model or knows
of Dagster.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from labeling_pipeline.store.annotation_store import AnnotationStore

MAX_ATTEMPTS = 3
"""A failed outcome is asked again until this many attempts failed; then it is held."""

_DUE = """
WITH asked AS ({asked}),
past AS (
    SELECT
        o.image_id,
        max(o.attempt) AS attempts,
        count(*) FILTER (
            o.class = $1 AND o.request_hash = a.request_hash AND o.state <> 'failed'
        ) AS settled,
        count(*) FILTER (
            o.class = $1 AND o.request_hash = a.request_hash AND o.state = 'failed'
        ) AS failed
    FROM outcomes o JOIN asked a USING (image_id)
    WHERE o.entry = $2 AND o.model_key = $3
    GROUP BY o.image_id
)
SELECT
    i.image_id, i.path, i.width_px, i.height_px, a.request_hash,
    coalesce(p.attempts, 0) + 1 AS attempt
FROM class_images i JOIN asked a USING (image_id) LEFT JOIN past p USING (image_id)
WHERE i.class = $1 AND (
    {force} OR (coalesce(p.settled, 0) = 0 AND coalesce(p.failed, 0) < {max_attempts})
)
ORDER BY i.width_px::DOUBLE / i.height_px, i.width_px, i.path
"""
_ALL_ALIKE = (
    "SELECT DISTINCT image_id, $4::VARCHAR AS request_hash FROM class_images WHERE class = $1"
)
_EACH_ITS_OWN = "SELECT unnest($4::VARCHAR[]) AS image_id, unnest($5::VARCHAR[]) AS request_hash"


def due_images(
    store: AnnotationStore,
    *,
    entry: str,
    class_slug: str,
    model_key: str,
    request_hash: str | Mapping[str, str],
    force: bool = False,
) -> pa.Table:
    """Accepted images of a class that this prompt has not settled for this model key.

    request_hash: of the prompt; or image_id -> hash, where each image is asked something of its
        own, and images outside the mapping are asked nothing.

    Returns columns image_id, path, width_px, height_px, request_hash, attempt (number of the
    attempt to come), in order of aspect and size.
    """
    asked: str = _ALL_ALIKE
    hashes: list[Any] = [request_hash]
    if isinstance(request_hash, Mapping):
        asked, hashes = _EACH_ITS_OWN, [list(request_hash), list(request_hash.values())]
    sql = _DUE.format(asked=asked, force="true" if force else "false", max_attempts=MAX_ATTEMPTS)
    return store.query(sql, (class_slug, entry, model_key, *hashes))


_STANDING = """
WITH latest AS (
    SELECT state, generation_id, label
    FROM outcomes SEMI JOIN (SELECT image_id FROM class_images WHERE class = $1) USING (image_id)
    WHERE class = $1 AND entry = $2 AND model_key = $3
    QUALIFY row_number() OVER (
        PARTITION BY image_id ORDER BY state <> 'failed' DESC, created_at DESC, attempt DESC
    ) = 1
)
SELECT state, count(*) AS images, sum(annotations)::BIGINT AS annotations
FROM (
    SELECT state, (
        SELECT count(*) FROM annotations a
        WHERE a.generation_id = l.generation_id AND a.label = l.label
          AND (a.score IS NULL OR a.score >= $4)
    ) AS annotations
    FROM latest l
)
GROUP BY state ORDER BY state
"""


def class_standing(
    store: AnnotationStore, *, entry: str, class_slug: str, model_key: str, threshold: float
) -> pa.Table:
    """Where one class stands with one model key, whichever run it comes from.

    Returns columns state, images (accepted ones of the class, by their latest outcome) and
    annotations (of the class's label, from the threshold on).
    """
    return store.query(_STANDING, (class_slug, entry, model_key, threshold))


# Per image x entry x class: the plan's model key if it has an outcome, else the newest; a failed
# attempt never hides an earlier answer.
_CURRENT_OUTCOMES = """
SELECT o.*, i.path, i.image_number, c.display_name, f.class IS NOT NULL AS belongs
FROM (
    SELECT o.* FROM outcomes o LEFT JOIN current_keys k USING (entry)
    QUALIFY row_number() OVER (
        PARTITION BY o.image_id, o.entry, o.class
        ORDER BY o.model_key IS NOT DISTINCT FROM k.current_key DESC,
                 o.state <> 'failed' DESC, o.created_at DESC, o.attempt DESC
    ) = 1
) o
JOIN classes c USING (class)
JOIN (SELECT DISTINCT image_id, path, image_number FROM class_images) i USING (image_id)
LEFT JOIN class_images f ON f.image_id = o.image_id AND f.class = o.class
WHERE NOT c.retired
"""


def current_outcomes(store: AnnotationStore, model_keys: Mapping[str, str]) -> pd.DataFrame:
    """The outcome that holds for every accepted image x entry x class.

    model_keys: entry -> the plan's model key; entries outside it are left out.
    Columns: those of table ``outcomes``, the image's ``path`` and ``image_number``, the class's
    ``display_name``, and ``belongs``: whether the image is one of that class's own (a group asks
    every image for the labels of all its classes).
    """
    sql = f"WITH current_keys AS ({_keys_sql(model_keys)}) {_CURRENT_OUTCOMES} {_of(model_keys)}"
    return store.query(f"{sql} ORDER BY entry, class, path").to_pandas()


def current_annotations(
    store: AnnotationStore,
    model_keys: Mapping[str, str],
    thresholds: Mapping[str, float],
    class_slug: str | None = None,
) -> pd.DataFrame:
    """Annotations behind the current outcomes, one row for each annotation x class it answers.

    thresholds: entry -> lowest score kept.
    Columns: those of table ``annotations``, and of the outcome ``class``, ``display_name``,
    ``path``, ``image_number``, ``belongs``, ``model_key``.
    """
    limits = " ".join(f"WHEN '{entry}' THEN {limit}" for entry, limit in thresholds.items())
    limit = f"CASE a.entry {limits} ELSE 0 END" if limits else "0"
    wanted = "AND class = $1" if class_slug else ""
    sql = f"""
    WITH current_keys AS ({_keys_sql(model_keys)}),
    holding AS (SELECT * FROM ({_CURRENT_OUTCOMES} {_of(model_keys)}) WHERE true {wanted}),
    newest AS (
        SELECT * FROM annotations
        QUALIFY parser_version = max(parser_version) OVER (PARTITION BY generation_id)
    )
    SELECT a.*, h.class, h.display_name, h.path, h.image_number, h.belongs, h.model_key
    FROM holding h JOIN newest a USING (generation_id)
    WHERE a.label = h.label AND (a.score IS NULL OR a.score >= {limit})
    ORDER BY a.entry, h.class, h.path, a.position
    """
    return store.query(sql, (class_slug,) if class_slug else ()).to_pandas()


def current_regions(
    store: AnnotationStore, model_keys: Mapping[str, str], entry: str, label: str, threshold: float
) -> pa.Table:
    """The boxes that an entry found of a label, on every image that it was asked of.

    Returns columns image_id, annotation_id, x0_px, y0_px, x1_px, y1_px, text; an image without
    boxes has one row with NULL in all but the first.
    """
    sql = f"""
    WITH current_keys AS ({_keys_sql(model_keys)}),
    holding AS (
        SELECT DISTINCT image_id, generation_id FROM ({_CURRENT_OUTCOMES} AND o.entry = $1)
        WHERE label = $2 AND state <> 'failed'
    ),
    newest AS (
        SELECT * FROM annotations
        WHERE entry = $1 AND label = $2 AND x0_px IS NOT NULL
        QUALIFY parser_version = max(parser_version) OVER (PARTITION BY generation_id)
    )
    SELECT h.image_id, a.annotation_id, a.x0_px, a.y0_px, a.x1_px, a.y1_px, a.text
    FROM holding h LEFT JOIN newest a
        ON a.generation_id = h.generation_id AND (a.score IS NULL OR a.score >= $3)
    ORDER BY h.image_id, a.position
    """
    return store.query(sql, (entry, label, threshold))


def _keys_sql(model_keys: Mapping[str, str]) -> str:
    rows = ", ".join(f"('{entry}', '{key}')" for entry, key in model_keys.items())
    return f"SELECT * FROM (VALUES {rows}) AS t(entry, current_key)"


def _of(model_keys: Mapping[str, str]) -> str:
    return f"AND o.entry IN ({', '.join(repr(entry) for entry in model_keys)})"
