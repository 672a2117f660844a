"""Checks of what was made: they run with their asset, and by themselves over all that stands.

One step an asset, so that a run pays for one and not for each check.
"""

from collections.abc import Callable, Iterator

import dagster as dg

from assets.ingestion import CLEAN_IMAGES
from assets.metadata import table
from assets.partitions import CLASSES
from labeling_pipeline.checks import (
    ENTRY_CHECKS,
    CheckOutcome,
    annotations_are_sound,
    no_failed_partitions,
    rejected_share,
)
from labeling_pipeline.plan import Entry, Plan
from resources.annotation_store import AnnotationStoreResource
from resources.vision_model import VisionModelResource

ALL_CHECKS = dg.AssetSelection.all_asset_checks()
"""What a job over the checks alone selects: they look at what stands, whichever run it is from."""

_BLOCKING = (rejected_share, annotations_are_sound)


def build_checks(plan: Plan) -> list[dg.AssetChecksDefinition]:
    """Of the images, and of what each entry made of them."""
    return [_image_checks(plan), *(_entry_checks(plan, entry) for entry in plan.entries)]


def _image_checks(plan: Plan) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(specs=[_spec(rejected_share, CLEAN_IMAGES)])
    def clean_images_checks(
        annotation_store: AnnotationStoreResource,
    ) -> Iterator[dg.AssetCheckResult]:
        yield _result(rejected_share, CLEAN_IMAGES, rejected_share(annotation_store.open(), plan))

    return clean_images_checks


def _entry_checks(plan: Plan, entry: Entry) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(entry.asset)
    checks: list[Callable[..., CheckOutcome]] = [*ENTRY_CHECKS, no_failed_partitions]

    @dg.multi_asset_check(
        name=f"{entry.asset}_checks", specs=[_spec(c, key) for c in checks], can_subset=True
    )
    def entry_checks(
        context: dg.AssetCheckExecutionContext,
        annotation_store: AnnotationStoreResource,
        vision_model: VisionModelResource,
    ) -> Iterator[dg.AssetCheckResult]:
        store, effective = annotation_store.open(), vision_model.applied_to(plan)
        selected = {check.name for check in context.selected_asset_check_keys}
        for check in ENTRY_CHECKS:
            if check.__name__ in selected:
                yield _result(check, key, check(store, effective, entry))
        if no_failed_partitions.__name__ in selected:
            failed = _failed_partitions(context.instance, key)
            yield _result(no_failed_partitions, key, no_failed_partitions(store, failed))

    return entry_checks


def _failed_partitions(instance: dg.DagsterInstance, asset: dg.AssetKey) -> list[str]:
    """Registered partitions whose last run failed before it had made them."""
    registered = instance.get_dynamic_partitions(str(CLASSES.name))
    statuses = instance.get_status_by_partition(asset, registered, CLASSES) or {}
    return [key for key, status in statuses.items() if status and status.value == "FAILED"]


def _spec(check: Callable[..., CheckOutcome], asset: dg.AssetKey) -> dg.AssetCheckSpec:
    description = (check.__doc__ or "").partition("\n")[0]
    return dg.AssetCheckSpec(
        check.__name__, asset=asset, description=description, blocking=check in _BLOCKING
    )


def _result(
    check: Callable[..., CheckOutcome], asset: dg.AssetKey, outcome: CheckOutcome
) -> dg.AssetCheckResult:
    """A failed check warns, unless what it found would spread."""
    metadata = {"rows": table(outcome.rows)} if outcome.rows else {}
    if outcome.fix:
        metadata["next"] = dg.MetadataValue.text(outcome.fix)
    severe = outcome.spreads and not outcome.passed
    return dg.AssetCheckResult(
        passed=outcome.passed,
        asset_key=asset,
        check_name=check.__name__,
        severity=dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN,
        description=outcome.summary,
        metadata=metadata,
    )
