"""What another model answered otherwise, from the store to the tables."""

import shutil

import numpy as np
import pandas as pd
import pytest

from labeling_pipeline.corrections import import_corrections
from labeling_pipeline.evaluation.report.drift import drift_section
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.reporting.drift import (
    NO_OTHER_MODEL,
    draw_changes,
    drift_report,
    measure_drift,
    write_drift,
)

LEFT, RIGHT, BELOW = [100, 100, 300, 400], [600, 100, 800, 400], [200, 600, 700, 900]
SHIFTED = [130, 100, 330, 400]


def entry(model, **keys):
    return {"name": "object", "task": "detection", "model": model, "group_size": 1, **keys}


def counts(drift, by="entry"):
    table = drift.measured.per_entry if by == "entry" else drift.measured.per_class
    columns = ["matched", "moved", "lost", "new"]
    return {row[by]: [row[c] for c in columns] for row in table.to_dict("records")}


def test_the_model_of_the_plan_is_compared_with_the_one_that_answered_last_beside_it(
    dataset, script
):
    oldest = script(boxes={"cat": [BELOW], "dog": [BELOW]})
    before = script(boxes={"cat": [LEFT], "dog": [LEFT, RIGHT]})
    now = script(boxes={"cat": [LEFT], "dog": [SHIFTED]})
    for model in (oldest, before):
        dataset.label(entry(model))
    drift = measure_drift(dataset.store, dataset.label(entry(now)))
    # Two images of each class.
    assert counts(drift, "class") == {"cat": [2, 0, 0, 0], "dog": [0, 2, 2, 0]}
    assert drift.before["object"].startswith(before)
    assert drift.now["object"].startswith(now)
    assert "Boxes: 2 matched, 2 moved, 2 lost, 0 new." in drift.sentences["object"]
    assert drift.measured.share_as_before == pytest.approx(2 / 6)
    # The other way round, what was new is lost.
    back = measure_drift(dataset.store, dataset.plan(entry(before)))
    assert counts(back, "class") == {"cat": [2, 0, 0, 0], "dog": [0, 2, 0, 2]}


def test_the_other_model_can_be_named_by_its_name_or_its_key(dataset, script):
    first, second, now = (
        script(boxes={"cat": boxes, "dog": []}) for boxes in ([LEFT], [RIGHT], [LEFT])
    )
    # A script's answers are its key: these two differ, and the third is as the first.
    plans = [dataset.label(entry(model)) for model in (first, second)]
    plan = dataset.plan(entry(now))
    assert counts(measure_drift(dataset.store, plan))["object"] == [0, 0, 2, 2]
    (key,) = measure_drift(dataset.store, plans[0]).before.values()
    for against in (second, key.rpartition("(")[2].rstrip(")")):
        named = dataset.plan(entry(now), drift={"against": against})
        assert counts(measure_drift(dataset.store, named))["object"] == [0, 0, 2, 2]
    unknown = measure_drift(dataset.store, dataset.plan(entry(now), drift={"against": "nobody"}))
    assert not unknown.before
    assert "drift.against is 'nobody', but the other models" in unknown.without["object"]
    assert second in unknown.without["object"]


def test_the_limits_come_from_the_plan(dataset, script):
    dataset.label(entry(script(boxes={"cat": [LEFT]})))
    now = entry(script(boxes={"cat": [SHIFTED]}))
    dataset.label(now)
    for keys, expected in (
        ({}, [0, 2, 0, 0]),
        ({"moved_iou": 0.7}, [2, 0, 0, 0]),
        ({"iou": 0.8}, [0, 0, 2, 2]),
    ):
        drift = measure_drift(dataset.store, dataset.plan(now, drift=keys))
        assert counts(drift)["object"] == expected


def test_without_another_model_there_is_nothing_to_compare_and_the_report_says_so(dataset, script):
    plan = dataset.label(entry(script(boxes={"cat": [LEFT]})))
    drift = measure_drift(dataset.store, plan)
    assert drift.without == {"object": NO_OTHER_MODEL}
    assert drift_report(drift, dataset.source) is drift
    section = drift_section(drift)
    assert section.content is None
    assert section.absent == f"Model drift: {NO_OTHER_MODEL} (object)."
    write_drift(dataset.reports, drift)
    assert all(pd.read_csv(path).empty for path in dataset.reports.glob("*.csv"))


def test_thresholds_apply_to_both_sides_and_corrections_to_neither(dataset, script, tmp_path):
    dataset.label(entry(script(boxes={"cat": [LEFT]})))
    now = script(boxes={"cat": [LEFT, BELOW]})
    plan = dataset.label(entry(now))
    edits = tmp_path / "edits.json"
    edits.write_text(
        '{"corrections": [{"kind": "add", "image": "cat/a.png", "entry": "object", "label": "cat",'
        ' "author": "Ann", "values": {"bbox": [60, 5, 80, 20]}}]}'
    )
    import_corrections(dataset.store, plan, edits, dataset.source)
    assert counts(measure_drift(dataset.store, plan))["object"] == [2, 0, 0, 2]
    # The scores of a script are all the same.
    strict = dataset.plan(entry(now, threshold=0.95))
    assert counts(measure_drift(dataset.store, strict))["object"] == [0, 0, 0, 0]


def test_only_what_is_asked_today_and_of_its_own_class_is_compared(dataset, script):
    boxes = {"cat": [LEFT], "dog": [LEFT], "pet": [RIGHT]}
    first = dataset.label(entry(script(boxes=boxes), group_size=2))
    # All labels are asked of all images, but an image of a cat is no matter of the class dog.
    assert len(measure_drift(dataset.store, first).measured.per_image) == 0
    second = script(boxes={**boxes, "cat": [RIGHT]})
    both = dataset.label(entry(second, group_size=2))
    assert counts(measure_drift(dataset.store, both), "class") == {
        "cat": [0, 0, 2, 2],
        "dog": [2, 0, 0, 0],
    }
    asked_otherwise = dataset.label(entry(second, ask={"cat": "pet"}))
    drift = measure_drift(dataset.store, asked_otherwise)
    assert counts(drift, "class")["cat"] == [0, 0, 0, 0]
    (reason,) = drift.measured.not_compared.to_dict("records")
    assert (reason["class"], reason["reason"]) == ("cat", "before: not asked yet")


def test_images_that_one_model_failed_on_are_counted_and_not_compared(dataset, script):
    width = dataset.widths["cat/b.png"]
    dataset.label(entry(script(boxes={"cat": [LEFT]}, fail_size_px=[width, 100])))
    drift = measure_drift(dataset.store, dataset.label(entry(script(boxes={"cat": [RIGHT]}))))
    assert counts(drift, "class")["cat"] == [0, 0, 1, 1]
    turned = drift.turned[["before", "now", "pairs"]].to_numpy().tolist()
    assert turned == [["failed", "found", 1]]


def test_the_tables_and_pictures_show_what_changed(dataset, script):
    dataset.label(entry(script(boxes={"dog": [LEFT, RIGHT]})))
    plan = dataset.label(entry(script(boxes={"dog": [SHIFTED, BELOW]})))
    drift = measure_drift(dataset.store, plan)
    write_drift(dataset.reports, drift)
    tables = {path.stem: pd.read_csv(path) for path in dataset.reports.glob("*.csv")}
    assert set(tables) == {"entries", "classes", "images", "boxes", "states", "not_compared"}
    assert tables["images"]["path"].tolist()[:2] == ["dog/a.png", "dog/b.png"]
    assert tables["boxes"]["change"].value_counts().to_dict() == {"moved": 2, "lost": 2, "new": 2}
    assert tables["entries"]["model_now"].tolist() == [drift.now["object"]]
    pictures = draw_changes(drift.measured, dataset.source)
    # Two images, each before and now.
    assert pictures is not None
    assert pictures.shape == (2 * 460 + 12, 2 * 432 + 12, 3)
    before, now = np.split(pictures[:, 12:], 2, axis=1)
    assert (before != now).any()
    report = drift_report(drift, dataset.source)
    assert (len(report.figures), len(report.examples)) == (1, 1)


def test_an_image_that_is_gone_is_left_out_of_the_pictures(dataset, script, tmp_path):
    dataset.label(entry(script(boxes={"dog": [LEFT, RIGHT]})))
    plan = dataset.label(entry(script(boxes={"dog": [SHIFTED, BELOW]})))
    measured = measure_drift(dataset.store, plan).measured
    images = shutil.copytree(dataset.source.path, tmp_path / "images")
    (images / "dog/a.png").unlink()
    assert draw_changes(measured, open_source(images)).shape[0] == 460 + 12
    (images / "dog/b.png").unlink()
    assert draw_changes(measured, open_source(images)) is None


def test_nothing_is_drawn_where_no_box_changed(dataset, script):
    dataset.label(entry(script(boxes={"cat": [LEFT]})))
    plan = dataset.label(entry(script(boxes={"cat": [LEFT], "owl": [LEFT]})))
    assert draw_changes(measure_drift(dataset.store, plan).measured, dataset.source) is None
