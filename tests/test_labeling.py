import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.annotations import Generation
from labeling_pipeline.asks import class_names, model_keys
from labeling_pipeline.cleaning import clean
from labeling_pipeline.errors import ConfigurationError, ModelError, SourceError
from labeling_pipeline.images.opening import Stamp
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import FolderSource, open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import ClassSummary, ask, label_class
from labeling_pipeline.models.registry import load_model
from labeling_pipeline.models.scripted import ScriptedModel
from labeling_pipeline.plan import Entry, parse_plan
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.tasks import Request, Task

RULES = CleaningRules(only_flag=("near_duplicate",))
SIZE = (96, 72)
POISON = (80, 60)
CAT_BOXES = [[100, 200, 300, 400], [500, 500, 999, 999]]


def put(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = draw_scene(np.random.default_rng(seed), 120, 90).image
    Image.fromarray(image).resize(size).save(path)


class Project:
    """An image root, a script for the model, a plan with one entry, and a store."""

    def __init__(self, folder: Path, script: dict[str, Any], entry: str, batch_size: int) -> None:
        self.root = folder / "images"
        self.root.mkdir()
        self.source = open_source(self.root)
        self.log = folder / "asked.jsonl"
        script_file = folder / "script.json"
        script_file.write_text(json.dumps(script | {"log": str(self.log)}))
        self.plan = parse_plan(
            f"model: scripted:{script_file}\n"
            f"runtime: {{batch_size: {batch_size}}}\n"
            f"entries: [{{name: object, {entry}}}]\n"
        )
        self.store = AnnotationStore(folder / "home" / "annotations.duckdb")

    def ingest(self, store: AnnotationStore | None = None) -> None:
        update_inventory(store or self.store, self.source, self.plan.class_names)
        clean(store or self.store, self.source, RULES)

    def label(
        self, slug: str, store: AnnotationStore | None = None, **options: Any
    ) -> ClassSummary:
        entry = self.plan.entry("object")
        return label_class(
            store or self.store, self.plan, entry, slug, self.source, "run-1", **options
        )

    def asked(self) -> int:
        """Requests that the model answered, ever."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def rows(self, sql: str, store: AnnotationStore | None = None) -> list[tuple[Any, ...]]:
        table = (store or self.store).query(sql)
        return [tuple(row.values()) for row in table.to_pylist()]

    def states(self) -> list[tuple[Any, ...]]:
        """(path, class, state, attempt) of every outcome."""
        return self.rows(
            "SELECT f.path, o.class, o.state, o.attempt FROM outcomes o "
            "JOIN dataset_files f USING (image_id) ORDER BY ALL"
        )


def folders(
    tmp_path: Path,
    script: dict[str, Any] | None = None,
    entry: str = "task: detection",
    batch_size: int = 8,
    **classes: int,
) -> Project:
    """A project with so many images in each class folder."""
    project = Project(tmp_path, script or {"boxes": {"cat": CAT_BOXES}}, entry, batch_size)
    seed = 0
    for name, count in classes.items():
        for number in range(count):
            put(project.root / name / f"{number}.png", seed)
            seed += 1
    project.ingest()
    return project


# What is recorded


def test_every_image_of_the_class_gets_an_outcome_for_every_class_of_its_group(tmp_path: Path):
    project = folders(tmp_path, cat=2, dog=1)
    summary = project.label("cat")
    assert project.states() == [
        ("cat/0.png", "cat", "found", 1),
        ("cat/0.png", "dog", "absent", 1),
        ("cat/1.png", "cat", "found", 1),
        ("cat/1.png", "dog", "absent", 1),
    ]
    assert (summary.due, summary.generations, summary.annotations) == (2, 2, 4)
    assert dict(summary.states) == {"found": 2}
    assert summary.errors == {}
    assert project.label("dog").states == {"absent": 1}
    assert len(project.states()) == 6


def test_boxes_and_provenance_are_stored_as_the_model_gave_them(tmp_path: Path):
    project = folders(tmp_path, cat=1)
    summary = project.label("cat")
    stored = project.rows(
        "SELECT label, position, x0_px, y0_px, x1_px, y1_px, score, geometric_mean "
        "FROM annotations ORDER BY position"
    )
    width, height = SIZE
    expected = [
        ("cat", n, *(b / 999 * s for b, s in zip(box, (width, height) * 2, strict=True)), 0.9, 0.8)
        for n, box in enumerate(CAT_BOXES)
    ]
    assert [row[:2] for row in stored] == [row[:2] for row in expected]
    np.testing.assert_allclose(
        [row[2:] for row in stored], [row[2:] for row in expected], rtol=1e-6
    )
    (generation,) = project.store.query("SELECT * FROM generations").to_pylist()
    assert generation["prompt"].startswith("Detect cat. ")
    assert "".join(generation["tokens"]) == generation["raw_text"]
    assert generation["labels"] == ["cat"]
    assert (generation["frame_width_px"], generation["frame_height_px"]) == SIZE
    assert (generation["run_id"], generation["attempt"]) == ("run-1", 1)
    assert generation["model_key"] == summary.model_key == model_keys(project.plan)["object"]
    (model,) = project.store.query("SELECT * FROM models").to_pylist()
    assert model["model_key"] == summary.model_key
    (presence,) = project.rows("SELECT presence FROM outcomes")[0]
    assert presence == pytest.approx(0.9)


def test_keypoints_are_stored_by_name(tmp_path: Path):
    project = folders(
        tmp_path,
        {"boxes": {"person": [[0, 0, 998, 998]]}},
        'task: keypoint, ask: {"*": person}',
        sitting=1,
    )
    assert project.label("sitting").annotations == 1
    ((keypoints,),) = project.rows("SELECT keypoints FROM annotations")
    assert len(keypoints) == 17
    assert keypoints[0]["name"] == "nose"
    assert keypoints[0]["x_px"] == pytest.approx(499 / 999 * SIZE[0])


@pytest.mark.parametrize(
    ("script", "state", "annotations", "dropped"),
    [
        pytest.param({"raw_text": "I see a cat."}, "unparsed", 0, 1, id="prose"),
        pytest.param({"raw_text": ""}, "not_mentioned", 0, 0, id="nothing"),
        pytest.param(
            {
                "raw_text": "<|object_ref_start|>cat<|object_ref_end|><|box_start|>"
                "<1><2><300><400>, <5><6>",
                "finish_reason": "length",
            },
            "truncated",
            1,
            1,
            id="cut",
        ),
        pytest.param(
            {
                "raw_text": "<|object_ref_start|>cow<|object_ref_end|><|box_start|>"
                "<1><2><300><400><|box_end|>"
            },
            "not_mentioned",
            0,
            1,
            id="a label not asked",
        ),
    ],
)
def test_an_odd_answer_is_a_state_and_what_was_dropped_is_counted(
    tmp_path: Path, script: dict[str, Any], state: str, annotations: int, dropped: int
):
    project = folders(tmp_path, script, cat=1)
    summary = project.label("cat")
    assert project.rows("SELECT state, dropped FROM outcomes") == [(state, dropped)]
    assert (summary.annotations, summary.dropped) == (annotations, dropped)
    assert project.rows("SELECT count(*) FROM annotations") == [(annotations,)]
    assert project.label("cat").due == 0


def test_progress_counts_up_to_what_is_due(tmp_path: Path):
    project = folders(tmp_path, batch_size=2, cat=5)
    seen: list[tuple[int, int]] = []
    project.label("cat", progress=lambda *at: seen.append(at))
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]


# Nothing is asked twice


def test_a_second_run_asks_nothing(tmp_path: Path):
    project = folders(tmp_path, cat=3)
    project.label("cat")
    before = project.states()
    summary = project.label("cat")
    assert (summary.due, summary.generations, project.asked()) == (0, 0, 3)
    assert project.states() == before


def test_the_second_class_of_a_group_finds_its_own_done(tmp_path: Path):
    project = Project(
        tmp_path, {"boxes": {"cat": CAT_BOXES}}, "task: detection, classes: [cat, dog]", 8
    )
    # Loose images belong to every class that the plan names.
    for seed in range(3):
        put(project.root / f"{seed}.png", seed)
    project.ingest()
    assert project.label("cat").generations == 3
    summary = project.label("dog")
    assert (summary.due, summary.generations, project.asked()) == (0, 0, 3)
    assert [row[1:3] for row in project.states()] == [("cat", "found"), ("dog", "absent")] * 3


def test_only_new_images_are_asked(tmp_path: Path):
    project = folders(tmp_path, cat=2)
    project.label("cat")
    put(project.root / "cat/new.png", 99)
    project.ingest()
    assert project.label("cat").generations == 1
    assert project.asked() == 3


def test_force_asks_again_and_adds_an_attempt(tmp_path: Path):
    project = folders(tmp_path, cat=2)
    project.label("cat")
    assert project.label("cat", force=True).generations == 2
    assert [row[2:] for row in project.states()] == [("found", 1), ("found", 2)] * 2
    assert project.rows("SELECT count(*) FROM generations") == [(4,)]
    assert project.rows("SELECT count(DISTINCT annotation_id) FROM annotations") == [(8,)]


def test_ids_are_the_same_in_every_home(tmp_path: Path):
    project = folders(tmp_path, cat=2, dog=1)
    other = AnnotationStore(tmp_path / "other home" / "annotations.duckdb")
    project.ingest(other)
    # In another order, too.
    for store, slugs in ((project.store, ("cat", "dog")), (other, ("dog", "cat"))):
        for slug in slugs:
            project.label(slug, store)
    for sql in (
        "SELECT generation_id, image_id, request_hash FROM generations ORDER BY ALL",
        "SELECT annotation_id, generation_id, x0_px FROM annotations ORDER BY ALL",
        "SELECT image_id, class, model_key, generation_id FROM outcomes ORDER BY ALL",
    ):
        assert project.rows(sql) == project.rows(sql, other) != []


def test_a_run_that_is_interrupted_keeps_its_batches_and_resumes_with_the_rest(tmp_path: Path):
    script = {"boxes": {"cat": CAT_BOXES}, "interrupt_batch": 3}
    project = folders(tmp_path, script, batch_size=2, cat=7)
    with pytest.raises(KeyboardInterrupt):
        project.label("cat")
    kept = project.states()
    assert len(kept) == 4
    assert {row[2:] for row in kept} == {("found", 1)}
    summary = project.label("cat")
    assert (summary.due, summary.generations, project.asked()) == (3, 3, 7)
    after = project.states()
    assert set(kept) < set(after)
    assert sorted(row[0] for row in after) == [f"cat/{n}.png" for n in range(7)]


# Failures


@pytest.mark.parametrize("batch_size", [8, 64])
def test_one_poison_image_in_64_costs_one_failed_outcome(tmp_path: Path, batch_size: int):
    script = {"boxes": {"cat": CAT_BOXES}, "fail_size_px": POISON}
    project = folders(tmp_path, script, batch_size=batch_size, cat=63)
    put(project.root / "cat/poison.png", 99, POISON)
    project.ingest()
    summary = project.label("cat")
    assert dict(summary.states) == {"found": 63, "failed": 1}
    assert list(summary.errors) == ["cat/poison.png"]
    assert "scripted failure" in summary.errors["cat/poison.png"]
    assert project.asked() == 63, "a sound image was asked twice, or not at all"
    failed = project.rows("SELECT error, generation_id FROM outcomes WHERE state = 'failed'")
    assert [generation for _, generation in failed] == [None]
    assert "scripted failure" in failed[0][0]


def test_out_of_memory_at_sixteen_ends_at_eight_with_all_results(tmp_path: Path):
    script = {"boxes": {"cat": CAT_BOXES}, "out_of_memory_above": 8}
    project = folders(tmp_path, script, batch_size=16, cat=80)
    seen: list[tuple[int, int]] = []
    summary = project.label("cat", progress=lambda *at: seen.append(at))
    assert dict(summary.states) == {"found": 80}
    assert project.asked() == 80, "an image was asked twice, or not at all"
    model = load_model(project.plan.model, project.plan.runtime)
    assert model.batch_limit.images == 8
    done = [at for at, _ in seen]
    # What had been read ahead still came in sixteens; what was formed later comes in eights.
    assert np.diff(done).tolist() == [16, 16, 16, 8, 8, 8, 8]


# Answers without a sound end


def test_a_label_that_went_in_circles_is_asked_again_in_a_smaller_group(tmp_path: Path):
    script = {"boxes": {"cat": CAT_BOXES, "dog": CAT_BOXES[:1]}, "loops": {"cat": 2}}
    project = folders(tmp_path, script, "task: detection, classes: [dog, cat]", dog=2, cat=1)
    summary = project.label("dog")
    assert (summary.answered, summary.asked_again, summary.generations) == (2, 2, 4)
    assert project.rows("SELECT DISTINCT class, state FROM outcomes ORDER BY class") == [
        ("cat", "found"),
        ("dog", "found"),
    ]
    first, second = project.rows(
        "SELECT labels, finish_reason, len(tokens), follows IS NULL FROM generations "
        "WHERE image_id = (SELECT min(image_id) FROM generations) ORDER BY follows NULLS FIRST"
    )
    assert first[:2] == (["dog", "cat"], "loop")
    assert first[2] < 100, "it was not stopped early"
    assert second[:2] == (["cat"], "stop")
    # Every annotation says which answer holds it.
    assert project.rows(
        "SELECT a.label, g.labels, count(*) FROM annotations a "
        "JOIN generations g ON g.generation_id = a.answered_in GROUP BY ALL ORDER BY ALL"
    ) == [("cat", ["cat"], 4), ("dog", ["dog", "cat"], 2)]
    assert project.label("dog").due == 0


def test_what_goes_in_circles_again_is_degenerate_and_keeps_what_was_sound(tmp_path: Path):
    script = {"boxes": {"cat": CAT_BOXES, "dog": CAT_BOXES[:1]}, "loops": {"cat": 1}}
    project = folders(tmp_path, script, "task: detection, classes: [dog, cat]", cat=1, dog=1)
    summary = project.label("cat")
    assert dict(summary.states) == {"degenerate": 1}
    assert (summary.asked_again, summary.generations, summary.annotations) == (1, 2, 1)
    assert project.rows("SELECT class, state, dropped > 5 FROM outcomes ORDER BY class") == [
        ("cat", "degenerate", True),
        ("dog", "found", True),
    ]
    # A settled outcome like any other: nothing is asked a third time.
    assert project.label("cat").due == 0


def test_keypoints_top_down_look_again_at_every_person_and_map_back(tmp_path: Path):
    script = {"boxes": {"person": [[100, 200, 400, 800], [600, 200, 900, 800]]}}
    project = folders(tmp_path, script, 'task: keypoint, top_down: true, ask: {"*": person}', sit=1)
    summary = project.label("sit")
    # Keypoints and boxes of the whole, then a crop around each of two people.
    assert (summary.generations, dict(summary.states)) == (4, {"found": 1})
    crops = project.rows(
        "SELECT task, crop_px FROM generations WHERE crop_px IS NOT NULL ORDER BY crop_px"
    )
    assert crops == [("keypoint", [2, 3, 46, 69]), ("keypoint", [50, 3, 94, 69])]
    boxes = project.rows("SELECT x0_px, y0_px, x1_px, y1_px FROM annotations ORDER BY x0_px")
    width, height = SIZE
    assert boxes == [
        pytest.approx((x0 / 999 * width, 200 / 999 * height, x1 / 999 * width, 800 / 999 * height))
        for x0, x1 in ((100, 400), (600, 900))
    ]


# Entries in two steps


def two_steps(tmp_path: Path, **classes: int) -> Project:
    """Cats are detected, and where one is, its keypoints are asked for on a crop."""
    script = {"boxes": {"cat": [[200, 200, 800, 800]]}}
    project = folders(tmp_path, script, "task: detection, ask: {'*': cat}", **classes)
    text = "{name: pose, task: keypoint, ask: {'*': cat}, regions: object}"
    source = "{name: object, task: detection, ask: {'*': cat}}"
    project.plan = parse_plan(f"model: {project.plan.model}\nentries:\n  - {source}\n  - {text}\n")
    return project


def pose(project: Project, slug: str) -> ClassSummary:
    entry = project.plan.entry("pose")
    return label_class(project.store, project.plan, entry, slug, project.source, "run-2")


def test_an_entry_in_two_steps_looks_closely_at_what_another_entry_found(tmp_path: Path):
    project = two_steps(tmp_path, cat=2)
    early = pose(project, "cat")
    assert (early.due, early.notes) == (
        0,
        ("2 images wait for object_annotations: materialize it first",),
    )
    project.label("cat")
    summary = pose(project, "cat")
    assert (summary.due, summary.generations, dict(summary.states)) == (2, 2, {"found": 2})
    assert pose(project, "cat").due == 0
    # Provenance of both steps: the box, and the keypoints that were asked for about it.
    assert (
        project.rows(
            "SELECT r.entry AS source, a.entry, g.crop_px, len(a.keypoints) FROM annotations a "
            "JOIN generations g ON g.generation_id = a.answered_in "
            "JOIN annotations r ON r.annotation_id = g.region"
        )
        == [("object", "pose", [4, 3, 92, 69], 17)] * 2
    )


def test_what_one_entry_found_is_described_by_another_in_its_place(tmp_path: Path):
    project = two_steps(tmp_path, cat=1)
    script = tmp_path / "describer.json"
    script.write_text(json.dumps({"raw_text": "un chat"}))
    entry = Entry(
        name="pose",
        task=Task.REGION_TO_DESCRIPTION,
        model=f"scripted:{script}",
        regions="object",
    )
    entries = (project.plan.entries[0], entry)
    project.plan = project.plan.model_copy(update={"entries": entries})
    project.label("cat")
    assert dict(pose(project, "cat").states) == {"found": 1}
    (box,) = project.rows("SELECT x0_px, y0_px, x1_px, y1_px FROM annotations WHERE text IS NULL")
    (described,) = project.rows(
        "SELECT text, x0_px, y0_px, x1_px, y1_px FROM annotations WHERE text IS NOT NULL"
    )
    assert described[0] == "un chat"
    # The region went through the bins of the prompt, a thousandth of the image each.
    assert described[1:] == pytest.approx(box, abs=0.1)
    (prompt,) = project.rows("SELECT prompt FROM generations WHERE task = 'region_to_description'")
    assert prompt[0].startswith("What does the region <loc_200><loc_200><loc_800><loc_800>")


def test_images_on_which_nothing_was_found_are_absent_without_being_asked(tmp_path: Path):
    project = two_steps(tmp_path, cat=1)
    entry = project.plan.entry("object").model_copy(update={"threshold": 0.99})
    project.plan = project.plan.model_copy(update={"entries": (entry, project.plan.entries[1])})
    project.label("cat")
    summary = pose(project, "cat")
    assert (summary.generations, dict(summary.states)) == (0, {"absent": 1})
    assert pose(project, "cat").due == 0


def test_new_regions_make_the_second_step_due_again(tmp_path: Path):
    project = two_steps(tmp_path, cat=2)
    project.label("cat")
    pose(project, "cat")
    # The same boxes again ask for nothing; others do.
    project.label("cat", force=True)
    assert pose(project, "cat").due == 0
    script = json.loads((tmp_path / "script.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(script | {"boxes": {"cat": [[0, 0, 500, 500]]}}))
    source = project.plan.entry("object").model_copy(update={"model": f"scripted:{other}"})
    project.plan = project.plan.model_copy(update={"entries": (source, project.plan.entries[1])})
    project.label("cat")
    assert pose(project, "cat").due == 2


def named_by_another(
    tmp_path: Path, words: str, vocabulary: list[str] | None = None, distractors: str = ""
) -> Project:
    """One model reads words on the image, another one looks for what they name."""
    reader = tmp_path / "reader.json"
    reader.write_text(json.dumps({"raw_text": words}))
    script: dict[str, Any] = {"boxes": {"cat": CAT_BOXES, "dog": CAT_BOXES[:1]}}
    if vocabulary:
        script["vocabulary"] = vocabulary
    project = folders(tmp_path, script, "task: detection", zoo=1)
    project.plan = parse_plan(
        f"model: {project.plan.model}\nentries:\n"
        f"  - {{name: object, task: ocr_box, model: 'scripted:{reader}'}}\n"
        "  - {name: thing, task: detection, labels_from: object, group_size: 2, "
        f"distractors: [{distractors}]}}\n"
    )
    return project


def things(project: Project) -> ClassSummary:
    entry = project.plan.entry("thing")
    return label_class(project.store, project.plan, entry, "zoo", project.source, "run-2")


WORD = "<|object_ref_start|>{}<|object_ref_end|><|box_start|><1><2><300><400><|box_end|>"


def test_one_model_may_say_what_there_is_and_another_one_where(tmp_path: Path):
    words = ", ".join(WORD.format(word) for word in ("cat", "Dog", "cow", "CAT"))
    project = named_by_another(tmp_path, words)
    project.label("zoo")
    summary = things(project)
    assert (summary.label, summary.generations, dict(summary.states)) == (
        "object",
        2,
        {"found": 1},
    )
    asked = project.rows(
        "SELECT labels FROM generations WHERE entry = 'thing' ORDER BY follows NULLS FIRST"
    )
    assert asked == [(["cat", "Dog"],), (["cow"],)]
    found = project.rows(
        "SELECT label, text FROM annotations WHERE entry = 'thing' ORDER BY position"
    )
    assert found == [("object", "cat"), ("object", "cat")]
    assert things(project).due == 0


def test_what_is_asked_beside_names_adds_no_annotations(tmp_path: Path):
    project = named_by_another(tmp_path, WORD.format("cat"), distractors="fox, dog")
    project.label("zoo")
    things(project)
    assert project.rows("SELECT labels FROM generations WHERE entry = 'thing'") == [
        (["cat", "fox", "dog"],)
    ]
    found = project.rows("SELECT label, text FROM annotations WHERE entry = 'thing'")
    assert found == [("object", "cat"), ("object", "cat")]


def test_names_that_a_model_must_not_be_asked_are_left_out_and_said(tmp_path: Path):
    words = ", ".join(WORD.format(word) for word in ("cat", "zebra"))
    project = named_by_another(tmp_path, words, vocabulary=["cat"])
    project.label("zoo")
    summary = things(project)
    assert project.rows("SELECT labels FROM generations WHERE entry = 'thing'") == [(["cat"],)]
    assert summary.notes[0].startswith("1 names were not asked for, zebra: the label 'zebra'")


def test_an_image_without_names_is_absent_without_being_asked(tmp_path: Path):
    project = named_by_another(tmp_path, "")
    project.label("zoo")
    assert dict(things(project).states) == {"absent": 1}
    assert project.rows("SELECT count(*) FROM generations WHERE entry = 'thing'") == [(0,)]


def test_a_large_image_is_asked_tile_by_tile_and_its_things_count_once(tmp_path: Path):
    # Wherever it is asked, the model sees a cat in the middle of what it is shown.
    script = {"boxes": {"cat": [[400, 400, 599, 599]]}}
    project = folders(tmp_path, script, "task: detection, tiles: {size_px: 400}", cat=1)
    put(project.root / "cat/large.png", 9, (720, 400))
    project.ingest()
    summary = project.label("cat")
    assert (summary.answered, summary.generations) == (2, 4)
    crops = project.rows(
        "SELECT crop_px FROM generations g JOIN dataset_files f USING (image_id) "
        "WHERE path = 'cat/large.png' ORDER BY follows NULLS FIRST, crop_px"
    )
    assert crops == [(None,), ([0, 0, 400, 400],), ([320, 0, 720, 400],)]
    boxes = project.rows(
        "SELECT round(x0_px), round(x1_px), g.crop_px FROM annotations a "
        "JOIN generations g ON g.generation_id = a.answered_in "
        "JOIN dataset_files f ON f.image_id = a.image_id "
        "WHERE path = 'cat/large.png' ORDER BY 1"
    )
    assert boxes == [
        (160, 240, [0, 0, 400, 400]),
        (288, 432, None),
        (480, 560, [320, 0, 720, 400]),
    ]


def test_images_of_like_size_share_a_batch(tmp_path: Path):
    project = folders(tmp_path, batch_size=2, cat=3)
    for number, side in enumerate((300, 200, 300, 200)):
        put(project.root / f"cat/big{number}.png", 50 + number, (side, side))
    project.ingest()
    project.label("cat")
    sizes = [json.loads(line)["size_px"][0] for line in project.log.read_text().splitlines()]
    assert sizes == [300, 300, 200, 200, 96, 96, 96]


def test_a_failed_image_is_tried_three_times_and_then_held_until_forced(tmp_path: Path):
    script = {"boxes": {"cat": CAT_BOXES}, "fail_size_px": POISON}
    project = folders(tmp_path, script, cat=1)
    put(project.root / "cat/poison.png", 99, POISON)
    project.ingest()
    project.label("cat")
    for _ in range(2):
        # The only image that is due fails: so does the class.
        with pytest.raises(ModelError, match=r"all 1 images failed.*cat/poison\.png"):
            project.label("cat")
    assert project.label("cat").due == 0
    assert [row for row in project.states() if row[2] == "failed"] == [
        ("cat/poison.png", "cat", "failed", attempt) for attempt in (1, 2, 3)
    ]
    assert project.label("cat", force=True).states == {"found": 1, "failed": 1}


def test_if_every_image_fails_so_does_the_class_and_the_failures_are_recorded(tmp_path: Path):
    project = folders(tmp_path, {"fail_size_px": SIZE}, cat=3)
    with pytest.raises(ModelError, match=r"all 3 images failed.*scripted failure"):
        project.label("cat")
    assert [row[2:] for row in project.states()] == [("failed", 1)] * 3
    assert project.rows("SELECT count(*) FROM generations") == [(0,)]


@pytest.mark.parametrize("damage", ["removed", "emptied", "a folder", "another picture"])
def test_an_image_lost_since_cleaning_costs_that_image(tmp_path: Path, damage: str):
    project = folders(tmp_path, cat=3)
    path = project.root / "cat/1.png"
    path.unlink()
    if damage == "emptied":
        path.touch()
    elif damage == "a folder":
        path.mkdir()
    elif damage == "another picture":
        put(path, 99)
    summary = project.label("cat")
    assert dict(summary.states) == {"found": 2, "failed": 1}
    assert list(summary.errors) == ["cat/1.png"]
    assert [row[2] for row in project.states()] == ["found", "failed", "found"]


def test_images_that_cannot_be_reached_just_now_are_no_failed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    project = folders(tmp_path, cat=3)

    def read(self: FolderSource, path: str, expected: Stamp | None = None) -> bytes:
        raise SourceError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "read", read)
        with pytest.raises(SourceError, match="no network"):
            project.label("cat")
    assert project.states() == []
    assert project.label("cat").states == {"found": 3}


def test_two_runs_that_race_over_the_same_images_record_each_once(tmp_path: Path):
    # Both see everything due, since neither has answered yet.
    project = folders(tmp_path, {"boxes": {"cat": CAT_BOXES}, "delay_s": 0.5}, batch_size=8, cat=3)
    runs = [threading.Thread(target=project.label, args=("cat",)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert project.asked() == 6
    assert [row[2:] for row in project.states()] == [("found", 1)] * 3
    assert project.rows("SELECT count(*) FROM generations") == [(3,)]
    assert project.rows("SELECT count(*) FROM annotations") == [(6,)]


def test_of_two_runs_whose_answers_differ_only_the_first_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The later run sees one box more, and asks a second time for what goes in circles.
    script = {"boxes": {"cat": CAT_BOXES}, "delay_s": 0.3}
    project = folders(tmp_path, script, "task: detection, classes: [cat, dog]", cat=3)
    answer_all = ScriptedModel._answer_all

    def answer(self: ScriptedModel, prepared: Sequence[Request]) -> list[Generation]:
        if threading.current_thread().name == "later":
            time.sleep(0.7)
            changes = {"boxes": {"cat": [*CAT_BOXES, [1, 2, 3, 4]]}, "loops": {"cat": 2}}
            monkeypatch.setattr(self, "script", self.script | changes)
        return answer_all(self, prepared)

    monkeypatch.setattr(ScriptedModel, "_answer_all", answer)
    runs = [
        threading.Thread(target=project.label, args=("cat",), name=name)
        for name in ("earlier", "later")
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert project.asked() > 6
    assert project.rows("SELECT count(*), count(follows) FROM generations") == [(3, 0)]
    assert project.rows("SELECT DISTINCT state, dropped FROM outcomes WHERE class = 'cat'") == [
        ("found", 0)
    ]
    assert project.rows("SELECT count(*) FROM annotations") == [(6,)]


def test_a_batch_is_bisected_in_order(tmp_path: Path):
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"fail_size_px": [8, 8]}))
    project = parse_plan(f"model: scripted:{script}\nentries: [{{name: a, task: detection}}]")
    model = load_model(project.model, project.runtime)
    sides = [9, 8, 10, 11, 8, 8, 12]
    requests = [
        Request(np.zeros((side, side, 3), np.uint8), Task.DETECTION, ("cat",)) for side in sides
    ]
    answers = ask(model, requests)
    assert [
        "failed" if isinstance(answer, Exception) else answer.frame_size_px[0] for answer in answers
    ] == [9, "failed", 10, 11, "failed", "failed", 12]
    assert ask(model, []) == []


# What is never asked


def test_an_unsupported_label_is_recorded_with_the_fix_and_never_asked(tmp_path: Path):
    project = folders(tmp_path, {"vocabulary": ["cat"]}, cat=1, zebra=2)
    summary = project.label("zebra")
    assert dict(summary.states) == {"unsupported": 2}
    assert (summary.due, summary.generations, project.asked()) == (2, 0, 0)
    assert "`ask`" in summary.notes[0]
    assert {row[2] for row in project.states()} == {"unsupported"}
    assert all("zebra" in error for (error,) in project.rows("SELECT error FROM outcomes"))
    assert project.label("zebra").due == 0
    project.label("cat")
    assert project.rows("SELECT labels FROM generations") == [(["cat"],)]


def test_a_class_the_entry_does_not_cover_is_left_alone_with_a_note(tmp_path: Path):
    project = folders(tmp_path, entry="task: detection, classes: [cat]", cat=1, dog=1)
    summary = project.label("dog")
    assert (summary.due, summary.generations) == (0, 0)
    assert "does not cover" in summary.notes[0]
    assert project.states() == []


def test_a_class_that_does_not_exist_is_refused_naming_those_that_do(tmp_path: Path):
    project = folders(tmp_path, cat=1, dog=1)
    assert class_names(project.store) == {"cat": "cat", "dog": "dog"}
    with pytest.raises(ConfigurationError, match=r"'cow'.*cat, dog.*raw_images"):
        project.label("cow")


def test_a_class_without_images_is_no_error(tmp_path: Path):
    project = folders(tmp_path, entry="task: detection, classes: [cat, ghost]", cat=1)
    summary = project.label("ghost")
    assert (summary.due, summary.states) == (0, {})
