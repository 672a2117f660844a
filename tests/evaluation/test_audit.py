from collections import Counter

import numpy as np
import pandas as pd
import pytest

from labeling_pipeline.evaluation.audit import (
    NO_ANSWER,
    NO_SCORE,
    NOTHING_FOUND,
    SCORE_STRATA,
    AuditEstimate,
    Checked,
    EntryAudit,
    Stratum,
    audit_table,
    draw_sample,
    estimate,
    strata_of,
)
from labeling_pipeline.evaluation.intervals import wilson_interval

LOW, MIDDLE, HIGH = SCORE_STRATA


def pairs(shown=0, empty=0, label="cat", seed=0, name="i"):
    """As many pairs of one label, those with something shown in no order of their scores."""
    scores = np.random.default_rng(seed).permutation(np.linspace(0.01, 0.99, shown))
    rows = [(label, f"{name}s{i}", 1, score, True) for i, score in enumerate(scores)]
    rows += [(label, f"{name}e{i}", 0, np.nan, True) for i in range(empty)]
    return pd.DataFrame(rows, columns=["label", "image_id", "shown", "score", "is_answered"])


def drawn(sample):
    return set(sample.loc[sample["is_drawn"], "image_id"])


def test_pairs_are_cut_at_the_terciles_of_their_label():
    table = pd.concat([pairs(30, 5), pairs(9, label="dog").assign(score=lambda t: t["score"] / 9)])
    unanswered = pairs(0, 2, name="failed").assign(is_answered=False)
    without = pairs(2, name="person").assign(score=np.nan)
    sample = draw_sample(pd.concat([table, unanswered, without], ignore_index=True), 10)
    counts = sample.groupby(["label", "stratum"]).size().to_dict()
    assert counts == {
        **{("cat", name): 10 for name in SCORE_STRATA},
        **{("dog", name): 3 for name in SCORE_STRATA},
        ("cat", NOTHING_FOUND): 5,
        ("cat", NO_ANSWER): 2,
        ("cat", NO_SCORE): 2,
    }
    cats = sample[sample["label"] == "cat"].groupby("stratum")["score"]
    assert cats.max()[LOW] < cats.min()[MIDDLE] < cats.max()[MIDDLE] < cats.min()[HIGH]


def test_equal_scores_stay_together():
    sample = draw_sample(pairs(20).assign(score=1.0), 10)
    assert set(sample["stratum"]) == {LOW}
    assert sample["is_drawn"].sum() == 10


@pytest.mark.parametrize(
    ("shown", "empty", "rows", "expected"),
    [
        (300, 300, 30, {LOW: 5, MIDDLE: 5, HIGH: 5, NOTHING_FOUND: 15}),
        (300, 300, 32, {LOW: 6, MIDDLE: 5, HIGH: 5, NOTHING_FOUND: 16}),
        (300, 6, 30, {LOW: 8, MIDDLE: 8, HIGH: 8, NOTHING_FOUND: 6}),
        (6, 300, 30, {LOW: 2, MIDDLE: 2, HIGH: 2, NOTHING_FOUND: 24}),
        (300, 0, 30, {LOW: 10, MIDDLE: 10, HIGH: 10}),
        (0, 300, 30, {NOTHING_FOUND: 30}),
        (6, 4, 30, {LOW: 2, MIDDLE: 2, HIGH: 2, NOTHING_FOUND: 4}),
        (1, 0, 30, {LOW: 1}),
    ],
)
def test_rows_are_halved_between_what_shows_something_and_what_does_not(
    shown, empty, rows, expected
):
    sample = draw_sample(pairs(shown, empty), rows)
    counts = sample[sample["is_drawn"]].groupby("stratum").size()
    assert counts[counts > 0].to_dict() == expected
    shares = sample.groupby("stratum")["share"].first()
    sizes = sample.groupby("stratum").size()
    assert (shares * sizes).round().to_dict() == pytest.approx(expected)


def test_the_same_seed_draws_the_same_pairs_and_another_seed_others():
    table = pairs(200, 400)
    first = drawn(draw_sample(table, 30, seed=1))
    again = draw_sample(table.sample(frac=1, random_state=3), 30, seed=1)
    assert drawn(again) == first
    assert len(drawn(draw_sample(table, 30, seed=2)) & first) < 10


def test_new_images_displace_no_more_than_their_share():
    before = drawn(draw_sample(pairs(300, 600), 30))
    more = pd.concat([pairs(300, 600), pairs(60, 120, seed=1, name="new")], ignore_index=True)
    after = drawn(draw_sample(more, 30))
    # A sixth of all is new; scores that cross a tercile take a few along.
    assert len(before & after) >= 30 * 5 / 6 - 6
    assert drawn(draw_sample(pairs(300, 600), 60)) > before


def test_every_pair_of_a_stratum_is_drawn_as_often():
    table = pairs(30, 20)
    times = Counter()
    for seed in range(120):
        times.update(drawn(draw_sample(table, 10, seed=seed)))
    counts = np.array([times[i] for i in table["image_id"]])
    expected = np.where(table["shown"] > 0, 120 * 5 / 30, 120 * 5 / 20)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())


def test_any_beginning_is_a_smaller_sample_of_its_own():
    sample = draw_sample(pd.concat([pairs(300, 600), pairs(90, 900, label="dog")]), 60)
    rows = sample[sample["is_drawn"]].sort_values("place")
    first = rows.head(40).groupby(["label", "stratum"]).size()
    assert first.loc["cat"].to_dict() == pytest.approx(
        {LOW: 3, MIDDLE: 3, HIGH: 3, NOTHING_FOUND: 10}, abs=1
    )
    for _, stratum in sample.groupby(["label", "stratum"]):
        chosen = stratum[stratum["is_drawn"]]["place"]
        assert chosen.max() < 1 <= stratum[~stratum["is_drawn"]]["place"].min()


def checked(*rows, label="cat", share=0.1):
    """Rows of (stratum, shown, wrong, missed)."""
    return [Checked(label, *row, share) for row in rows]


def test_precision_and_recall_are_those_of_a_worked_example():
    strata = {
        ("cat", LOW): Stratum(20, 30),
        ("cat", HIGH): Stratum(40, 50),
        ("cat", NOTHING_FOUND): Stratum(100, 0),
    }
    rows = checked(
        *((LOW, 2, 1, 0), (LOW, 1, 0, 1)),  # 10 pairs each
        *((HIGH, 1, 0, 0), (HIGH, 1, 0, 0), (HIGH, 2, 0, 1), (HIGH, 1, 0, 0)),  # 10 each
        *((NOTHING_FOUND, 0, 0, 1), *[(NOTHING_FOUND, 0, 0, 0)] * 3),  # 25 each
    )
    found = estimate(strata, rows, has_recall=True)
    # Of 80 shown, as the sample has it, 10 are wrong and 20 are missed beside the others.
    assert found.precision.value == pytest.approx(1 - 10 / 80)
    # The sample has 90 things for 80 shown, and 80 are shown; 25 more lie where nothing is.
    assert found.recall.value == pytest.approx(70 / 90 * 90 / (90 + 25))
    assert (found.shown, found.checked, found.checked_shown, found.wrong, found.missed) == (
        *(80, 10, 8, 1, 3),
    )
    for one in (found.precision, found.recall):
        assert 0 < one.interval.low < one.value < one.interval.high < 1


def test_one_stratum_alone_has_the_interval_of_wilson():
    strata = {("cat", LOW): Stratum(10**9, 10**9)}
    rows = checked(*[(LOW, 1, 0, 0)] * 25, share=1e-8)
    found = estimate(strata, rows, has_recall=False)
    expected = wilson_interval(25, 25)
    assert found.precision.interval.low == pytest.approx(expected.low)
    assert found.recall is None


SHOWN, EMPTY = {("cat", LOW): Stratum(9, 9)}, {("cat", NOTHING_FOUND): Stratum(9, 0)}
RIGHT, WRONG, MISSED, NONE = (
    (LOW, 1, 0, 0),
    (LOW, 1, 1, 0),
    (NOTHING_FOUND, 0, 0, 1),
    (*(NOTHING_FOUND, 0, 0, 0),),
)


@pytest.mark.parametrize(
    ("strata", "rows", "precision", "recall"),
    [
        pytest.param(SHOWN | EMPTY, [], None, None, id="nothing checked"),
        pytest.param(SHOWN | EMPTY, [RIGHT], 1, None, id="nothing checked where nothing is shown"),
        pytest.param(SHOWN | EMPTY, [NONE], None, None, id="nothing checked of what is shown"),
        pytest.param(SHOWN | EMPTY, [RIGHT, NONE], 1, 1, id="all right"),
        pytest.param(SHOWN | EMPTY, [WRONG, NONE], 0, None, id="nothing is there"),
        pytest.param(SHOWN | EMPTY, [WRONG, MISSED], 0, 0, id="all wrong, and something missed"),
        pytest.param(SHOWN | EMPTY, [RIGHT, MISSED], 1, 0.5, id="as much missed as shown"),
        pytest.param(SHOWN, [RIGHT], 1, 1, id="shown everywhere"),
        pytest.param(SHOWN, [WRONG], 0, None, id="shown everywhere, and always wrong"),
        pytest.param(SHOWN, [(LOW, 1, 1, 1)], 0, 0, id="always misplaced"),
        pytest.param(EMPTY, [NONE], None, None, id="never there"),
        pytest.param(EMPTY, [MISSED], None, 0, id="always missed"),
    ],
)
def test_what_does_not_exist_has_no_number(strata, rows, precision, recall):
    found = estimate(strata, checked(*rows), has_recall=True)
    for one, expected in ((found.precision, precision), (found.recall, recall)):
        assert (one and one.value) == (expected if expected is None else pytest.approx(expected))
        assert one is None or one.interval.low <= one.value <= one.interval.high


def test_where_every_pair_was_checked_the_numbers_are_certain():
    strata = {("cat", LOW): Stratum(3, 4), ("cat", NOTHING_FOUND): Stratum(2, 0)}
    rows = checked(
        *((LOW, 2, 1, 0), (LOW, 1, 0, 0), (LOW, 1, 0, 1)),
        *((NOTHING_FOUND, 0, 0, 1), (NOTHING_FOUND, 0, 0, 0)),
        share=1.0,
    )
    found = estimate(strata, rows, has_recall=True)
    assert found.precision.value == pytest.approx(3 / 4)
    assert found.recall.value == pytest.approx(3 / 5)
    for one in (found.precision, found.recall):
        assert (one.interval.low, one.interval.high) == pytest.approx((one.value, one.value))


def test_rows_of_an_earlier_sample_stand_for_the_images_that_there_were():
    # Ten of a hundred were checked and are bad; then a thousand good ones came.
    strata = {("cat", LOW): Stratum(1100, 1100)}
    old = checked(*[(LOW, 1, 1, 0)] * 10, share=0.1)
    new = checked(*[(LOW, 1, 0, 0)] * 9, share=0.01)
    found = estimate(strata, [*old, *new], has_recall=False)
    assert found.precision.value == pytest.approx(900 / 1000)


def population(random, *, boxes, wrong, missed, missed_alone, labels=1, alike=False, empty=1200):
    """300 pairs with something shown and others of each label. Low scores are wrong more often;
    alike: boxes of one image are right or wrong together."""
    rows = []
    for label in range(labels):
        score = random.random(300)
        shown = 1 + random.poisson(boxes - 1, 300)
        share = wrong * (1 - score)
        if alike:
            share = random.beta(2 * share + 1e-9, 2 * (1 - share))
        rows.append(
            pd.DataFrame(
                {
                    "label": f"label {label}",
                    "image_id": [f"{label}-{i}" for i in range(300)],
                    "shown": shown,
                    "score": score,
                    "wrong": random.binomial(shown, share),
                    "missed": random.poisson(missed, 300),
                }
            )
        )
        rows.append(
            pd.DataFrame(
                {
                    "label": f"label {label}",
                    "image_id": [f"{label}-e{i}" for i in range(empty)],
                    **{"shown": 0, "score": np.nan, "wrong": 0},
                    "missed": (random.random(empty) < missed_alone).astype(int),
                }
            )
        )
    return pd.concat(rows, ignore_index=True).assign(is_answered=True)


USUAL = {"boxes": 2, "wrong": 0.25, "missed": 0.1, "missed_alone": 0.01}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(USUAL, id="usual"),
        pytest.param(USUAL | {"wrong": 0.02}, id="rare mistakes"),
        pytest.param(USUAL | {"boxes": 12, "alike": True}, id="many boxes that are alike"),
        pytest.param(USUAL | {"wrong": 1.0, "missed": 0.8, "missed_alone": 0.2}, id="bad all over"),
        pytest.param(
            USUAL | {"boxes": 1, "missed": 0.05, "empty": 8000}, id="misses as rare as they matter"
        ),
        pytest.param(USUAL | {"labels": 8}, id="eight labels together"),
    ],
)
def test_in_nine_samples_of_ten_the_intervals_hold_what_is_true(kind):
    every = population(np.random.default_rng(5), **kind)
    right = (every["shown"] - every["wrong"]).sum()
    true = {
        "precision": right / every["shown"].sum(),
        "recall": right / (right + every["missed"].sum()),
    }
    sample = draw_sample(every, 30)
    strata = strata_of(sample)
    columns = sample[list(Checked._fields)].to_numpy()
    places = list(sample.groupby(["label", "stratum"]).indices.values())
    rows_of = [round(columns[own[0], -1] * len(own)) for own in places]
    held, values = Counter(), {name: [] for name in true}
    draws = 300
    for seed in range(draws):
        # Any rows of a stratum, as many as it has: which ones hashes draw is another test's.
        random = np.random.default_rng(seed)
        chosen = np.concatenate(
            [random.choice(own, rows, False) for own, rows in zip(places, rows_of, strict=True)]
        )
        found = estimate(strata, list(map(Checked._make, columns[chosen])), has_recall=True)
        for name in true:
            one = getattr(found, name)
            held[name] += one.interval.holds(true[name])
            values[name].append(one.value)
    for name in true:
        assert held[name] / draws >= 0.9, name
    assert np.mean(values["precision"]) == pytest.approx(true["precision"], abs=0.02)


def test_the_table_has_a_row_for_all_labels_and_one_for_each():
    strata = {("cat", LOW): Stratum(30, 40), ("dog", LOW): Stratum(10, 10)}
    rows = {"cat": checked((LOW, 2, 1, 0), (LOW, 2, 0, 0)), "dog": []}
    per_label = {
        label: estimate(
            {key: size for key, size in strata.items() if key[0] == label},
            rows[label],
            has_recall=False,
        )
        for label in rows
    }
    overall: AuditEstimate = estimate(strata, rows["cat"], has_recall=False)
    sizes = {"cat": (30, 3), "dog": (10, 2)}
    audit = EntryAudit("object", 5, 2, 0, 0, overall, per_label, sizes)
    assert audit.to_check == 3
    table = audit_table([audit])
    assert table["label"].tolist() == ["all", "cat", "dog"]
    assert table["pairs"].tolist() == [40, 30, 10]
    assert table["rows"].tolist() == [5, 3, 2]
    assert table["precision"].tolist()[:2] == [0.75, 0.75]
    assert table.loc[2, ["precision", "recall"]].isna().all()
    assert audit_table([]).empty
