import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from labeling_pipeline.__main__ import app
from labeling_pipeline.asks import current_view, due_work
from labeling_pipeline.cleaning import clean
from labeling_pipeline.corrections import ImportSummary, export_corrections, import_corrections
from labeling_pipeline.errors import CorrectionsError
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import Plan, parse_plan
from labeling_pipeline.reporting.actions import best_of_each_image, predict_and_store_actions
from labeling_pipeline.reporting.agreement import measure_agreement
from labeling_pipeline.reporting.classes import class_table
from labeling_pipeline.results import draw_class, export_class
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.scores import ScoreMap
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.corrections import Kind
from labeling_pipeline.store.ledger import current_annotations

# One bin of the script is a tenth of a pixel.
SIZE = (100, 80)
LEFT, RIGHT = [100, 100, 300, 400], [500, 500, 900, 900]
BIG = [50, 50, 950, 950]
OBJECT = "{name: object, task: detection}"


def in_px(box: list[int]) -> list[float]:
    """Bins as the class's JSON shows them."""
    return [round(b / 999 * side, 2) for b, side in zip(box, SIZE * 2, strict=True)]


class Project:
    """Two images of class cat and one of class dog, labeled by a model that follows a script."""

    def __init__(self, folder: Path, *entries: str, home: str = "home") -> None:
        self.folder = folder
        self.root = folder / "images"
        self.source = open_source(self.root)
        self.entries = entries or (OBJECT,)
        self.store = AnnotationStore(folder / home / "annotations.duckdb")
        for number, path in enumerate(("cat/0.png", "cat/1.png", "dog/0.png")):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            scene = draw_scene(np.random.default_rng(number), 120, 90).image
            Image.fromarray(scene).resize(SIZE).save(self.root / path)
        update_inventory(self.store, self.source)
        clean(self.store, self.source, CleaningRules(only_flag=("near_duplicate",)))
        self.plan = self.plan_of({"cat": [LEFT, RIGHT]})

    def plan_of(self, boxes: dict[str, Any], **entry: Any) -> Plan:
        """The plan with a model that answers these boxes."""
        script = self.folder / f"script{len(list(self.folder.glob('script*')))}.json"
        script.write_text(json.dumps({"boxes": boxes}))
        return parse_plan(f"model: scripted:{script}\nentries: [{', '.join(self.entries)}]\n")

    def label(self, plan: Plan | None = None, *entries: str, **options: Any) -> None:
        plan = plan or self.plan
        for name in entries or [entry.name for entry in plan.entries]:
            for slug in ("cat", "dog"):
                entry = plan.entry(name)
                label_class(self.store, plan, entry, slug, self.source, "run", **options)

    def read(self, *items: dict[str, Any], plan: Plan | None = None) -> ImportSummary:
        """Import a file with these corrections; each is Ann's, of entry object and label cat, on
        the first image, unless it says otherwise."""
        usual = {"image": "cat/0.png", "entry": "object", "label": "cat", "author": "Ann"}
        return self.read_text(json.dumps({"corrections": [usual | item for item in items]}))

    def read_text(self, text: str, **options: Any) -> ImportSummary:
        file = self.folder / "corrections.json"
        file.write_text(text)
        return import_corrections(self.store, self.plan, file, self.source, **options)

    def view(self, plan: Plan | None = None, entry: str = "object") -> list[tuple[Any, ...]]:
        """(path, class, label, box to whole pixels, author) of what holds."""
        plan = plan or self.plan
        rows = current_annotations(self.store, current_view(plan))
        rows = rows[rows["entry"] == entry]
        return sorted(
            (
                row.path,
                row.display_name,
                row.label,
                tuple(map(round, (row.x0_px, row.y0_px, row.x1_px, row.y1_px))),
                row.corrected_by if isinstance(row.corrected_by, str) else "",
            )
            for row in rows.itertuples()
        )

    def table(self) -> list[dict[str, Any]]:
        return self.store.query("SELECT * FROM corrections ORDER BY created_at").to_pylist()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


ADD = {"kind": "add", "values": {"bbox": [40.5, 5, 60, 20]}}
CHANGE = {"kind": "change", "bbox": in_px(LEFT), "values": {"bbox": [12, 8, 40, 36]}}
DELETE = {"kind": "delete", "bbox": in_px(RIGHT)}
LEFT_BOX, RIGHT_BOX = (10, 8, 30, 32), (50, 40, 90, 72)
CORRECTED = [
    ("cat/0.png", "cat", "cat", (12, 8, 40, 36), "Ann"),
    ("cat/0.png", "cat", "cat", (40, 5, 60, 20), "Ann"),
    ("cat/1.png", "cat", "cat", LEFT_BOX, ""),
    ("cat/1.png", "cat", "cat", RIGHT_BOX, ""),
    ("dog/0.png", "cat", "cat", LEFT_BOX, ""),
    ("dog/0.png", "cat", "cat", RIGHT_BOX, ""),
]


def test_corrections_outlive_force_other_models_and_other_parsers(project: Project):
    project.label()
    summary = project.read(ADD, CHANGE, DELETE)
    assert summary == ImportSummary(
        Counter({Kind.ADD: 1, Kind.CHANGE: 1, Kind.DELETE: 1}), 0, ("cat",)
    )
    stored = project.table()
    assert project.view() == CORRECTED

    project.label(force=True)
    assert project.view() == CORRECTED

    # A model that puts everything a little elsewhere, and has found what was added by itself.
    moved = [[bin_ + 3 for bin_ in box] for box in (LEFT, RIGHT)]
    added = [round(px * 999 / side) for px, side in zip((41, 5, 60, 19), SIZE * 2, strict=True)]
    better = project.plan_of({"cat": [*moved, added]})
    project.label(better)
    assert [row for row in project.view(better) if row[0] == "cat/0.png"] == CORRECTED[:2]
    assert project.view() == CORRECTED, "the plan's model key goes back to the old answers"

    with project.store.transaction() as tx:
        tx.execute("INSERT INTO outcomes SELECT * REPLACE (9 AS parser_version) FROM outcomes")
        tx.execute(
            "INSERT INTO annotations SELECT * REPLACE (9 AS parser_version, "
            "generation_id || '-9-' || position AS annotation_id) FROM annotations"
        )
    assert project.view() == CORRECTED
    assert [row for row in project.view(better) if row[0] == "cat/0.png"] == CORRECTED[:2]
    assert project.table() == stored


def test_a_file_imported_twice_adds_nothing(project: Project):
    project.label()
    project.read(ADD, CHANGE, DELETE)
    before = project.table()
    summary = project.read(ADD, CHANGE, DELETE | {"author": "Ben"}, ADD)
    assert (summary.added, summary.known) == (Counter(), 4)
    assert project.table() == before


def test_what_is_edited_again_in_one_file_follows_the_order_of_the_file(project: Project):
    project.label()
    project.read(
        ADD,
        CHANGE,
        {"kind": "change", "bbox": [41, 5, 60, 20], "values": {"bbox": [1, 1, 9, 9]}},
        {"kind": "delete", "bbox": [12, 8, 40, 36]},
    )
    assert [row[3] for row in project.view()[:2]] == [(1, 1, 9, 9), RIGHT_BOX]


def test_another_label_moves_a_thing_to_the_class_that_asked_for_it(project: Project):
    project.label()
    project.read(DELETE, CHANGE | {"values": {"label": "dog"}})
    assert project.view()[0] == ("cat/0.png", "dog", "dog", LEFT_BOX, "Ann")
    assert [row[0] for row in project.view()].count("cat/0.png") == 1


def test_corrections_wait_for_the_first_answer(project: Project):
    project.read(ADD)
    assert project.view() == []
    project.label()
    assert ("cat/0.png", "cat", "cat", (40, 5, 60, 20), "Ann") in project.view()


def test_a_threshold_never_hides_what_a_person_gave(project: Project):
    project.label()
    project.read(CHANGE)
    project.entries = ("{name: object, task: detection, threshold: 0.99}",)
    strict = project.plan_of({"cat": [LEFT, RIGHT]})
    assert project.view(strict) == CORRECTED[:1]


def test_what_a_person_gave_has_no_score_to_be_calibrated(project: Project):
    project.label()
    project.read(CHANGE)
    view = current_view(project.plan)
    maps = {(entry, key): ScoreMap((0.5,), (0.7,)) for entry, key in view.model_keys.items()}
    rows = current_annotations(project.store, replace(view, score_maps=maps))
    by_person = rows["corrected_by"].notna()
    assert by_person.sum() == 1
    assert rows["is_calibrated"].equals(~by_person)
    assert rows.loc[~by_person, "score"].eq(0.7).all()
    assert rows.loc[by_person, "score"].isna().all()


def test_what_gives_way_to_a_persons_version_is_told(project: Project):
    project.label()
    (note,) = project.read({"kind": "add", "values": {"bbox": [10, 8, 30, 30]}}).notes
    assert note.startswith(
        "cat/0.png: gave way, as the same thing: cat [10.01, 8.01, 30.03, 32.03]"
    )
    (note,) = project.read({"kind": "add", "values": {"bbox": [10, 9, 30, 30]}}).notes
    assert note.startswith("cat/0.png: stood there already: cat [10.0, 8.0, 30.0, 30.0]")


def test_an_image_goes_by_path_by_full_path_and_by_id(project: Project):
    (image_id,) = project.store.query(
        "SELECT image_id FROM dataset_files WHERE path = 'cat/0.png'"
    )["image_id"].to_pylist()
    names = ("cat/0.png", str(project.root / "cat/0.png"), image_id)
    summary = project.read(*(ADD | {"image": name} for name in names))
    assert (summary.added.total(), summary.known) == (1, 2)
    assert project.table()[0]["image_id"] == image_id


# What cannot be imported


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Labeled, with a second entry for class dog; for tests that write nothing."""
    pose = "{name: pose, task: keypoint, keypoints: animal, classes: [dog]}"
    project = Project(tmp_path_factory.mktemp("labeled"), OBJECT, pose)
    project.label()
    return project


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        pytest.param(
            ADD | {"image": "cat/9.png"},
            ".image: expected an image of this dataset, by path or id, got 'cat/9.png'; the "
            "nearest are cat/0.png, cat/1.png",
            id="no such image",
        ),
        pytest.param(
            ADD | {"entry": "objects"},
            ".entry: expected one of object, pose, got 'objects'",
            id="no such entry",
        ),
        pytest.param(
            ADD | {"entry": "pose", "label": "cat"},
            ".entry: expected one of object, for cat/0.png is labeled by no other, got 'pose'",
            id="an entry that does not label the image",
        ),
        pytest.param(
            ADD | {"label": "cow"},
            ".label: expected one of cat, dog, got 'cow'",
            id="no such label",
        ),
        pytest.param(
            CHANGE | {"values": {"label": "cow"}},
            ".values.label: expected one of cat, dog, got 'cow'",
            id="no such label to change to",
        ),
        pytest.param(
            DELETE | {"author": None}, ".author: expected a name here, or one", id="nobody's"
        ),
        pytest.param(
            DELETE | {"bbox": [0, 0, 5, 5]},
            ".bbox: expected that of a cat on cat/0.png, got [0.0, 0.0, 5.0, 5.0]; there is "
            "cat [10.01, 8.01, 30.03, 32.03] (",
            id="nothing stands there",
        ),
        pytest.param(
            DELETE | {"label": "dog"},
            ".bbox: expected that of a dog on cat/0.png, got [50.05",
            id="nothing of that label",
        ),
        pytest.param(
            {"kind": "delete", "annotation_id": "nonsense"},
            ".annotation_id: expected that of a cat on cat/0.png, got 'nonsense'; there is cat",
            id="no such annotation",
        ),
        pytest.param({"kind": "delete"}, ".bbox: expected that of a cat", id="no target is named"),
        pytest.param(
            ADD | {"values": {"bbox": [40, 5, 120, 20]}},
            ".values.bbox: expected a place inside the image, 100 x 80 px, got [40.0,",
            id="outside the image",
        ),
        pytest.param(
            ADD | {"values": {"bbox": [40, 20, 60, 5]}},
            ".values.bbox: expected [x0, y0, x1, y1], x0 < x1 and y0 < y1, got [40.0, 20.0,",
            id="upside down",
        ),
        pytest.param(
            ADD | {"values": {"point": [4, 4]}},
            ".values.point: expected label, bbox only, for object yields box, got a value",
            id="a geometry that the task does not yield",
        ),
        pytest.param(
            ADD | {"values": {"label": "cat"}},
            ".values.bbox: expected a value here, got none",
            id="without a place",
        ),
        pytest.param(
            ADD
            | {
                "image": "dog/0.png",
                "entry": "pose",
                "label": "dog",
                "values": {"bbox": [1, 1, 9, 9], "keypoints": {"tail": [1, 1]}},
            },
            ".values.keypoints: expected one of left eye,",
            id="no such keypoint",
        ),
        pytest.param(
            ADD
            | {
                "image": "dog/0.png",
                "entry": "pose",
                "label": "dog",
                "values": {"bbox": [1, 1, 9, 9], "keypoints": {"nose": [1, 81]}},
            },
            ".values.keypoints: expected a place inside the image, 100 x 80 px, got [1.0, 81.0] "
            "for nose",
            id="a keypoint outside the image",
        ),
        pytest.param(
            CHANGE | {"kind": "add"},
            ": expected the place of what is added in values, got bbox",
            id="a target with add",
        ),
        pytest.param(
            DELETE | {"values": {}}, ": expected no values with delete", id="delete what?"
        ),
        pytest.param(CHANGE | {"values": {}}, ": expected values with change, got none", id="idle"),
        pytest.param(
            ADD | {"kind": "move"},
            ".kind: expected 'add', 'change' or 'delete', got 'move'",
            id="no such kind",
        ),
        pytest.param(
            ADD | {"values": {"box": [1, 2, 3, 4]}},
            ".values.box: expected one of the keys label, bbox, point, polygon, text, keypoints, "
            "got 'box'",
            id="no such key",
        ),
        pytest.param(
            ADD | {"values": {"bbox": [1, 2, 3]}},
            ".values.bbox[3]: expected a value here, got none",
            id="three numbers",
        ),
        pytest.param(
            ADD | {"values": {"bbox": [1, 2, 3, "4"]}},
            ".values.bbox[3]: expected a valid number, got '4'",
            id="a text",
        ),
        pytest.param(
            ADD | {"values": {"bbox": [1, 2, 3, float("nan")]}},
            ".values.bbox[3]: expected a finite number, got nan",
            id="not a number",
        ),
        pytest.param(
            ADD | {"created_at": "yesterday"}, ".created_at: expected a valid datetime", id="a time"
        ),
    ],
)
def test_a_problem_names_the_place_what_was_expected_and_what_came(
    labeled: Project, item: dict[str, Any], problem: str
):
    with pytest.raises(CorrectionsError) as raised:
        labeled.read(ADD, item)
    assert f"corrections.json: corrections[1]{problem}" in str(raised.value)
    assert labeled.table() == [], "nothing is imported if anything is wrong"


def test_all_problems_are_listed_but_not_more_than_twenty(project: Project):
    wrong = [ADD | {"image": f"cat/{number}.jpg"} for number in range(30)]
    with pytest.raises(CorrectionsError) as raised:
        project.read(*wrong)
    lines = str(raised.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 10 problems more"
    with pytest.raises(CorrectionsError) as raised:
        project.read(*({"kind": "no"} for _ in range(3)))
    assert len(str(raised.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("{", "expected JSON, but EOF while parsing an object at line 1", id="cut"),
        pytest.param("[]", "expected a mapping, got []", id="a list"),
        pytest.param("{}", "corrections: expected a value here, got none", id="nothing in it"),
        pytest.param('{"corrections": 3}', "corrections: expected a list, got 3", id="no list"),
    ],
)
def test_what_is_no_file_of_corrections_is_refused(project: Project, text: str, problem: str):
    with pytest.raises(CorrectionsError) as raised:
        project.read_text(text)
    assert f"corrections.json: {problem}" in str(raised.value)


def test_a_given_id_belongs_to_one_correction(project: Project):
    project.label()
    assert project.read(ADD | {"id": "mine"}, ADD | {"id": "mine"}).known == 1
    assert project.read(ADD | {"id": "mine"}).known == 1
    for other in (CHANGE | {"id": "mine"}, ADD | {"id": "mine", "image": "cat/1.png"}):
        with pytest.raises(CorrectionsError, match=r"\[0\]\.id: expected one of its own"):
            project.read(other)


def test_what_corrects_a_correction_is_younger_than_it(project: Project):
    project.label()
    project.read(ADD | {"id": "mine", "created_at": "2024-05-01T12:00:00+02:00"})
    again = {"kind": "delete", "annotation_id": "mine"}
    with pytest.raises(CorrectionsError, match=r"created_at: expected a time after 2024-05-01 10"):
        project.read(again | {"created_at": "2024-05-01T09:59:59"})
    project.read(again | {"created_at": "2024-05-01T10:00:01Z"})
    assert len(project.view()) == 6


# Out and in again

ALL_SHAPES = (
    OBJECT,
    "{name: pose, task: keypoint, keypoints: animal}",
    "{name: spot, task: pointing}",
    "{name: about, task: caption}",
    "{name: text, task: ocr_polygon}",
)
EDITS = [
    ADD,
    CHANGE,
    DELETE,
    {
        "entry": "pose",
        "kind": "change",
        "bbox": in_px(LEFT),
        "values": {"keypoints": {"nose": [12, 9], "neck": None}},
    },
    {"entry": "pose", "kind": "change", "bbox": in_px(RIGHT), "values": {"label": "dog"}},
    {"entry": "pose", "kind": "add", "values": {"bbox": [1, 1, 9, 9]}},
    {"entry": "spot", "kind": "add", "values": {"point": [1 / 3, 7e-9]}},
    {"entry": "spot", "kind": "change", "point": [1, 0], "values": {"point": [2, 2]}},
    {"entry": "spot", "kind": "add", "values": {"point": [50, 50]}},
    {"entry": "spot", "kind": "delete", "point": [50, 50]},
    {"entry": "about", "label": "caption", "kind": "add", "values": {"text": "猫 »on« a mat"}},
    {"entry": "about", "label": "caption", "kind": "change", "values": {"text": "two cats"}},
    {
        "entry": "text",
        "label": "word",
        "kind": "add",
        "values": {"polygon": [[1, 1], [9, 2], [8, 7]], "text": "猫"},
    },
    {
        "entry": "text",
        "label": "word",
        "kind": "change",
        "bbox": [1, 1, 9, 7],
        "values": {"text": "cat"},
    },
    {
        "entry": "text",
        "label": "word",
        "kind": "change",
        "bbox": [1, 1, 9, 7],
        "values": {"polygon": [[1, 1], [9, 1], [9, 8]]},
    },
]


def test_another_home_of_the_same_images_gets_exactly_the_same_corrections(tmp_path: Path):
    project = Project(tmp_path, *ALL_SHAPES)
    project.label(None, "object", "pose")
    assert project.read(*EDITS).added.total() == len(EDITS)
    text, count = export_corrections(project.store)
    assert count == len(EDITS)
    other = Project(tmp_path, *project.entries, home="other")
    summary = other.read_text(text)
    assert (summary.added.total(), summary.known, summary.notes) == (len(EDITS), 0, ())
    assert other.table() == project.table()
    assert export_corrections(other.store) == (text, count)
    assert other.read_text(text).known == len(EDITS)
    other.label(None, "object", "pose")
    for entry in ("object", "pose"):
        assert other.view(entry=entry) == project.view(entry=entry)


def test_an_exported_file_names_images_for_people_and_for_certain(project: Project):
    project.read(ADD)
    ((item,),) = json.loads(export_corrections(project.store)[0]).values()
    (row,) = project.table()
    assert item == {
        "kind": "add",
        "image": "cat/0.png",
        "image_id": row["image_id"],
        "entry": "object",
        "label": "cat",
        "values": {"label": "cat", "bbox": [40.5, 5.0, 60.0, 20.0]},
        "author": "Ann",
        "created_at": row["created_at"].isoformat() + "Z",
        "id": row["correction_id"],
    }


# The verbs


@pytest.fixture
def run(project: Project, monkeypatch: pytest.MonkeyPatch):
    """The verbs, in the project's home: arguments -> (exit code, output)."""
    plan = project.folder / "plan.yaml"
    script = project.folder / "script0.json"
    plan.write_text(f"model: scripted:{script}\nentries: [{OBJECT}]\n")
    monkeypatch.setenv("LABELING_HOME", str(project.folder / "home"))
    monkeypatch.setenv("LABELING_IMAGES", str(project.root))
    monkeypatch.setenv("LABELING_PLAN", str(plan))

    def invoke(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["corrections", *arguments])
        return result.exit_code, result.output

    return invoke


def test_the_verbs_import_and_export(project: Project, run):
    project.label()
    file = project.folder / "edits.json"
    anonymous = {"image": "cat/0.png", "entry": "object", "label": "cat"}
    file.write_text(json.dumps({"corrections": [anonymous | one for one in (ADD, CHANGE, DELETE)]}))
    code, output = run("import", str(file))
    assert code == 1
    assert "CorrectionsError" in output
    assert "corrections[0].author: expected a name here" in output

    code, output = run("import", str(file), "--author", "Ann")
    assert code == 0, output
    assert "3 added (1 add, 1 change, 1 delete), 0 known already" in output
    assert "class_exports to see them, for cat" in output
    assert project.view() == CORRECTED
    assert "0 added, 3 known already" in run("import", str(file), "--author", "Ben")[1]

    exported = project.folder / "exported.json"
    assert run("export", str(exported)) == (0, f"{exported}: 3 corrections\n")
    assert run("export", "-") == (0, exported.read_text())
    assert "0 added, 3 known already" in run("import", str(exported))[1]


def test_a_home_without_a_store_is_named(project: Project, run):
    nowhere = project.folder / "nowhere"
    code, output = run("export", "-", "--home", str(nowhere))
    assert code == 1
    assert "expected the store of a home, found nothing" in output
    assert not nowhere.exists()


# Who reads the current view


def test_files_and_pictures_show_what_people_gave(project: Project):
    project.label()
    results = project.folder / "results"
    draw_class(project.store, project.plan, "cat", project.source, results)
    project.read(ADD, CHANGE, DELETE)
    assert draw_class(project.store, project.plan, "cat", project.source, results).drawn == 1
    export_class(project.store, project.plan, "cat", project.source, results)
    document = json.loads((results / "cat/cat.json").read_text())
    shown = [(a["bbox"], a["confidence"], a.get("corrected_by")) for a in document["annotations"]]
    assert shown == [
        ([12.0, 8.0, 40.0, 36.0], None, "Ann"),
        ([40.5, 5.0, 60.0, 20.0], None, "Ann"),
        (in_px(LEFT), 0.9, None),
        (in_px(RIGHT), 0.9, None),
    ]
    assert ["corrected_by" in a for a in document["annotations"]] == [True, True, False, False]


@pytest.mark.soak
def test_reports_count_what_people_gave(tmp_path: Path):
    posture = '{name: posture, task: keypoint, keypoints: person, ask: {"*": cat}}'
    project = Project(tmp_path, posture, OBJECT)
    project.label()
    project.read(ADD, {"kind": "delete", "bbox": in_px(LEFT)}, DELETE)
    nose = {"bbox": [40, 40, 60, 60], "keypoints": {"nose": [50, 45]}}
    project.read({"entry": "posture", "kind": "add", "values": nose})
    table = class_table(project.store, project.plan).set_index(["entry", "class"])
    assert table.loc[("object", "cat"), "annotations"] == 3
    assert table.loc[("posture", "cat"), "annotations"] == 5
    assert table.loc[("object", "cat"), "mean_score"] == pytest.approx(0.9)
    predictions = predict_and_store_actions(project.store, project.plan)
    assert len(predictions) == 3
    assert measure_agreement(project.store, project.plan).per_class.empty


def test_whom_a_person_marked_is_the_best_of_an_image():
    rows = [("a", 0.4, None), ("a", 0.9, None), ("b", 0.9, None), ("b", None, "Ann")]
    table = pd.DataFrame(rows, columns=["image_id", "score", "corrected_by"])
    best = best_of_each_image(table).set_index("image_id")
    assert best.loc["a", "score"] == 0.9
    assert best.loc["b", "corrected_by"] == "Ann"


def test_what_a_person_deleted_is_not_gone_on_from_and_what_they_added_is(tmp_path: Path):
    crops = "{name: crops, task: keypoint, keypoints: animal, classes: [cat], regions: object}"
    project = Project(tmp_path, OBJECT, crops)

    def asked_about() -> list[str]:
        """The regions of the first image in the latest attempt."""
        project.label()
        assert not due_work(project.store, project.plan).due
        rows = project.store.query(
            "SELECT region, attempt FROM generations JOIN dataset_files USING (image_id) "
            "WHERE entry = 'crops' AND path = 'cat/0.png'"
        ).to_pylist()
        latest = max(row["attempt"] for row in rows)
        return [row["region"] for row in rows if row["attempt"] == latest]

    left, right = asked_about()
    project.read({"kind": "delete", "annotation_id": right})
    assert due_work(project.store, project.plan).due == {("crops", "cat"): 1}
    assert asked_about() == [left]
    project.read(ADD | {"id": "mine"}, CHANGE | {"id": "moved"})
    assert asked_about() == ["mine", "moved"]
    project.read(*({"kind": "delete", "annotation_id": one} for one in ("mine", "moved")))
    assert due_work(project.store, project.plan).due == {("crops", "cat"): 1}
    project.label()
    assert not [row for row in project.view(entry="crops") if row[0] == "cat/0.png"]
