"""The sections of the report on model drift and on what to review."""

import io
import math
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pandas as pd
from PIL import Image

from labeling_pipeline.evaluation.drift import ASKED_COLUMNS, PAIR, compare_answers
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.report.data import Picture, ReportData
from labeling_pipeline.evaluation.report.drift import DriftReport, drift_section
from labeling_pipeline.evaluation.report.page import render_report
from labeling_pipeline.evaluation.report.review import ReviewReport, review_section
from labeling_pipeline.evaluation.review import DOUBT_COLUMNS, rank_images

SQUARE, FAR = (0, 0, 10, 10), (50, 50, 60, 60)


def page(section):
    """The page with one section. Its tags are balanced."""
    data = ReportData("A title", datetime(2030, 1, 2, tzinfo=UTC), "/data", (section,))
    html = render_report(data)
    _Tags().feed(html)
    assert not re.search(r"\b(nan|None)\b", re.sub(r"base64,[^\"]*", "", html))
    return html


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def picture(title):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "JPEG")
    return Picture(title, buffer.getvalue(), title)


def drift(images, state="found"):
    asked = pd.DataFrame(
        [
            (f"cat/{n}.jpg", "<cat>", "object", f"i{n}", "cat", state, "found")
            for n in range(images)
        ],
        columns=ASKED_COLUMNS,
    )

    def found(box, score):
        rows = [("object", f"i{n}", "cat", f"{n}", *box, score) for n in range(images)]
        table = pd.DataFrame(rows, columns=[*PAIR, "annotation_id", *BOX_COLUMNS, "score"])
        return table.assign(text=None, point=None, keypoints=None)

    measured = compare_answers(asked, found(SQUARE, 0.9), found(FAR, 0.8))
    return DriftReport(
        measured, {"object": "old (k1)"}, {"object": "new (k2)"}, {"text": "nobody <else>"}
    )


def queue(*errors, settled=()):
    doubts = pd.DataFrame(
        [
            (f"i{n}", "object", "cat", "a", "low score", value, "cat 0.50")
            for n, value in enumerate(errors)
        ],
        columns=[c for c in DOUBT_COLUMNS if c not in BOX_COLUMNS],
    )
    doubts[BOX_COLUMNS] = np.nan
    paths = pd.Series({f"i{n}": f"{n}.jpg" for n in range(50)})
    return rank_images(doubts, doubts["image_id"].isin(settled).to_numpy(), paths)


def listed(queue):
    rows = queue.images.assign(path=queue.images["image_id"] + "<b>.jpg", classes="cat")
    return rows[["rank", "path", "classes", "expected_errors", "reasons"]]


def test_the_drift_section_says_which_models_and_what_changed():
    section = drift_section(drift(3))
    html = page(section)
    assert "new (k2) after old (k1). Images compared: 3, of which 3 differ." in html
    assert "Boxes: 0 matched, 0 moved, 3 lost, 3 new." in html
    assert "cat/2.jpg" in html
    assert "&lt;cat&gt;" in html
    assert "nobody &lt;else&gt;" in html
    (headline,) = section.headlines
    assert (headline.name, headline.value) == ("Boxes as of the other model", 0.0)
    assert headline.note == "3 images answered by both"


def test_many_changed_images_are_cut_and_counted():
    html = page(drift_section(drift(30)))
    assert html.count("<code>cat/") == 20
    assert "and 10 more, in drift/images.csv" in html


def test_answers_that_turned_are_told_and_what_cannot_be_compared_too():
    html = page(drift_section(drift(2, state="truncated")))
    assert "object: truncated to found, 2" in html
    assert "object, &lt;cat&gt;: 2 (before: truncated)" in html
    assert "No image can be compared." in html


def test_entries_without_another_model_leave_the_section_out_with_their_reasons():
    nothing = pd.DataFrame(columns=[*PAIR, *BOX_COLUMNS, "annotation_id", "score", "text", "point"])
    nothing["keypoints"] = None
    measured = compare_answers(pd.DataFrame(columns=ASKED_COLUMNS), nothing, nothing)
    section = drift_section(DriftReport(measured, {}, {}, {"a": "why", "b": "why", "c": "else"}))
    assert section.content is None
    assert section.headlines == ()
    assert "Model drift: why (a, b); else (c)." in page(section)


def test_the_review_section_lists_the_first_images_with_their_reasons():
    measured = queue(0.9, 0.2, 0.6, 0.7, settled=["i3"])
    report = ReviewReport(measured, listed(measured).head(2), (picture("1. cat"),))
    html = page(review_section(report))
    assert html.index("i0&lt;b&gt;.jpg") < html.index("i2&lt;b&gt;.jpg")
    assert "i1&lt;b&gt;" not in html
    assert "low score: cat 0.50" in html
    assert "Of 50 images, 0.5 expected errors or more: 2. Left out, because" in html
    assert "audited or marked them: 1. To go on" in html
    assert "and 1 more, in review/queue.csv" in html
    assert "<figcaption>1. cat</figcaption>" in html
    (headline,) = review_section(report).headlines
    assert (headline.name, headline.value, headline.more_is_better) == (
        "Images to review",
        2,
        False,
    )
    assert headline.note == "of 50 images: at least 0.5 expected errors"


def test_a_queue_without_images_says_so():
    measured = queue(0.9, settled=["i0"])
    html = page(review_section(ReviewReport(measured, listed(measured))))
    assert "Nothing is left to doubt." in html


def test_without_labels_the_review_section_is_left_out():
    assert "Review: nothing has been labeled yet." in page(review_section(None))
    assert math.isnan(drift(0).measured.share_as_before)
