import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from labeling_pipeline.cleaning import clean
from labeling_pipeline.corrections import import_corrections
from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.evaluation.entry import Origin
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import Plan, parse_plan
from labeling_pipeline.reporting.detection import (
    draw_errors,
    evaluate_all,
    evaluate_corrections,
    evaluate_entries,
    write_detection,
)
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

WIDTH, HEIGHT = 100, 80
LEFT, RIGHT = [100, 100, 300, 400], [500, 500, 900, 900]
OBJECT = "{name: object, task: detection}"
PATHS = ("cat/0.png", "cat/1.png", "dog/0.png")


def px(box: list[int]) -> list[float]:
    """Bins of the script -> pixels."""
    return [b / 999 * side for b, side in zip(box, (WIDTH, HEIGHT) * 2, strict=True)]


def coco_box(box: list[int]) -> list[float]:
    x0, y0, x1, y1 = px(box)
    return [x0, y0, x1 - x0, y1 - y0]


class Project:
    """Two images of cats, one of dogs, and a model that sees a cat to the left and to the right."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "set" / "images"
        self.source = open_source(self.root)
        self.store = AnnotationStore(folder / "home" / "annotations.duckdb")

    def draw(self) -> None:
        for number, path in enumerate(PATHS):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            scene = draw_scene(np.random.default_rng(number), 120, 90).image
            Image.fromarray(scene).resize((WIDTH, HEIGHT)).save(self.root / path)

    def plan(self, truth: Any = (), entries: str = OBJECT, **script: Any) -> Plan:
        answers = script or {"boxes": {"cat": [LEFT, RIGHT]}}
        (self.folder / "script.json").write_text(json.dumps(answers))
        return parse_plan(
            f"model: 'scripted:{self.folder / 'script.json'}'\n"
            f"ground_truth: {json.dumps(truth)}\n"
            f"entries: [{entries}]\n"
        )

    def label(self, plan: Plan) -> Plan:
        """Inventory, cleaning and labeling; returns the plan."""
        update_inventory(self.store, self.source)
        clean(self.store, self.source, CleaningRules(only_flag=("near_duplicate",)))
        for entry in plan.entries:
            for slug in ("cat", "dog"):
                label_class(self.store, plan, entry, slug, self.source, "run")
        return plan

    def coco(self, *annotations: dict, name: str = "truth.json", **changes: Any) -> str:
        """Write a COCO file that knows all images; returns its name in the plan."""
        document = {
            "images": [{"id": path, "file_name": path} for path in PATHS],
            "categories": [{"id": label, "name": label} for label in ("cat", "dog")],
            "annotations": list(annotations),
        }
        (self.root.parent / name).write_text(json.dumps(document | changes))
        return f"../{name}"

    def yolo(self, files: dict[str, str], names: str = "names: [cat, dog]") -> str:
        """Write label files, by their path in the set, and the names; returns their name."""
        for path, text in files.items():
            (self.root.parent / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root.parent / path).write_text(text)
        (self.root.parent / "data.yaml").write_text(names)
        return "../data.yaml"

    def correct(self, plan: Plan, *items: dict[str, Any]) -> None:
        usual = {"image": "cat/0.png", "entry": "object", "label": "cat", "author": "Ann"}
        file = self.folder / "corrections.json"
        file.write_text(json.dumps({"corrections": [usual | item for item in items]}))
        import_corrections(self.store, plan, file, self.source)

    def evaluate(self, plan: Plan) -> dict[str, Any]:
        return evaluate_entries(self.store, plan, self.source)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Project(tmp_path_factory.mktemp("labeled"))
    project.draw()
    project.label(project.plan())
    return project.folder


@pytest.fixture
def project(labeled: Path, tmp_path: Path) -> Project:
    """Labeled, with files of its own."""
    return Project(shutil.copytree(labeled, tmp_path / "project"))


def annotation(path: str, label: str, box: list[int], **more: Any) -> dict:
    return {"image_id": path, "category_id": label, "bbox": coco_box(box), **more}


def counts(evaluation: Any) -> tuple[int, int, int]:
    overall = evaluation.boxes.overall
    return overall.tp, overall.fp, overall.fn


CATS = [annotation(path, "cat", LEFT) for path in PATHS]


def is_drawn(picture: np.ndarray, box: list[int], color: str) -> bool:
    """Whether most of the outline of a box has a colour. picture: without a strip above it."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    factor = picture.shape[1] / WIDTH
    x0, y0, _, y1 = (round(side * factor) for side in px(box))
    near = np.abs(picture.astype(int) - (red, green, blue)).max(axis=2) < 60
    # The left side, below the words; a line is a few pixels wide.
    columns = near[(y0 + y1) // 2 : y1 - 8, max(0, x0 - 4) : x0 + 5]
    return bool(columns.any(axis=1).mean() > 0.9)


def test_the_worst_images_are_drawn_with_what_is_right_false_and_missed(project: Project):
    below = [100, 600, 300, 900]
    truth = project.coco(*CATS, annotation("cat/1.png", "cat", below))
    evaluation = project.evaluate(project.plan(truth=truth))["object"]
    pictures = draw_errors(evaluation, project.source)
    assert [one.title for one in pictures] == [
        "cat/1.png: 2 errors",
        "cat/0.png: 1 error",
        "dog/0.png: 1 error",
    ]
    first, second, _ = (np.asarray(Image.open(io.BytesIO(one.data))) for one in pictures)
    assert is_drawn(first, LEFT, "#2e7d32")
    assert is_drawn(first, RIGHT, "#c62828")
    assert is_drawn(first, below, "#1565c0")
    assert not is_drawn(second, below, "#1565c0")
    (project.root / "cat/1.png").unlink()
    assert len(draw_errors(evaluation, project.source)) == 2
    assert len(draw_errors(evaluation, project.source, most=1)) == 1


def test_errors_name_the_file_and_the_worst_image_comes_first(project: Project):
    truth = project.coco(*CATS[:1], annotation("cat/1.png", "cat", RIGHT), *CATS[1:2])
    evaluation = project.evaluate(project.plan(truth=truth))["object"]
    assert counts(evaluation) == (3, 3, 0)
    assert evaluation.errors[["path", "label", "kind"]].to_numpy().tolist() == [
        ["dog/0.png", "cat", "false_on_absent"],
        ["dog/0.png", "cat", "false_on_absent"],
        ["cat/0.png", "cat", "wrong"],
    ]
    assert evaluation.errors.columns[:2].tolist() == ["path", "image_id"]
    assert evaluation.boxes.matches["model_key"].nunique() == 1


def test_of_two_files_the_first_that_knows_an_image_and_a_label_decides(project: Project):
    one_image = {"images": [{"id": "cat/0.png", "file_name": "cat/0.png"}]}
    first = project.coco(annotation("cat/0.png", "cat", LEFT), name="first.json", **one_image)
    second = project.coco(
        *(annotation(path, "cat", box) for path in PATHS for box in (LEFT, RIGHT)),
        name="second.json",
    )
    assert counts(project.evaluate(project.plan(truth=[first, second]))["object"]) == (5, 1, 0)
    assert counts(project.evaluate(project.plan(truth=[second, first]))["object"]) == (6, 0, 0)


def test_a_box_on_an_object_that_nobody_asked_for_says_what_it_is(project: Project):
    truth = project.coco(
        annotation("cat/0.png", "owl", LEFT),
        *CATS[1:],
        categories=[{"id": label, "name": label} for label in ("cat", "owl")],
    )
    boxes = project.evaluate(project.plan(truth=truth))["object"].boxes
    assert boxes.errors["true_label"].dropna().tolist() == ["owl"]
    assert boxes.not_asked == 1


def test_an_image_is_known_by_any_path_of_its_content(project: Project):
    copy = project.root / "dog" / "copy.png"
    copy.write_bytes((project.root / "cat/0.png").read_bytes())
    update_inventory(project.store, project.source)
    clean(project.store, project.source, CleaningRules(only_flag=("near_duplicate",)))
    image = {"images": [{"id": 1, "file_name": "dog/copy.png"}]}
    truth = project.coco(annotation("x", "cat", LEFT) | {"image_id": 1}, **image)
    evaluation = project.evaluate(project.plan(truth=truth))["object"]
    assert counts(evaluation) == (1, 1, 0)
    assert evaluation.errors["path"].tolist() == ["cat/0.png"]


@pytest.mark.parametrize(
    "places",
    [
        pytest.param("labels/{}.txt", id="where Ultralytics looks"),
        pytest.param("images/{}.txt", id="beside the images"),
    ],
)
def test_label_files_of_yolo_are_found_and_measured_by_the_size_of_the_image(
    project: Project, places: str
):
    x0, y0, x1, y1 = (b / 999 for b in LEFT)
    line = f"0 {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}\n"
    truth = project.yolo({places.format("cat/0"): line, places.format("cat/1"): ""})
    evaluation = project.evaluate(project.plan(truth=truth))["object"]
    # Of dog/0.png nothing is known, cat/1.png shows nothing.
    assert counts(evaluation) == (1, 3, 0)
    assert evaluation.judged_images == 2
    assert evaluation.boxes.matches["iou"].max() == pytest.approx(1)


def test_label_files_are_read_from_an_archive(project: Project):
    truth = project.yolo({"labels/cat/0.txt": "0 0.2 0.25 0.2 0.3\n"})
    with zipfile.ZipFile(project.folder / "set.zip", "w") as file:
        for path in project.root.parent.rglob("*.*"):
            file.write(path, path.relative_to(project.root.parent))
    project.source = open_source(f"zip://images::file://{project.folder / 'set.zip'}")
    evaluation = project.evaluate(project.plan(truth=truth))["object"]
    assert evaluation.judged_images == 1
    assert evaluation.boxes.overall.support == 1


def test_a_mistake_in_a_label_file_is_told_with_its_place(project: Project):
    truth = project.yolo({"labels/cat/1.txt": "0 0.5 0.5 0.1\n"})
    with pytest.raises(ConfigurationError, match=r"\.\./labels/cat/1\.txt is not valid at line 1"):
        project.evaluate(project.plan(truth=truth))


def test_what_cannot_be_judged_is_told_with_the_fix(project: Project):
    truth = project.coco(
        images=[{"id": 1, "file_name": "elsewhere/0.png"}], categories=[{"id": 1, "name": "owl"}]
    )
    evaluation = project.evaluate(project.plan(truth=truth))["object"]
    assert evaluation.judged_images == 0
    images, labels = evaluation.notes
    assert "knows 1 images and none of this dataset" in images
    assert "nothing is known of cat, dog" in labels


def test_without_a_truth_and_a_correction_there_is_nothing_to_evaluate(project: Project):
    plan = project.plan()
    assert evaluate_all(project.store, plan, project.source) == []


ADD = {"kind": "add", "values": {"bbox": [40.5, 5, 60, 20]}}
DELETE = {"kind": "delete", "bbox": px(RIGHT)}


def test_where_people_corrected_their_version_is_the_truth_of_that_image_and_label(
    project: Project,
):
    plan = project.plan()
    project.correct(plan, ADD, DELETE)
    evaluation = evaluate_corrections(project.store, plan, project.source)["object"]
    assert (evaluation.origin, evaluation.name) == (Origin.CORRECTIONS, "object-corrected")
    # One box right, the deleted one wrong, the added one missed; other images are not judged.
    assert counts(evaluation) == (1, 1, 1)
    assert evaluation.judged_images == 1
    assert evaluation.errors["kind"].tolist() == ["missed", "wrong"]
    assert project.evaluate(plan) == {}


def test_a_box_that_was_renamed_is_wrong_under_its_old_name_and_missed_under_its_new(
    project: Project,
):
    plan = project.plan()
    project.correct(plan, {"kind": "change", "bbox": px(RIGHT), "values": {"label": "dog"}})
    evaluation = evaluate_corrections(project.store, plan, project.source)["object"]
    rows = evaluation.errors[["label", "kind", "true_label"]].fillna("").to_numpy().tolist()
    assert rows == [["cat", "wrong", "dog"], ["dog", "missed", ""]]
    assert counts(evaluation) == (1, 1, 1)


def test_files_beat_corrections_and_judge_the_labels_as_people_left_them(project: Project):
    one_image = {"images": [{"id": "cat/0.png", "file_name": "cat/0.png"}]}
    plan = project.plan(truth=project.coco(annotation("cat/0.png", "cat", LEFT), **one_image))
    assert counts(project.evaluate(plan)["object"]) == (1, 1, 0)
    project.correct(plan, DELETE, ADD | {"image": "cat/1.png"})
    by_file, by_people = evaluate_all(project.store, plan, project.source)
    assert counts(by_file) == (1, 0, 0)
    # What people gave counts as the surest.
    assert by_file.ranking.ap == 1
    assert by_people.boxes.judged_images != by_file.boxes.judged_images
    assert counts(by_people) == (2, 0, 1)


def test_what_people_gave_goes_first_in_a_ranking_though_it_has_no_score(project: Project):
    plan = project.plan(truth=project.coco(annotation("cat/0.png", "cat", [405, 62, 599, 250])))
    project.correct(plan, ADD)
    evaluation = project.evaluate(plan)["object"]
    assert evaluation.boxes.matches["score"].isna().sum() == 1
    assert evaluation.ranking.ap_50 == 1


PERSON = (
    '```json\n{"cat1": {"bbox": " <100> <100> <300> <400> ", '
    '"keypoints": {"nose": " <200> <200> ", "left eye": "unvisible"}}}\n```'
)
MARKED = "<|object_ref_start|>{}<|object_ref_end|><|box_start|>{}<|box_end|>"


def test_keypoints_are_judged_by_their_own_truth(project: Project):
    nose = [200 / 999 * WIDTH, 200 / 999 * HEIGHT, 2]
    person = {"id": "cat", "name": "cat", "keypoints": ["nose", "left_eye"]}
    truth = project.coco(
        annotation("cat/0.png", "cat", LEFT, keypoints=[*nose, 20, 9, 2]), categories=[person]
    )
    entry = "{name: pose, task: keypoint, classes: [cat]}"
    plan = project.label(project.plan(truth, entry, raw_text=PERSON))
    points = project.evaluate(plan)["pose"].keypoints
    assert (points.persons, points.matched, points.labelled, points.correct) == (1, 1, 2, 1)
    assert points.oks == pytest.approx(0.5)
    assert points.average_precision is not None


def test_outlines_are_judged_by_the_boxes_around_them_and_by_their_areas(project: Project):
    x0, y0, x1, y1 = px(LEFT)
    triangle = [[x0, y0, x1, y0, x1, y1]]
    truth = project.coco(annotation("cat/0.png", "cat", LEFT, segmentation=triangle))
    task = "{name: shape, task: referring_segmentation, classes: [cat]}"
    outline = "<loc_100><loc_100><loc_300><loc_100><loc_300><loc_400><loc_100><loc_400>"
    plan = project.label(project.plan(truth, task, raw_text=outline))
    evaluation = project.evaluate(plan)["shape"]
    assert counts(evaluation)[0] == 1
    assert evaluation.outlines.compared == 1
    assert evaluation.outlines.mask_iou == pytest.approx(0.5, abs=0.05)


TEXT = {"categories": [{"id": 1, "name": "word"}]}


def word(path: str, box: list[int], **more: Any) -> dict:
    return annotation(path, "word", box, **more) | {"category_id": 1}


def test_text_is_judged_where_all_of_it_is_known(project: Project):
    truth = project.coco(
        word("cat/0.png", [100, 100, 300, 400], text="Exit"),
        word("cat/1.png", [100, 100, 300, 400], text="Exit"),
        word("cat/1.png", [500, 500, 900, 900]),
        **TEXT,
    )
    said = MARKED.format("Exut", "<100><100><300><400>")
    plan = project.label(project.plan(truth, "{name: text, task: ocr_box}", raw_text=said))
    evaluation = project.evaluate(plan)["text"]
    assert counts(evaluation) == (2, 1, 1)
    text = evaluation.text
    # cat/1.png holds a line that the truth does not spell out; dog/0.png holds none at all.
    assert len(text.judged_images) == 2
    assert (text.lines.characters.errors, text.lines.characters.length) == (1, 4)
    assert (text.pages.characters.errors, text.pages.characters.length) == (1 + 4, 4)
    assert evaluation.misread[["path", "true_text", "read_text"]].to_numpy().tolist() == [
        ["cat/0.png", "Exit", "Exut"]
    ]


def test_text_without_places_is_judged_by_whatever_stands_on_the_image(project: Project):
    truth = project.coco(
        word("cat/0.png", [100, 500, 300, 900], text="2"),
        word("cat/0.png", [100, 100, 300, 400], text="Gate"),
        **TEXT,
    )
    plan = project.label(project.plan(truth, "{name: page, task: ocr}", raw_text="Gate 7</s>"))
    evaluation = project.evaluate(plan)["page"]
    assert evaluation.boxes is None
    assert evaluation.judged_images == 3
    pages = evaluation.text.pages.characters
    assert (pages.length, pages.substitutions, pages.insertions) == (6, 1, 2 * 6)


def test_a_text_that_a_person_corrected_is_what_stands_there(project: Project):
    said = MARKED.format("Exut", "<100><100><300><400>")
    plan = project.label(project.plan((), "{name: object, task: ocr_box}", raw_text=said))
    project.correct(
        plan, {"kind": "change", "label": "word", "bbox": px(LEFT), "values": {"text": "Exit"}}
    )
    evaluation = evaluate_corrections(project.store, plan, project.source)["object"]
    assert counts(evaluation) == (1, 0, 0)
    assert evaluation.text.lines.characters.errors == 1


def test_names_of_the_models_own_and_points_are_not_judged(project: Project):
    entries = "{name: point, task: pointing}, {name: thing, task: object_detection}"
    assert project.evaluate(project.plan(project.coco(*CATS), entries)) == {}


def test_tables_and_measures_are_written(project: Project):
    plan = project.plan(truth=project.coco(*CATS))
    project.correct(plan, DELETE)
    evaluations = evaluate_all(project.store, plan, project.source)
    folder = project.folder / "reports"
    write_detection(folder, evaluations)
    errors = pd.read_csv(folder / "object_errors.csv")
    assert list(errors.columns) == [
        *("path", "image_id", "label", "kind", "score", "iou"),
        *("x0_px", "y0_px", "x1_px", "y1_px", "true_label"),
    ]
    assert errors["path"].tolist() == ["cat/1.png", "dog/0.png"]
    labels = pd.read_csv(folder / "object_labels.csv").set_index("label")
    assert labels.loc["cat", ["tp", "fp", "duplicates"]].tolist() == [3, 2, 0]
    assert labels.loc["cat", "ap"] == pytest.approx(evaluations[0].ranking.ap, abs=1e-4)
    assert pd.read_csv(folder / "object_sizes.csv")["size"].tolist() == ["small", "medium", "large"]
    document = json.loads((folder / "object.json").read_text())
    assert document["images"] == 3
    assert document["f1"]["value"] == pytest.approx(6 / 8)
    low, high = document["f1"]["interval"]
    assert low < 0.75 < high
    assert not list(folder.glob("*misread*"))
