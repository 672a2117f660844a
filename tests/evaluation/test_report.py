import io
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from labeling_pipeline.evaluation.actions import Recognition, evaluate_actions
from labeling_pipeline.evaluation.agreement import ASKED_COLUMNS, compare_entries
from labeling_pipeline.evaluation.audit import AuditEstimate, EntryAudit
from labeling_pipeline.evaluation.average_precision import rank_boxes
from labeling_pipeline.evaluation.calibration import (
    BOX_COLUMNS,
    Calibration,
    ModelCalibration,
    calibrate_scores,
    choose_thresholds,
)
from labeling_pipeline.evaluation.detection import evaluate_detection
from labeling_pipeline.evaluation.detection_errors import worst_first
from labeling_pipeline.evaluation.entry import EntryEvaluation, Origin
from labeling_pipeline.evaluation.intervals import Interval
from labeling_pipeline.evaluation.keypoints import evaluate_keypoints
from labeling_pipeline.evaluation.report.actions import ActionReport, actions_section
from labeling_pipeline.evaluation.report.agreement import AgreementReport, agreement_section
from labeling_pipeline.evaluation.report.audit import audit_section
from labeling_pipeline.evaluation.report.calibration import CalibrationReport, calibration_section
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
from labeling_pipeline.evaluation.report.history import Summary, changes_between
from labeling_pipeline.evaluation.report.page import environment, render_report
from labeling_pipeline.evaluation.report.provenance import ModelUse, provenance_section
from labeling_pipeline.evaluation.survey import Estimate
from labeling_pipeline.evaluation.text import MISREAD_COLUMNS, evaluate_text
from labeling_pipeline.tasks import Task

BOX = ["x0_px", "y0_px", "x1_px", "y1_px"]
NOTHING = (
    detection_section(()),
    calibration_section(None),
    actions_section(()),
    audit_section((), (), "no row was checked"),
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
    predictions = pd.DataFrame({"true_action": ["run", "sit"], "predicted_action": ["run", None]})
    actions = evaluate_actions(predictions)
    boxes_judged = pd.DataFrame(
        [("objects", "cat", i / 200, i >= 20, f"{i}") for i in range(200)], columns=BOX_COLUMNS
    )
    calibration = Calibration(
        (
            ModelCalibration("k1", "rex", Task.DETECTION, calibrate_scores(boxes_judged)),
            ModelCalibration("k1", "rex", Task.KEYPOINT, calibrate_scores(boxes_judged[:9])),
        ),
        choose_thresholds(boxes_judged, {("objects", "cat"): 190, ("objects", "owl"): 5}),
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
    sure = Estimate(0.9, Interval(0.8, 0.95))
    checked = AuditEstimate(sure, None, shown=90, checked=3, checked_shown=4, wrong=1, missed=0)
    unchecked = AuditEstimate(None, None, shown=5, checked=0, checked_shown=0, wrong=0, missed=0)
    audit = EntryAudit(
        *("objects", 8, 3, 1, 2, checked),
        per_label={"cat": checked, "owl": unchecked},
        sizes={"cat": (70, 5), "owl": (30, 3)},
    )
    return page_of(
        detection_section((EntryDetection(measured(boxes, keypoints), (picture(),)),)),
        calibration_section(
            CalibrationReport(calibration, 0.95, ("Nothing of <this> is applied.",), (picture(),))
        ),
        actions_section(
            [
                ActionReport(Recognition(*part, predictions, actions), (picture(width=1200),))
                for part in (("keypoints", False), ("zero_shot", False), ("zero_shot", True))
            ]
        ),
        audit_section((audit,), (picture(),), "there are none"),
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


def measured(boxes, keypoints=None, **parts):
    nothing = pd.DataFrame(columns=["path", *MISREAD_COLUMNS])
    return EntryEvaluation(
        **{
            "entry": "objects",
            "origin": Origin.FILES,
            "boxes": boxes,
            "ranking": None,
            "keypoints": keypoints,
            "outlines": None,
            "text": None,
            "errors": worst_first(
                boxes.errors.assign(path=boxes.errors["image_id"].astype(str) + ".jpg")
            ),
            "misread": nothing,
        }
        | parts
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
    nothing = Summary(datetime(2030, 1, 1, tzinfo=UTC), (), {}, {}, "")
    page = Page(render_report(full(), changes_between(nothing, nothing)))
    assert page.sections == [
        *(
            "changes",
            "detection",
            "calibration",
            "actions",
            "audit",
            "agreement",
            "classes",
            "examples",
            "rejects",
            "provenance",
        )
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
    html = render_report(page_of(actions_section((), "nobody was found (3 images)")))
    assert "Action recognition: nobody was found (3 images)." in html
    assert "there are no action predictions" not in html


def test_names_are_escaped():
    html = render_report(
        page_of(rejects_section(0, (RejectedFile('<img src="x">', "a_reason"),)), title="<b>x</b>")
    )
    assert "<b>x</b>" not in html
    assert '<img src="x">' not in html
    assert "&lt;b&gt;x&lt;/b&gt;" in html


def test_names_between_backticks_are_code_and_escaped():
    written = environment().from_string("{{ text|with_code }}").render(text="`ask` <b> `<i>`")
    assert written == "<code>ask</code> &lt;b&gt; <code>&lt;i&gt;</code>"


def test_numbers_that_do_not_exist_are_dashes():
    html = render_report(full())
    row = re.search(r'<tr><td class="wrap">owl</td>.*?</tr>', html).group()
    assert row.count("<td>–</td>") == 5
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
    assert values["F1 of objects"] == ("1.000", "at IoU 0.5, 1 image")
    assert values["Keypoints of objects"] == ("–", "PCK@0.1, 0 persons")
    assert values["Calibration error of rex detection"][1] == "0.41 as measured; 200 boxes"
    assert "Calibration error of rex keypoint" not in values
    assert values["Agreement of models"] == ("0.000", "1 image compared")
    assert values["Audited precision of objects"] == ("90.0%", "3 of 8 rows checked by hand")
    assert "Audited recall of objects" not in values
    for name in ("Keypoint action accuracy", "Zero-shot test accuracy"):
        assert values[name] == ("50.0%", "2 images, 1 not predicted")


def test_methods_are_compared_before_each_is_shown_with_what_it_cannot_say():
    never = pd.DataFrame(
        {"true_action": ["run"], "predicted_action": [None], "reason": "too few images"}
    )
    reports = [
        *(r for s in full().sections if s.anchor == "actions" for r in s.content),
        ActionReport(Recognition("keypoints", True, never, evaluate_actions(never))),
    ]
    html = render_report(page_of(actions_section(reports)))
    titles = ["Keypoints", "Zero-shot", "Zero-shot, test folder", "Keypoints, test folder"]
    assert re.findall(r"<h3>(.*)</h3>", html) == titles
    assert html.index("<table>") < html.index("<h3>")
    assert "Without a prediction, and so wrong: 1 (no person)." in html
    assert "Not judged: 1 (too few images)." in html
    assert Page(html).open == []
    only = render_report(page_of(actions_section(reports[-1:], "keypoints: too few images")))
    assert "Action recognition: keypoints: too few images." in only


def test_what_was_not_calibrated_and_what_has_no_threshold_say_why():
    html = render_report(full())
    assert "rex, keypoint, is not calibrated: too few boxes: 9" in html
    assert "owl of objects has no threshold: too few boxes: 0" in html
    assert "Nothing of &lt;this&gt; is applied." in html


def test_the_audit_shows_labels_that_were_looked_at_and_what_is_open():
    html = render_report(full())
    section = html[html.index('<section id="audit">') : html.index('<section id="agreement">')]
    assert re.findall(r'<td class="wrap">(\w+)</td>', section) == ["cat"]
    assert section.count("<td>90.0% (80.0% to 95.0%)</td><td>–</td>") == 2
    assert "1 rows have another answer than when they were checked" in section
    assert "2 verdicts are kept of answers that no longer hold" in section


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
        (0.456, Form.NUMBER, "0.456"),
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
    assert "0.800 to 0.970" in render_report(data)


def found_and_true(*rows):
    """Boxes of the label cat: (image_id, score, text)."""
    columns = ["image_id", "label", "score", "text", *BOX]
    return pd.DataFrame([(i, "cat", s, text, 0, 0, 9, 9) for i, s, text in rows], columns=columns)


def judged(found, true, images, **parts):
    """The section over one entry."""
    asked = pd.DataFrame({"image_id": list(images), "label": "cat"})
    boxes = evaluate_detection(found, true, asked)
    text = evaluate_text(found, true, asked)
    misread = text.misread.assign(path=text.misread["image_id"] + ".jpg")
    ranking = rank_boxes(found, true, asked)
    part = measured(boxes, ranking=ranking, text=text, misread=misread, **parts)
    return detection_section((EntryDetection(part),))


def shown(section):
    """The text of a page with this section."""
    html = render_report(page_of(section))
    assert Page(html).open == []
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


READ = (("a", 0.9, "Exit"), ("b", 0.8, "Desk"))


def test_detection_shows_intervals_average_precision_and_error_rates():
    section = judged(found_and_true(*READ), found_and_true(*READ, ("c", None, "Gate 7")), "abc")
    text = shown(section)
    assert "100.0% of the boxes are right (precision), and 66.7% of what is there" in text
    assert re.search(r"F1 0\.80 \(0\.\d\d to 1\.00\)", text)
    assert "AP 0.66 0.66 0.66 0.66" in text
    assert "all lines 3 14 0 6 0 42.9%" in text
    assert "c.jpg Gate 7 was read as nothing (6 edits)" in text
    assert "missed objects: 1" in text
    values = {headline.name: headline for headline in section.headlines}
    assert values["F1 of objects"].interval is not None
    assert values["Misread characters of objects"].more_is_better is False
    assert "AP of objects" not in values


def test_what_people_corrected_is_marked_as_chosen_by_people():
    true = found_and_true(*READ)
    section = judged(true, true, "ab", origin=Origin.CORRECTIONS)
    assert section.headlines[0].name == "F1 of objects where corrected"
    assert "this says nothing of how the others are" in shown(section)


def test_what_could_not_be_judged_is_said_whether_or_not_anything_was():
    true = found_and_true(*READ)
    notes = ("nothing is known of owl",)
    assert "objects: nothing is known of owl" in shown(judged(true, true, "ab", notes=notes))
    nothing = judged(true, true, "", notes=notes)
    assert nothing.content is None
    assert nothing.absent == "Detection: objects: nothing is known of owl"


def test_of_many_images_with_errors_the_worst_are_listed_and_the_rest_counted():
    images = [f"{i:02}" for i in range(15)]
    twice = found_and_true(*((image, 0.9, None) for image in (*images, "07")))
    text = shown(judged(twice, found_and_true(), images))
    assert re.search(r"07.jpg 2 false on absent: cat 00.jpg 1 false on absent: cat 01.jpg", text)
    assert "and 5 images more, in detection/objects_errors.csv" in text
    assert "boxes of a label that is not there: 16" in text


def test_without_any_score_there_is_no_average_precision_and_the_page_says_so():
    unscored = found_and_true(("a", None, "Exit"), ("b", None, "Desk"))
    assert "There is none here: no box has a score." in shown(judged(unscored, unscored, "ab"))
