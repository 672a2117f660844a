"""The partitions of this pipeline, and what runs and classes have to do with each other.

In a module of its own so that assets, jobs and schedules never import each other.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

CLASSES = dg.DynamicPartitionsDefinition(name="class")
"""One partition per class; raw_images and the sensor register them."""

_PARTITION = "dagster/partition"
_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"

NOT_STARTED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
]
_IN_FLIGHT = [
    *NOT_STARTED,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_BACKFILL_IN_PROGRESS = ("REQUESTED", "CANCELING", "FAILING")
_RECENT_BACKFILLS = 25


@dataclass(frozen=True)
class PartitionChanges:
    """What brings the registered partitions in line with the classes. kept: classes that are gone
    and have a run in flight; they are taken out later."""

    added: list[str]
    deleted: list[str]
    kept: list[str]


def partition_changes(
    registered: Sequence[str], classes: Sequence[str], in_flight: Collection[str]
) -> PartitionChanges:
    """A key with a run in flight is never deleted: the run would fail on it."""
    gone = [key for key in registered if key not in set(classes)]
    return PartitionChanges(
        added=[key for key in classes if key not in set(registered)],
        deleted=[key for key in gone if key not in in_flight],
        kept=[key for key in gone if key in in_flight],
    )


def registered_classes(instance: dg.DagsterInstance) -> list[str]:
    """Partition keys in order of registration."""
    return list(instance.get_dynamic_partitions(str(CLASSES.name)))


def classes_in_flight(instance: dg.DagsterInstance) -> set[str]:
    """Classes that a run works on or will. A backfill in progress may ask for any of them."""
    registered = registered_classes(instance)
    recent = instance.get_backfills(limit=_RECENT_BACKFILLS)
    busy = any(backfill.status.value in _BACKFILL_IN_PROGRESS for backfill in recent)
    classes = set(registered) if busy else set()
    for run in instance.get_runs(dg.RunsFilter(statuses=_IN_FLIGHT)):
        if key := run.tags.get(_PARTITION):
            classes.add(key)
        start, end = run.tags.get(_RANGE_START), run.tags.get(_RANGE_END)
        if start in registered and end in registered:
            first, last = registered.index(start), registered.index(end)
            classes.update(registered[first : last + 1])
    return classes


def ranges(registered: Sequence[str], wanted: Collection[str]) -> Iterator[list[str]]:
    """The wanted classes in runs of neighbours: what one Dagster run can cover."""
    neighbours: list[str] = []
    for key in registered:
        if key in wanted:
            neighbours.append(key)
        elif neighbours:
            yield neighbours
            neighbours = []
    if neighbours:
        yield neighbours


def range_tags(neighbours: Sequence[str]) -> dict[str, str]:
    """Tags of a run over neighbouring classes."""
    return {_RANGE_START: neighbours[0], _RANGE_END: neighbours[-1]}
