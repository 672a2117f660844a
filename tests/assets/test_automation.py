import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from PIL import Image

from assets.partitions import (
    CLASSES,
    PartitionChanges,
    classes_in_flight,
    partition_changes,
    range_tags,
    ranges,
    registered_classes,
)
from definitions import build_definitions
from labeling_pipeline.home import Environment
from labeling_pipeline.images.sources import FolderSource
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.sample.scenes import draw_scene

BOXES = {"cat": [[100, 100, 500, 500]], "dog": [[200, 200, 800, 900]]}


def draw(folder: Path, *sizes_px: tuple[int, int]) -> None:
    """A picture of each size; no two look alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in sizes_px:
        scene = draw_scene(np.random.default_rng([width, height]), width, height)
        Image.fromarray(scene.image).save(folder / f"{width}x{height}.png")


class Pipeline:
    """Definitions over folders of pictures, a Dagster instance, and what the model was asked."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.log = folder / "asked.jsonl"
        self.instance = instance

    def definitions(self, group_size: int = 5, **script: object) -> dg.Definitions:
        # A model is loaded once a process, by its name.
        path = self.folder / f"script_{len(list(self.folder.glob('script_*')))}.json"
        self.script = script
        path.write_text(json.dumps({"boxes": BOXES, "log": str(self.log)} | script))
        text = f"""
            model: {json.dumps(f"scripted:{path}")}
            entries:
              - {{name: object, task: detection, group_size: {group_size}}}
              - {{name: word, task: caption, classes: [cat], regions: object}}
            automation: {{relabel: "30 4 * * 1", time_zone: Europe/Berlin}}
        """.replace("task: caption", "task: region_to_description")
        return build_definitions(
            parse_plan(text), Environment(self.folder / "home", Path("unused"), self.images)
        )

    def label_all(self, definitions: dg.Definitions) -> None:
        assert (
            definitions.resolve_job_def("ingest_images")
            .execute_in_process(instance=self.instance)
            .success
        )
        keys = registered_classes(self.instance)
        assert self.run(definitions, range_tags(keys)) or "fail_size_px" in self.script

    def run(
        self,
        definitions: dg.Definitions,
        tags: dict[str, str],
        assets: Sequence[dg.AssetKey] | None = None,
    ) -> bool:
        job = definitions.resolve_job_def("label_classes")
        return job.execute_in_process(
            instance=self.instance, tags=tags, asset_selection=assets, raise_on_error=False
        ).success

    def tick(self, definitions: dg.Definitions, cursor: str | None = None) -> dg.SensorResult:
        sensor = definitions.resolve_sensor_def("new_images")
        context = dg.build_sensor_context(
            instance=self.instance, cursor=cursor, resources=definitions.resources
        )
        result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        for request in result.dynamic_partitions_requests or []:
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions("class", list(request.partition_keys))
            else:
                for key in request.partition_keys:
                    self.instance.delete_dynamic_partition("class", key)
        return result

    def due(self, definitions: dg.Definitions) -> list[dg.RunRequest] | dg.SkipReason:
        schedule = definitions.resolve_schedule_def("due_labels")
        with dg.build_schedule_context(
            instance=self.instance,
            scheduled_execution_time=datetime(2026, 11, 23, 3, 30, tzinfo=UTC),
            resources=definitions.resources,
        ) as context:
            return schedule(context)  # type: ignore[return-value]

    def asked(self) -> list[tuple[int, int]]:
        """Sizes in px of the pictures that the model was asked about, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [tuple(json.loads(line)["size_px"]) for line in lines]


@pytest.fixture
def pipeline(tmp_path: Path):
    for name, width in (("ant", 100), ("cat", 110), ("dog", 120)):
        draw(tmp_path / "images" / name, (width, 90), (width, 91))
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield Pipeline(tmp_path, instance)


@contextmanager
def in_flight(
    pipeline: Pipeline, definitions: dg.Definitions, tags: dict[str, str]
) -> Iterator[None]:
    """A run that has been started elsewhere and is not over."""
    run = pipeline.instance.create_run_for_job(
        definitions.resolve_job_def("label_classes"),
        status=dg.DagsterRunStatus.STARTED,
        tags=tags,
    )
    yield
    pipeline.instance.report_run_canceled(run)


def covered(request: dg.RunRequest, pipeline: Pipeline) -> list[str]:
    keys = registered_classes(pipeline.instance)
    first, last = (
        keys.index(request.tags[f"dagster/asset_partition_range_{end}"]) for end in ("start", "end")
    )
    return keys[first : last + 1]


# The sensor


def test_ten_new_images_in_an_old_and_a_new_class_cost_runs_of_those_two_and_only_those_images(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    # With one label a prompt, a new label changes no prompt of the other classes.
    definitions = pipeline.definitions(group_size=1)
    pipeline.label_all(definitions)
    assert pipeline.tick(definitions).run_requests == []
    before = len(pipeline.asked())
    new = [(200 + i, 90) for i in range(10)]
    draw(pipeline.images / "cat", *new[:6])
    draw(pipeline.images / "Zèbre !", *new[6:])

    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "read", None)  # the sensor goes by size and time alone
        result = pipeline.tick(definitions)
    zebra = next(key for key in registered_classes(pipeline.instance) if key.startswith("zbre-"))
    assert [covered(r, pipeline) for r in result.run_requests] == [["cat"], [zebra]]
    (event,) = result.asset_events
    assert event.asset_key == dg.AssetKey("raw_images")
    for request in result.run_requests:
        assert pipeline.run(definitions, request.tags)
    assert set(pipeline.asked()[before:]) == set(new)
    assert pipeline.tick(definitions).run_requests == []


@pytest.mark.soak
def test_files_that_no_run_has_cleaned_are_asked_for_under_the_same_key(pipeline: Pipeline):
    definitions = pipeline.definitions()
    pipeline.label_all(definitions)
    draw(pipeline.images / "dog", (300, 90))
    (first,) = pipeline.tick(definitions).run_requests
    (again,) = pipeline.tick(definitions).run_requests
    assert again.run_key == first.run_key
    draw(pipeline.images / "dog", (301, 90))
    (more,) = pipeline.tick(definitions).run_requests
    assert more.run_key != first.run_key


@pytest.mark.soak
def test_a_class_that_a_run_works_on_waits_and_is_asked_for_afterwards(pipeline: Pipeline):
    definitions = pipeline.definitions()
    pipeline.label_all(definitions)
    draw(pipeline.images / "dog", (300, 90))
    with in_flight(pipeline, definitions, {"dagster/partition": "dog"}):
        result = pipeline.tick(definitions)
        assert result.run_requests == []
        assert "dog" in result.skip_reason.skip_message
    result = pipeline.tick(definitions, result.cursor)
    (request,) = result.run_requests
    assert covered(request, pipeline) == ["dog"]
    with in_flight(pipeline, definitions, request.tags):
        result = pipeline.tick(definitions, result.cursor)
    assert pipeline.run(definitions, request.tags)
    assert pipeline.tick(definitions, result.cursor).run_requests == []


@pytest.mark.soak
def test_a_class_whose_folder_is_gone_is_retired_but_never_under_a_run(pipeline: Pipeline):
    definitions = pipeline.definitions()
    pipeline.label_all(definitions)
    asked = len(pipeline.asked())
    for file in (pipeline.images / "ant").iterdir():
        file.unlink()
    (pipeline.images / "ant").rmdir()
    with in_flight(pipeline, definitions, range_tags(["cat", "ant"])):
        pipeline.tick(definitions)
        assert "ant" in registered_classes(pipeline.instance)
    pipeline.tick(definitions)
    assert registered_classes(pipeline.instance) == ["cat", "dog"]
    # Its label keeps its place among the others, so nobody is asked anything again.
    assert pipeline.run(definitions, range_tags(["cat", "dog"]))
    assert len(pipeline.asked()) == asked


@pytest.mark.soak
def test_the_ingestion_asset_retires_by_the_same_rule(pipeline: Pipeline):
    definitions = pipeline.definitions()
    pipeline.label_all(definitions)
    ingest = definitions.resolve_job_def("ingest_images")
    (pipeline.images / "ant").rename(pipeline.images / "eel")
    with in_flight(pipeline, definitions, {"dagster/partition": "ant"}):
        assert ingest.execute_in_process(instance=pipeline.instance).success
        assert set(registered_classes(pipeline.instance)) == {"ant", "cat", "dog", "eel"}
    assert ingest.execute_in_process(instance=pipeline.instance).success
    assert set(registered_classes(pipeline.instance)) == {"cat", "dog", "eel"}


@pytest.mark.soak
def test_a_run_that_ingests_and_labels_keeps_the_class_that_it_labels(pipeline: Pipeline):
    definitions = pipeline.definitions()
    ingest = definitions.resolve_job_def("ingest_images")
    assert ingest.execute_in_process(instance=pipeline.instance).success
    (pipeline.images / "ant").rename(pipeline.folder / "ant")
    everything = definitions.resolve_implicit_global_asset_job_def()
    names = ("raw_images", "clean_images", "object_annotations", "class_exports")
    result = everything.execute_in_process(
        instance=pipeline.instance,
        tags={"dagster/partition": "ant"},
        asset_selection=[dg.AssetKey(name) for name in names],
        raise_on_error=False,
    )
    assert result.success
    assert "ant" in registered_classes(pipeline.instance)
    pipeline.tick(definitions)
    assert registered_classes(pipeline.instance) == ["cat", "dog"]


# The schedule


@pytest.mark.soak
def test_the_schedule_asks_for_what_is_due_and_for_nothing_else(pipeline: Pipeline):
    definitions = pipeline.definitions(fail_size_px=[120, 90])
    pipeline.label_all(definitions)
    definitions = pipeline.definitions()
    (request,) = pipeline.due(definitions)
    assert covered(request, pipeline) == ["dog"]
    assert [key.to_user_string() for key in request.asset_selection] == [
        "clean_images",
        "object_annotations",
        "word_annotations",
        "visualizations",
        "class_exports",
    ]
    before = len(pipeline.asked())
    assert pipeline.run(definitions, request.tags, request.asset_selection)
    assert pipeline.asked()[before:] == [(120, 90)]
    reason = pipeline.due(definitions)
    assert isinstance(reason, dg.SkipReason)
    assert "nothing is due" in reason.skip_message


@pytest.mark.soak
def test_the_schedule_sees_new_files_too_and_runs_when_the_plan_says(pipeline: Pipeline):
    definitions = pipeline.definitions(group_size=1)
    pipeline.label_all(definitions)
    draw(pipeline.images / "ant", (300, 90))
    draw(pipeline.images / "owl", (301, 90))
    requests = pipeline.due(definitions)
    assert [covered(request, pipeline) for request in requests] == [["ant"], ["owl"]]
    schedule = definitions.resolve_schedule_def("due_labels")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 4 * * 1", "Europe/Berlin")


@pytest.mark.soak
def test_images_that_failed_too_often_are_named_as_the_reason_why_nothing_runs(pipeline: Pipeline):
    definitions = pipeline.definitions(fail_size_px=[120, 90])
    for _ in range(3):
        pipeline.label_all(definitions)
    reason = pipeline.due(definitions)
    assert isinstance(reason, dg.SkipReason)
    assert "1 images are held" in reason.skip_message


def test_everything_that_asks_a_model_is_off_until_it_is_switched_on(pipeline: Pipeline):
    repository = pipeline.definitions().get_repository_def()
    sensors = {sensor.name: sensor.default_status.value for sensor in repository.sensor_defs}
    assert sensors == {
        "new_images": "STOPPED",
        "evaluation_after_labeling": "STOPPED",
        "checks_after_failure": "RUNNING",
    }
    schedules = {
        schedule.name: schedule.default_status.value for schedule in repository.schedule_defs
    }
    assert schedules == {"due_labels": "STOPPED", "standing_checks": "STOPPED"}


@pytest.mark.soak
def test_new_labels_ask_for_a_new_evaluation_though_a_class_is_missing(pipeline: Pipeline):
    definitions = pipeline.definitions()
    pipeline.label_all(definitions)
    seen = dg.evaluate_automation_conditions(definitions, pipeline.instance)
    draw(pipeline.images / "owl", (301, 90))
    pipeline.tick(definitions)
    assert pipeline.run(definitions, {"dagster/partition": "cat"})
    result = dg.evaluate_automation_conditions(definitions, pipeline.instance, cursor=seen.cursor)
    evaluation = [
        key
        for key in definitions.resolve_asset_graph().get_all_asset_keys()
        if result.get_num_requested(key)
    ]
    assert dg.AssetKey("annotation_report") in evaluation
    nothing_new = dg.evaluate_automation_conditions(
        definitions, pipeline.instance, cursor=result.cursor
    )
    assert nothing_new.total_requested == 0


# Jobs


def test_each_job_covers_what_its_name_says(pipeline: Pipeline):
    definitions = pipeline.definitions()

    def covered_by(job: str) -> tuple[set[str], int]:
        layer = definitions.resolve_job_def(job).asset_layer
        keys = {key.to_user_string() for key in layer.selected_asset_keys}
        return keys, len(layer.asset_graph.asset_check_keys)

    labels = {"object_annotations", "word_annotations"}
    assert covered_by("ingest_images")[0] == {"raw_images", "clean_images"}
    assert covered_by("label_classes")[0] == {
        *("clean_images", "visualizations", "class_exports"),
        *labels,
    }
    assert covered_by("evaluate_labels") == (
        {
            *("action_predictions", "har_evaluation", "detection_evaluation", "calibration"),
            *("model_agreement", "model_drift", "audit_sample", "review_queue"),
            "annotation_report",
        },
        0,
    )
    assert covered_by("check_labels") == (set(), 1 + 6 * len(labels))


# Partitions


@pytest.mark.parametrize(
    ("registered", "classes", "in_flight", "expected"),
    [
        pytest.param([], ["a", "b"], [], (["a", "b"], [], []), id="the first time"),
        pytest.param(["a", "b"], ["a", "b"], ["a"], ([], [], []), id="nothing changed"),
        pytest.param(["a", "b"], ["b", "c"], [], (["c"], ["a"], []), id="one came, one went"),
        pytest.param(["a", "b"], ["b"], ["a"], ([], [], ["a"]), id="under a run"),
        pytest.param(["a", "b"], [], ["b"], ([], ["a"], ["b"]), id="all gone"),
    ],
)
def test_keys_come_and_go_with_the_classes_but_never_under_a_run(
    registered: list[str], classes: list[str], in_flight: list[str], expected: tuple
):
    assert partition_changes(registered, classes, in_flight) == PartitionChanges(*expected)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("", []),
        ("abcd", ["abcd"]),
        ("ab", ["ab"]),
        ("acd", ["a", "cd"]),
        ("dx", ["d"]),
    ],
)
def test_classes_are_run_in_ranges_of_neighbours(wanted: str, expected: list[str]):
    assert list(ranges("abcd", wanted)) == [list(neighbours) for neighbours in expected]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        pytest.param({"dagster/partition": "cat"}, {"cat"}, id="one class"),
        pytest.param(range_tags(["ant", "cat"]), {"ant", "cat"}, id="a range"),
        pytest.param({}, set(), id="no class"),
    ],
)
def test_a_run_in_flight_says_which_classes_it_works_on(
    pipeline: Pipeline, tags: dict[str, str], expected: set[str]
):
    definitions = pipeline.definitions()
    pipeline.instance.add_dynamic_partitions(str(CLASSES.name), ["ant", "cat", "dog"])
    with in_flight(pipeline, definitions, tags):
        assert classes_in_flight(pipeline.instance) == expected
    assert classes_in_flight(pipeline.instance) == set()


@pytest.mark.parametrize(
    ("status", "expected"),
    [("REQUESTED", {"ant", "cat"}), ("CANCELING", {"ant", "cat"}), ("COMPLETED_SUCCESS", set())],
)
def test_a_backfill_in_progress_may_work_on_any_class(
    pipeline: Pipeline, status: str, expected: set[str]
):
    pipeline.instance.add_dynamic_partitions(str(CLASSES.name), ["ant", "cat"])
    pipeline.instance.add_backfill(
        PartitionBackfill(
            backfill_id="one",
            status=BulkActionStatus[status],
            from_failure=False,
            tags={},
            backfill_timestamp=0.0,
            asset_selection=[dg.AssetKey("object_annotations")],
            partition_names=["cat"],
        )
    )
    assert classes_in_flight(pipeline.instance) == expected
