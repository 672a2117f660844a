"""Work on many classes in one run: one that fails never costs the others."""

from collections.abc import Callable

import dagster as dg

from assets.metadata import MAX_ROWS, cut, fitting

Metadata = dict[str, dg.MetadataValue]


def each_class(context: dg.AssetExecutionContext, work: Callable[[str], Metadata]) -> None:
    """Do the work of every class of this run and record the truth of each.

    Without failures the metadata is attached and the step ends as usual, so that what lies
    downstream in the same run goes on. With failures the step fails, and Dagster would record
    nothing: the good classes are then recorded one by one before.

    Raises:
        dg.Failure: some class failed; names each with its reason, and what to do next.
    """
    done: dict[str, Metadata] = {}
    failed: dict[str, str] = {}
    for class_slug in context.partition_keys:
        try:
            done[class_slug] = work(class_slug)
        except Exception as error:  # recorded below, with all the others
            context.log.exception(f"{context.asset_key.to_user_string()}[{class_slug}] failed")
            failed[class_slug] = f"{type(error).__name__}: {error}"
    if not failed:
        for class_slug, metadata in done.items():
            context.add_asset_metadata(metadata, partition_key=class_slug)
        return
    for class_slug, metadata in done.items():
        context.log_event(
            dg.AssetMaterialization(context.asset_key, partition=class_slug, metadata=metadata)
        )
    first = [(name, cut(reason)) for name, reason in list(failed.items())[:MAX_ROWS]]
    listed = dict(first[: fitting([len(name) + len(reason) for name, reason in first])])
    lines = [f"- {name}: {reason}" for name, reason in listed.items()]
    if len(listed) < len(failed):
        lines.append(f"- and {len(failed) - len(listed)} more")
    raise dg.Failure(
        description="\n".join(
            [
                f"{context.asset_key.to_user_string()}: {len(failed)} of "
                f"{len(failed) + len(done)} classes failed.",
                *lines,
                "Mend the cause, then re-run the failed partitions: only what is missing is done.",
            ]
        ),
        metadata={
            "failed": dg.MetadataValue.json(listed),
            "classes_failed": dg.MetadataValue.int(len(failed)),
        },
        allow_retries=False,
    )
