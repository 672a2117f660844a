"""When the evaluations are made anew, and from what."""

from collections.abc import Iterable

import dagster as dg

from labeling_pipeline.plan import Entry

EVALUATION = "evaluation"
"""The group of these assets."""

WHEN_LABELS_ARE_IN = dg.AutomationCondition.eager().without(
    # Classes that are missing never hold an evaluation up.
    ~dg.AutomationCondition.any_deps_missing()
)
"""Anew once labels have come in and nothing upstream is still running."""


def every_class_of(asset: str) -> dg.AssetDep:
    """All partitions of an asset. Classes that are missing never hold up what goes on from it."""
    return dg.AssetDep(asset, partition_mapping=dg.AllPartitionMapping())


def labels_of(entries: Iterable[Entry]) -> list[dg.AssetDep]:
    """What some entries of the plan answer, over all classes."""
    return [every_class_of(entry.asset) for entry in entries]
