-- The annotation store, version 4. One statement per table; keys as PRIMARY KEY, but for the tables
-- that grow with every answer: DuckDB writes the index of a key anew each time the file is closed, so
-- that each batch would cost more than the one before. Their keys are kept by an anti-join on writing.
-- Coordinates: xyxy, absolute pixels of the EXIF-upright image. Times: UTC.

CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);

CREATE SEQUENCE class_numbers START 1;
CREATE TABLE classes (
    class VARCHAR PRIMARY KEY,          -- slug, the Dagster partition key
    class_number BIGINT NOT NULL DEFAULT nextval('class_numbers'),   -- order of registration
    display_name VARCHAR NOT NULL,
    retired BOOLEAN NOT NULL DEFAULT false
);

-- Every file seen in the image source. class is NULL for a file that belongs to no class of its own
-- while the plan names classes: then every class of the plan applies to it.
CREATE TABLE dataset_files (
    path VARCHAR PRIMARY KEY,           -- relative to the root of the source, '/' as separator
    class VARCHAR,
    image_id VARCHAR,                   -- NULL for a skipped file, and for one not read since it came
    size_bytes BIGINT NOT NULL,         -- -1 where the storage does not say
    mtime_ns BIGINT NOT NULL,           -- 0 where it does not
    etag VARCHAR,                       -- what the storage calls this content; NULL: it does not
    skipped_reason VARCHAR,             -- hidden_file, not_an_image, ...; NULL: the file counts
    unread_reason VARCHAR,              -- why cleaning could not read it, when it last tried
    unread_detail VARCHAR               -- the same, in a sentence
);

CREATE SEQUENCE image_numbers START 1;
CREATE TABLE images (
    image_id VARCHAR PRIMARY KEY,       -- SHA-256 of the bytes, hex
    image_number BIGINT NOT NULL DEFAULT nextval('image_numbers'),   -- the id in exports, never reused
    size_bytes BIGINT,                  -- NULL: was measured in another way, and will be anew
    width_px INTEGER,                   -- upright; NULL where the file could not be decoded
    height_px INTEGER,
    format VARCHAR,
    mode VARCHAR,
    frames INTEGER,                     -- more than one: the first was taken
    exif_orientation INTEGER,
    brightness DOUBLE,                  -- mean of luma, 0..255, at 320 px at most like the next three
    contrast DOUBLE,                    -- standard deviation of luma, 0..255
    sharpness DOUBLE,                   -- variance of the Laplacian of luma
    entropy DOUBLE,                     -- of the histogram of luma, 0..8 bits
    perceptual_hash VARCHAR,            -- hex
    cluster VARCHAR,                    -- image_id of the best image of its near-duplicate cluster
    status VARCHAR NOT NULL,            -- new (measured, not judged yet), accepted, rejected
    reason VARCHAR,                     -- why it was rejected: a short stable word
    detail VARCHAR,                     -- the same, in a sentence
    flags VARCHAR[]                     -- checks that it fails and that only flag
);

CREATE TABLE models (
    model_key VARCHAR PRIMARY KEY,
    name VARCHAR NOT NULL,
    checkpoint VARCHAR NOT NULL,
    revision VARCHAR NOT NULL,
    licence VARCHAR NOT NULL,
    parameters JSON NOT NULL            -- all that went into the key
);

CREATE TABLE generations (
    generation_id VARCHAR NOT NULL,     -- key
    follows VARCHAR,                    -- the first answer about the image; NULL: it is the first
    image_id VARCHAR NOT NULL,
    entry VARCHAR NOT NULL,
    request_hash VARCHAR NOT NULL,
    model_key VARCHAR NOT NULL,
    task VARCHAR NOT NULL,
    labels VARCHAR[] NOT NULL,
    crop_px INTEGER[],                  -- x0, y0, x1, y1 of the part that was shown; NULL: all
    region VARCHAR,                     -- the annotation that it is about, of another entry
    prompt VARCHAR NOT NULL,
    raw_text VARCHAR NOT NULL,
    tokens VARCHAR[] NOT NULL,
    token_logprobs FLOAT[] NOT NULL,
    token_window_mass FLOAT[] NOT NULL,
    none_probs FLOAT[] NOT NULL,
    finish_reason VARCHAR NOT NULL,
    frame_width_px INTEGER NOT NULL,
    frame_height_px INTEGER NOT NULL,
    latency_s DOUBLE NOT NULL,
    attempt INTEGER NOT NULL,
    run_id VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE outcomes (     -- key: image_id, entry, class, model_key, attempt, parser_version
    image_id VARCHAR NOT NULL,
    entry VARCHAR NOT NULL,
    class VARCHAR NOT NULL,
    model_key VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,
    parser_version INTEGER NOT NULL,    -- that read the answer; 0: there was none to read
    label VARCHAR NOT NULL,             -- what was asked for the class
    request_hash VARCHAR NOT NULL,      -- of the prompt and its group: another prompt is due again
    state VARCHAR NOT NULL,
    presence DOUBLE,
    error VARCHAR,
    generation_id VARCHAR,
    dropped INTEGER NOT NULL DEFAULT 0, -- pieces of the answer that are in no annotation
    run_id VARCHAR NOT NULL,            -- that asked; of an answer read again: that read it
    created_at TIMESTAMP NOT NULL       -- when it was asked, also if it was read again later
);

CREATE TABLE annotations (
    annotation_id VARCHAR NOT NULL,     -- key; from generation, parser version, position
    generation_id VARCHAR NOT NULL,     -- the first answer about the image, as in outcomes
    answered_in VARCHAR,                -- the answer that holds it: that one, or one that follows
    image_id VARCHAR NOT NULL,
    entry VARCHAR NOT NULL,
    label VARCHAR NOT NULL,
    parser_version INTEGER NOT NULL,
    position INTEGER NOT NULL,          -- in the answer, counted from 0
    x0_px DOUBLE,
    y0_px DOUBLE,
    x1_px DOUBLE,
    y1_px DOUBLE,
    point STRUCT(x_px DOUBLE, y_px DOUBLE),
    polygon STRUCT(x_px DOUBLE, y_px DOUBLE)[],
    text VARCHAR,                       -- what was read there
    score DOUBLE,
    geometric_mean DOUBLE,
    window_mass DOUBLE,
    keypoints STRUCT(name VARCHAR, x_px DOUBLE, y_px DOUBLE, score DOUBLE)[]
);

CREATE TABLE corrections (
    correction_id VARCHAR PRIMARY KEY,  -- also the id of the annotation that a person gave
    image_id VARCHAR NOT NULL,
    entry VARCHAR NOT NULL,
    label VARCHAR NOT NULL,             -- of what is corrected; of an added annotation its own
    kind VARCHAR NOT NULL,              -- add, change, delete
    annotation_id VARCHAR,              -- what is corrected; NULL for an added annotation
    target JSON,                        -- the corrected annotation as it was then: by it the same
                                        -- thing is known again in the answers of other models
    "values" JSON,                      -- what a person says instead; NULL for a deletion
    author VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE action_predictions (
    image_id VARCHAR NOT NULL,
    method VARCHAR NOT NULL,            -- keypoints, zero_shot
    model_key VARCHAR NOT NULL,         -- whose labels it goes by
    true_action VARCHAR NOT NULL,
    predicted_action VARCHAR,           -- NULL: there is no prediction
    probabilities JSON,
    fold INTEGER,                       -- predicted in this turn; NULL: nothing was learned from it
    reason VARCHAR,                     -- why there is no prediction
    PRIMARY KEY (image_id, method, model_key)
);

-- A file counts once per content: the first path in alphabetical order stands for all its copies.
CREATE VIEW files AS
WITH copied AS (
    SELECT image_id, min(path) AS first_path FROM dataset_files
    WHERE skipped_reason IS NULL AND image_id IS NOT NULL
    GROUP BY image_id HAVING count(*) > 1
)
SELECT
    f.path, f.class, f.image_id, f.size_bytes, f.mtime_ns, i.image_number,
    CASE
        WHEN f.skipped_reason IS NOT NULL THEN 'skipped'
        WHEN f.image_id IS NULL AND f.unread_reason IS NOT NULL THEN 'rejected'
        WHEN c.first_path <> f.path THEN 'rejected'
        ELSE coalesce(i.status, 'new')
    END AS status,
    CASE
        WHEN f.skipped_reason IS NOT NULL THEN f.skipped_reason
        WHEN f.image_id IS NULL THEN f.unread_reason
        WHEN c.first_path <> f.path THEN 'exact_duplicate'
        ELSE i.reason
    END AS reason,
    CASE
        WHEN f.skipped_reason IS NOT NULL THEN NULL
        WHEN f.image_id IS NULL THEN f.unread_detail
        WHEN c.first_path <> f.path THEN 'same content as ' || c.first_path
        ELSE i.detail
    END AS detail
FROM dataset_files f LEFT JOIN images i USING (image_id) LEFT JOIN copied c USING (image_id);

-- Which accepted image belongs to which class, with the one path that stands for it.
CREATE VIEW class_images AS
SELECT c.class, c.display_name, f.path, i.*
FROM files f
JOIN images i USING (image_id)
JOIN classes c ON NOT c.retired AND (f.class = c.class OR f.class IS NULL)
WHERE f.status = 'accepted';
