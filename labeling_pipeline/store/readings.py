"""Raw answers and who read them: which ones an older parser read, and all that is stored of them.

An answer is everything that was generated about one image at one time: a first generation and those
that follow it. It bears the id of the first.
"""

from collections.abc import Mapping

import pyarrow as pa

from labeling_pipeline.errors import StoreError
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_sql

_TODAY = """
today AS (
    SELECT unnest($1::VARCHAR[]) AS model_key, unnest($2::INTEGER[]) AS parser_version
)
"""
_COUNTS = f"""
WITH {_TODAY},
readings AS (
    SELECT entry, model_key, generation_id, max(parser_version) AS parser_version
    FROM outcomes WHERE generation_id IS NOT NULL
    GROUP BY entry, model_key, generation_id, class, attempt
)
SELECT entry, model_key, any_value(m.name) AS model, count(DISTINCT generation_id) AS answers,
    count(DISTINCT generation_id) FILTER (r.parser_version < t.parser_version) AS read_before
FROM readings r LEFT JOIN today t USING (model_key) LEFT JOIN models m USING (model_key)
GROUP BY entry, model_key
ORDER BY entry, model_key
"""


def count_answers(store: AnnotationStore, parser_versions: Mapping[str, int]) -> pa.Table:
    """How many answers there are, and how many of them only older parsers read.

    parser_versions: model key -> today's; answers of other model keys count as read by nobody's.
    Returns columns entry, model_key, model (its name), answers, read_before.
    """
    return store.query(_COUNTS, (list(parser_versions), list(parser_versions.values())))


def count_current_read_before(
    store: AnnotationStore, model_keys: Mapping[str, str], parser_versions: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """Entry -> display name of a class -> outcomes of the current view, of the images of the class
    itself, that only older parsers read; never 0.

    model_keys: as for `current_outcomes`. parser_versions: model key -> today's.
    """
    # Most answers have been read by every parser since: whether it holds is asked of the others.
    sql = f"""
    WITH {_TODAY},
    suspects AS (
        SELECT DISTINCT image_id, entry, class FROM outcomes o JOIN today t USING (model_key)
        WHERE generation_id IS NOT NULL AND o.parser_version < t.parser_version
    ),
    among AS (SELECT * FROM outcomes SEMI JOIN suspects USING (image_id, entry, class))
    SELECT entry, display_name, count(*) AS outcomes
    FROM ({current_sql(model_keys, "among")}) h JOIN today t USING (model_key)
    WHERE h.belongs AND h.generation_id IS NOT NULL AND h.parser_version < t.parser_version
    GROUP BY entry, display_name ORDER BY entry, display_name
    """
    counts: dict[str, dict[str, int]] = {}
    rows = store.query(sql, (list(parser_versions), list(parser_versions.values()))).to_pylist()
    for row in rows:
        counts.setdefault(row["entry"], {})[row["display_name"]] = row["outcomes"]
    return counts


# Row numbers, because the tables have no index: in files that are only appended to, rows stay where
# they are, and those that were written together are read together.
_READ_BEFORE = """
WITH readings AS (
    SELECT generation_id, max(parser_version) AS parser_version,
        arg_max(rowid, parser_version) AS outcome_row
    FROM outcomes WHERE entry = $1 AND model_key = $2 AND generation_id IS NOT NULL
    GROUP BY generation_id, class, attempt
    HAVING max(parser_version) < $3
),
answers AS (
    SELECT generation_id, max(parser_version) AS parser_version, list(outcome_row) AS outcome_rows
    FROM readings GROUP BY generation_id
),
asked AS (
    SELECT coalesce(follows, generation_id) AS generation_id, any_value(image_id) AS image_id,
        list(rowid) AS generation_rows
    FROM generations WHERE entry = $1 AND model_key = $2
    GROUP BY ALL
),
found AS (
    SELECT generation_id, parser_version, count(*) AS annotations
    FROM annotations WHERE entry = $1 GROUP BY ALL
)
SELECT a.generation_id, a.outcome_rows, g.generation_rows, i.width_px, i.height_px,
    coalesce(f.annotations, 0) AS annotations
FROM answers a
JOIN asked g USING (generation_id)
JOIN images i USING (image_id)
LEFT JOIN found f USING (generation_id, parser_version)
ORDER BY list_min(g.generation_rows)
"""


def answers_read_before(
    store: AnnotationStore, entry: str, model_key: str, parser_version: int
) -> pa.Table:
    """The answers that only older parsers read, in the order in which they were written.

    Returns columns generation_id, outcome_rows and generation_rows (where they stand in their
    tables), width_px and height_px of the image, annotations (how many the last reading found).
    """
    return store.query(_READ_BEFORE, (entry, model_key, parser_version))


_GENERATIONS = """
SELECT coalesce(follows, generation_id) AS answer, generation_id, image_id, request_hash, attempt,
    task, labels, crop_px, region, prompt, tokens, token_logprobs, token_window_mass, none_probs,
    finish_reason, [frame_width_px, frame_height_px] AS frame_size_px, latency_s
FROM generations
WHERE rowid IN (SELECT unnest($1::BIGINT[]))
    AND coalesce(follows, generation_id) IN (SELECT unnest($2::VARCHAR[]))
ORDER BY answer
"""

_OUTCOMES = """
SELECT generation_id AS answer, class, label, attempt, request_hash, state, created_at
FROM outcomes
WHERE rowid IN (SELECT unnest($1::BIGINT[])) AND generation_id IN (SELECT unnest($2::VARCHAR[]))
ORDER BY answer
"""


def stored_answers(store: AnnotationStore, answers: pa.Table) -> tuple[pa.Table, pa.Table]:
    """All that is stored of some answers: their generations, and the outcomes of their last
    reading. Both have a column ``answer`` and are sorted by it; the generations of one answer come
    in no order.

    answers: some rows of ``answers_read_before``.

    Raises:
        StoreError: the file was rewritten since the answers were looked up.
    """
    ids = answers["generation_id"].to_pylist()
    tables = []
    for sql, column in ((_GENERATIONS, "generation_rows"), (_OUTCOMES, "outcome_rows")):
        rows = answers[column].combine_chunks().flatten().to_pylist()
        table = store.query(sql, (rows, ids))
        if table.num_rows != len(rows):
            raise StoreError(
                f"{store.path} was rewritten while its answers were read again: nothing is lost, "
                "start anew"
            )
        tables.append(table)
    return tables[0], tables[1]


_BOXES = """
SELECT annotation_id, x0_px, y0_px, x1_px, y1_px FROM annotations
WHERE annotation_id IN (SELECT unnest($1::VARCHAR[]))
UNION ALL
SELECT correction_id, ("values"->>'x0_px')::DOUBLE, ("values"->>'y0_px')::DOUBLE,
    ("values"->>'x1_px')::DOUBLE, ("values"->>'y1_px')::DOUBLE
FROM corrections WHERE correction_id IN (SELECT unnest($1::VARCHAR[]))
"""


def boxes_of(store: AnnotationStore, annotation_ids: list[str]) -> pa.Table:
    """Where annotations are, those that people gave too: columns annotation_id, x0_px, y0_px,
    x1_px, y1_px."""
    return store.query(_BOXES, (annotation_ids,))
