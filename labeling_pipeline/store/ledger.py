"""What is due and what holds now: the set-based questions asked of the store.

The atom is the outcome of image x entry x class x model key. Nothing here loads a model or knows
of Dagster.
"""

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa

from labeling_pipeline.store.annotation_store import AnnotationStore

MAX_ATTEMPTS = 3
"""A failed outcome is asked again until this many attempts failed; then it is held."""

_DUE = """
WITH past AS (
    SELECT
        image_id,
        max(attempt) AS attempts,
        count(*) FILTER (
            class = $class AND request_hash = $request_hash AND state <> 'failed'
        ) AS settled,
        count(*) FILTER (
            class = $class AND request_hash = $request_hash AND state = 'failed'
        ) AS failed
    FROM outcomes
    WHERE entry = $entry AND model_key = $model_key
    GROUP BY image_id
)
SELECT i.image_id, i.path, i.width_px, i.height_px, coalesce(p.attempts, 0) + 1 AS attempt
FROM class_images i LEFT JOIN past p USING (image_id)
WHERE i.class = $class
  AND ($force OR (coalesce(p.settled, 0) = 0 AND coalesce(p.failed, 0) < $max_attempts))
ORDER BY i.width_px::DOUBLE / i.height_px, i.width_px, i.path
"""


def due_images(
    store: AnnotationStore,
    *,
    entry: str,
    class_slug: str,
    model_key: str,
    request_hash: str,
    force: bool = False,
) -> pa.Table:
    """Accepted images of a class that this prompt has not settled for this model key.

    Returns columns image_id, path, width_px, height_px, attempt (number of the attempt to come),
    in order of aspect and size, so that neighbours batch well.
    """
    return store.query(
        _DUE.replace("$force", "true" if force else "false")
        .replace("$max_attempts", str(MAX_ATTEMPTS))
        .replace("$class", "$1")
        .replace("$request_hash", "$2")
        .replace("$entry", "$3")
        .replace("$model_key", "$4"),
        (class_slug, request_hash, entry, model_key),
    )


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


def _keys_sql(model_keys: Mapping[str, str]) -> str:
    rows = ", ".join(f"('{entry}', '{key}')" for entry, key in model_keys.items())
    return f"SELECT * FROM (VALUES {rows}) AS t(entry, current_key)"


def _of(model_keys: Mapping[str, str]) -> str:
    return f"AND o.entry IN ({', '.join(repr(entry) for entry in model_keys)})"
