"""Sheets that reviewers fill in, and what becomes of their verdicts when labels change."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.cleaning import clean
from labeling_pipeline.corrections import import_corrections
from labeling_pipeline.errors import AuditError
from labeling_pipeline.export.audit_sheet import SheetRow, read_sheet, sheet_bytes
from labeling_pipeline.home import Home
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.reporting.audit import (
    ESTIMATES,
    audit_report,
    checked_pairs,
    read_audit,
    write_audit,
)
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

# One bin of the script is about a tenth of a pixel.
SIZE = (100, 80)
LEFT, RIGHT, TOP = [100, 300, 300, 600], [500, 500, 900, 900], [400, 20, 600, 200]


class Project:
    """Images of cats and dogs, and a model that says where cats are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "images"
        self.home = Home(folder / "home")
        self.store = AnnotationStore(self.home.store_path)

    @property
    def source(self):
        return open_source(self.root)

    @property
    def audit_folder(self) -> Path:
        return self.home.reports / "audit"

    @property
    def sheet(self) -> Path:
        return self.audit_folder / "object.csv"

    @property
    def outdated(self) -> Path:
        return self.audit_folder / "object-outdated.csv"

    def add(self, count: int) -> None:
        """So many more images of each class."""
        for name in ("cat", "dog"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
            start = len(list((self.root / name).iterdir()))
            for number in range(start, start + count):
                scene = draw_scene(np.random.default_rng([ord(name[0]), number]), 120, 90).image
                Image.fromarray(scene).resize(SIZE).save(self.root / name / f"{number}.png")
        update_inventory(self.store, self.source)
        clean(self.store, self.source, CleaningRules(only_flag=("near_duplicate",)))

    def label(self, cats, task="detection", per_label=8, **answer) -> None:
        """Let a model that finds these boxes of cats, and no dogs, label everything."""
        script = self.folder / f"script{len(list(self.folder.glob('script*')))}.json"
        script.write_text(json.dumps({"boxes": {"cat": cats}} | answer))
        self.plan = parse_plan(
            f"model: scripted:{script}\naudit: {{per_label: {per_label}}}\n"
            f"entries: [{{name: object, task: {task}}}]\n"
        )
        for slug in ("cat", "dog"):
            (asked,) = self.plan.entries
            label_class(self.store, self.plan, asked, slug, self.source, "run")

    def audit(self):
        (audit,) = write_audit(self.store, self.plan, self.source, self.home)
        return audit

    def rows(self, label: str | None = None) -> list[SheetRow]:
        return [row for row in read_sheet(self.sheet).rows if label in (None, row.label)]

    def fill(self, rows, separator=",", **values) -> None:
        """Write the same into some rows of the sheet."""
        names = {row.item for row in rows}
        every = [replace(r, **values) if r.item in names else r for r in self.rows()]
        self.sheet.write_bytes(sheet_bytes(every, separator))

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.audit_folder)): path.read_bytes()
            for path in self.audit_folder.rglob("*")
            if path.is_file()
        }

    def pictures(self) -> set[str]:
        return {f"pictures/{path.name}" for path in (self.audit_folder / "pictures").iterdir()}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory) -> Path:
    """Eight images of each, labeled."""
    project = Project(tmp_path_factory.mktemp("labeled"))
    project.add(8)
    project.label([LEFT, RIGHT])
    return project.folder


@pytest.fixture
def project(labeled, tmp_path) -> Project:
    shutil.copytree(labeled, tmp_path, dirs_exist_ok=True)
    project = Project(tmp_path)
    project.label([LEFT, RIGHT])
    return project


def test_a_sample_is_drawn_with_pictures_and_stays_as_it_is(project):
    audit = project.audit()
    # Every image was asked for both; cats were found everywhere, dogs nowhere.
    assert (audit.rows, audit.checked, audit.to_check) == (16, 0, 16)
    assert audit.sizes == {"cat": (16, 8), "dog": (16, 8)}
    assert {row.shown for row in project.rows("cat")} == {2}
    assert {row.shown for row in project.rows("dog")} == {0}
    assert project.pictures() == {row.picture for row in project.rows()}
    before = project.files()
    assert set(before) - project.pictures() == {
        *("object.csv", "object.html", "README.txt", "drawn.json", ESTIMATES),
    }
    project.audit()
    assert project.files() == before


def test_verdicts_come_to_precision_and_recall_with_intervals(project):
    project.audit()
    cats, dogs = project.rows("cat"), project.rows("dog")
    project.fill(cats[:2], wrong="1")
    project.fill(cats[2:], wrong="none")
    project.fill(dogs[:1], missed="1")
    project.fill(dogs[1:], missed="0")
    audit = project.audit()
    assert (audit.checked, audit.overall.wrong, audit.overall.missed) == (16, 2, 1)
    cat, dog = audit.per_label["cat"], audit.per_label["dog"]
    assert cat.precision.value == pytest.approx(1 - 2 / 16)
    assert cat.recall.value == 1
    assert (dog.precision, dog.recall.value) == (None, 0)
    # 28 of 32 boxes are right, and as the sample has it two dogs are missed.
    assert audit.overall.precision.value == pytest.approx(28 / 32)
    assert audit.overall.recall.value == pytest.approx(28 / (28 + 2))
    assert audit.overall.precision.interval.low < 28 / 32 < audit.overall.precision.interval.high
    table = (project.audit_folder / ESTIMATES).read_text().splitlines()
    assert table[0].startswith("entry,label,pairs,shown,rows,checked,wrong,missed,precision,")
    assert table[1].startswith("object,all,32,32,16,16,2,1,0.8750,")
    assert read_audit(project.store, project.plan, project.home) == [audit]


def test_numbers_on_a_picture_count_from_the_top_and_bear_no_scores(project):
    project.label([RIGHT, LEFT, TOP])
    project.audit()
    found = {row.item: row for row in project.rows("cat")}
    project.label([TOP, RIGHT, LEFT])
    project.audit()
    # The same boxes in another order are the same picture.
    assert {row.item for row in project.rows("cat")} == set(found)


def test_a_large_image_is_shown_smaller_with_its_boxes_in_place(project):
    scene = Image.fromarray(draw_scene(np.random.default_rng(7), 400, 300).image)
    scene.convert("L").resize((4000, 3000)).save(project.root / "cat" / "large.jpg")
    project.add(0)
    project.label([LEFT], per_label=64)
    project.audit()
    (row,) = [row for row in project.rows("cat") if row.path == "cat/large.jpg"]
    picture = np.asarray(Image.open(project.audit_folder / row.picture)).astype(int)
    width = picture.shape[1]
    assert 1280 <= width < 2560
    # The title stands above the picture.
    image = picture[-width * 3 // 4 :]
    x, y = LEFT[0] / 999 * width, (LEFT[1] + LEFT[3]) / 2 / 999 * len(image)
    red = (image[..., 0] - image[..., 1] > 60)[round(y)]
    assert np.flatnonzero(red).min() == pytest.approx(x, abs=8)


def test_another_model_outdates_verdicts_that_no_longer_hold_and_loses_none(project):
    project.audit()
    checked = project.rows()
    project.fill(checked, wrong="none", note="fine")
    project.audit()

    project.label([LEFT])
    audit = project.audit()
    # Nothing was found of dogs before or after; of cats something else is shown.
    assert (audit.rows, audit.checked, audit.changed, audit.outdated) == (16, 8, 8, 8)
    assert {row.note for row in read_sheet(project.outdated).rows} == {"fine"}
    assert {row.label for row in read_sheet(project.outdated).rows} == {"cat"}
    assert [row.wrong for row in project.rows("cat")] == [""] * 8
    assert [row.wrong for row in project.rows("dog")] == ["none"] * 8
    # Those that did not change are no random sample of all: no numbers for now.
    assert audit.overall.precision is audit.per_label["cat"].recall is None
    old_and_new = {row.picture for row in [*checked, *project.rows()]}
    assert project.pictures() == old_and_new

    project.fill(project.rows("cat"), wrong="1")
    audit = project.audit()
    assert (audit.changed, audit.overall.precision.value) == (0, 0)

    # The earlier model answers as it did, and its verdicts hold again.
    project.label([LEFT, RIGHT])
    audit = project.audit()
    assert (audit.checked, audit.overall.precision.value) == (16, 1)
    assert {row.wrong for row in read_sheet(project.outdated).rows} == {"1"}
    project.label([LEFT])
    assert project.audit().overall.precision.value == 0
    project.label([LEFT, RIGHT])
    project.audit()
    (project.outdated).unlink()
    project.audit()
    assert project.pictures() == {row.picture for row in project.rows()}
    assert not project.outdated.exists()


def test_new_images_leave_verdicts_alone_and_weigh_them_by_what_they_stand_for(project):
    project.audit()
    before = project.rows("cat")
    project.fill(before, wrong="all")
    project.add(24)
    project.label([LEFT, RIGHT])
    audit = project.audit()
    rows = {row.item: row for row in project.rows("cat")}
    assert {row.item for row in before} <= rows.keys()
    fresh = [row for row in rows.values() if not row.wrong]
    assert fresh
    assert audit.changed == 0
    project.fill(fresh, wrong="none")
    audit = project.audit()
    # A quarter of the images are old, and wrong. Counted alike, the rows would say about a half.
    assert 1 - audit.per_label["cat"].precision.value == pytest.approx(0.25, abs=0.12)


def test_a_sheet_from_before_that_is_saved_later_still_counts(project):
    project.label([LEFT, RIGHT], per_label=16)
    project.audit()
    old = [replace(row, wrong="none") for row in project.rows()]
    project.label([LEFT, RIGHT], per_label=4)
    assert project.audit().rows == 8
    project.sheet.write_bytes(sheet_bytes(old))
    audit = project.audit()
    assert (audit.rows, audit.checked) == (32, 32)
    assert {row.picture for row in project.rows()} >= project.pictures()


def test_corrections_change_neither_the_sample_nor_its_verdicts(project):
    project.audit()
    project.fill(project.rows("cat"), wrong="1")
    before = project.audit()
    file = project.folder / "corrections.json"
    edits = [
        {"kind": "delete", "image": row.path, "entry": "object", "label": "cat", "bbox": box}
        for row in project.rows("cat")
        for box in [[b / 999 * side for b, side in zip(LEFT, SIZE * 2, strict=True)]]
    ]
    file.write_text(json.dumps({"corrections": edits}))
    import_corrections(project.store, project.plan, file, project.source, author="Ann")
    assert project.audit() == before


def test_spreadsheet_programs_may_change_separator_and_columns(project):
    project.audit()
    rows = [replace(row, more={"who": "Ann"}) for row in project.rows()]
    rows[0] = replace(rows[0], missed="1")
    project.sheet.write_bytes(sheet_bytes(rows, ";"))
    assert project.audit().checked == 1
    sheet = read_sheet(project.sheet)
    assert sheet.separator == ";"
    assert {row.more["who"] for row in sheet.rows} == {"Ann"}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"wrong": "3"}, "wrong: expected none, all, or numbers from 1 to 2"),
        ({"shown": 3, "wrong": "3"}, "shown: expected 2, as it was written, got 3"),
    ],
)
def test_a_verdict_that_cannot_be_is_told_and_changes_no_file(project, values, problem):
    project.audit()
    project.fill(project.rows("cat")[:1], **values)
    before = project.files()
    with pytest.raises(AuditError, match=problem):
        project.audit()
    assert project.files() == before
    section = audit_report(project.store, project.plan, project.home)
    assert section.content is None
    assert problem in section.absent


def test_texts_about_the_whole_image_are_right_or_wrong_and_cannot_be_missed(project):
    project.label([], task="caption", raw_text="two cats")
    audit = project.audit()
    assert audit.sizes == {"caption": (16, 8)}
    rows = project.rows()
    assert {row.shown for row in rows} == {1}
    project.fill(rows[:2], wrong="1")
    project.fill(rows[2:], wrong="none")
    audit = project.audit()
    assert (audit.overall.precision.value, audit.overall.recall) == (pytest.approx(0.75), None)
    project.fill(rows[:1], missed="1")
    with pytest.raises(AuditError, match="missed: expected nothing, for object says one thing"):
        project.audit()


def test_the_record_of_what_was_drawn_may_be_lost_but_not_damaged(project):
    project.audit()
    project.fill(project.rows(), wrong="none")
    audit = project.audit()
    record = project.audit_folder / "drawn.json"
    record.unlink()
    assert project.audit() == audit
    record.write_text("[1, 2]")
    with pytest.raises(AuditError, match="delete it"):
        project.audit()


def test_what_was_checked_is_known_by_image_and_label(project):
    project.audit()
    assert checked_pairs(project.plan, project.home) == set()
    row = project.rows("dog")[0]
    project.fill([row], missed="0")
    ((entry, image_id, label),) = checked_pairs(project.plan, project.home)
    found = project.store.query("SELECT path FROM class_images WHERE image_id = ?", (image_id,))
    assert (entry, label, found["path"][0].as_py()) == ("object", "dog", row.path)


def test_the_report_says_what_to_do_until_there_are_verdicts(project):
    assert (
        "materialize audit_sample" in audit_report(project.store, project.plan, project.home).absent
    )
    project.audit()
    waiting = audit_report(project.store, project.plan, project.home)
    assert waiting.content is None
    assert "16 rows wait to be checked by hand" in waiting.absent
    project.fill(project.rows(), wrong="none")
    section = audit_report(project.store, project.plan, project.home)
    assert [(one.name, one.text) for one in section.headlines] == [
        ("Audited precision of object", "100.0%"),
        ("Audited recall of object", "100.0%"),
    ]
    assert all(one.interval is not None for one in section.headlines)
