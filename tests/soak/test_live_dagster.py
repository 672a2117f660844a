"""What a person does in the Dagster UI, over the same GraphQL, on a live ``dg dev``."""

import pytest

from tests.soak.datasets import write_classes
from tests.soak.live_server import CLASSES, LiveServer

pytestmark = pytest.mark.soak

PARTITIONED = ("object_annotations", "posture_annotations", "visualizations", "class_exports")
OVER_ALL = (
    "raw_images",
    "clean_images",
    "action_predictions",
    "har_evaluation",
    "detection_evaluation",
    "model_agreement",
    "annotation_report",
)
POISON_SIZE_PX = (210, 80)


def test_what_a_headless_run_made_is_materialized_with_metadata_in_the_ui(server: LiveServer):
    nodes = server.ask(
        """{ assetNodes {
          assetKey { path } isPartitioned
          assetMaterializations { partition metadataEntries { label } } } }"""
    )["assetNodes"]
    assert {node["assetKey"]["path"][0] for node in nodes} == {*PARTITIONED, *OVER_ALL}
    for node in nodes:
        name = node["assetKey"]["path"][0]
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


def test_a_backfill_keeps_its_good_classes_and_a_second_one_does_only_the_failed_class(
    server: LiveServer,
):
    dataset = server.dataset

    write_classes(
        dataset.images,
        {"eels": [(200, 80), (201, 80)], "fish": [POISON_SIZE_PX], "goats": [(220, 80), (221, 80)]},
    )
    assert server.launch(["raw_images", "clean_images"]) == "SUCCESS"
    assert server.partitions("object_annotations")["missing"] == {"eels", "fish", "goats"}

    dataset.script(fail_size_px=POISON_SIZE_PX)
    asked = len(dataset.asked_sizes("thing"))
    status = server.backfill("object_annotations", ["eels", "fish", "goats"])
    assert status in ("COMPLETED_FAILED", "FAILED")
    states = server.partitions("object_annotations")
    assert states["failed"] == {"fish"}
    assert states["materialized"] == {*CLASSES, "eels", "goats"}
    good = {(200, 80), (201, 80), (220, 80), (221, 80)}
    assert set(dataset.asked_sizes("thing")[asked:]) == good

    dataset.script()
    asked = len(dataset.asked_sizes("thing"))
    assert server.backfill("object_annotations", ["fish"]) == "COMPLETED_SUCCESS"
    states = server.partitions("object_annotations")
    assert states["materialized"] == {*CLASSES, "eels", "fish", "goats"}
    assert not states["failed"]
    assert dataset.asked_sizes("thing")[asked:] == [POISON_SIZE_PX]
