from datetime import UTC, datetime, timedelta

import pytest

from labeling_pipeline.evaluation.intervals import Interval
from labeling_pipeline.evaluation.report.coverage import CoverageRow
from labeling_pipeline.evaluation.report.data import Form, Headline, ReportData
from labeling_pipeline.evaluation.report.history import (
    Summary,
    annotations_of,
    changes_between,
)
from labeling_pipeline.evaluation.report.index import Run, Trend, render_index
from labeling_pipeline.evaluation.report.page import render_report

THEN = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)
F1 = Headline("F1", 0.9, Form.NUMBER, "note", Interval(0.85, 0.95), more_is_better=True)
IMAGES = Headline("Images", 10, Form.COUNT)


def summary(*headlines, at=THEN, annotations=None, models=None, plan=""):
    return Summary(at, headlines, annotations or {}, models or {}, plan)


def f1(value, low=0.85, high=0.95):
    interval = None if value is None else Interval(low, high)
    return Headline("F1", value, Form.NUMBER, "", interval, more_is_better=True)


def test_a_summary_is_read_as_it_was_written():
    whole = summary(
        *(F1, IMAGES, Headline("none", None, Form.SHARE)),
        annotations={"object": {"Katze ü": 3}},
        models={"object": "rex (k1)"},
        plan="entries: []\n",
    )
    assert Summary.from_json(whole.to_json()) == whole


def test_a_summary_of_another_version_is_left_out():
    assert Summary.from_json(summary(F1).to_json().replace('"version": 1', '"version": 99')) is None


def test_nothing_changed():
    assert changes_between(summary(F1, IMAGES), summary(F1, IMAGES)).are_none


@pytest.mark.parametrize(
    ("before", "now", "step", "verdict", "chance"),
    [
        (f1(0.90), f1(0.80, 0.75, 0.85), "−0.100", "worse", False),
        (f1(0.90), f1(0.97, 0.95, 0.99), "+0.070", "better", False),
        (f1(0.90), f1(0.93, 0.88, 0.97), "+0.030", "better", True),
        (f1(None), f1(0.93), "", "", False),
        (f1(0.93), f1(None), "", "", False),
    ],
)
def test_a_number_that_moved_says_how(before, now, step, verdict, chance):
    (moved,) = changes_between(summary(before), summary(now)).headlines
    assert (moved.step, moved.verdict, moved.is_within_chance) == (step, verdict, chance)


def test_less_is_better_where_it_is():
    was, is_now = (
        Headline("Without an answer", count, Form.COUNT, more_is_better=False) for count in (5, 2)
    )
    (moved,) = changes_between(summary(was), summary(is_now)).headlines
    assert (moved.step, moved.verdict) == ("−3", "better")


def test_a_step_too_small_to_be_written_is_none():
    assert changes_between(summary(f1(0.9)), summary(f1(0.9004))).are_none


def test_what_was_never_measured_before_is_no_change():
    assert changes_between(summary(), summary(F1)).are_none


def test_classes_that_moved_most_come_first():
    before = summary(annotations={"object": {"cat": 3, "dog": 5, "gone": 1}})
    now = summary(annotations={"object": {"cat": 9, "dog": 5, "new": 2}})
    assert [
        (moved.name, moved.before, moved.now) for moved in changes_between(before, now).classes
    ] == [("cat (object)", 3, 9), ("new (object)", None, 2), ("gone (object)", 1, None)]


def test_models_and_the_plan_are_compared():
    changes = changes_between(
        summary(models={"a": "rex (1)", "b": "rex (1)"}, plan="model: rex\nkept: 1\n"),
        summary(models={"a": "rex (2)", "c": "rex (1)"}, plan="model: other\nkept: 1\n"),
    )
    assert changes.models == (
        ("a", "rex (1)", "rex (2)"),
        ("b", "rex (1)", "not asked"),
        ("c", "not asked", "rex (1)"),
    )
    assert changes.plan == ("@@ -1,2 +1,2 @@", "-model: rex", "+model: other", " kept: 1")


def test_the_page_says_what_changed_first_and_beside_the_number():
    now = summary(f1(0.8, 0.75, 0.85), annotations={"object": {"cat": 2}}, plan="b")
    changes = changes_between(summary(F1, annotations={"object": {"cat": 1}}, plan="a"), now)
    html = render_report(ReportData("T", THEN, "/data", ()), changes)
    assert html.index('id="changes"') < html.index("cat (object)") < html.index("-a\n+b")
    assert "this is the first report" not in html
    assert "this is the first report" in render_report(ReportData("T", THEN, "/data", ()))


def test_the_index_links_every_report_and_shows_how_numbers_went():
    runs = [
        Run(f"runs/{day}/report.html", summary(f1(0.7 + day / 10), at=THEN + timedelta(days=day)))
        for day in (2, 1, 0)
    ]
    html = render_index("<Reports>", runs)
    links = [html.index(f'href="runs/{day}/report.html"') for day in (2, 1, 0)]
    assert links == sorted(links)
    assert "&lt;Reports&gt;" in html
    assert '<polyline points="0.0,22.0 50.0,12.0 100.0,2.0"/>' in html
    assert "3 reports, 0.700 to 0.900" in html


def test_a_number_that_never_moved_is_a_level_line():
    assert Trend("F1", Form.NUMBER, (0.5, 0.5)).line == "0.0,12.0 100.0,12.0"


def test_annotations_are_counted_by_entry_and_class():
    rows = [
        CoverageRow(name, "object", "x", 1, {}, count, None) for name, count in [("a", 1), ("b", 0)]
    ]
    assert annotations_of(rows) == {"object": {"a": 1, "b": 0}}
