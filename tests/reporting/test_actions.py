"""Action recognition over a store: answers are written into it as a run would leave them."""

import json
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from labeling_pipeline.asks import EntryAsks, current_view
from labeling_pipeline.cleaning import clean
from labeling_pipeline.evaluation.actions import (
    NO_ACTION,
    NO_ANSWER,
    NO_PERSON,
    NOT_LABELED,
    Recognition,
)
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.plan import Plan, parse_plan
from labeling_pipeline.reporting.actions import (
    evaluate_stored_actions,
    predict_and_store_actions,
    why_not_recognised,
    write_action_tables,
)
from labeling_pipeline.results import export_class
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

SITTING = {"nose": (40, 10), "left hip": (40, 60), "left knee": (70, 60), "left ankle": (70, 100)}
LYING = {name: (y, x) for name, (x, y) in SITTING.items()}
BODIES = {"sit": SITTING, "lie": LYING}
SURE = {"sit": {"sit": 0.9, "lie": 0.1}, "lie": {"sit": 0.2, "lie": 0.7}}


def put(path: Path, seed: int, size: tuple[int, int] = (120, 90)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scene = draw_scene(np.random.default_rng([5, seed]), 120, 90)
    Image.fromarray(scene.image).resize(size).save(path)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory) -> Path:
    """A folder with ``images`` and a store that knows them.

    Thirteen images of ``sit`` and ``lie`` are accepted, four of them of the test folder.
    """
    folder = tmp_path_factory.mktemp("ingested")
    root = folder / "images"
    for number, name in enumerate(BODIES):
        for i in range(6):
            put(root / ("test" if i > 3 else "") / name / f"{i}.png", 10 * number + i)
    # The kept one of two that look alike: the test folder has the smaller one.
    put(root / "sit/large.png", 9, size=(180, 135))
    put(root / "test/sit/small.png", 9)
    # One image in both places.
    shutil.copy(root / "test/sit/4.png", root / "sit/copy.png")
    store, source = AnnotationStore(folder / "annotations.duckdb"), open_source(root)
    update_inventory(store, source, test_folder="test")
    clean(store, source, CleaningRules())
    return folder


class Dataset:
    """The ingested images, with answers about them."""

    def __init__(self, root: Path, store: AnnotationStore, model: str) -> None:
        self.root, self.store, self.model = root, store, model

    def plan(self, entry: str = "", actions: str = "", labels: str = "{}") -> Plan:
        return parse_plan(
            f"model: {json.dumps(self.model)}\n"
            "entries:\n  - {name: pose, task: keypoint, ask: {'*': person}}\n"
            f"  - {{name: action, task: detection, ask: {labels}{entry}}}\n"
            f"actions: {{zero_shot: action, test_folder: test, folds: 2{actions}}}\n"
        )

    @property
    def classes(self) -> dict[str, str]:
        """Path -> class, of the accepted images."""
        rows = self.store.query("SELECT path, class FROM class_images ORDER BY path").to_pylist()
        return {row["path"]: row["class"] for row in rows}

    def pose(self, plan: Plan, **states: str) -> None:
        """Every person is found in the posture of the folder. states: path -> another state."""
        random = np.random.default_rng(0)
        told, people = {}, {}
        for path, name in self.classes.items():
            told[path] = dict.fromkeys(BODIES, (states.get(path, "found"), 0.9))
            people[path] = [
                {"name": n, "x_px": x + random.normal(), "y_px": y + random.normal(), "score": 0.9}
                for n, (x, y) in BODIES[name].items()
            ]
        self._write(plan, "pose", told, people)

    def act(self, plan: Plan, said: Mapping[str, Mapping[str, Any]]) -> None:
        """path -> class -> presence, or (state, presence)."""

        def answer(value: Any) -> tuple[str, float | None]:
            if isinstance(value, tuple):
                return value
            return ("found" if value > 0.5 else "absent"), value

        self._write(
            plan,
            "action",
            {path: {name: answer(v) for name, v in one.items()} for path, one in said.items()},
        )

    def _write(
        self,
        plan: Plan,
        entry: str,
        told: Mapping[str, Mapping[str, tuple[str, float | None]]],
        people: Mapping[str, list[dict[str, Any]]] | None = None,
    ) -> None:
        asks = EntryAsks(self.store, plan, plan.entry(entry))
        asked = {name: asks.of(name) for name in BODIES}
        rows = self.store.query("SELECT path, image_id FROM class_images").to_pylist()
        image_ids = {row["path"]: row["image_id"] for row in rows}
        outcomes = [
            {
                "image_id": image_ids[path],
                "entry": entry,
                "class": name,
                "model_key": asks.model.model_key,
                "attempt": 1,
                "parser_version": 1,
                "label": asked[name].label,
                "request_hash": asked[name].ask.request_hash,
                "state": state,
                "presence": presence,
                "generation_id": f"{entry} {path}",
                "run_id": "run",
                "created_at": datetime(2024, 5, 1),
            }
            for path, answers in told.items()
            for name, (state, presence) in answers.items()
        ]
        box = {"x0_px": 0.0, "y0_px": 0.0, "x1_px": 100.0, "y1_px": 100.0, "score": 0.9}
        found = [
            {
                **box,
                "annotation_id": path,
                "generation_id": f"{entry} {path}",
                "image_id": image_ids[path],
                "entry": entry,
                "label": "person",
                "parser_version": 1,
                "position": 0,
                "keypoints": points,
            }
            for path, points in (people or {}).items()
            if told[path]["sit"][0] == "found"
        ]
        with self.store.transaction() as tx:
            tx.insert("outcomes", outcomes)
            tx.insert("annotations", found)


@pytest.fixture
def dataset(ingested: Path, tmp_path: Path, script) -> Dataset:
    copy = shutil.copy(ingested / "annotations.duckdb", tmp_path)
    return Dataset(ingested / "images", AnnotationStore(Path(copy)), script())


def by_path(dataset: Dataset, predictions: pd.DataFrame, method: str) -> pd.DataFrame:
    paths = dataset.store.query("SELECT DISTINCT image_id, path FROM class_images").to_pandas()
    own = predictions[predictions["method"] == method]
    return own.merge(paths, on="image_id").set_index("path")


def test_both_methods_predict_every_image_and_the_test_folder_stays_apart(dataset):
    plan = dataset.plan()
    dataset.pose(plan)
    dataset.act(plan, {path: SURE[name] for path, name in dataset.classes.items()})
    predictions = predict_and_store_actions(dataset.store, plan)
    assert len(predictions) == 2 * 13
    keypoints = by_path(dataset, predictions, "keypoints")
    tests = ["sit/copy.png", *(f"test/{name}/{i}.png" for name in BODIES for i in (4, 5))]
    tests = [path for path in tests if path in keypoints.index]
    assert len(tests) == 4
    assert keypoints.index[keypoints["fold"].isna()].tolist() == sorted(tests)
    assert (keypoints["predicted_action"] == keypoints["true_action"]).all()

    found = evaluate_stored_actions(dataset.store, plan)
    assert [one.title for one in found] == [
        *("keypoints", "zero-shot", "keypoints, test folder", "zero-shot, test folder")
    ]
    assert [one.evaluation.scores.images for one in found] == [9, 9, 4, 4]
    assert {one.evaluation.scores.accuracy.value for one in found} == {1.0}
    zero_shot = by_path(dataset, predictions, "zero_shot")
    assert zero_shot.loc["lie/0.png", "probabilities"] == pytest.approx(
        {"lie": 0.7 / 0.9, "sit": 0.2 / 0.9}
    )
    stored = dataset.store.query("SELECT DISTINCT method, model_key FROM action_predictions")
    assert {row["model_key"] for row in stored.to_pylist()} == {
        *current_view(plan).model_keys.values()
    }
    again = evaluate_stored_actions(dataset.store, plan)
    assert again[0].evaluation.scores.accuracy == found[0].evaluation.scores.accuracy


def test_nothing_is_learned_from_what_looks_like_a_test_image(dataset):
    """Under a false name it would spoil the predictions of all others."""
    plan = dataset.plan()
    dataset.pose(plan)
    honest = predict_and_store_actions(dataset.store, plan)
    with dataset.store.transaction() as tx:
        tx.execute("UPDATE dataset_files SET class = 'lie' WHERE path LIKE '%large.png'")
    lied = predict_and_store_actions(dataset.store, plan)
    columns = ["image_id", "predicted_action", "top_probability"]
    one, other = (
        by_path(dataset, made, "keypoints").loc["test/lie/4.png":, columns]
        for made in (honest, lied)
    )
    pd.testing.assert_frame_equal(one, other)


def test_an_image_without_a_prediction_says_why(dataset):
    plan = dataset.plan()
    sound = {path: SURE[name] for path, name in dataset.classes.items()}
    dataset.act(
        plan,
        {
            **sound,
            "sit/0.png": {"sit": 0.4, "lie": 0.3},
            "sit/1.png": {"sit": 0.9, "lie": ("degenerate", None)},
            "sit/2.png": {"sit": 0.9},
        },
    )
    dataset.pose(plan, **{"sit/0.png": "absent", "lie/1.png": "failed"})
    with dataset.store.transaction() as tx:
        tx.execute("DELETE FROM outcomes WHERE generation_id = 'pose sit/2.png'")
    predictions = predict_and_store_actions(dataset.store, plan)
    for method, reasons in {
        "zero_shot": {
            "sit/0.png": NO_ACTION,
            "sit/1.png": NO_ANSWER,
            "sit/2.png": NOT_LABELED,
        },
        "keypoints": {"sit/0.png": NO_PERSON, "lie/1.png": NO_ANSWER, "sit/2.png": NOT_LABELED},
    }.items():
        made = by_path(dataset, predictions, method)
        assert made["reason"].dropna().to_dict() == reasons
    keypoints, zero_shot, *_ = evaluate_stored_actions(dataset.store, plan)
    for one, reasons in (
        (keypoints, {NO_PERSON: 1, NO_ANSWER: 1}),
        (zero_shot, {NO_ACTION: 1, NO_ANSWER: 1}),
    ):
        assert (one.evaluation.scores.images, one.evaluation.reasons) == (8, reasons)
        assert one.why_not == f"{NOT_LABELED} (1 images)"
        assert one.evaluation.scores.accuracy.value == pytest.approx(6 / 8)


@pytest.mark.parametrize(
    ("labels", "entry", "vocabulary", "reason"),
    [
        pytest.param(
            "{}",
            ", group_size: 1",
            None,
            r"action asks for the actions in several prompts: set its group_size to at least 2",
            id="asked apart",
        ),
        pytest.param(
            "{sit: person, lie: Person}",
            "",
            None,
            r"asks for 2 actions by the same label 'person': give each one of its own under `ask`",
            id="one label",
        ),
        pytest.param(
            "{sit: person}", ", classes: [sit]", None, "asks for one action only", id="one class"
        ),
        pytest.param("{}", "", ["sit"], "'lie' is outside the vocabulary", id="never asked"),
    ],
)
def test_an_entry_whose_presences_cannot_be_compared_says_what_to_change(
    dataset, script, labels, entry, vocabulary, reason
):
    if vocabulary:
        dataset.model = script(vocabulary=[*vocabulary, "person"])
    plan = dataset.plan(entry, labels=labels)
    predictions = predict_and_store_actions(dataset.store, plan)
    made = by_path(dataset, predictions, "zero_shot")
    assert len(made)
    assert made["reason"].str.contains(reason).all()
    found = evaluate_stored_actions(dataset.store, plan)
    assert reason.split(":")[0] in why_not_recognised(found)
    assert all(one.evaluation.scores.images == 0 for one in found)


def test_answers_to_an_earlier_prompt_do_not_count(dataset):
    plan = dataset.plan()
    dataset.act(plan, {path: SURE[name] for path, name in dataset.classes.items()})
    changed = dataset.plan(", distractors: [dog]")
    made = by_path(dataset, predict_and_store_actions(dataset.store, changed), "zero_shot")
    assert set(made["reason"]) == {NOT_LABELED}
    back = by_path(dataset, predict_and_store_actions(dataset.store, plan), "zero_shot")
    assert back["reason"].isna().all()


def test_a_plan_without_an_entry_for_a_method_leaves_no_predictions_of_it(dataset):
    plan = dataset.plan()
    dataset.pose(plan)
    predict_and_store_actions(dataset.store, plan)
    bare = parse_plan(
        f"model: {json.dumps(dataset.model)}\nentries: [{{name: x, task: detection}}]"
    )
    assert predict_and_store_actions(dataset.store, bare).empty
    assert evaluate_stored_actions(dataset.store, bare) == []
    assert why_not_recognised([]) == ""


def test_what_was_learned_from_never_passes_for_a_test_image(dataset):
    plan = dataset.plan()
    dataset.pose(plan)
    without = plan.model_copy(
        update={"actions": plan.actions.model_copy(update={"test_folder": None})}
    )
    predict_and_store_actions(dataset.store, without)
    found = evaluate_stored_actions(dataset.store, plan)
    keypoints = [one for one in found if one.method == "keypoints"]
    assert [(one.is_test, one.evaluation.scores.images) for one in keypoints] == [(False, 13)]


def test_tables_hold_every_prediction_and_what_to_withhold(dataset, tmp_path):
    plan = dataset.plan(actions=", target_accuracy: 1.0")
    dataset.pose(plan, **{"sit/0.png": "absent"})
    mistaken = SURE | {"lie": {"sit": 0.52, "lie": 0.5}}
    dataset.act(plan, {path: mistaken[name] for path, name in dataset.classes.items()})
    predict_and_store_actions(dataset.store, plan)
    found = evaluate_stored_actions(dataset.store, plan)
    write_action_tables(tmp_path, found)
    listed = pd.read_csv(tmp_path / "predictions.csv")
    assert len(listed) == 2 * 13
    zero_shot = listed[listed["method"] == "zero_shot"]
    assert (zero_shot["withhold"] == (zero_shot["true_action"] == "lie")).all()
    (missed,) = listed[listed["path"] == "sit/0.png"].query("method == 'keypoints'").itertuples()
    assert (missed.withhold, missed.reason) == (True, NO_PERSON)
    counts = pd.read_csv(tmp_path / "zero_shot_confusion.csv", index_col="true")
    shares = pd.read_csv(tmp_path / "zero_shot_confusion_shares.csv", index_col="true")
    assert counts.loc["lie"].tolist() == [0, 4]
    assert shares.loc["lie"].tolist() == [0, 1]
    comparison = pd.read_csv(tmp_path / "comparison.csv").set_index("method")
    assert comparison.loc["zero-shot", "accuracy"] == pytest.approx(5 / 9, abs=1e-4)
    classes = pd.read_csv(tmp_path / "classes.csv")
    assert classes.columns.tolist()[:2] == ["method", "action"]
    assert len(classes) == 8


def test_exports_mark_the_images_of_the_test_folder(dataset, tmp_path):
    plan = dataset.plan()
    export_class(dataset.store, plan, "sit", open_source(dataset.root), tmp_path)
    document = json.loads((tmp_path / "sit/sit.json").read_text())
    marked = {
        Path(image["file_name"]).name
        for image in document["images"]
        if image.get("split") == "test"
    }
    assert marked == {"copy.png", "5.png"}
    assert len(document["images"]) == 7


def test_recognitions_are_named_for_files_and_for_people():
    part = Recognition("zero_shot", True, pd.DataFrame(), None)  # type: ignore[arg-type]
    assert (part.key, part.title) == ("zero_shot_test", "zero-shot, test folder")
