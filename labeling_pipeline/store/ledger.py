"""What is due and what holds now: the set-based questions asked of the store.

The atom is the outcome of image x entry x class x model key. Nothing here loads a model or knows
of Dagster.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd
import pyarrow as pa

from labeling_pipeline.store.annotation_store import AnnotationStore

MAX_ATTEMPTS = 3
"""A failed outcome is asked again until this many attempts failed; then it is held."""


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
members AS (
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


_STANDING = """
WITH latest AS (
    SELECT state, generation_id, label, parser_version
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
        WHERE a.generation_id = l.generation_id AND a.label = l.label
          AND a.parser_version = l.parser_version AND (a.score IS NULL OR a.score >= $4)
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
                 o.state <> 'failed' DESC, o.created_at DESC, o.attempt DESC,
                 o.parser_version DESC
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
    holding AS (SELECT * FROM ({_CURRENT_OUTCOMES} {_of(model_keys)}) WHERE true {wanted})
    SELECT a.*, h.class, h.display_name, h.path, h.image_number, h.belongs, h.model_key
    FROM holding h JOIN annotations a USING (generation_id, parser_version)
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
        SELECT DISTINCT image_id, generation_id, parser_version
        FROM ({_CURRENT_OUTCOMES} AND o.entry = $1)
        WHERE label = $2 AND state <> 'failed'
    ),
    boxes AS (SELECT * FROM annotations WHERE label = $2 AND x0_px IS NOT NULL)
    SELECT h.image_id, a.annotation_id, a.x0_px, a.y0_px, a.x1_px, a.y1_px, a.text
    FROM holding h LEFT JOIN boxes a
        ON a.generation_id = h.generation_id AND a.parser_version = h.parser_version
        AND (a.score IS NULL OR a.score >= $3)
    ORDER BY h.image_id, a.position
    """
    return store.query(sql, (entry, label, threshold))


def _keys_sql(model_keys: Mapping[str, str]) -> str:
    rows = ", ".join(f"('{entry}', '{key}')" for entry, key in model_keys.items())
    return f"SELECT * FROM (VALUES {rows}) AS t(entry, current_key)"


def _of(model_keys: Mapping[str, str]) -> str:
    return f"AND o.entry IN ({', '.join(repr(entry) for entry in model_keys)})"
