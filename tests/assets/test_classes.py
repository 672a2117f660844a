import dagster as dg
import pytest

from assets.classes import Metadata, each_class
from assets.metadata import MAX_CHARACTERS
from assets.partitions import CLASSES, range_tags

KEYS = [f"class_{number:02}" for number in range(60)]


@pytest.mark.parametrize(
    ("reason", "listed"), [("broken", 20), ("a long story " * 1000, 6)], ids=["short", "long"]
)
def test_many_failed_classes_are_counted_and_as_many_as_fit_are_named(reason: str, listed: int):
    def work(class_slug: str) -> Metadata:
        if class_slug == KEYS[0]:
            return {}
        raise RuntimeError(reason)

    @dg.asset(partitions_def=CLASSES, backfill_policy=dg.BackfillPolicy.single_run())
    def labels(context: dg.AssetExecutionContext) -> None:
        each_class(context, work)

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(CLASSES.name), KEYS)
        result = dg.materialize(
            [labels], instance=instance, tags=range_tags(KEYS), raise_on_error=False
        )
        assert instance.get_materialized_partitions(labels.key) == {KEYS[0]}
    (event,) = [event for event in result.all_events if event.is_step_failure]
    told = event.step_failure_data.user_failure_data
    assert told.description.startswith("labels: 59 of 60 classes failed.\n- class_01: RuntimeError")
    assert f"- and {59 - listed} more\nMend the cause" in told.description
    assert len(told.description) < MAX_CHARACTERS + 200
    assert list(told.metadata["failed"].value) == KEYS[1 : listed + 1]
    assert told.metadata["classes_failed"].value == 59
