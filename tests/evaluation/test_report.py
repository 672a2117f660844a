import io
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from labeling_pipeline.evaluation.actions import evaluate_actions
from labeling_pipeline.evaluation.agreement import ASKED_COLUMNS, compare_entries
from labeling_pipeline.evaluation.detection import evaluate_detection, evaluate_keypoints
from labeling_pipeline.evaluation.intervals import Interval
from labeling_pipeline.evaluation.report.actions import ActionReport, actions_section
from labeling_pipeline.evaluation.report.agreement import AgreementReport, agreement_section
from labeling_pipeline.evaluation.report.coverage import (
    CoverageRow,
    coverage_rows,
    coverage_section,
)
from labeling_pipeline.evaluation.report.data import (
    Form,
    Headline,
    Picture,
    ReportData,
    Section,
    number,
    percent,
    written,
)
from labeling_pipeline.evaluation.report.detection import EntryDetection, detection_section
from labeling_pipeline.evaluation.report.files import (
    RejectedFile,
    examples_section,
    rejects_section,
)
from labeling_pipeline.evaluation.report.page import render_report
from labeling_pipeline.evaluation.report.provenance import ModelUse, provenance_section

BOX = ["x0_px", "y0_px", "x1_px", "y1_px"]
NOTHING = (
    detection_section(()),
    actions_section(None),
    agreement_section(None),
    coverage_section(()),
    examples_section(()),
    rejects_section(0, ()),
    provenance_section((), ""),
)


def page_of(*sections: Section, title: str = "A title") -> ReportData:
    return ReportData(title, datetime(2030, 1, 2, 3, 4, tzinfo=UTC), "/data", sections)


def picture(kind="PNG", width=20):
    buffer = io.BytesIO()
    Image.new("RGB", (width, 10)).save(buffer, kind)
    return Picture("a picture", buffer.getvalue())


def full():
    boxes = evaluate_detection(
        pd.DataFrame([("a", "cat", 0.9, 0, 0, 9, 9)], columns=["image_id", "label", "score", *BOX]),
        pd.DataFrame([("a", "cat", 0, 0, 9, 9)], columns=["image_id", "label", *BOX]),
        pd.DataFrame([("a", "cat"), ("a", "owl")], columns=["image_id", "label"]),
    )
    keypoints = evaluate_keypoints(
        pd.DataFrame(columns=["image_id", "score", *BOX, "keypoints"]),
        pd.DataFrame(columns=["image_id", "instance", *BOX, "name", "x_px", "y_px", "visibility"]),
        pd.DataFrame({"image_id": ["a"]}),
    )
    actions = evaluate_actions(
        pd.DataFrame({"true_action": ["run", "sit"], "predicted_action": ["run", None]})
    )
    agreement = compare_entries(
        pd.DataFrame(
            [
                ("cat/a.jpg", "cat", "objects", "others", "a", "found", "found"),
                ("cat/b.jpg", "cat", "objects", "others", "b", "found", "failed"),
            ],
            columns=ASKED_COLUMNS,
        ),
        pd.DataFrame(
            [("objects", "cat", "a", "1", 0, 0, 9, 9)],
            columns=["entry", "class", "image_id", "annotation_id", *BOX],
        ),
    )
    return page_of(
        detection_section((EntryDetection("objects", boxes, keypoints, (picture(),)),)),
        actions_section(ActionReport(actions, (picture(width=1200),))),
        agreement_section(AgreementReport(agreement, (picture("JPEG"),))),
        coverage_section(
            (
                CoverageRow("Sitting", "objects", "person", 5, {"found": 3, "failed": 2}, 4, 0.5),
                CoverageRow("Running", "objects", "runner", 2, {"absent": 2}, 0, None),
            )
        ),
        examples_section((picture("JPEG"),)),
        rejects_section(
            2, (RejectedFile("Sitting/b.jpg", "exact_duplicate", "same content as a.jpg"),)
        ),
        provenance_section(
            (ModelUse("objects", "rex", "org/rex", "abc", "MIT", "k1", {"dtype": "float32"}),),
            "entries: []",
        ),
    )


class Page(HTMLParser):
    """Sections, links to the outside, and unbalanced tags of a page."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self, html):
        super().__init__()
        self.sections, self.addresses, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "section":
            self.sections.append(attributes["id"])
        self.addresses += [attributes[key] for key in ("src", "href") if key in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_whole_page_has_every_section_and_is_well_formed():
    page = Page(render_report(full()))
    assert page.sections == [
        *("detection", "actions", "agreement", "classes", "examples", "rejects", "provenance")
    ]
    assert page.open == []


def test_nothing_is_loaded_from_anywhere():
    html = render_report(full())
    assert all(re.match(r"#|data:image/(png|jpeg);base64,", a) for a in Page(html).addresses)
    assert not re.search(r"https?://|@import|url\(|<script|<link", html)


def test_sections_without_content_are_left_out_with_a_sentence():
    html = render_report(page_of(*NOTHING))
    assert Page(html).sections == ["absent"]
    assert "there is no ground truth to compare with" in html


def test_the_sentence_can_be_replaced_by_a_better_one():
    html = render_report(page_of(actions_section(None, "nobody was found (3 images)")))
    assert "Action recognition: nobody was found (3 images)." in html
    assert "there are no action predictions" not in html


def test_names_are_escaped():
    html = render_report(
        page_of(rejects_section(0, (RejectedFile('<img src="x">', "a_reason"),)), title="<b>x</b>")
    )
    assert "<b>x</b>" not in html
    assert '<img src="x">' not in html
    assert "&lt;b&gt;x&lt;/b&gt;" in html


def test_numbers_that_do_not_exist_are_dashes():
    html = render_report(full())
    row = re.search(r'<tr><td class="wrap">owl</td>.*?</tr>', html).group()
    assert row.count("<td>–</td>") == 6
    assert not re.search(r"\b(nan|None)\b", re.sub(r"base64,[^\"]*", "", html))
    assert [number(None), number(float("nan")), percent(None), number(0.0)] == [
        *("–", "–", "–", "0.00")
    ]


def test_the_headlines_add_up():
    values = {headline.name: (headline.text, headline.note) for headline in full().headlines}
    assert values["Images"] == ("2", "1 file rejected")
    assert values["Classes"] == ("2", "1 entry of the plan")
    assert values["Annotations"] == ("4", "7 outcomes")
    assert values["Without an answer"] == ("2", "28.6% of the outcomes")
    assert values["F1 of objects"] == ("1.00", "at IoU 0.5, 1 image")
    assert values["Keypoints of objects"] == ("–", "PCK@0.1, 0 persons")
    assert values["Agreement of models"] == ("0.00", "1 image compared")
    assert values["Action accuracy"] == ("50.0%", "100.0% where predicted")


def test_many_rejected_files_of_one_reason_are_cut_and_counted():
    files = tuple(RejectedFile(f"{i:03}.jpg", "blurred") for i in range(230))
    html = render_report(page_of(rejects_section(0, files)))
    assert "and 30 more" in html
    assert html.count("<li><code>") == 200


def test_a_table_with_one_column_a_state_becomes_rows():
    table = pd.DataFrame(
        [
            {
                "entry": "objects",
                "class": "sitting",
                "display_name": "Sitting",
                "label": "person",
                "images": 3,
                "annotations": 2,
                "mean_score": float("nan"),
                "found": 1,
                "absent": 2,
                "failed": 0,
            }
        ]
    )
    assert coverage_rows(table) == (
        CoverageRow("Sitting", "objects", "person", 3, {"found": 1, "absent": 2}, 2, None),
    )


@pytest.mark.parametrize(("kind", "expected"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
def test_a_picture_says_what_it_is(kind, expected):
    assert picture(kind).source.startswith(f"data:{expected};base64,")


def test_only_a_picture_of_many_pixels_gets_a_row_of_its_own():
    assert picture(width=1200).is_wide
    assert not picture(width=600).is_wide
    assert not picture("JPEG", width=1200).is_wide


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (1234.0, Form.COUNT, "1,234"),
        (0.456, Form.NUMBER, "0.46"),
        (0.456, Form.SHARE, "45.6%"),
        (None, Form.SHARE, "–"),
        (float("nan"), Form.COUNT, "–"),
    ],
)
def test_a_number_is_written_in_its_form(value, form, text):
    assert written(value, form) == text


def test_headlines_show_their_interval_and_counts_come_last():
    count = Section("a", "A", "a.j2", None, (Headline("Images", 3, Form.COUNT),))
    ratio = Section(
        *("b", "B", "b.j2", None), (Headline("F1", 0.9, Form.NUMBER, interval=Interval(0.8, 0.97)),)
    )
    data = page_of(count, ratio)
    assert [headline.name for headline in data.headlines] == ["F1", "Images"]
    assert "0.80 to 0.97" in render_report(data)
