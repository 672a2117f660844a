"""Evaluation and report over 10,000 images: every asset of the group, in a process of its own.

Two models and an earlier revision of one have answered, every image shows a person in one of five
postures and two shapes, and the ground truth knows all. Nothing is asked here: the answers are put
into the store as they would have come.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from labeling_pipeline.annotations import Annotation, Keypoint, LabelAnswer, State
from labeling_pipeline.asking.questions import Conclusion, Sourced
from labeling_pipeline.asks import EntryAsks
from labeling_pipeline.images.hashing import content_hash
from labeling_pipeline.models.base import Model
from labeling_pipeline.plan import Group, load_plan
from labeling_pipeline.records import Asked, Row, model_row
from labeling_pipeline.sample.scenes import (
    POSTURE_LABELS,
    POSTURES,
    SHAPES,
    Scene,
    SceneObject,
    draw_scene,
)
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.tasks import PERSON, Task

IMAGES, SCENES, BATCH = 10_000, 500, 1_000
SIZE_PX = (320, 240)
LIMIT_S, LIMIT_GIB = 60.0, 2.0
EARLIER = "earlier-revision"

OBJECTS = json.dumps(dict(zip(POSTURES, ("person", *SHAPES), strict=True)))
PLAN = f"""
model: tiny-rex-omni
ground_truth: ../truth.json
actions: {{entry: posture, zero_shot: action}}
entries:
  - {{name: posture, task: keypoint, ask: {{"*": person}}}}
  - {{name: action, task: detection, ask: {json.dumps(POSTURE_LABELS)}}}
  - {{name: object, task: detection, ask: {OBJECTS}}}
  - {{name: second, task: detection, model: tiny-florence-2, ask: {OBJECTS}}}
"""

_EVALUATE = """
import json, time
started = time.perf_counter()
import dagster as dg
import definitions
from benchmarks.alone import peak_mib
from assets.evaluation.upstream import EVALUATION

loaded = definitions.defs()
job = loaded.resolve_implicit_global_asset_job_def()
assets = dg.AssetSelection.groups(EVALUATION).resolve(loaded.resolve_asset_graph())
with dg.DagsterInstance.ephemeral() as instance:
    result = job.execute_in_process(
        asset_selection=list(assets), instance=instance,
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
    )
seconds = {
    step.step_key: step.event_specific_data.duration_ms / 1000
    for step in result.all_events if step.event_type_value == "STEP_SUCCESS"
}
print(json.dumps({"steps": seconds, "peak_mib": peak_mib(), "all": time.perf_counter() - started}))
"""


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (what, seconds or memory, share of the limit)."""
    with tempfile.TemporaryDirectory() as folder:
        environment = fill_home(Path(folder), IMAGES)
        done = subprocess.run(
            [sys.executable, "-c", _EVALUATE],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | environment,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    for asset, seconds in found["steps"].items():
        yield asset, f"{seconds:.1f} s", f"{seconds / LIMIT_S:.2f}"
    whole, peak_gib = found["all"], found["peak_mib"] / 2**10
    yield "all, with the start of Python", f"{whole:.1f} s", f"{whole / LIMIT_S:.2f} of {LIMIT_S:g}"
    yield "peak memory", f"{peak_gib:.2f} GiB", f"{peak_gib / LIMIT_GIB:.2f} of {LIMIT_GIB:g}"


@dataclass(frozen=True)
class _Known:
    """An image and what it shows."""

    image_id: str
    path: str
    action: str
    scene: Scene


def fill_home(folder: Path, images: int) -> dict[str, str]:
    """Write images, plan, ground truth and a store full of answers; returns the environment."""
    plan_file = folder / "plan.yaml"
    plan_file.write_text(PLAN)
    plan = load_plan(plan_file)
    known = list(_write_images(folder / "images", images))
    (folder / "truth.json").write_text(json.dumps(_truth(known)))
    store = AnnotationStore(folder / "annotations.duckdb")
    with store.transaction() as tx:
        tx.insert("classes", [{"class": name, "display_name": name} for name in POSTURES])
        tx.insert("images", [_image_row(one) for one in known])
        tx.insert("dataset_files", [_file_row(one) for one in known])
    rng = np.random.default_rng([4, 7])
    for entry in plan.entries:
        asks = EntryAsks(store, plan, entry)
        (group,) = asks.requests.groups
        for key, error in ((asks.model.model_key, 1.0), (EARLIER, 2.0)):
            if key == EARLIER and entry.name != "object":
                continue
            for start in range(0, images, BATCH):
                part = known[start : start + BATCH]
                _answer(store, rng, asks.model, group, entry.name, entry.task, key, part, error)
    return {
        "LABELING_HOME": str(folder),
        "LABELING_PLAN": str(plan_file),
        "LABELING_IMAGES": str(folder / "images"),
    }


def _write_images(root: Path, count: int) -> Iterator[_Known]:
    """A few hundred scenes, each in many files that differ in a byte at the end."""
    drawn: list[tuple[str, Scene, bytes]] = []
    for number in range(min(SCENES, count)):
        rng = np.random.default_rng([4, 8, number])
        action = POSTURES[number % len(POSTURES)]
        shapes = rng.choice(SHAPES, 2, replace=False)
        scene = draw_scene(rng, *SIZE_PX, kinds=[action, *map(str, shapes)])
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, "JPEG", quality=85)
        drawn.append((action, scene, buffer.getvalue()))
    for number in range(count):
        action, scene, data = drawn[number % len(drawn)]
        data += number.to_bytes(4)
        path = root / action / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        yield _Known(content_hash(data), f"{action}/{path.name}", action, scene)


def _image_row(one: _Known) -> Row:
    width, height = SIZE_PX
    return {
        "image_id": one.image_id,
        "width_px": width,
        "height_px": height,
        "status": "accepted",
        "cluster": one.image_id,
    }


def _file_row(one: _Known) -> Row:
    return {
        "path": one.path,
        "class": one.action,
        "image_id": one.image_id,
        "size_bytes": 1,
        "mtime_ns": 1,
    }


def _truth(known: list[_Known]) -> dict:
    """COCO, with people also under the name of what they do."""
    labels = ["person", *SHAPES, *POSTURE_LABELS.values()]
    numbers = {label: number for number, label in enumerate(labels, 1)}
    annotations = []
    for image, one in enumerate(known):
        for thing in one.scene.objects:
            x0, y0, x1, y1 = map(float, thing.bbox_px)
            annotation = {
                "image_id": image,
                "category_id": numbers[thing.label],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
            if thing.keypoints_px is not None and thing.posture is not None:
                points = [value for x, y in thing.keypoints_px for value in (float(x), float(y), 2)]
                annotations.append(
                    annotation | {"category_id": numbers[POSTURE_LABELS[thing.posture]]}
                )
                annotation = annotation | {"keypoints": points, "num_keypoints": 17}
            annotations.append(annotation)
    return {
        "images": [
            {
                "id": number,
                "file_name": one.path,
                "width": SIZE_PX[0],
                "height": SIZE_PX[1],
            }
            for number, one in enumerate(known)
        ],
        "categories": [
            {"id": number, "name": label}
            | ({"keypoints": list(PERSON.keypoints)} if label == "person" else {})
            for label, number in numbers.items()
        ],
        "annotations": [{"id": i, **a} for i, a in enumerate(annotations, 1)],
    }


def _answer(
    store: AnnotationStore,
    rng: np.random.Generator,
    model: Model,
    group: Group,
    entry: str,
    task: Task,
    model_key: str,
    known: list[_Known],
    error: float,
) -> None:
    """One batch, as the labeling loop would have written it."""
    outcomes: list[Row] = []
    annotations: list[Row] = []
    when = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=model_key == EARLIER)
    for one in known:
        asked = Asked(one.image_id, 1, entry, model_key, group.request_hash, "benchmark", when)
        said = {label: _said(rng, one, label, task, error) for label in group.labels}
        conclusion = Conclusion(
            {k: Sourced(v, (0,) * len(v.annotations)) for k, v in said.items()}, ()
        )
        outcomes += [
            asked.concluded(slug, label, conclusion, model.parser_version)
            for slug, label in group.classes.items()
        ]
        annotations += asked.annotations(conclusion, model.parser_version)
    with store.transaction() as tx:
        tx.insert("models", [model_row(model) | {"model_key": model_key}], replace=True)
        tx.insert("outcomes", outcomes)
        tx.insert("annotations", annotations)


def _said(
    rng: np.random.Generator, one: _Known, label: str, task: Task, error: float
) -> LabelAnswer:
    """The true things, some moved, some missed, now and then one too many; scores tell mostly."""
    found = []
    for thing in one.scene.objects:
        if label in (thing.label, POSTURE_LABELS.get(thing.posture or "")) and rng.random() > 0.02:
            found.append(_found(rng, thing, label, task, error))
    if rng.random() < 0.01 * error:
        x, y = rng.uniform(0, 200, 2)
        found.append(Annotation(label, bbox=(x, y, x + 60, y + 40), score=rng.beta(3, 3)))
    return LabelAnswer(
        State.FOUND if found else State.ABSENT,
        float(rng.beta(20, 1) if found else rng.beta(1, 20)),
        tuple(found),
    )


def _found(
    rng: np.random.Generator, thing: SceneObject, label: str, task: Task, error: float
) -> Annotation:
    sigma_px = error * rng.gamma(2, 1.5)
    x0, y0, x1, y1 = thing.bbox_px + rng.normal(0, sigma_px, 4)
    found = Annotation(
        label,
        bbox=(float(min(x0, x1)), float(min(y0, y1)), float(max(x0, x1)), float(max(y0, y1))),
        score=float(np.clip(1 - sigma_px / 25 + rng.normal(0, 0.03), 0.01, 0.99)),
    )
    if task is not Task.KEYPOINT or thing.keypoints_px is None:
        return found
    points = thing.keypoints_px + rng.normal(0, 4, thing.keypoints_px.shape)
    return replace(
        found,
        keypoints=tuple(
            Keypoint(name, float(x), float(y), 0.8)
            for name, (x, y) in zip(PERSON.keypoints, points, strict=True)
        ),
    )
