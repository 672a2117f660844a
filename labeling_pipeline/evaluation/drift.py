"""What another model answered otherwise, on the same images: no truth, but where to look.

**What is compared** is pairs of an image and a label that both models were asked for and that both
answered soundly: what the model of the plan says *now* against what the other one said *before*.
Neither is the truth. How answers turned, from found to absent say, is counted of all pairs that
both were asked.

**Boxes** are paired one to one, see `labeling_pipeline.evaluation.matching`. A pair that overlaps
by ``moved_iou`` (intersection over union) or more is *matched*, one that overlaps less has *moved*;
a box without a partner is *lost* if it stood before, and *new* if it stands now. Outlines and
keypoint instances count by their boxes.

**Beyond boxes**, of two boxes that are one: their texts are the same or not, and of their keypoints
those have *moved* that lie further apart than ``KEYPOINT_TOLERANCE`` times the larger side of the
box now, or that only one of the two shows (the tolerance of PCK, see
`labeling_pipeline.evaluation.detection.KeypointEvaluation`). The texts of a whole image are
compared as one. Points are counted and not paired: how near is near enough depends on the size of
the thing, which a point does not tell.

**Scores** are compared by their medians and by the Kolmogorov-Smirnov distance, the largest
difference between their two distributions: of all annotations, partners or not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.agreement import ANSWERED, why_not_compared
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.keypoints import visible_points
from labeling_pipeline.evaluation.pairing import pair_up

KEYPOINT_TOLERANCE = 0.1
"""Of the larger side of the box."""

SIGNIFICANCE = 0.01
"""How likely chance alone may explain a difference that is called one."""


class Change(StrEnum):
    """What became of a box."""

    MATCHED = "matched"
    MOVED = "moved"
    LOST = "lost"
    NEW = "new"


SIDE_COLUMNS = {side: [f"{side}_{column}" for column in BOX_COLUMNS] for side in ("before", "now")}
"""Side -> its four box columns in ``ModelDrift.boxes``."""

PAIR = ["entry", "image_id", "label"]
"""What is compared."""

ASKED_COLUMNS = ["path", "class", *PAIR, "state_before", "state_now"]
"""What `compare_answers` reads of the table of what was asked."""

_CHANGES = [change.value for change in Change]
_COUNTS = [
    *("before", "now", *_CHANGES, "texts", "texts_changed", "keypoints", "keypoints_moved"),
]
_SCORES = ["score_before", "score_now", "score_distance"]


@dataclass(frozen=True)
class ModelDrift:
    """What changed from one model to another. A number that does not exist is NaN.

    iou_threshold: least IoU of two boxes that are one. moved_iou: below it, such a box has moved.
    per_entry: one row an entry, in the order asked: ``entry, images`` (compared),
        ``changed_images, before, now`` (annotations), ``matched, moved, lost, new`` (boxes),
        ``texts`` (compared), ``texts_changed, keypoints`` (compared), ``keypoints_moved,
        not_compared`` (pairs of an image and a label), ``score_before, score_now`` (medians),
        ``score_distance, scored_before, scored_now`` (annotations with a score).
    per_class: the same by class: ``entry, class, images, ...``; what is asked for several classes
        of an image counts for each.
    per_image: one row an entry and image that both models were asked about, the most changed first:
        ``path, entry, image_id, changes``, the counts, and ``states``: in words, which answers
        turned. ``changes``: boxes lost and new, texts changed, and answers that are sound on one
        side only; equal ones: what moved.
    boxes: one row a pair of boxes or a box alone, in the same order: ``path, entry, image_id,
        label, change, iou, text_changed`` (``None`` without two texts), ``keypoints,
        keypoints_moved``, and of each side ``before_annotation_id, before_score, before_x0_px,
        ..., now_annotation_id, ...``; what a side has not is NaN.
    transitions: one row an entry and pair of states: ``entry, before, now, pairs`` (of an image and
        a label).
    not_compared: one row an entry, class and reason: ``entry, class, reason, images``.
    """

    iou_threshold: float
    moved_iou: float
    per_entry: pd.DataFrame
    per_class: pd.DataFrame
    per_image: pd.DataFrame
    boxes: pd.DataFrame
    transitions: pd.DataFrame
    not_compared: pd.DataFrame

    @property
    def changed(self) -> pd.DataFrame:
        """The rows of ``per_image`` on which something is otherwise, the most changed first."""
        images = self.per_image
        return images[images[["changes", "moved", "keypoints_moved"]].any(axis=1)]

    @property
    def share_as_before(self) -> float:
        """Of all boxes, before or now, those that are matched; NaN if there is none."""
        boxes = self.per_entry[_CHANGES].to_numpy().sum()
        return float(self.per_entry["matched"].sum() / boxes) if boxes else math.nan


def compare_answers(
    asked: pd.DataFrame,
    before: pd.DataFrame,
    now: pd.DataFrame,
    *,
    iou_threshold: float = 0.5,
    moved_iou: float = 0.9,
) -> ModelDrift:
    """Compare two answers to the same questions.

    Args:
        asked: one row an entry, class and image: ``path, class, entry, image_id, label,
            state_before, state_now``; a state that is missing was not asked.
        before: annotations of the other model: ``entry, image_id, label, annotation_id, x0_px,
            y0_px, x1_px, y1_px`` (NaN without a box), ``score, text, point, keypoints`` (NaN or
            ``None`` where there is none); those of pairs that are not compared are ignored.
        now: annotations of the model of the plan, likewise.
        iou_threshold: least IoU of two boxes that are one, in 0..1.
        moved_iou: least IoU of two boxes that count as the same place.
    """
    asked = asked.assign(group=asked.groupby(PAIR, sort=False).ngroup())
    pairs = asked.drop_duplicates("group").set_index("group")
    sound = {side: pairs[f"state_{side}"].isin(ANSWERED) for side in SIDE_COLUMNS}
    is_compared = sound["before"] & sound["now"]
    found = {
        side: _of_pairs(pairs[is_compared], rows)
        for side, rows in (("before", before), ("now", now))
    }
    boxes = _boxes(found, iou_threshold, moved_iou)
    counts = _counted(pairs, found, boxes)
    both_asked = pairs["state_before"].notna() & pairs["state_now"].notna()
    pairs = pairs.join(counts).assign(
        is_compared=is_compared,
        both_asked=both_asked,
        changes=counts[["lost", "new", "texts_changed"]].sum(axis=1)
        + (both_asked & (sound["before"] != sound["now"])),
    )
    per_image = _per_image(pairs[both_asked])
    of_class = asked[["class", "group"]].join(pairs.drop(columns="class"), on="group")
    scores = pd.concat([_scored(rows, side) for side, rows in found.items()])
    scores = scores.join(pairs["entry"], on="group")
    return ModelDrift(
        iou_threshold=iou_threshold,
        moved_iou=moved_iou,
        per_entry=_summed(pairs, scores, ["entry"]),
        per_class=_summed(
            of_class, scores.merge(asked[["group", "class"]], on="group"), ["entry", "class"]
        ),
        per_image=per_image,
        boxes=_in_order(boxes.join(pairs[["path", *PAIR]], on="group"), per_image),
        transitions=(
            pairs[both_asked]
            .groupby(["entry", "state_before", "state_now"], sort=False)
            .size()
            .rename_axis(["entry", "before", "now"])
            .reset_index(name="pairs")
        ),
        not_compared=(
            asked.assign(
                reason=why_not_compared(
                    ["before", "now"], [asked["state_before"], asked["state_now"]]
                )
            )
            .groupby(["entry", "class", "reason"], sort=False)
            .size()
            .reset_index(name="images")
        ),
    )


def in_words(of_entry: Mapping[str, Any]) -> str:
    """What changed, in a few sentences. of_entry: a row of ``ModelDrift.per_entry``."""
    row = of_entry
    if not row["images"]:
        return "No image can be compared."
    told = [
        f"Images compared: {row['images']:,}, of which {row['changed_images']:,} differ. "
        f"Annotations: {row['before']:,} before, {row['now']:,} now."
    ]
    if sum(row[change] for change in _CHANGES):
        told.append("Boxes: " + ", ".join(f"{row[c]:,} {c}" for c in _CHANGES) + ".")
    if row["keypoints"]:
        share = row["keypoints_moved"] / row["keypoints"]
        told.append(f"Keypoints moved, of instances that both found: {share:.1%}.")
    if row["texts"]:
        told.append(f"Texts that read otherwise: {row['texts_changed']:,} of {row['texts']:,}.")
    if not math.isnan(row["score_distance"]):
        by_chance = distance_by_chance(row["scored_before"], row["scored_now"])
        shifted = "have shifted" if row["score_distance"] > by_chance else "are much as they were"
        told.append(
            f"Scores {shifted}: median {row['score_now']:.2f} after {row['score_before']:.2f}, "
            f"distance {row['score_distance']:.2f}."
        )
    return " ".join(told)


def score_distance(one: np.ndarray, two: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples, (n,) and (m,) float: 0..1; NaN if one is empty.

    The largest difference between the shares of both that lie at or below a value (Massey, "The
    Kolmogorov-Smirnov test for goodness of fit", 1951).
    """
    if not (len(one) and len(two)):
        return math.nan
    values = np.concatenate([one, two])
    shares = [
        np.searchsorted(np.sort(sample), values, side="right") / len(sample)
        for sample in (one, two)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def distance_by_chance(one: int, two: int, significance: float = SIGNIFICANCE) -> float:
    """How far apart two samples of so many values lie by chance alone, at most so often.

    Smirnov's limit for large samples ("Table for estimating the goodness of fit of empirical
    distributions", 1948).
    """
    return math.sqrt(-math.log(significance / 2) / 2 * (one + two) / (one * two))


def _of_pairs(pairs: pd.DataFrame, annotations: pd.DataFrame) -> pd.DataFrame:
    """The annotations of some pairs, with ``group``, numbered from 0."""
    return pairs[PAIR].reset_index().merge(annotations, on=PAIR)


def _boxes(
    found: Mapping[str, pd.DataFrame], iou_threshold: float, moved_iou: float
) -> pd.DataFrame:
    """``ModelDrift.boxes`` with ``group`` in place of what it stands for."""
    placed = {side: rows.dropna(subset=BOX_COLUMNS).reset_index() for side, rows in found.items()}
    before, now = placed["before"], placed["now"]
    pieces = pair_up(before, now, iou_threshold)
    change = np.full(len(pieces), Change.MOVED.value, dtype=object)
    change[pieces["iou"] >= moved_iou] = Change.MATCHED
    change[pieces["b"] < 0] = Change.LOST
    change[pieces["a"] < 0] = Change.NEW
    table = pieces[["group"]].assign(change=change, iou=pieces["iou"])
    both = pieces[pieces["iou"].notna()]
    old, new = before.loc[both["a"]], now.loc[both["b"]]
    texts = [rows["text"].to_numpy(object) for rows in (old, new)]
    has_texts = ~(pd.isna(texts[0]) | pd.isna(texts[1]))
    table["text_changed"] = pd.Series(
        np.where(has_texts, texts[0] != texts[1], None), index=both.index, dtype=object
    ).reindex(table.index)
    table["text_changed"] = table["text_changed"].where(table["text_changed"].notna(), None)
    moved = [
        _moved_keypoints(one, two, max(x1 - x0, y1 - y0))
        for one, two, (x0, y0, x1, y1) in zip(
            old["keypoints"], new["keypoints"], new[BOX_COLUMNS].to_numpy(), strict=True
        )
    ]
    points = pd.DataFrame(moved, columns=["keypoints", "keypoints_moved"], index=both.index)
    table = table.join(points.reindex(table.index).fillna(0).astype(int))
    for side, row in (("before", "a"), ("now", "b")):
        of_side = placed[side].reindex(pieces[row])
        table[f"{side}_annotation_id"] = of_side["annotation_id"].to_numpy()
        table[f"{side}_score"] = pd.to_numeric(of_side["score"]).to_numpy(float)
        table[SIDE_COLUMNS[side]] = of_side[BOX_COLUMNS].to_numpy(float)
    return table


def _moved_keypoints(before: Any, now: Any, side_px: float) -> tuple[int, int]:
    """How many keypoints one of two instances of the same thing shows, and how many have moved."""
    if not (_is_given(before) and _is_given(now)):
        return 0, 0
    one, two = visible_points(before), visible_points(now)
    names = one.keys() | two.keys()
    near_px = KEYPOINT_TOLERANCE * side_px
    stayed = sum(math.dist(one[name], two[name]) <= near_px for name in one.keys() & two.keys())
    return len(names), len(names) - stayed


def _is_given(value: Any) -> bool:
    """Whether a nested value is there: pandas has ``None`` or NaN for NULL."""
    return value is not None and not isinstance(value, float)


def _counted(
    pairs: pd.DataFrame, found: Mapping[str, pd.DataFrame], boxes: pd.DataFrame
) -> pd.DataFrame:
    """How many of everything each pair has; index: group."""
    counts = pd.DataFrame(0, index=pairs.index, columns=_COUNTS)
    for side, rows in found.items():
        counts[side] = rows.groupby("group").size()
    for change in Change:
        counts[change.value] = boxes[boxes["change"] == change].groupby("group").size()
    text_changed = boxes["text_changed"].dropna().astype(bool)
    of_box = text_changed.groupby(boxes["group"]).agg(["size", "sum"])
    old, new = (_whole_text(rows) for rows in found.values())
    old, new = old.align(new, join="inner")
    of_image = pd.DataFrame({"size": 1, "sum": (old != new).astype(int)})
    texts = pd.concat([of_box, of_image]).groupby(level=0).sum()
    counts[["texts", "texts_changed"]] = texts.reindex(counts.index)
    points = ["keypoints", "keypoints_moved"]
    counts[points] = boxes.groupby("group")[points].sum().reindex(counts.index)
    return counts.fillna(0).astype(int)


def _whole_text(rows: pd.DataFrame) -> pd.Series:
    """Group -> what is said of a whole image, without a place."""
    told = rows[rows["x0_px"].isna() & rows["point"].isna() & rows["text"].notna()]
    return told.groupby("group")["text"].agg("\n".join)


def _scored(rows: pd.DataFrame, side: str) -> pd.DataFrame:
    score = pd.to_numeric(rows["score"]).astype(float)
    return pd.DataFrame({"group": rows["group"], "side": side, "score": score}).dropna()


def _per_image(pairs: pd.DataFrame) -> pd.DataFrame:
    turned = pairs["state_before"] != pairs["state_now"]
    label, old, new = (
        pairs.loc[turned, name].astype(str) for name in ("label", "state_before", "state_now")
    )
    words = label + ": " + old.str.replace("_", " ") + " to " + new.str.replace("_", " ")
    by = ["entry", "image_id"]
    states: dict[tuple[str, str], list[str]] = {}
    for entry, image_id, said in zip(*(pairs.loc[turned, n] for n in by), words, strict=True):
        states.setdefault((entry, image_id), []).append(said)
    table = pairs.groupby(by, sort=False).agg(
        path=("path", "first"), **{name: (name, "sum") for name in ["changes", *_COUNTS]}
    )
    table = table.assign(states=[", ".join(states.get(key, ())) for key in table.index])
    table = table.reset_index()
    return table[["path", *by, "changes", *_COUNTS, "states"]].sort_values(
        ["changes", "moved", "keypoints_moved", "path", "entry"],
        ascending=[False, False, False, True, True],
        ignore_index=True,
    )


def _in_order(boxes: pd.DataFrame, per_image: pd.DataFrame) -> pd.DataFrame:
    """The boxes in the order of their images."""
    by = ["entry", "image_id"]
    columns = [*("path", *PAIR, "change", "iou", "text_changed", "keypoints", "keypoints_moved")]
    for side, of_side in SIDE_COLUMNS.items():
        columns += [f"{side}_annotation_id", f"{side}_score", *of_side]
    return per_image[by].merge(boxes[columns], on=by)[columns]


def _summed(pairs: pd.DataFrame, scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """``ModelDrift.per_entry`` or ``per_class``, of pairs that bear what they are summed by."""
    compared = pairs[pairs["is_compared"]]
    differs = pairs[["changes", "moved", "keypoints_moved"]].any(axis=1)
    summed = [*_COUNTS, "not_compared"]
    table = pairs.assign(not_compared=~pairs["is_compared"]).groupby(by, sort=False)[summed].sum()
    table["images"] = compared.groupby(by)["image_id"].nunique()
    table["changed_images"] = pairs[differs].groupby(by)["image_id"].nunique()
    rows = []
    for key, of_key in scores.groupby(by):
        one, two = (of_key.loc[of_key["side"] == side, "score"].to_numpy() for side in SIDE_COLUMNS)
        medians = [float(np.median(part)) if len(part) else math.nan for part in (one, two)]
        rows.append((*key, *medians, score_distance(one, two), len(one), len(two)))
    scored = ["scored_before", "scored_now"]
    columns = [*by, *_SCORES, *scored]
    table = table.join(pd.DataFrame(rows, columns=columns).set_index(by)).reset_index()
    whole = ["images", "changed_images", *scored]
    table[whole] = table[whole].fillna(0).astype(int)
    return table[[*by, "images", "changed_images", *summed, *_SCORES, *scored]]
