"""Named jobs, and what starts runs by itself: sensors for new files and new labels, schedules for
what is due and for the checks.

What asks a model is off until somebody switches it on in the UI. Runs that label go over ranges of
neighbouring classes, because a run loads its model once, and leave classes alone that a run is
working on already.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from assets.checks import ALL_CHECKS
from assets.ingestion import CLEAN_IMAGES, RAW_IMAGES
from assets.partitions import (
    CLASSES,
    NOT_STARTED,
    PartitionChanges,
    classes_in_flight,
    partition_changes,
    range_tags,
    ranges,
    registered_classes,
)
from labeling_pipeline.asks import class_names, due_work
from labeling_pipeline.errors import PlanError
from labeling_pipeline.inventory import InventorySummary, update_inventory
from labeling_pipeline.plan import Entry, Plan
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import new_files
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource

LABEL_CLASSES = "label_classes"
CHECK_LABELS = "check_labels"
OUTPUTS = ("visualizations", "class_exports")


def build_automation(plan: Plan) -> dg.Definitions:
    """Jobs, sensors and schedules of one plan.

    Raises:
        PlanError: a time that the plan gives cannot be.
    """
    entries = [entry.asset for entry in plan.entries]
    ingest_images = dg.define_asset_job(
        "ingest_images",
        dg.AssetSelection.assets(RAW_IMAGES, CLEAN_IMAGES),
        description="Look for new, changed and removed files, and judge the images.",
    )
    label_classes = dg.define_asset_job(
        LABEL_CLASSES,
        dg.AssetSelection.assets(CLEAN_IMAGES, *entries, *OUTPUTS),
        partitions_def=CLASSES,
        description="Judge new images, label what is due of a class, draw and export it.",
    )
    evaluate_labels = dg.define_asset_job(
        "evaluate_labels",
        dg.AssetSelection.groups("evaluation"),
        description="Recognise actions, evaluate, compare models, write the report.",
    )
    check_labels = dg.define_asset_job(
        CHECK_LABELS,
        ALL_CHECKS,
        description="Every check over what stands now, whichever run it is from.",
    )
    return dg.Definitions(
        jobs=[ingest_images, label_classes, evaluate_labels, check_labels],
        sensors=[
            _new_images(plan),
            dg.AutomationConditionSensorDefinition(
                "evaluation_after_labeling",
                target=dg.AssetSelection.groups("evaluation"),
                description="Evaluates and reports anew once labels have come in.",
            ),
            _checks_after_failure(check_labels),
        ],
        schedules=_schedules(plan, check_labels),
    )


def _schedules(plan: Plan, check_labels: Any) -> list[dg.ScheduleDefinition]:
    automation = plan.automation
    try:
        return [
            _due_labels(plan),
            dg.ScheduleDefinition(
                name="standing_checks",
                job=check_labels,
                cron_schedule=automation.check,
                execution_timezone=automation.time_zone,
                description=(
                    "Checks what stands: a run that failed has skipped the checks of its assets."
                ),
            ),
        ]
    except dg.DagsterInvalidDefinitionError as error:
        raise PlanError(
            f"{plan.file}: automation: expected cron expressions, as '0 3 * * *', and the IANA "
            f"name of a time zone, got relabel {automation.relabel!r}, check {automation.check!r}, "
            f"time_zone {automation.time_zone!r}: {error}"
        ) from error


def _checks_after_failure(check_labels: Any) -> dg.SensorDefinition:
    @dg.run_failure_sensor(
        name="checks_after_failure",
        request_job=check_labels,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "A run that fails skips the checks of its assets, which then look as if they had "
            "failed themselves: they are run once more. Asks no model."
        ),
    )
    def checks_after_failure(
        context: dg.RunFailureSensorContext,
    ) -> dg.RunRequest | dg.SkipReason:
        if context.dagster_run.job_name == CHECK_LABELS:
            return dg.SkipReason("it was the checks that failed: nothing would change by itself")
        filters = dg.RunsFilter(job_name=CHECK_LABELS, statuses=NOT_STARTED)
        if context.instance.get_runs(filters, limit=1):
            return dg.SkipReason("checks are about to run already")
        return dg.RunRequest(run_key=context.dagster_run.run_id)

    return checks_after_failure


def _new_images(plan: Plan) -> dg.SensorDefinition:
    @dg.sensor(
        name="new_images",
        job_name=LABEL_CLASSES,
        minimum_interval_seconds=plan.automation.watch_every_s,
        description=(
            "Looks for new and changed files (by size and time, no file is read), registers new "
            "classes, retires those that are gone, and asks for runs of the affected classes only."
        ),
    )
    def new_images(
        context: dg.SensorEvaluationContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
    ) -> dg.SensorResult:
        store = annotation_store.open()
        look = _look(context.instance, plan, annotation_store, image_source)
        digests = new_files(store)
        # Changes that need no reading, as of a file's class, are seen once: they wait here.
        pending = set(json.loads(context.cursor or "[]")) | set(look.summary.classes_affected)
        wanted = _with_new_files(store, digests) | (pending & class_names(store).keys())
        requests = [
            dg.RunRequest(run_key=_run_key(neighbours, digests), tags=range_tags(neighbours))
            for neighbours in ranges(look.registered, wanted - look.in_flight)
        ]
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else _why_nothing(wanted, look.in_flight),
            cursor=json.dumps(sorted(pending & look.in_flight)),
            dynamic_partitions_requests=look.partition_requests(),
            asset_events=look.asset_events(),
        )

    return new_images


def _due_labels(plan: Plan) -> dg.ScheduleDefinition:
    @dg.schedule(
        plan.automation.relabel,
        name="due_labels",
        job_name=LABEL_CLASSES,
        execution_timezone=plan.automation.time_zone,
        description=(
            "Labels what is due: new images, changed prompts, another model, failures with "
            "attempts left. Classes with nothing due are left alone."
        ),
    )
    def due_labels(
        context: dg.ScheduleEvaluationContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> list[dg.RunRequest] | dg.SkipReason:
        store = annotation_store.open()
        look = _look(context.instance, plan, annotation_store, image_source)
        look.register(context.instance)
        digests = new_files(store)
        work = due_work(store, vision_model.applied_to(plan))
        fresh = _with_new_files(store, digests)
        wanted = fresh | {class_slug for _, class_slug in work.due}
        when = context.scheduled_execution_time.isoformat()
        requests = []
        for neighbours in ranges(look.registered, wanted - look.in_flight):
            due = {entry for entry, class_slug in work.due if class_slug in neighbours}
            assets = [e.asset for e in _with_followers(plan, due, bool(fresh & set(neighbours)))]
            requests.append(
                dg.RunRequest(
                    run_key=f"{when} {neighbours[0]}",
                    tags=range_tags(neighbours),
                    asset_selection=[CLEAN_IMAGES, *map(dg.AssetKey, (*assets, *OUTPUTS))],
                )
            )
        if requests:
            return requests
        held = work.held.total()
        more = f"; {held} images are held after three failures (force: true asks again)"
        return dg.SkipReason(_why_nothing(wanted, look.in_flight) + (more if held else ""))

    return due_labels


def _with_followers(plan: Plan, due: Collection[str], has_new_images: bool) -> Iterator[Entry]:
    """The entries with due work, and those that go on from what they find."""
    asked = {entry.name for entry in plan.entries} if has_new_images else set(due)
    for entry in plan.entries:
        if entry.name in asked or entry.source in asked:
            asked.add(entry.name)
            yield entry


@dataclass(frozen=True)
class _Look:
    """What a look at the image root found. registered: partition keys as they are after it."""

    summary: InventorySummary
    changes: PartitionChanges
    registered: list[str]
    in_flight: set[str]

    def partition_requests(
        self,
    ) -> list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest]:
        """What Dagster is to do about the classes that came and went."""
        requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
        if self.changes.added:
            requests.append(CLASSES.build_add_request(self.changes.added))
        if self.changes.deleted:
            requests.append(CLASSES.build_delete_request(self.changes.deleted))
        return requests

    def register(self, instance: dg.DagsterInstance) -> None:
        """The same, at once."""
        instance.add_dynamic_partitions(str(CLASSES.name), self.changes.added)
        for key in self.changes.deleted:
            instance.delete_dynamic_partition(str(CLASSES.name), key)

    def asset_events(self) -> list[dg.AssetMaterialization]:
        """raw_images is as of now, if anything moved."""
        summary = self.summary
        if not (summary.added or summary.changed or summary.removed):
            return []
        metadata: dict[str, int | str] = {
            "files": summary.files.total,
            "added": summary.added,
            "changed": summary.changed,
            "removed": summary.removed,
            "seen_by": "the sensor new_images",
        }
        return [dg.AssetMaterialization(RAW_IMAGES, metadata=metadata)]


def _look(
    instance: dg.DagsterInstance,
    plan: Plan,
    annotation_store: AnnotationStoreResource,
    image_source: ImageSourceResource,
) -> _Look:
    """Bring the inventory up to date."""
    source = image_source.open()
    annotation_store.at().claim(source)
    store: AnnotationStore = annotation_store.open()
    in_flight = classes_in_flight(instance)
    summary = update_inventory(
        store, source, plan.class_names, plan.source, in_flight, plan.actions.test_folder
    )
    before = registered_classes(instance)
    changes = partition_changes(before, list(class_names(store)), in_flight)
    after = [key for key in before if key not in changes.deleted] + changes.added
    return _Look(summary, changes, after, in_flight)


def _with_new_files(store: AnnotationStore, digests: Mapping[str | None, str]) -> set[str]:
    """A file that lies in no folder counts for every class."""
    classes = set(class_names(store))
    return classes if None in digests else classes & digests.keys()


def _run_key(classes: Collection[str], digests: Mapping[str | None, str]) -> str | None:
    """The same for the same new files, so that a run that fails on them is not asked for over and
    over; none for changes that are seen only once."""
    parts = [digests[key] for key in (None, *classes) if key in digests]
    return " ".join([*classes, *parts]) if parts else None


def _why_nothing(wanted: Collection[str], in_flight: Collection[str]) -> str:
    waiting = sorted(set(wanted) & set(in_flight))
    if waiting:
        return f"runs in flight work on {', '.join(waiting[:20])}: looking again later"
    return "nothing is new, and nothing is due"
