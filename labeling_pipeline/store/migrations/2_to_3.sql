-- An outcome says which parser read its answer, and a correction what it is about.
ALTER TABLE outcomes RENAME TO outcomes_2;

CREATE TABLE outcomes (
    image_id VARCHAR NOT NULL,
    entry VARCHAR NOT NULL,
    class VARCHAR NOT NULL,
    model_key VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,
    parser_version INTEGER NOT NULL,
    label VARCHAR NOT NULL,
    request_hash VARCHAR NOT NULL,
    state VARCHAR NOT NULL,
    presence DOUBLE,
    error VARCHAR,
    generation_id VARCHAR,
    dropped INTEGER NOT NULL DEFAULT 0,
    run_id VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL
);

INSERT INTO outcomes BY NAME
SELECT
    o.*,
    CASE WHEN o.generation_id IS NULL THEN 0 ELSE coalesce(a.read_by, 1) END AS parser_version
FROM outcomes_2 o LEFT JOIN (
    SELECT generation_id, max(parser_version) AS read_by FROM annotations GROUP BY ALL
) a USING (generation_id);
DROP TABLE outcomes_2;

-- No verb of version 2 wrote a correction.
DROP TABLE corrections;
CREATE TABLE corrections (
    correction_id VARCHAR PRIMARY KEY,
    image_id VARCHAR NOT NULL,
    entry VARCHAR NOT NULL,
    label VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    annotation_id VARCHAR,
    target JSON,
    "values" JSON,
    author VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL
);
