import json
from pathlib import Path

import pytest

from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.remembered import remembered
from labeling_pipeline.store.annotation_store import AnnotationStore

LEFT, RIGHT = [100, 100, 300, 400], [500, 500, 900, 900]


@pytest.fixture
def worked():
    """What a function of a store and a plan, and one of a source too, were called with."""
    return []


@pytest.fixture
def work(worked):
    @remembered
    def work(store, plan, *source):
        worked.append((store, plan, *source))
        return object()

    return work


def entry(model: str, **keys) -> dict:
    return {"name": "object", "task": "detection", "model": model, **keys}


def test_the_same_is_worked_out_once_by_whichever_store_object(dataset, script, work, worked):
    plan = dataset.label(entry(script(boxes={"cat": [LEFT]})))
    first = work(dataset.store, plan)
    assert work(dataset.store, plan) is first
    assert work(AnnotationStore(dataset.store.path), plan.model_copy()) is first
    assert len(worked) == 1


def other_labels(dataset, plan: Plan, script) -> Plan:
    with dataset.store.transaction() as tx:
        tx.execute("UPDATE annotations SET x0_px = x0_px + 1")
    return plan


def another_model(dataset, plan: Plan, script) -> Plan:
    return dataset.plan(entry(script(boxes={"cat": [RIGHT]})))


def another_threshold(dataset, plan: Plan, script) -> Plan:
    return plan.model_copy(
        update={"entries": (plan.entries[0].model_copy(update={"threshold": 0.5}),)}
    )


@pytest.mark.parametrize("change", [other_labels, another_model, another_threshold])
def test_anything_else_is_worked_out_anew(dataset, script, work, worked, change):
    plan = dataset.label(entry(script(boxes={"cat": [LEFT]})))
    first = work(dataset.store, plan)
    changed = change(dataset, plan, script)
    assert work(dataset.store, changed) is not first
    work(dataset.store, changed)
    assert len(worked) == 2


def test_thresholds_in_a_file_count(dataset, script, work, worked, tmp_path: Path):
    plan = dataset.label(entry(script(boxes={"cat": [LEFT]})))
    file = tmp_path / "thresholds.yaml"
    named = plan.model_copy(update={"thresholds": str(file)})
    for number, threshold in enumerate((0.2, 0.3), 1):
        file.write_text(
            "version: 1\ntarget_precision: 0.9\nground_truth: []\ncalibrations: []\nthresholds:\n"
            f"- {{entry: object, label: cat, model_key: a, threshold: {threshold}, boxes: 3}}\n"
        )
        work(dataset.store, named)
        work(dataset.store, named)
        assert len(worked) == number


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_who_is_given_the_source_sees_the_truth_change(dataset, script, work, worked, form):
    truth = dataset.source.path.parent / f"truth_{form}"
    truth.mkdir(exist_ok=True)
    names, labels = truth / "data.yaml", truth / "labels" / "cat" / "a.txt"
    labels.parent.mkdir(parents=True, exist_ok=True)
    names.write_text("names: [cat, dog]")
    file = names if form == "yolo" else truth / "truth.json"
    plan = dataset.label(entry(script(boxes={"cat": [LEFT]})), ground_truth=[str(file)])
    for number in (1, 2):
        labels.write_text(f"0 0.5 0.5 0.{number} 0.2\n")
        box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, number, 9]}
        (truth / "truth.json").write_text(
            json.dumps(
                {
                    "images": [{"id": 1, "file_name": "cat/a.png"}],
                    "categories": [{"id": 1, "name": "cat"}],
                    "annotations": [box],
                }
            )
        )
        for _ in range(2):
            work(dataset.store, plan, dataset.source)
        assert len(worked) == number
