import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from labeling_pipeline.annotations import State
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.review import (
    DOUBT_COLUMNS,
    PAIR,
    Reason,
    doubts_of_answers,
    doubts_of_boxes,
    doubts_of_scores,
    doubts_of_twins,
    rank_images,
)

SQUARE, FAR = (0, 0, 10, 10), (100, 100, 110, 110)


def annotations(*rows, entry="object", image="i", label="cat"):
    """(score, is_calibrated, box)"""
    return pd.DataFrame(
        [(image, entry, label, f"{entry}-{n}", s, c, *box) for n, (s, c, box) in enumerate(rows)],
        columns=[*PAIR, "annotation_id", "score", "is_calibrated", *BOX_COLUMNS],
    )


def scored(*scores, is_calibrated=False, **keys):
    return annotations(*((score, is_calibrated, SQUARE) for score in scores), **keys)


def outcomes(*rows):
    """(label, state, presence)"""
    return pd.DataFrame(
        [("i", "object", *row) for row in rows], columns=[*PAIR, "state", "presence"]
    )


def doubts(*rows):
    """(image, item, reason, doubt), each in an entry ``object`` and label ``cat``."""
    table = pd.DataFrame(rows, columns=["image_id", "item", "reason", "doubt"])
    table = table.assign(entry="object", label="cat", detail=table["item"])
    table[BOX_COLUMNS] = np.nan
    return table[DOUBT_COLUMNS]


def ranked(table, *settled, total=10):
    """The queue of so many images, whose paths are their ids backwards."""
    images = {*table["image_id"], *(f"image {n}" for n in range(total))}
    paths = pd.Series({image: image[::-1] for image in sorted(images)[:total]}, dtype=object)
    return rank_images(table, table["item"].isin(settled).to_numpy(), paths)


def test_a_calibrated_score_is_doubted_by_what_is_left_of_one():
    doubt = doubts_of_scores(scored(0.97, 0.4, 1.0, is_calibrated=True))["doubt"]
    assert doubt.tolist() == pytest.approx([0.03, 0.6, 0.0])


def test_an_uncalibrated_score_is_doubted_by_its_rank_among_those_of_its_entry():
    scores = [0.3, 0.1, 0.2, 0.2, 0.25]
    table = pd.concat([scored(*scores), scored(0.01, 0.02, entry="other", image="j")])
    by_entry = doubts_of_scores(table).groupby("entry")["doubt"].agg(list)
    expected = (1 - (rankdata(scores) - 0.5) / 5) ** 9
    assert by_entry["object"] == pytest.approx(list(expected))
    # Low as they are: another model's scores say nothing of these.
    assert by_entry["other"] == pytest.approx([0.75**9, 0.25**9])


def test_one_in_ten_annotations_is_taken_for_wrong_whatever_the_scale_of_the_scores():
    for scores in (np.linspace(0.001, 0.002, 500), np.linspace(0.1, 0.3, 500) ** 3):
        assert doubts_of_scores(scored(*scores))["doubt"].mean() == pytest.approx(0.1, abs=2e-3)


def test_no_score_is_taken_for_less_than_it_says():
    doubt = doubts_of_scores(scored(0.999, *[1.0] * 50))["doubt"]
    assert doubt.tolist() == pytest.approx([0.001, *[0.0] * 50])


def test_equal_scores_tell_nothing_apart():
    assert doubts_of_scores(scored(0.8, 0.8, 0.8))["doubt"].tolist() == pytest.approx([0.5**9] * 3)


def test_calibrated_and_uncalibrated_scores_are_not_ranked_together():
    table = pd.concat([scored(0.2, is_calibrated=True), scored(0.5, 0.6)])
    assert doubts_of_scores(table)["doubt"].tolist() == pytest.approx([0.8, 0.75**9, 0.25**9])


def test_what_has_no_score_is_not_doubted_by_it():
    assert doubts_of_scores(scored(None, np.nan)).empty


@pytest.mark.parametrize(
    ("state", "presence", "expected"),
    [
        pytest.param(State.FOUND, 0.7, (Reason.PRESENCE, 0.3), id="found, and perhaps not there"),
        pytest.param(State.FOUND, 1.0, (Reason.PRESENCE, 0.0), id="found, and surely there"),
        pytest.param(State.FOUND, np.nan, None, id="found, of unknown presence"),
        pytest.param(State.ABSENT, 0.45, (Reason.PRESENCE, 0.45), id="absent, and perhaps there"),
        pytest.param(State.ABSENT, np.nan, None, id="absent, of unknown presence"),
        pytest.param(State.NOT_MENTIONED, np.nan, (Reason.NOT_MENTIONED, 0.2), id="passed over"),
        pytest.param(State.TRUNCATED, 0.99, (Reason.UNSOUND, 1.0), id="cut"),
        pytest.param(State.UNPARSED, np.nan, (Reason.UNSOUND, 1.0), id="garbled"),
        pytest.param(State.DEGENERATE, np.nan, (Reason.UNSOUND, 1.0), id="in circles"),
        pytest.param(State.FAILED, np.nan, (Reason.UNSOUND, 1.0), id="failed"),
        pytest.param(State.UNSUPPORTED, np.nan, None, id="never asked"),
    ],
)
def test_an_answer_is_doubted_by_its_state_and_presence(state, presence, expected):
    table = doubts_of_answers(outcomes(("cat", state, presence)))
    found = [(row.reason, pytest.approx(row.doubt)) for row in table.itertuples()]
    assert found == ([] if expected is None else [expected])
    assert all(row.detail.startswith("cat") for row in table.itertuples())


@pytest.mark.parametrize(
    ("rows", "twins"),
    [
        pytest.param([(0.9, SQUARE), (0.8, SQUARE)], [1], id="the less sure one"),
        pytest.param([(0.8, SQUARE), (0.9, (0, 0, 10, 6))], [0], id="whatever comes first"),
        pytest.param([(0.8, SQUARE), (0.8, (0, 0, 10, 5))], [1], id="of two alike the second"),
        pytest.param([(None, SQUARE), (0.1, SQUARE)], [0], id="the one without a score"),
        pytest.param([(0.9, SQUARE), (0.8, (0, 0, 10, 4))], [], id="they overlap too little"),
        pytest.param([(0.9, SQUARE), (0.8, FAR)], [], id="they are apart"),
        pytest.param([(0.9, SQUARE)], [], id="one alone"),
        pytest.param([(0.9, SQUARE), (0.8, SQUARE), (0.7, SQUARE)], [1, 2], id="one thing thrice"),
    ],
)
def test_of_two_boxes_of_one_thing_the_less_sure_one_is_doubted(rows, twins):
    table = annotations(*((score, False, box) for score, box in rows))
    found = doubts_of_twins(table)
    assert found["item"].tolist() == [f"object-{n}" for n in twins]
    assert set(found["doubt"]) <= {0.5}


def test_boxes_of_another_label_entry_or_image_are_no_twins():
    table = pd.concat(
        [
            scored(0.9),
            scored(0.8, label="dog"),
            scored(0.8, entry="other"),
            scored(0.8, image="j"),
        ]
    )
    assert doubts_of_twins(table).empty


def test_boxes_of_one_side_are_doubted_by_half():
    boxes = annotations((0.9, False, FAR)).assign(item="x", detail="cat (not by other)")
    (row,) = doubts_of_boxes(boxes, Reason.ONE_MODEL).to_dict("records")
    assert (row["item"], row["reason"], row["doubt"]) == ("x", "one model only", 0.5)
    assert [row[column] for column in BOX_COLUMNS] == list(FAR)


def test_several_reasons_for_one_item_add_up_to_less_than_their_sum():
    queue = ranked(
        doubts(
            *(("one", "a", "low score", 0.5), ("one", "a", "twice", 0.5), ("one", "a", "new", 0.2)),
            *(("two", "a", "low score", 0.5), ("two", "b", "low score", 0.5)),
        )
    )
    rows = queue.images.set_index("image_id")["expected_errors"]
    # 1 - 0.5 * 0.5 * 0.8, and twice 0.5.
    assert rows.to_dict() == {"two": pytest.approx(1.0), "one": pytest.approx(0.8)}
    assert queue.expected_errors == pytest.approx(1.8)
    assert queue.images["rank"].tolist() == [1, 2]


def test_items_of_the_same_name_of_another_pair_are_other_items():
    table = doubts(("one", "", "not mentioned", 0.2), ("one", "", "not mentioned", 0.2))
    other = table.assign(label=["cat", "dog"])
    assert ranked(other).expected_errors == pytest.approx(0.4)


def test_images_that_are_equally_doubtful_come_in_the_order_of_their_paths():
    queue = ranked(doubts(*((image, "a", "new", 0.5) for image in ("1c", "2a", "3b"))))
    assert queue.images["image_id"].tolist() == ["2a", "3b", "1c"]


def test_what_people_have_settled_is_doubted_no_more_and_an_image_without_doubts_is_left_out():
    table = doubts(
        *(("half", "x", "new", 0.5), ("half", "y", "lost", 0.5)),
        ("done", "z", "new", 0.9),
        ("open", "w", "new", 0.7),
    )
    queue = ranked(table, "x", "z", total=20)
    assert queue.images[["image_id", "expected_errors"]].to_numpy().tolist() == [
        ["open", pytest.approx(0.7)],
        ["half", pytest.approx(0.5)],
    ]
    assert (queue.settled, queue.total, queue.worth_a_look) == (1, 20, 2)
    assert set(queue.doubts["item"]) == {"y", "w"}


def test_the_reasons_are_told_the_weightiest_first_and_the_slight_ones_not_at_all():
    table = doubts(
        *(("one", f"cat 0.1{n}", "low score", 0.3 + n / 100) for n in range(5)),
        ("one", "dog (failed)", "no sound answer", 1.0),
        ("one", "owl", "unsure whether it is there", 0.04),
        ("two", "owl", "unsure whether it is there", 0.04),
    )
    one, two = ranked(table).images.to_dict("records")
    assert one["reasons"] == (
        "no sound answer: dog (failed); low score: cat 0.14, cat 0.13, cat 0.12 and 2 more"
    )
    assert (one["entries"], one["labels"]) == (("object",), ("cat",))
    assert (two["reasons"], two["entries"], two["labels"]) == ("nothing stands out", (), ())


def test_nothing_to_doubt_gives_an_empty_queue():
    parts = [
        doubts_of_scores(scored()),
        doubts_of_answers(outcomes()),
        doubts_of_twins(scored()),
        doubts_of_boxes(scored().assign(item="", detail=""), Reason.NEW),
    ]
    assert [list(part.columns) for part in parts] == [DOUBT_COLUMNS] * 4
    queue = ranked(pd.concat(parts), total=3)
    assert (len(queue.images), len(queue.doubts), queue.worth_a_look) == (0, 0, 0)
    assert (queue.expected_errors, queue.settled) == (0, 0)
