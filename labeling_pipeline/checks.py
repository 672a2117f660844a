"""What is wrong with the images and the labels of a dataset just now.

Each check looks at what holds, whichever run it comes from, and over all classes of an entry at
once; it says what it found, lists the first of it and what to do next. Its questions are set-based:
where nothing is wrong, no row leaves the store.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from labeling_pipeline.asks import EntryAsks, class_names, model_keys
from labeling_pipeline.evaluation.drift import SIGNIFICANCE, distance_by_chance
from labeling_pipeline.images.quality import NEAR_DUPLICATE
from labeling_pipeline.inventory import report_files
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.rederivation import stale_readings
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import (
    MAX_ATTEMPTS,
    Ask,
    count_due,
    current_sql,
    other_models,
)
from labeling_pipeline.tasks import SKELETONS

MAX_ROWS = 20

_TOLERANCE_PX = 1.0
_TOLERANCE = 1e-6
_DUPLICATES = ("exact_duplicate", NEAR_DUPLICATE)

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class CheckOutcome:
    """What a check found.

    summary: a sentence. rows: the first of what it is about, at most ``MAX_ROWS``.
    fix: what to do next. spreads: whatever is made from it would be wrong too.
    """

    passed: bool
    summary: str
    rows: tuple[Row, ...] = ()
    fix: str = ""
    spreads: bool = False


EntryCheck = Callable[[AnnotationStore, Plan, Entry], CheckOutcome]


# Images -----------------------------------------------------------------------------------------


def rejected_share(store: AnnotationStore, plan: Plan) -> CheckOutcome:
    """Cleaning accepts images, and does not reject more of them than the plan expects."""
    files = report_files(store)
    accepted, rejected = (files.statuses.get(status, 0) for status in ("accepted", "rejected"))
    skipped = files.statuses.get("skipped", 0)
    reasons = sorted(files.reasons.items(), key=lambda item: -item[1])
    rows: tuple[Row, ...] = tuple({"reason": r, "files": n} for r, n in reasons[:MAX_ROWS])
    if not accepted:
        return CheckOutcome(
            False,
            f"no image was accepted: {rejected} were rejected and {skipped} files skipped",
            rows,
            "Look at the reasons, then change `cleaning` in the plan or the image root "
            "(LABELING_IMAGES): there is nothing to label.",
            spreads=True,
        )
    total = accepted + rejected
    duplicates = sum(files.reasons.get(reason, 0) for reason in _DUPLICATES)
    limits = plan.checks
    over = [
        f"{share:.0%} {what} (expected at most {limit:.0%})"
        for what, share, limit in (
            ("were rejected", (rejected - duplicates) / total, limits.max_rejected_share),
            ("are duplicates", duplicates / total, limits.max_duplicate_share),
        )
        if share > limit
    ]
    if not over:
        return CheckOutcome(
            True, f"{accepted} of {total} images were accepted, {duplicates} are duplicates", rows
        )
    return CheckOutcome(
        False,
        f"of {total} images {' and '.join(over)}",
        rows,
        "Look at the rejected files. If cleaning is too strict, change `cleaning` in the plan; if "
        "the images are like that, `checks`.",
    )


# Labels -----------------------------------------------------------------------------------------


def no_failed_outcomes(store: AnnotationStore, plan: Plan, entry: Entry) -> CheckOutcome:
    """Every image of a class has an answer: none is left where image or model failed."""
    asks = EntryAsks(store, plan, entry)
    keys = {entry.name: asks.model.model_key}
    failed = store.query(
        _FAILED.format(current=current_sql(keys, "among")), (entry.name, asks.classes)
    ).to_pylist()
    if not failed:
        return CheckOutcome(True, "no image is left with a failed outcome")
    images: dict[str, list[str]] = {}
    for row in failed:
        images.setdefault(row["class"], []).append(row["image_id"])
    counts = count_due(store, [_narrowed(asks.of(slug).ask, ids) for slug, ids in images.items()])
    due, held = (sum(counts[column].to_pylist()) for column in ("due", "held"))
    fix = []
    if due:
        fix.append("Materialize the classes again: what failed is asked again, nothing else.")
    if held:
        fix.append(
            "Mend the cause, then materialize the classes of those that are held with "
            "`force: true`, which asks all of their images again."
        )
    return CheckOutcome(
        False,
        f"{len(failed)} images have no answer: {due} will be asked again, {held} are held after "
        f"{MAX_ATTEMPTS} failed attempts ({_listed(row['display_name'] for row in failed)})",
        tuple(
            {"class": row["display_name"], "image": row["path"], "error": row["error"] or ""}
            for row in failed[:MAX_ROWS]
        ),
        " ".join(fix),
    )


def annotations_are_sound(store: AnnotationStore, plan: Plan, entry: Entry) -> CheckOutcome:
    """Geometry, scores and labels of all annotations in view make sense, and so do the states."""
    found = store.query(
        _UNSOUND.format(
            current=current_sql({entry.name: model_keys(plan)[entry.name]}, "among"),
            inside=_INSIDE.format(point="p", px=_TOLERANCE_PX),
            point_inside=_INSIDE.format(point="point", px=_TOLERANCE_PX),
            px=_TOLERANCE_PX,
            one=1 + _TOLERANCE,
            rows=MAX_ROWS,
        ),
        (
            entry.name,
            _covered(store, entry),
            sorted({name for one in SKELETONS.values() for name in one.keypoints}),
        ),
    ).to_pylist()
    if not found:
        return CheckOutcome(True, "all annotations in view are sound")
    total = found[0]["total"]
    return CheckOutcome(
        False,
        f"{total} annotations or outcomes in view are unsound "
        f"({_listed(row['display_name'] for row in found)}): "
        f"{_listed(row['problem'] for row in found)}",
        tuple(
            {"class": r["display_name"], "image": r["path"], "label": r["label"]}
            | {"problem": r["problem"]}
            for r in found
        ),
        "Read the answers again (`python -m labeling_pipeline rederive`); where that does not "
        "help, materialize the classes with `force: true`. Nothing is made from them until then.",
        spreads=True,
    )


def empty_label_rate(store: AnnotationStore, plan: Plan, entry: Entry) -> CheckOutcome:
    """A class is not found on many more or fewer of its images than in the runs before.

    Of the images that a class's newest run asked, the share without any annotation, before
    thresholds, against all answers of earlier runs, of whichever model. It counts as changed if it
    moved by more than the plan's ``empty_rate_change`` and Fisher's exact test, which is exact for
    any number of images, gives chance less than ``SIGNIFICANCE``.
    """
    rows = store.query(_EMPTY_RATES, (entry.name, _covered(store, entry))).to_pylist()
    compared = [row for row in rows if row["images_before"]]
    if not compared:
        return CheckOutcome(True, "no class has an earlier run to compare with")
    moved = [row for row in compared if _has_moved(row, plan.checks.empty_rate_change)]
    shown = sorted(moved or compared, key=lambda row: -abs(_shift(row)))[:MAX_ROWS]
    table: tuple[Row, ...] = tuple(
        {
            "class": row["display_name"],
            "empty_now": _rounded(row["empty"] / row["images"]),
            "images_now": row["images"],
            "empty_before": _rounded(row["empty_before"] / row["images_before"]),
            "images_before": row["images_before"],
        }
        for row in shown
    )
    if not moved:
        return CheckOutcome(
            True, f"{len(compared)} classes are found about as often as before", table
        )
    return CheckOutcome(
        False,
        f"the share of images without the label moved by more than "
        f"{plan.checks.empty_rate_change:.0%} in {len(moved)} of {len(compared)} classes "
        f"({_listed(row['display_name'] for row in shown)})",
        table,
        "Look at the pictures of these classes. If the images changed, nothing is to be done; if "
        "the model or the label did, compare with the answers before and change the plan.",
    )


def score_drift(store: AnnotationStore, plan: Plan, entry: Entry) -> CheckOutcome:
    """Another model scores the same images much as the one before it did.

    Over each class's own images that the plan's model key and the newest other one have answered:
    the Kolmogorov-Smirnov distance of the scores, before thresholds. It counts as drift if it is
    over the plan's ``score_drift`` and beyond what chance gives with a probability of
    ``SIGNIFICANCE``, by Smirnov's limit for large samples.
    """
    key = model_keys(plan)[entry.name]
    covered = _covered(store, entry)
    before = other_models(store, entry.name, covered, key)
    if not before:
        return CheckOutcome(True, "no earlier model to compare with")
    name = f"{before[0]['name'] or 'another model'} ({before[0]['model_key']})"
    rows = store.query(_SCORES, (entry.name, covered, key, before[0]["model_key"])).to_pylist()
    if not rows:
        return CheckOutcome(True, f"no image has been labeled both now and by {name}")
    drifted = [row for row in rows if _has_drifted(row, plan.checks.score_drift)]
    shown = sorted(drifted or rows, key=lambda row: -(row["distance"] or 0.0))[:MAX_ROWS]
    table: tuple[Row, ...] = tuple(
        {
            "class": row["display_name"],
            "images": row["images"],
            "score_now": _rounded(row["score"]),
            "score_before": _rounded(row["score_before"]),
            "distance": _rounded(row["distance"]),
            "annotations_per_image_now": _rounded(row["annotations"] / row["images"]),
            "annotations_per_image_before": _rounded(row["annotations_before"] / row["images"]),
        }
        for row in shown
    )
    if not drifted:
        return CheckOutcome(True, f"{len(rows)} classes are scored much as by {name}", table)
    return CheckOutcome(
        False,
        f"scores lie more than {plan.checks.score_drift} from those of {name} in {len(drifted)} of "
        f"{len(rows)} classes ({_listed(row['display_name'] for row in shown)})",
        table,
        "Set the entry's `threshold` anew for this model, and look at model_drift and "
        "detection_evaluation before you rely on it.",
    )


def readings_are_current(store: AnnotationStore, plan: Plan, entry: Entry) -> CheckOutcome:
    """Every answer in view was read by the parser of today."""
    of_entry = plan.model_copy(update={"entries": (entry,)})
    stale = stale_readings(store, of_entry).get(entry.name, {})
    if not stale:
        return CheckOutcome(True, "every answer in view was read by the parser of today")
    most_first = sorted(stale.items(), key=lambda item: -item[1])
    return CheckOutcome(
        False,
        f"{sum(stale.values())} outcomes in view were read by an older parser "
        f"({_listed(name for name, _ in most_first)})",
        tuple({"class": name, "outcomes": n} for name, n in most_first[:MAX_ROWS]),
        "Materialize rederived_annotations, or run `python -m labeling_pipeline rederive`: no "
        "model is loaded. Answers to another prompt than today's stay until their classes are "
        "materialized again.",
    )


ENTRY_CHECKS: tuple[EntryCheck, ...] = (
    no_failed_outcomes,
    annotations_are_sound,
    empty_label_rate,
    score_drift,
    readings_are_current,
)
"""What is asked of the labels of every entry."""


# Partitions -------------------------------------------------------------------------------------


def no_failed_partitions(store: AnnotationStore, failed: Collection[str]) -> CheckOutcome:
    """No class is left whose last run failed.

    failed: slugs of the partitions that stand as failed; those of retired classes do not count.
    """
    names = {slug: name for slug, name in class_names(store).items() if slug in failed}
    if not names:
        return CheckOutcome(True, "no class is left failed")
    return CheckOutcome(
        False,
        f"the last run of {len(names)} classes failed ({_listed(names.values())})",
        tuple({"class": name, "partition": slug} for slug, name in list(names.items())[:MAX_ROWS]),
        "Read the reason in the failed run and mend it, then re-run these partitions (in the "
        "dialog of Materialize: only failed and missing ones): only what is missing is done.",
    )


# What they share --------------------------------------------------------------------------------


def _covered(store: AnnotationStore, entry: Entry) -> list[str]:
    """Slugs of the classes that an entry labels."""
    return [slug for slug, name in class_names(store).items() if entry.covers(name)]


def _narrowed(ask: Ask, image_ids: Sequence[str]) -> Ask:
    """The same of a few images only."""
    if isinstance(ask.request_hash, str):
        hashes = dict.fromkeys(image_ids, ask.request_hash)
    else:
        hashes = {one: ask.request_hash[one] for one in image_ids if one in ask.request_hash}
    return Ask(ask.entry, ask.class_slug, ask.model_key, hashes)


def _listed(names: Iterable[str], most: int = 5) -> str:
    """The first few of some names, each once."""
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - most} more" if len(unique) > most else ""
    return ", ".join(unique[:most]) + more


def _rounded(value: float | None) -> float | str:
    return "–" if value is None else round(value, 4)


def _shift(row: dict[str, Any]) -> float:
    return row["empty"] / row["images"] - row["empty_before"] / row["images_before"]


def _has_moved(row: dict[str, Any], limit: float) -> bool:
    if abs(_shift(row)) <= limit:
        return False
    from scipy.stats import fisher_exact

    now, before = (
        (row["empty" + when], row["images" + when] - row["empty" + when])
        for when in ("", "_before")
    )
    return fisher_exact([now, before]).pvalue < SIGNIFICANCE


def _has_drifted(row: dict[str, Any], limit: float) -> bool:
    if row["distance"] is None or row["distance"] <= limit:
        return False
    return row["distance"] > distance_by_chance(row["scored"], row["scored_before"])


# What is wrong is looked for among all readings first; whether it holds is asked of these few.
_FAILED = """
WITH suspects AS (
    SELECT DISTINCT image_id, entry, class FROM outcomes
    WHERE entry = $1 AND list_contains($2::VARCHAR[], class) AND state = 'failed'
),
among AS (SELECT * FROM outcomes SEMI JOIN suspects USING (image_id, entry, class))
SELECT image_id, class, display_name, path, error FROM ({current})
WHERE state = 'failed' AND belongs
ORDER BY display_name, path
"""

_INSIDE = (
    "{point}.x_px BETWEEN -{px} AND width_px + {px} "
    "AND {point}.y_px BETWEEN -{px} AND height_px + {px}"
)
_UNSOUND = """
WITH asked AS (
    SELECT image_id, entry, class, label, state, generation_id, parser_version FROM outcomes
    WHERE entry = $1 AND list_contains($2::VARCHAR[], class)
        AND state NOT IN ('failed', 'unsupported')
),
answers AS (SELECT generation_id, labels FROM generations WHERE entry = $1),
own AS (
    SELECT generation_id, answered_in, parser_version, label FROM annotations WHERE entry = $1
),
misshapen AS (
    SELECT generation_id, parser_version, label, CASE
        WHEN coalesce(x0_px, y0_px, x1_px, y1_px) IS NOT NULL
            AND x0_px + y0_px + x1_px + y1_px IS NULL THEN 'half a box'
        WHEN NOT (isfinite(x0_px) AND isfinite(y0_px) AND isfinite(x1_px) AND isfinite(y1_px))
            THEN 'a box that is not finite'
        WHEN x0_px > x1_px OR y0_px > y1_px THEN 'corners of the box out of order'
        WHEN x0_px < -{px} OR y0_px < -{px} OR x1_px > width_px + {px} OR y1_px > height_px + {px}
            THEN 'a box outside the image'
        WHEN NOT ({point_inside}) THEN 'a point outside the image'
        WHEN len(polygon) < 3 THEN 'a polygon with fewer than three corners'
        WHEN len(list_filter(polygon, lambda p: NOT ({inside}))) > 0
            THEN 'a polygon outside the image'
        WHEN len(list_filter(keypoints, lambda p: NOT (
            {inside} AND p.score BETWEEN 0 AND {one} AND list_contains($3::VARCHAR[], p.name)
        ))) > 0 THEN 'a keypoint outside the image, of no skeleton or scored beyond 0..1'
        WHEN NOT (score BETWEEN 0 AND {one}) THEN 'a score outside 0..1'
        WHEN x0_px IS NULL AND point IS NULL AND polygon IS NULL AND keypoints IS NULL
            AND text IS NULL THEN 'neither a place nor a text'
    END AS problem
    FROM annotations JOIN images USING (image_id)
    WHERE entry = $1 AND problem IS NOT NULL
),
unasked AS (
    SELECT DISTINCT generation_id, parser_version, label, 'its label was not asked' AS problem
    FROM (
        SELECT own.* FROM own JOIN answers ON answers.generation_id = answered_in
        WHERE NOT list_contains(labels, label)
    )
    ANTI JOIN asked USING (generation_id, label)
),
lost AS (
    SELECT own.*, 'its answer is missing' AS problem
    FROM own ANTI JOIN answers ON answers.generation_id = answered_in
),
bad AS (
    SELECT o.* EXCLUDE (label), a.label, a.problem FROM asked o JOIN misshapen a
        USING (generation_id, parser_version) WHERE o.label = a.label
    UNION
    SELECT o.* EXCLUDE (label), a.label, a.problem FROM asked o JOIN unasked a
        USING (generation_id, parser_version)
    UNION
    SELECT o.* EXCLUDE (label), a.label, a.problem FROM asked o JOIN lost a
        USING (generation_id, parser_version) WHERE o.label = a.label
    UNION
    SELECT * EXCLUDE (label), label, 'its answer is missing'
    FROM asked ANTI JOIN answers USING (generation_id) WHERE generation_id IS NOT NULL
    UNION
    SELECT * EXCLUDE (label), label, 'found, but nothing is annotated'
    FROM asked ANTI JOIN own USING (generation_id, parser_version, label) WHERE state = 'found'
    UNION
    SELECT * EXCLUDE (label), label, 'absent, but something is annotated'
    FROM asked SEMI JOIN own USING (generation_id, parser_version, label) WHERE state = 'absent'
),
among AS (SELECT * FROM outcomes SEMI JOIN bad USING (image_id, entry, class)),
holding AS ({current})
SELECT h.display_name, h.path, b.label, b.problem, count(*) OVER () AS total
FROM holding h JOIN bad b
    ON b.image_id = h.image_id AND b.class = h.class AND b.parser_version = h.parser_version
    AND b.generation_id IS NOT DISTINCT FROM h.generation_id
ORDER BY
    row_number() OVER (PARTITION BY h.display_name, b.problem ORDER BY h.path),
    h.display_name, b.problem
LIMIT {rows}
"""

_OWN = """
own AS (
    SELECT DISTINCT class, image_id, display_name FROM class_images
    WHERE list_contains($2::VARCHAR[], class)
)
"""
_EMPTY_RATES = f"""
WITH {_OWN},
read AS (
    SELECT o.class, generation_id, any_value(o.label) AS label,
        max(o.parser_version) AS parser_version
    FROM outcomes o SEMI JOIN own USING (class, image_id)
    WHERE o.entry = $1 AND generation_id IS NOT NULL
    GROUP BY o.class, generation_id
),
answers AS (
    SELECT r.class, g.run_id, g.created_at, a.generation_id IS NULL AS empty
    FROM read r
    JOIN generations g USING (generation_id)
    LEFT JOIN (SELECT DISTINCT generation_id, label, parser_version FROM annotations) a
        USING (generation_id, label, parser_version)
),
newest AS (SELECT class, arg_max(run_id, created_at) AS newest_run FROM answers GROUP BY class)
SELECT any_value(display_name) AS display_name,
    count(*) FILTER (run_id = newest_run) AS images,
    count(*) FILTER (run_id = newest_run AND empty) AS empty,
    count(*) FILTER (run_id <> newest_run) AS images_before,
    count(*) FILTER (run_id <> newest_run AND empty) AS empty_before
FROM answers
JOIN newest USING (class)
JOIN (SELECT DISTINCT class, display_name FROM own) USING (class)
GROUP BY class ORDER BY class
"""
_SCORES = f"""
WITH {_OWN},
read AS (
    SELECT o.class, o.image_id, o.model_key, o.label, o.generation_id, o.parser_version
    FROM outcomes o SEMI JOIN own USING (class, image_id)
    WHERE o.entry = $1 AND o.model_key IN ($3, $4) AND o.generation_id IS NOT NULL
    QUALIFY row_number() OVER (
        PARTITION BY o.class, o.image_id, o.model_key
        ORDER BY o.created_at DESC, o.attempt DESC, o.parser_version DESC
    ) = 1
),
compared AS (SELECT class, image_id FROM read GROUP BY ALL HAVING count(*) = 2),
found AS (
    SELECT r.class, r.model_key = $3 AS now, a.score
    FROM read r SEMI JOIN compared USING (class, image_id)
    JOIN annotations a USING (generation_id, parser_version, label)
),
counted AS (
    SELECT class,
        count(*) FILTER (now) AS annotations, count(*) FILTER (NOT now) AS annotations_before,
        count(score) FILTER (now) AS scored, count(score) FILTER (NOT now) AS scored_before,
        avg(score) FILTER (now) AS score, avg(score) FILTER (NOT now) AS score_before
    FROM found GROUP BY class
),
steps AS (
    SELECT class, score, count(*) FILTER (now) AS now, count(*) FILTER (NOT now) AS before
    FROM found WHERE score IS NOT NULL GROUP BY class, score
),
apart AS (
    SELECT class, abs(sum(now) OVER up_to / sum(now) OVER whole
        - sum(before) OVER up_to / sum(before) OVER whole) AS distance
    FROM steps
    WINDOW up_to AS (PARTITION BY class ORDER BY score), whole AS (PARTITION BY class)
)
SELECT n.display_name, i.images, c.*, d.distance
FROM (SELECT class, count(*) AS images FROM compared GROUP BY class) i
JOIN (SELECT DISTINCT class, display_name FROM own) n USING (class)
LEFT JOIN counted c USING (class)
LEFT JOIN (SELECT class, max(distance) AS distance FROM apart GROUP BY class) d USING (class)
ORDER BY class
"""
