"""Every task is an entry one can put in a plan: asset, store, drawing and export."""

import json
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from definitions import build_definitions
from labeling_pipeline.export.audit_sheet import read_sheet
from labeling_pipeline.home import Environment
from labeling_pipeline.models import florence2_protocol, rex_omni_protocol
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.tasks import RULES, Geometry, Task

MARKED = "<|object_ref_start|>{}<|object_ref_end|><|box_start|>{}<|box_end|>"
SHAPES = {
    Geometry.BOX: "<100><100><500><600>",
    Geometry.POINT: "<400><300>",
    Geometry.POLYGON: "<100><100><500><120><480><600><90><580>",
}
LOCATIONS = {
    Geometry.BOX: "<loc_100><loc_100><loc_500><loc_600>",
    Geometry.POLYGON: "<loc_100><loc_100><loc_500><loc_120><loc_480><loc_600><loc_90><loc_580>",
    Geometry.NONE: "",
}
PERSON = (
    '```json\n{"cat1": {"bbox": " <100> <100> <500> <600> ", '
    '"keypoints": {"nose": " <300> <200> ", "left eye": "unvisible"}}}\n```'
)


def answer_to(task: Task) -> str:
    """What a model would say that finds one thing, or text that says "read me"."""
    rule = RULES[task]
    if rule.geometry is Geometry.KEYPOINTS:
        return PERSON
    if task in rex_omni_protocol.TASKS:
        return MARKED.format("read me" if rule.reads_text else "cat", SHAPES[rule.geometry])
    words = "read me" if rule.reads_text else ""
    caption = "read me</s>" if task in florence2_protocol.CAPTION_OF else ""
    return f"{caption}{words}{LOCATIONS[rule.geometry]}"


def pixel(task: Task, bin_: int, size_px: int) -> float:
    spoken = rex_omni_protocol if task in rex_omni_protocol.TASKS else florence2_protocol
    return spoken.from_bin(bin_, size_px)


EVALUATIONS = ("action_predictions", "har_evaluation", "detection_evaluation", "calibration")
EVALUATED = {(RULES[task].geometry, RULES[task].reads_text): task for task in reversed(Task)}
"""One task of each kind; the evaluations know no other difference. The other tasks are soak."""


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=[] if task in EVALUATED.values() else pytest.mark.soak)
        for task in Task
    ],
)
def test_a_task_goes_from_the_plan_to_pictures_and_json(task, tmp_path, image_root, script):
    rule = RULES[task]
    references = ""
    if rule.needs_references:
        boxes = {f"cat/{i}.png": [[1, 2, 30, 40]] for i in range(3)}
        references = f", references: {json.dumps(boxes)}"
    plan = parse_plan(
        f"model: {json.dumps(script(raw_text=answer_to(task)))}\n"
        "entries:\n"
        f"  - {{name: thing, task: {task}, classes: [cat], ask: {{cat: cat}}{references}}}\n"
    )
    home = tmp_path / "home"
    definitions = build_definitions(plan, Environment(home, Path("unused"), image_root))
    steps: list[tuple[list[str], str | None]] = [
        (["raw_images", "clean_images"], None),
        (["thing_annotations", "visualizations", "class_exports"], "cat"),
    ]
    if is_evaluated := task in EVALUATED.values():
        steps += [
            ([*EVALUATIONS, "audit_sample"], None),
            (["model_drift", "review_queue"], None),
            (["annotation_report"], None),
        ]
    with dg.DagsterInstance.ephemeral() as instance:
        for selection, partition in steps:
            assert dg.materialize(
                list(definitions.assets),
                selection=selection,
                partition_key=partition,
                instance=instance,
                resources=definitions.resources,
            ).success

    store = AnnotationStore(home / "annotations.duckdb")
    states = store.query("SELECT state, count(*) AS n FROM outcomes GROUP BY ALL ORDER BY ALL")
    asked = 3 if references else 4
    assert states.to_pylist() == [
        {"state": "found", "n": asked},
        *([{"state": "unsupported", "n": 1}] if references else []),
    ]
    document = json.loads((home / "auto_labeling_results/cat/cat.json").read_text())
    assert len(document["images"]) == 4
    grounded = task in florence2_protocol.CAPTION_OF
    assert len(document["annotations"]) == asked * (2 if grounded else 1)
    annotation = document["annotations"][0]
    width, height = 120, 100
    if rule.geometry is Geometry.POINT:
        assert annotation["point"] == pytest.approx(
            [pixel(task, 400, width), pixel(task, 300, height)], abs=0.01
        )
        assert annotation["bbox"] is None
    elif rule.geometry is Geometry.NONE:
        assert annotation["bbox"] is None
    else:
        left = 90 if rule.geometry is Geometry.POLYGON else 100
        assert annotation["bbox"][:2] == pytest.approx(
            [pixel(task, left, width), pixel(task, 100, height)], abs=0.01
        )
    assert ("polygon" in annotation) == (rule.geometry is Geometry.POLYGON)
    assert annotation.get("text") == ("read me" if rule.reads_text else None)
    if rule.geometry is Geometry.KEYPOINTS:
        points = annotation["persons"][0]["keypoints"]
        assert points["nose"] is not None
        assert points["left eye"] is None
        assert len(points) == 17
    assert len(list((home / "auto_labeling_results/cat").glob("vis_*.jpg"))) == 4
    if is_evaluated:
        audited = read_sheet(home / "reports/audit/thing.csv").rows
        assert [row.shown for row in audited] == [2 if grounded else 1] * asked
        assert all((home / "reports/audit" / row.picture).is_file() for row in audited)
        assert (home / "reports/report.html").is_file()


@pytest.mark.checkpoint
def test_a_real_model_names_describes_captions_and_outlines_through_the_pipeline(tmp_path):
    root = tmp_path / "images"
    (root / "scenes").mkdir(parents=True)
    for number in range(3):
        drawn = draw_scene(np.random.default_rng([9, number]), 320, 240, ["circle", "star"])
        Image.fromarray(drawn.image).save(root / "scenes" / f"{number}.png")
    plan = parse_plan(
        """
model: tiny-florence-2
entries:
  - {name: object, task: object_detection}
  - {name: description, task: region_to_description, regions: object}
  - {name: caption, task: grounded_caption}
  - {name: outline, task: referring_segmentation, ask: {scenes: a star}}
"""
    )
    home = tmp_path / "home"
    definitions = build_definitions(plan, Environment(home, Path("unused"), root))
    with dg.DagsterInstance.ephemeral() as instance:
        for selection, partition in (
            (["raw_images", "clean_images"], None),
            ([entry.asset for entry in plan.entries], "scenes"),
            (["visualizations", "class_exports"], "scenes"),
        ):
            assert dg.materialize(
                list(definitions.assets),
                selection=selection,
                partition_key=partition,
                instance=instance,
                resources=definitions.resources,
            ).success

    folder = home / "auto_labeling_results" / "scenes"
    documents = [json.loads((folder / "scenes.json").read_text())]
    for name in ("description", "caption", "outline"):
        documents.append(json.loads((folder / f"scenes_{name}.json").read_text()))
    objects, descriptions, captions, outlines = (d["annotations"] for d in documents)
    assert sorted(a["text"] for a in objects) == ["circle"] * 3 + ["star"] * 3
    assert {a["text"].split()[-1] for a in descriptions} == {"circle", "star"}
    assert len(descriptions) == len(objects)
    whole = [a["text"] for a in captions if a["bbox"] is None]
    assert whole == ["a circle and a star"] * 3
    assert len(captions) == 3 * len(["the caption", "a circle", "a star"])
    assert [len(a["polygon"]) for a in outlines] == [10] * 3
    assert len(list(folder.glob("vis_*.jpg"))) == 3
