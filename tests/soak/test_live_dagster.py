"""What a person does in the Dagster UI, over the same GraphQL, on a live ``dg dev``."""

import os
import re
import signal

import dagster as dg
import pytest

from labeling_pipeline.store.annotation_store import AnnotationStore
from tests.soak.datasets import write_classes
from tests.soak.live_server import CLASSES, Dataset, LiveServer, wait_for

pytestmark = pytest.mark.soak

PARTITIONED = ("object_annotations", "posture_annotations", "visualizations", "class_exports")
OVER_ALL = (
    "raw_images",
    "clean_images",
    "action_predictions",
    "har_evaluation",
    "detection_evaluation",
    "calibration",
    "model_agreement",
    "audit_sample",
    "model_drift",
    "review_queue",
    "annotation_report",
)
ON_DEMAND = "rederived_annotations"
POISON_SIZE_PX = (210, 80)


def test_what_a_headless_run_made_is_materialized_with_metadata_in_the_ui(server: LiveServer):
    nodes = server.ask(
        """{ assetNodes {
          assetKey { path } isPartitioned
          assetMaterializations { partition metadataEntries { label } } } }"""
    )["assetNodes"]
    by_name = {node["assetKey"]["path"][0]: node for node in nodes}
    assert set(by_name) == {*PARTITIONED, *OVER_ALL, ON_DEMAND}
    assert by_name.pop(ON_DEMAND)["assetMaterializations"] == []
    for name, node in by_name.items():
        made = node["assetMaterializations"]
        expected = set(CLASSES) if name in PARTITIONED else {None}
        assert node["isPartitioned"] == (name in PARTITIONED)
        assert expected <= {m["partition"] for m in made}
        assert all(materialization["metadataEntries"] for materialization in made)
    for name in PARTITIONED:
        states = server.partitions(name)
        assert set(CLASSES) <= states["materialized"]
        assert not states["failed"]


def test_one_class_goes_through_all_its_assets_in_one_run_and_asks_nothing_twice(
    server: LiveServer,
):
    asked_before = server.dataset.asked_sizes("person")
    assets = ["posture_annotations", "visualizations", "class_exports"]
    assert server.launch(assets, {"dagster/partition": "bees"}) == "SUCCESS"
    assert server.dataset.asked_sizes("person") == asked_before
    counts = server.ask(
        """{ assetNodes(assetKeys: [{path: ["posture_annotations"]}]) {
          assetMaterializations(partitions: ["bees"]) { runId } } }"""
    )["assetNodes"][0]["assetMaterializations"]
    assert len(counts) == 2


def ingested(server: LiveServer, sizes: dict[str, list[tuple[int, int]]]) -> None:
    """New classes, each picture with a size of its own."""
    write_classes(server.dataset.images, sizes)
    assert server.launch(["raw_images", "clean_images"]) == "SUCCESS"
    assert set(sizes) <= server.partitions("object_annotations")["missing"]


def test_a_backfill_keeps_its_good_classes_and_a_second_one_does_only_the_failed_class(
    server: LiveServer,
):
    dataset = server.dataset
    names = ["eels", "fish", "goats", "hares", "ibexes"]
    sizes = {name: [(200 + 10 * i, 80), (201 + 10 * i, 80)] for i, name in enumerate(names)}
    sizes["fish"] = [POISON_SIZE_PX]
    good = {size for name in names for size in sizes[name]} - {POISON_SIZE_PX}
    ingested(server, sizes)

    before = server.partitions("object_annotations")["materialized"]
    dataset.script(fail_size_px=POISON_SIZE_PX)
    asked = len(dataset.asked_sizes("thing"))
    backfill = server.start_backfill("object_annotations", names)
    assert server.final_backfill_status(backfill) in ("COMPLETED_FAILED", "FAILED")
    states = server.partitions("object_annotations")
    assert states["failed"] == {"fish"}
    assert states["materialized"] == before | {*names} - {"fish"}
    assert set(dataset.asked_sizes("thing")[asked:]) == good

    # The failed run has skipped its checks; they run again by themselves and tell the truth.
    assert "fish" in wait_for(lambda: summary_of_check(dataset, "no_failed_partitions"))

    dataset.script()
    asked = len(dataset.asked_sizes("thing"))
    assert server.rerun_what_failed(backfill) == "COMPLETED_SUCCESS"
    states = server.partitions("object_annotations")
    assert states["materialized"] == before | {*names}
    assert not states["failed"]
    assert dataset.asked_sizes("thing")[asked:] == [POISON_SIZE_PX]


def summary_of_check(dataset: Dataset, name: str) -> str | None:
    """What the last run of a check of the entry object said; ``None`` if it was skipped."""
    key = dg.AssetCheckKey(dg.AssetKey("object_annotations"), name)
    with dg.DagsterInstance.from_config(str(dataset.home.dagster)) as instance:
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
        event = record.event.dagster_event if record.event else None
        if event is None or event.event_type is not dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            return None
        evaluation = event.asset_check_evaluation_data
        return f"{evaluation.description} {evaluation.metadata}"


def test_a_backfill_whose_worker_is_killed_ends_by_itself_and_repeats_no_answer(
    server: LiveServer,
):
    dataset = server.dataset
    names = ["jays", "kiwis", "llamas", "moles"]
    sizes = {name: [(300 + 10 * i + j, 80) for j in range(4)] for i, name in enumerate(names)}
    ingested(server, sizes)
    asked = len(dataset.asked_sizes("thing"))
    dataset.script(delay_s=1.0)
    backfill = server.start_backfill("object_annotations", names)
    wait_for(lambda: len(dataset.asked_sizes("thing")) >= asked + 6)
    store = AnnotationStore(dataset.home.store_path)
    with dg.DagsterInstance.from_config(str(dataset.home.dagster)) as instance:
        (killed,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        os.kill(worker_of(instance, killed.run_id), signal.SIGKILL)
        kept = answered_sizes(store)
        assert kept & {size for name in names for size in sizes[name]}
        known = len(dataset.asked_sizes("thing"))
        dataset.script()
        assert server.final_backfill_status(backfill) == "COMPLETED_SUCCESS"

        assert instance.get_run_by_id(killed.run_id).status == dg.DagsterRunStatus.FAILURE
        retries = instance.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": killed.run_id}))
        assert [run.status for run in retries] == [dg.DagsterRunStatus.SUCCESS]
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
    assert set(names) <= server.partitions("object_annotations")["materialized"]
    again = dataset.asked_sizes("thing")[known:]
    assert not kept & set(again)
    assert kept | set(again) >= {size for name in names for size in sizes[name]}


def worker_of(instance: dg.DagsterInstance, run_id: str) -> int:
    """The process that executes the steps of a run, as its log says."""
    (pid,) = {
        int(found[1])
        for entry in instance.all_logs(run_id)
        if (found := re.search(r"Executing steps in process \(pid: (\d+)\)", entry.message))
    }
    return pid


def answered_sizes(store: AnnotationStore) -> set[tuple[int, int]]:
    """Sizes in px of the pictures with a stored answer of the entry object."""
    rows = store.query(
        "SELECT DISTINCT width_px, height_px FROM generations JOIN images USING (image_id) "
        "WHERE entry = 'object'"
    ).to_pylist()
    return {(row["width_px"], row["height_px"]) for row in rows}


def test_the_sensor_labels_new_images_of_an_old_and_a_new_class_and_no_others(server: LiveServer):
    dataset = server.dataset
    dataset.script()
    new = {"cats": [(300 + i, 90) for i in range(6)], "newts": [(310 + i, 90) for i in range(4)]}
    wanted = {size for sizes in new.values() for size in sizes}
    before = {label: len(dataset.asked_sizes(label)) for label in ("thing", "person")}
    write_classes(dataset.images, new)
    server.switch_sensor("new_images", on=True)

    def all_labeled() -> bool:
        return all(wanted <= set(dataset.asked_sizes(label)[n:]) for label, n in before.items())

    try:
        wait_for(all_labeled)
        exports = dataset.home.results
        wait_for(lambda: all((exports / name / f"{name}.json").exists() for name in new))
    finally:
        server.switch_sensor("new_images", on=False)
    for label, n in before.items():
        assert sorted(dataset.asked_sizes(label)[n:]) == sorted(wanted)
    with dg.DagsterInstance.from_config(str(dataset.home.dagster)) as instance:
        tags = {"dagster/sensor_name": "new_images"}
        runs = instance.get_runs(dg.RunsFilter(tags=tags))
        starts = sorted(run.tags["dagster/asset_partition_range_start"] for run in runs)
    assert starts == ["cats", "newts"]
