"""The review queue, from the store to the files that people fill in."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.corrections import import_corrections
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.reporting.audit import write_audit
from labeling_pipeline.reporting.review import (
    draw_queue,
    measure_review,
    review_report,
    review_sheet,
    write_review,
)

LEFT, RIGHT, BELOW = [100, 100, 300, 400], [600, 100, 800, 400], [200, 600, 700, 900]
# Near enough to be one thing twice, and not so near that the parser drops it.
ALMOST_LEFT = [130, 100, 330, 400]


def entry(model, name="object", **keys):
    return {"name": name, "task": "detection", "model": model, "group_size": 1, **keys}


def measured(dataset, plan):
    return measure_review(dataset.store, plan, dataset.home)


def errors(review):
    """Path -> expected errors but for what scores and presence add, which are all alike here."""
    rows = review.table[["path", "expected_errors"]].itertuples(index=False)
    return {path: round(value, 1) for path, value in rows if value > 0.15}


def queue_of(dataset):
    with (dataset.reports / "review" / "queue.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_every_reason_counts_where_it_applies(dataset, script):
    dataset.label(entry(script(boxes={"cat": [RIGHT], "dog": [LEFT]})))
    model = script(
        boxes={"cat": [LEFT], "dog": [LEFT, ALMOST_LEFT]},
        fail_size_px=[dataset.widths["cat/b.png"], 100],
    )
    other = script(boxes={"cat": [LEFT, BELOW], "dog": [LEFT, ALMOST_LEFT]})
    plan = dataset.label(entry(model), entry(other, "second"))
    review = measured(dataset, plan)
    rows = review.table.set_index("path")["reasons"]
    # All scores of a script are alike, so they tell nothing apart; its presences are all 0.9.
    once = "unsure whether it is there: cat (found, presence 0.90)"
    both = "unsure whether it is there: dog (found, presence 0.90), dog (found, presence 0.90)"
    # That cat/b.png has no answer leaves nothing to compare it with.
    assert rows["cat/b.png"] == f"no sound answer: cat (failed); {once}"
    assert set(rows["cat/a.png"].split("; ")) == {
        *("one model only: cat (not by object), cat (only by second)", "new: cat", "lost: cat"),
        both.replace("dog", "cat"),
    }
    # In both entries one box is one too many, and to the first one it is new.
    assert rows["dog/a.png"] == rows["dog/b.png"] == f"twice: dog, dog; new: dog; {both}"
    expected = {"cat/a.png": 2.0, "dog/a.png": 1.25, "dog/b.png": 1.25, "cat/b.png": 1.0}
    found = review.table.set_index("path")["expected_errors"]
    # A presence of 0.9 adds a tenth for each answer that found something.
    answers = {"cat/a.png": 2, "dog/a.png": 2, "dog/b.png": 2, "cat/b.png": 1}
    for path, value in expected.items():
        assert found[path] == pytest.approx(value + 0.1 * answers[path], abs=0.03)
    assert review.table["rank"].tolist() == [1, 2, 3, 4]
    assert (review.queue.total, review.queue.settled, review.queue.worth_a_look) == (4, 0, 4)


def test_the_queue_is_a_file_that_a_spreadsheet_opens(dataset, script):
    plan = dataset.label(entry(script(boxes={"cat": [LEFT, ALMOST_LEFT]})))
    review = measured(dataset, plan)
    write_review(dataset.reports / "review", review)
    data = (dataset.reports / "review" / "queue.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    assert data.count(b"\r\n") == data.count(b"\n") == 5
    first = queue_of(dataset)[0]
    assert (first["rank"], first["path"], first["classes"]) == ("1", "cat/a.png", "cat")
    assert first["entries"] == "object"
    assert first["reasons"].startswith("twice: cat")
    assert first["picture"] == "pictures/1.jpg"
    assert not (dataset.reports / "review" / "reviewed.csv").exists()


def test_what_a_person_corrected_of_an_entry_is_settled(dataset, script, tmp_path):
    twice = script(boxes={"cat": [LEFT, ALMOST_LEFT]})
    plan = dataset.label(entry(twice), entry(script(boxes={"cat": [LEFT]}, delay_s=0), "second"))
    before = errors(measured(dataset, plan))
    assert before["cat/a.png"] == before["cat/b.png"]
    edits = tmp_path / "edits.json"
    edits.write_text(
        '{"corrections": [{"kind": "add", "image": "cat/a.png", "entry": "object", "label": "cat",'
        ' "author": "Ann", "values": {"bbox": [60, 5, 80, 20]}}]}'
    )
    import_corrections(dataset.store, plan, edits, dataset.source)
    review = measured(dataset, plan)
    rows = review.table.set_index("path")
    # What another entry says of the image is still open.
    assert rows.loc["cat/a.png", "entries"] == "second"
    assert rows.loc["cat/b.png", "entries"] == "object, second"
    assert review.queue.settled == 0
    edits.write_text(edits.read_text().replace('"object"', '"second"'))
    import_corrections(dataset.store, plan, edits, dataset.source)
    review = measured(dataset, plan)
    assert "cat/a.png" not in set(review.table["path"])
    assert review.queue.settled == 1


def test_an_audited_label_is_settled(dataset, script):
    plan = dataset.label(entry(script(boxes={"cat": [LEFT, ALMOST_LEFT]})))
    write_audit(dataset.store, plan, dataset.source, dataset.home)
    sheet = dataset.reports / "audit" / "object.csv"
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["wrong"] = "none" if (row["path"], row["label"]) == ("cat/a.png", "cat") else ""
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    review = measured(dataset, plan)
    assert "cat/a.png" not in set(review.table["path"])
    assert errors(review)["cat/b.png"] > 0.5
    assert review.queue.settled == 1


def test_a_marked_image_is_left_out_until_its_labels_are_others(dataset, script):
    folder = dataset.reports / "review"
    plan = dataset.label(entry(script(boxes={"cat": [LEFT, ALMOST_LEFT], "dog": [LEFT]})))
    write_review(folder, measured(dataset, plan))
    rows = queue_of(dataset)
    marked = rows[0]
    assert marked["path"] == "cat/a.png"
    with (folder / "queue.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=";")
        writer.writeheader()
        writer.writerows([marked | {"reviewed": "Ann: fine"}, *rows[1:]])
    # At once, and however often the queue is made anew.
    for _ in range(3):
        review = measured(dataset, plan)
        assert "cat/a.png" not in set(review.table["path"])
        assert review.queue.settled == 1
        write_review(folder, review)
        assert "cat/a.png" not in {row["path"] for row in queue_of(dataset)}
    kept = (folder / "reviewed.csv").read_text(encoding="utf-8-sig")
    assert "Ann: fine" in kept
    plan = dataset.label(entry(script(boxes={"cat": [LEFT, RIGHT], "dog": [LEFT]})))
    review = measured(dataset, plan)
    assert review.queue.settled == 0
    assert "cat/a.png" in set(review.table["path"])
    write_review(folder, review)
    assert (folder / "reviewed.csv").read_text(encoding="utf-8-sig") == kept


def test_the_first_images_are_drawn_once_and_again_when_something_changed(dataset, script):
    folder = dataset.reports / "review" / "pictures"
    first = entry(script(boxes={"cat": [LEFT, ALMOST_LEFT], "dog": [LEFT]}))
    plan = dataset.label(first, review={"pictures": 3})
    review = measured(dataset, plan)
    assert draw_queue(review, dataset.source, folder) == 3
    drawn = {path.name: path.read_bytes() for path in folder.glob("*.jpg")}
    assert set(drawn) == {"1.jpg", "2.jpg", "3.jpg"}
    # Enlarged for text, with a title above and the reasons below.
    width, height = Image.open(folder / "1.jpg").size
    assert width > dataset.widths["cat/a.png"]
    assert height / width > 100 / dataset.widths["cat/a.png"]
    assert draw_queue(review, dataset.source, folder) == 0
    plan = dataset.label(
        entry(script(boxes={"cat": [LEFT, ALMOST_LEFT, BELOW], "dog": [LEFT]})),
        review={"pictures": 2},
    )
    assert draw_queue(measured(dataset, plan), dataset.source, folder) == 2
    changed = {path.name: path.read_bytes() for path in folder.glob("*.jpg")}
    assert set(changed) == {"1.jpg", "2.jpg"}
    assert all(changed[name] != drawn[name] for name in changed)


def test_a_large_image_is_drawn_smaller_with_its_boxes_in_place(dataset, script, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (3200, 1600), (200, 200, 200)).save(tmp_path / "photos" / "large.png")
    plan = dataset.label(entry(script(boxes={"cat": [LEFT]})), review={"pictures": 1})
    review = measured(dataset, plan)
    large = replace(
        review,
        table=review.table.head(1).assign(path="large.png"),
        annotations=review.annotations.assign(x0_px=1600, y0_px=800, x1_px=3000, y1_px=1500),
    )
    draw_queue(large, open_source(tmp_path / "photos"), tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "1.jpg")).astype(int)
    is_bare = np.abs(pixels - 200).max(axis=2) < 40
    # Below the title.
    is_bare = is_bare[is_bare[:, 0].argmax() :][:800]
    assert is_bare.shape == (800, 1600)
    # The frame of the box, at half its coordinates; left of it there is nothing.
    assert not is_bare[390:410, 1000].all()
    assert not is_bare[600, 1490:1510].all()
    assert is_bare[30:770, 30:700].all()


def test_pictures_of_the_report_are_those_that_were_drawn(dataset, script):
    plan = dataset.label(entry(script(boxes={"cat": [LEFT, ALMOST_LEFT]})))
    review = measured(dataset, plan)
    folder = dataset.reports / "review"
    assert review_report(dataset.store, plan, dataset.home).content.examples == ()
    assert review_sheet(review, folder) is None
    draw_queue(review, dataset.source, folder / "pictures")
    section = review_report(dataset.store, plan, dataset.home)
    assert [picture.title[:13] for picture in section.content.examples][:2] == [
        "1. cat/a.png:",
        "2. cat/b.png:",
    ]
    assert review_sheet(review, folder).shape[1] == 3 * 432 + 12
    (headline,) = section.headlines
    assert (headline.name, headline.value) == ("Images to review", 2)


def test_a_queue_that_cannot_be_read_leaves_the_page_without_it(dataset, script):
    plan = dataset.label(entry(script(boxes={"cat": [LEFT]})))
    write_review(dataset.reports / "review", measured(dataset, plan))
    queue = dataset.reports / "review/queue.csv"
    queue.write_bytes(queue.read_bytes().replace(b"reviewed", b"checked"))
    section = review_report(dataset.store, plan, dataset.home)
    assert section.content is None
    assert "queue.csv: expected the columns" in section.absent


def test_before_anything_is_labeled_the_queue_is_empty(dataset, script):
    plan = dataset.plan(entry(script(boxes={})))
    review = measured(dataset, plan)
    write_review(dataset.reports / "review", review)
    assert draw_queue(review, dataset.source, dataset.reports / "review" / "pictures") == 0
    assert queue_of(dataset) == []
    section = review_report(dataset.store, plan, dataset.home)
    assert (section.content, section.absent) == (None, "Review: nothing has been labeled yet.")
    assert json.loads((dataset.reports / "review/pictures/.drawn.json").read_text()) == {}


def test_labels_of_other_folders_images_are_not_doubted(dataset, script):
    # Both labels are asked of all images, and each is found twice on all of them.
    twice = [LEFT, ALMOST_LEFT]
    plan = dataset.label(entry(script(boxes={"cat": twice, "dog": twice}), group_size=2))
    rows = measured(dataset, plan).table.set_index("path")
    assert rows.loc["cat/a.png", "reasons"].startswith("twice: cat")
    assert not rows["reasons"].str.contains("cat, dog|dog, cat|cat.*dog|dog.*cat").any()
    assert rows["classes"].to_dict() == {
        **{"cat/a.png": "cat", "cat/b.png": "cat", "dog/a.png": "dog", "dog/b.png": "dog"}
    }
