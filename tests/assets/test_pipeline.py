import base64
import io
import json
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image

from definitions import build_definitions
from labeling_pipeline.asks import model_keys
from labeling_pipeline.drawing import font_files
from labeling_pipeline.home import Environment
from labeling_pipeline.plan import class_slug, parse_plan
from labeling_pipeline.results import drawn_annotation
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import View, current_annotations

BOXES = {"cat": [[100, 100, 500, 500]], "dog": [[200, 200, 800, 900]]}
COWS = class_slug("Über Kühe")


@pytest.fixture
def pipeline(tmp_path, image_root):
    """Materialize assets of a plan in one home; keeps the instance between calls."""
    home = tmp_path / "home"
    with dg.DagsterInstance.ephemeral() as instance:

        class Pipeline:
            def __init__(self):
                self.instance = instance
                self.home = home

            def definitions(self, model: str, root: Path = image_root) -> dg.Definitions:
                entry = "{name: object, task: detection}"
                text = f"model: {json.dumps(model)}\nentries:\n  - {entry}\n"
                environment = Environment(home, Path("unused"), root)
                return build_definitions(parse_plan(text), environment)

            def run(self, definitions, *names, classes=None, config=None):
                tags = {}
                if classes:
                    tags["dagster/asset_partition_range_start"] = classes[0]
                    tags["dagster/asset_partition_range_end"] = classes[-1]
                return dg.materialize(
                    list(definitions.assets),
                    selection=list(names),
                    instance=instance,
                    resources=definitions.resources,
                    tags=tags,
                    run_config=config,
                    raise_on_error=False,
                )

            def ingest(self, definitions):
                assert self.run(definitions, "raw_images", "clean_images").success
                return instance.get_dynamic_partitions("class")

            def materialized(self, name):
                return instance.get_materialized_partitions(dg.AssetKey(name))

            def query(self, sql):
                return AnnotationStore(home / "annotations.duckdb").query(sql).to_pylist()

        yield Pipeline()


def test_the_whole_graph_goes_from_folders_to_a_report(pipeline, script, image_root):
    definitions = pipeline.definitions(script(boxes=BOXES))
    classes = pipeline.ingest(definitions)
    assert sorted(classes) == sorted(["cat", "dog", COWS])

    per_class = ("object_annotations", "visualizations", "class_exports")
    assert pipeline.run(definitions, *per_class, classes=classes).success
    for name in per_class:
        assert pipeline.materialized(name) == set(classes)

    evaluation = ("action_predictions", "har_evaluation", "detection_evaluation")
    assert pipeline.run(definitions, *evaluation, "annotation_report").success

    results = pipeline.home / "auto_labeling_results"
    document = json.loads((results / "cat" / "cat.json").read_text())
    assert (document["task"], document["class"]) == ("detection", "cat")
    assert len(document["images"]) == len(document["annotations"]) == 4
    assert Path(document["images"][0]["file_name"]).is_absolute()
    assert len(list((results / "cat").glob("vis_*.jpg"))) == 4
    cows = json.loads((results / COWS / f"{COWS}.json").read_text())
    assert cows["class"] == "Über Kühe"
    assert (len(cows["images"]), cows["annotations"]) == (4, [])
    report = (pipeline.home / "reports" / "report.html").read_text()
    assert "Über Kühe" in report


@pytest.mark.parametrize("name", ["猫", "Größe #1", "кошка и собака"])
def test_class_names_of_any_script_are_asked_answered_stored_exported_and_drawn(
    pipeline, script, tmp_path, name
):
    root = tmp_path / "photos"
    picture = draw_scene(np.random.default_rng(3), 160, 120).image
    for folder in (name, "other"):
        (root / folder).mkdir(parents=True)
        Image.fromarray(picture if folder == name else picture[::-1]).save(root / folder / "1.png")
    log = tmp_path / "asked.jsonl"
    model = script(boxes={name: [[300, 300, 700, 800]]}, log=str(log))
    definitions = pipeline.definitions(model, root)
    slug = class_slug(name)
    assert sorted(pipeline.ingest(definitions)) == sorted([slug, "other"])
    per_class = ("object_annotations", "visualizations", "class_exports")
    assert pipeline.run(definitions, *per_class, classes=[slug]).success
    assert name in json.loads(log.read_text())["labels"]
    (found,) = pipeline.query("SELECT label, answered_in FROM annotations")
    assert found["label"] == name
    (answer,) = pipeline.query("SELECT prompt, raw_text FROM generations")
    assert name in answer["prompt"]
    assert name in answer["raw_text"]
    results = pipeline.home / "auto_labeling_results" / slug
    document = json.loads((results / f"{slug}.json").read_text(encoding="utf-8"))
    assert (document["class"], len(document["annotations"])) == (name, 1)
    (drawn,) = results.glob("vis_*.jpg")
    assert Image.open(drawn).height >= 120
    # Its label stands there in characters, not in the boxes that stand for missing ones.
    drawable = [FT2Font(file).get_charmap() for _, file in font_files(name)]
    assert {ord(character) for character in name} <= set().union(*drawable)


def test_materializing_one_class_answers_every_class_of_its_group(pipeline, script, tmp_path):
    log = tmp_path / "asked.jsonl"
    definitions = pipeline.definitions(script(boxes=BOXES, log=str(log)))
    classes = pipeline.ingest(definitions)
    assert pipeline.run(definitions, "object_annotations", classes=["cat"]).success
    assert len(log.read_text().splitlines()) == 4
    states = pipeline.query("SELECT class, state, count(*) AS n FROM outcomes GROUP BY ALL")
    assert {(s["class"], s["state"], s["n"]) for s in states} == {
        ("cat", "found", 4),
        ("dog", "found", 4),
        (COWS, "absent", 4),
    }
    assert pipeline.run(definitions, "object_annotations", classes=classes).success
    assert pipeline.run(definitions, "object_annotations", classes=classes).success
    assert len(log.read_text().splitlines()) == 12
    config = {"ops": {"object_annotations": {"config": {"force": True}}}}
    assert pipeline.run(definitions, "object_annotations", classes=["cat"], config=config).success
    assert len(log.read_text().splitlines()) == 16
    attempts = pipeline.query(
        "SELECT attempt, count(*) AS n FROM generations GROUP BY 1 ORDER BY 1"
    )
    assert attempts == [{"attempt": 1, "n": 12}, {"attempt": 2, "n": 4}]


def test_a_failed_class_costs_that_class_and_is_mended_by_running_it_again(
    pipeline, script, tmp_path
):
    log = tmp_path / "asked.jsonl"
    definitions = pipeline.definitions(
        script(boxes=BOXES, fail_size_px=[130, 100], log=str(log))  # every image of dog
    )
    classes = pipeline.ingest(definitions)
    result = pipeline.run(definitions, "object_annotations", classes=classes)
    assert not result.success
    assert pipeline.materialized("object_annotations") == {"cat", COWS}
    failure = result.get_failed_step_keys()
    assert failure == {"object_annotations"}
    (event,) = [e for e in result.all_events if e.is_step_failure]
    description = event.step_failure_data.user_failure_data.description
    assert "1 of 3 classes failed" in description
    assert "- dog: ModelError: all 4 images failed" in description
    assert "re-run the failed partitions" in description
    errors = pipeline.query("SELECT DISTINCT class, error FROM outcomes WHERE state = 'failed'")
    assert {row["class"] for row in errors} == {"cat", "dog", COWS}

    log.unlink()
    definitions = pipeline.definitions(script(boxes=BOXES, log=str(log)))
    assert pipeline.run(definitions, "object_annotations", classes=["dog"]).success
    assert len(log.read_text().splitlines()) == 4
    assert pipeline.materialized("object_annotations") == set(classes)


def test_materializations_say_what_a_person_wants_to_know(pipeline, script):
    definitions = pipeline.definitions(script(vocabulary=["cat"], boxes=BOXES))
    classes = pipeline.ingest(definitions)
    pipeline.run(definitions, "object_annotations", classes=classes)
    metadata = {}
    for record in pipeline.instance.fetch_materializations(
        dg.AssetKey("object_annotations"), limit=10
    ).records:
        metadata[record.partition_key] = record.asset_materialization.metadata
    assert metadata["cat"]["generations"].value == 4
    assert metadata["cat"]["annotations"].value == 4
    assert metadata["dog"]["generations"].value == 0
    assert "`ask` in the plan" in metadata["dog"]["notes"].value
    clean = pipeline.instance.get_latest_materialization_event(dg.AssetKey("clean_images"))
    assert clean.asset_materialization.metadata["accepted"].value == 12


def test_a_home_refuses_another_image_root(pipeline, script, tmp_path):
    pipeline.ingest(pipeline.definitions(script()))
    (tmp_path / "other").mkdir()
    result = pipeline.run(pipeline.definitions(script(), tmp_path / "other"), "raw_images")
    assert not result.success
    (event,) = [e for e in result.all_events if e.is_step_failure]
    assert "LABELING_HOME" in str(event.step_failure_data.error)


def test_names_that_one_model_gave_are_the_labels_that_another_ones_boxes_are_drawn_with(
    tmp_path, image_root, script
):
    word = "<|object_ref_start|>puma<|object_ref_end|><|box_start|><1><2><300><400><|box_end|>"
    plan = parse_plan(
        "entries:\n"
        f"  - {{name: seen, task: ocr_box, model: {json.dumps(script(raw_text=word))}}}\n"
        "  - name: thing\n    task: detection\n    labels_from: seen\n"
        f"    model: {json.dumps(script(boxes={'puma': [[100, 100, 500, 500]]}))}\n"
    )
    definitions = build_definitions(plan, Environment(tmp_path / "home", Path("none"), image_root))
    with dg.DagsterInstance.ephemeral() as instance:
        for names, partition in (
            (["raw_images", "clean_images"], None),
            (["seen_annotations", "thing_annotations", "visualizations", "class_exports"], "cat"),
        ):
            assert dg.materialize(
                list(definitions.assets),
                selection=names,
                partition_key=partition,
                instance=instance,
                resources=definitions.resources,
            ).success
    results = tmp_path / "home/auto_labeling_results/cat"
    (found, *_) = json.loads((results / "cat_thing.json").read_text())["annotations"]
    assert found["text"] == "puma"
    store = AnnotationStore(tmp_path / "home/annotations.duckdb")
    rows = current_annotations(store, View(model_keys(plan)), "cat")
    labels = {drawn_annotation(row, plan).label for row in rows.itertuples()}
    assert labels == {"word", "puma"}


def test_ingestion_shows_counts_reasons_and_pictures_of_rejects_and_clusters(
    pipeline, script, image_root
):
    first = Image.open(image_root / "cat" / "0.png")
    first.convert("RGB").save(image_root / "dog" / "copy.jpg", quality=60)
    Image.new("RGB", (90, 90), "grey").save(image_root / "cat" / "blank.png")
    (image_root / "cat" / "broken.jpg").write_bytes(b"no image")
    for name in (".hidden.jpg", "notes.txt", "more.txt"):
        (image_root / "cat" / name).touch()
    pipeline.ingest(pipeline.definitions(script()))
    raw, clean = (
        pipeline.instance.get_latest_materialization_event(dg.AssetKey(name)).asset_materialization
        for name in ("raw_images", "clean_images")
    )
    assert (raw.metadata["files"].value, raw.metadata["new"].value) == (18, 15)
    skipped = {
        row.data["reason"]: row.data["files"] for row in raw.metadata["skipped_by_reason"].records
    }
    assert skipped == {"not_an_image": 2, "hidden_file": 1}
    metadata = clean.metadata
    assert (metadata["accepted"].value, metadata["rejected"].value) == (12, 3)
    assert metadata["near_duplicate_clusters"].value == 1
    reasons = {
        row.data["reason"]: row.data["files"] for row in metadata["rejects_by_reason"].records
    }
    assert reasons == {"blank": 1, "near_duplicate": 1, "not_an_image": 1}
    assert metadata["flags"].value == "none"
    for name, pictures in (("rejects", 2), ("clusters", 2)):
        assert metadata[name].value.startswith("![](data:image/jpeg;base64,")
        data = base64.b64decode(metadata[name].value.partition(",")[2].removesuffix(")"))
        assert Image.open(io.BytesIO(data)).width > pictures * 200
        assert len(data) < 200_000


def test_a_model_for_all_entries_is_asked_in_place_of_the_one_that_an_entry_names(
    pipeline, script, image_root
):
    named, for_all = script(boxes=BOXES), script(boxes={"dog": BOXES["dog"]})
    plan = parse_plan(f"entries: [{{name: object, task: detection, model: {json.dumps(named)}}}]")
    environment = Environment(pipeline.home, Path("unused"), image_root, model=for_all)
    definitions = build_definitions(plan, environment)
    pipeline.ingest(definitions)
    assert pipeline.run(definitions, "object_annotations", classes=["cat"]).success
    asked = pipeline.query("SELECT DISTINCT model_key FROM outcomes")
    assert [row["model_key"] for row in asked] == [*model_keys(plan.with_model(for_all)).values()]
