-- The tables that grow with every answer lose their index, and answers say what they follow.
ALTER TABLE generations RENAME TO generations_1;
ALTER TABLE outcomes RENAME TO outcomes_1;
ALTER TABLE annotations RENAME TO annotations_1;

CREATE TABLE generations (
    generation_id VARCHAR NOT NULL,
    follows VARCHAR,
    image_id VARCHAR NOT NULL,
    entry VARCHAR NOT NULL,
    request_hash VARCHAR NOT NULL,
    model_key VARCHAR NOT NULL,
    task VARCHAR NOT NULL,
    labels VARCHAR[] NOT NULL,
    crop_px INTEGER[],
    region VARCHAR,
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

CREATE TABLE outcomes (
    image_id VARCHAR NOT NULL,
    entry VARCHAR NOT NULL,
    class VARCHAR NOT NULL,
    model_key VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,
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

CREATE TABLE annotations (
    annotation_id VARCHAR NOT NULL,
    generation_id VARCHAR NOT NULL,
    answered_in VARCHAR,
    image_id VARCHAR NOT NULL,
    entry VARCHAR NOT NULL,
    label VARCHAR NOT NULL,
    parser_version INTEGER NOT NULL,
    position INTEGER NOT NULL,
    x0_px DOUBLE,
    y0_px DOUBLE,
    x1_px DOUBLE,
    y1_px DOUBLE,
    point STRUCT(x_px DOUBLE, y_px DOUBLE),
    polygon STRUCT(x_px DOUBLE, y_px DOUBLE)[],
    text VARCHAR,
    score DOUBLE,
    geometric_mean DOUBLE,
    window_mass DOUBLE,
    keypoints STRUCT(name VARCHAR, x_px DOUBLE, y_px DOUBLE, score DOUBLE)[]
);

INSERT INTO generations BY NAME SELECT * FROM generations_1;
INSERT INTO outcomes BY NAME SELECT * FROM outcomes_1;
INSERT INTO annotations BY NAME SELECT *, generation_id AS answered_in FROM annotations_1;
DROP TABLE generations_1;
DROP TABLE outcomes_1;
DROP TABLE annotations_1;
