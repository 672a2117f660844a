"""The pipeline without the UI: ``python run.py [IMAGES] [--plan P] [--class NAME]...``

Runs the same assets in the home's own Dagster instance, so that the UI shows what ran. Exit code 1
if a class failed; what failed and the command that re-runs it stand in the summary.
"""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import dagster as dg
import typer
from filelock import FileLock, Timeout
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from assets.partitions import range_tags, ranges, registered_classes
from assets.progress import LISTENERS
from definitions import REPOSITORY, build_definitions
from labeling_pipeline.asks import class_names, model_keys
from labeling_pipeline.errors import ConfigurationError, LabelingError
from labeling_pipeline.evaluation.entry import Origin
from labeling_pipeline.evaluation.intervals import Measure
from labeling_pipeline.home import Environment, Home, home_for
from labeling_pipeline.images.sources import ImageSource, open_source
from labeling_pipeline.inventory import report_files
from labeling_pipeline.plan import Plan, load_plan
from labeling_pipeline.reporting.actions import evaluate_stored_actions
from labeling_pipeline.reporting.classes import class_table
from labeling_pipeline.reporting.detection import evaluate_all
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_outcomes

DEFAULT_PLAN = REPOSITORY / "plans/objects.yaml"
HEADLESS = {"labeling/headless": "true"}
"""Tag of the runs that this file starts."""

console = Console()


@dataclass
class Ran:
    """What the runs of one call came to.

    failures: asset -> class (or "") -> reason. unlisted: asset -> failed classes that are not among
    them, for there were many. warnings: (asset, check) -> what it found.
    """

    run_ids: list[str] = field(default_factory=list)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    unlisted: Counter[str] = field(default_factory=Counter)
    warnings: dict[tuple[str, str], str] = field(default_factory=dict)


def main(
    images: Annotated[
        str | None,
        typer.Argument(
            help="folder or URL of images, one sub-folder per class; default: the plan's",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="labeling plan (YAML)")] = None,
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="only this class; repeatable")
    ] = None,
) -> None:
    """Ingest, label, draw, export and evaluate images."""
    try:
        failed = run(images, plan, class_ or [])
    except LabelingError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Interrupted. What was answered is kept; the same command goes on from here.")
        raise typer.Exit(130) from None
    raise typer.Exit(1 if failed else 0)


def run(images: str | None, plan_path: Path | None, only: Sequence[str]) -> bool:
    """Run everything and print the summary. Returns whether something failed."""
    environment = Environment.read(REPOSITORY)
    named_plan = os.environ.get("LABELING_PLAN")
    plan_file = plan_path or (Path(named_plan) if named_plan else DEFAULT_PLAN)
    plan = load_plan(plan_file)
    named_images = images or environment.images or plan.source.url
    if named_images is None:
        raise ConfigurationError(
            f"expected a folder or URL of images: name it on the command line, in LABELING_IMAGES "
            f"or as source.url in {plan_file}"
        )
    source = open_source(named_images, plan.source.options)
    named_home = os.environ.get("LABELING_HOME")
    home = Home(Path(named_home)) if named_home else home_for(source, REPOSITORY / ".labeling")
    environment = replace(environment, home=home.path, images=source.root, plan=plan_file)
    definitions = build_definitions(plan, environment)
    home.claim(source)
    os.environ["DAGSTER_HOME"] = str(home.prepare_dagster(REPOSITORY / "dagster.yaml"))
    effective = plan.with_model(environment.model, **environment.settings)
    store = AnnotationStore(home.store_path)
    with dg.DagsterInstance.get() as instance, _alone_in(home, instance), _progress_bars():
        ran = _run_assets(definitions, effective, store, instance, only)
    _print_summary(ran, store, effective, source, home, plan_file)
    return bool(ran.failures)


def _run_assets(
    definitions: dg.Definitions,
    plan: Plan,
    store: AnnotationStore,
    instance: dg.DagsterInstance,
    only: Sequence[str],
) -> Ran:
    """Stage by stage, so that a class that fails in one holds up no other class in the next."""
    ran = Ran()
    # The job that the UI uses too, so that it shows which assets a headless run made.
    job = definitions.resolve_implicit_global_asset_job_def()

    def materialize(names: Sequence[str], classes: Sequence[str] = ()) -> None:
        tags = HEADLESS | (range_tags(classes) if classes else {})
        result = job.execute_in_process(
            asset_selection=[dg.AssetKey(name) for name in names],
            instance=instance,
            tags=tags,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        ran.run_ids.append(result.run_id)
        _note_failures(ran, result)
        _note_checks(ran, result)

    materialize(["raw_images", "clean_images"])
    if ran.failures:
        return ran
    for classes in ranges(registered_classes(instance), _slugs_of(store, only)):
        for entry in plan.entries:
            materialize([entry.asset], classes)
        materialize(["visualizations", "class_exports"], classes)
    materialize(
        [
            *("action_predictions", "har_evaluation", "detection_evaluation", "calibration"),
            *("model_agreement", "audit_sample"),
        ]
    )
    materialize(["model_drift", "review_queue"])
    materialize(["annotation_report"])
    return ran


@contextmanager
def _alone_in(home: Home, instance: dg.DagsterInstance) -> Iterator[None]:
    """One headless run at a time in a home; what a killed one left behind is cleared away.

    A killed run stays "started" in Dagster and keeps its pool slot, which the next run would wait
    for without end. Who holds the lock knows that every other headless run is dead.
    """
    lock = FileLock(home.path / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print("Waiting for another run.py in this home to end", highlight=False)
        lock.acquire()
    try:
        started = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
        for dead in instance.get_runs(dg.RunsFilter(statuses=started, tags=HEADLESS)):
            instance.report_run_failed(dead, "The process of this run was ended from outside.")
            instance.event_log_storage.free_concurrency_slots_for_run(dead.run_id)
        yield
    finally:
        lock.release()


def _slugs_of(store: AnnotationStore, only: Sequence[str]) -> set[str]:
    """Slugs of the wanted classes, given as slugs or display names; all if none are."""
    classes = class_names(store)
    if not only:
        return set(classes)
    slug_of = {name: slug for slug, name in classes.items()} | {slug: slug for slug in classes}
    unknown = [name for name in only if name not in slug_of]
    if unknown:
        raise ConfigurationError(
            f"no class is called {', '.join(map(repr, unknown))}: expected some of "
            f"{', '.join(classes.values())}"
        )
    return {slug_of[name] for name in only}


def _note_failures(ran: Ran, result: dg.ExecuteInProcessResult) -> None:
    for event in result.all_events:
        if not event.is_step_failure:
            continue
        asset = event.step_key or "?"
        data = event.step_failure_data
        if data.error and data.error.cls_name == "DagsterAssetCheckFailedError":
            continue  # what the check found says more
        # Dagster records Ctrl-C as a failure of the step; it means all that would come after too.
        if data.error and "DagsterExecutionInterruptedError" in data.error.to_string():
            raise KeyboardInterrupt
        reasons: dict[str, str] = {}
        if data.user_failure_data and "failed" in data.user_failure_data.metadata:
            told = data.user_failure_data.metadata
            reasons = dict(told["failed"].value)  # type: ignore[arg-type]
            ran.unlisted[asset] += int(told["classes_failed"].value) - len(reasons)  # type: ignore[arg-type]
        elif data.error:
            cause = data.error.cause or data.error
            reasons = {"": cause.message.strip()}
        ran.failures.setdefault(asset, {}).update(reasons)


def _note_checks(ran: Ran, result: dg.ExecuteInProcessResult) -> None:
    for check in result.get_asset_check_evaluations():
        asset = check.asset_key.to_user_string()
        ran.warnings.pop((asset, check.check_name), None)
        if check.passed:
            continue
        fix = check.metadata.get("next")
        told = f"{check.description}. {fix.value if fix else ''}".strip()
        if check.severity is dg.AssetCheckSeverity.ERROR:
            ran.failures.setdefault(asset, {})[""] = told
        else:
            ran.warnings[asset, check.check_name] = told


@contextmanager
def _progress_bars() -> Iterator[None]:
    """One bar per asset and class that does something."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
        known: dict[str, int] = {}

        def show(what: str, done: int, total: int) -> None:
            if total == 0:
                return
            if what not in known:
                known[what] = bars.add_task(escape(what), total=total)
            bars.update(known[what], completed=done, total=total)  # type: ignore[arg-type]

        LISTENERS.append(show)
        try:
            yield
        finally:
            LISTENERS.remove(show)


def _print_summary(
    ran: Ran, store: AnnotationStore, plan: Plan, source: ImageSource, home: Home, plan_file: Path
) -> None:
    files = report_files(store)
    statuses = ", ".join(f"{n} {status}" for status, n in files.statuses.items())
    console.print(f"\n[bold]Images[/] {files.total} files: {statuses}")
    if files.not_accepted:
        table = Table("file", "status", "reason", "detail")
        for note in files.not_accepted[:40]:
            table.add_row(note.path, note.status, note.reason, note.detail or "")
        console.print(table)
        if len(files.not_accepted) > 40:
            console.print(f"... and {len(files.not_accepted) - 40} more, in the report")
    _print_classes(store, plan)
    _print_detection(store, plan, source)
    for one in evaluate_stored_actions(store, plan):
        name, scores = escape(f"Human-action recognition, {one.title}"), one.evaluation.scores
        if not scores.images:
            console.print(f"[bold]{name}[/]: not possible: {escape(one.why_not)}")
            continue
        console.print(
            f"[bold]{name}[/]: accuracy [bold]{_ratio(scores.accuracy.value)}[/]"
            f"{_interval(scores.accuracy)}, {scores.images} images, "
            f"{one.evaluation.without_prediction} without a prediction"
        )
    run_ids = ", ".join(f"'{run_id}'" for run_id in ran.run_ids)
    count = store.query(f"SELECT count(*) AS n FROM generations WHERE run_id IN ({run_ids})")
    console.print(f"[bold]Generations[/] in this run: {count['n'][0].as_py()}")
    console.print(
        f"\nPictures and JSON   {home.results}\nReport              {home.reports}/report.html\n"
        f"Store               {home.store_path}\n"
        f"In Dagster          LABELING_HOME={shlex.quote(str(home.path))} "
        f"LABELING_IMAGES={shlex.quote(source.root)} "
        f"LABELING_PLAN={shlex.quote(str(plan_file))} "
        "make dev",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    _print_failures(ran, source.root, plan_file)


def _print_detection(store: AnnotationStore, plan: Plan, source: ImageSource) -> None:
    for evaluation in evaluate_all(store, plan, source):
        if not evaluation.judged_images:
            continue
        told = [
            f"{called} [bold]{_ratio(measure.value)}[/]{_interval(measure)}"
            for name, called in _MEASURES.items()
            if (measure := evaluation.measures.get(name)) is not None
        ]
        truth = "the ground truth" if evaluation.origin is Origin.FILES else "people's corrections"
        console.print(
            f"[bold]{evaluation.entry}[/] against {truth}, {evaluation.judged_images} images: "
            + ", ".join(told)
        )


_MEASURES = {
    "f1": "F1 at IoU 0.5",
    "pck": "PCK of the keypoints",
    "page_character_error_rate": "character error rate",
}


def _print_classes(store: AnnotationStore, plan: Plan) -> None:
    rows = class_table(store, plan)
    if rows.empty:
        return
    plain = ["entry", "class", "display_name", "label", "images", "annotations", "mean_score"]
    states = [column for column in rows.columns if column not in plain]
    headers = ("entry", "class", "asked", "images", "annotations", "score", *states)
    table = Table(
        *(Column(header, no_wrap=True) for header in headers),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for row in rows.to_dict("records"):
        table.add_row(
            row["entry"],
            row["display_name"],
            row["label"],
            str(row["images"]),
            str(row["annotations"]),
            _ratio(row["mean_score"]),
            *(str(row[state]) for state in states),
        )
    console.print(table)
    outcomes = current_outcomes(store, model_keys(plan))
    problems = outcomes[outcomes["error"].notna()][["state", "error"]].drop_duplicates()
    for state, error in problems.head(20).itertuples(index=False):
        console.print(f"[yellow]{state}[/]: ", end="")
        console.print(error, markup=False, highlight=False)


def _print_failures(ran: Ran, images: str, plan_file: Path) -> None:
    for (asset, check), told in ran.warnings.items():
        console.print(f"[yellow]check[/] {escape(asset)}: {check}")
        console.print(f"  {told}", markup=False, highlight=False)
    classes: dict[str, None] = {}
    for asset, reasons in ran.failures.items():
        for class_slug, reason in reasons.items():
            what = f"{asset}[{class_slug}]" if class_slug else asset
            console.print(f"[bold red]failed[/] {escape(what)}")
            console.print(f"  {reason}", markup=False, highlight=False)
            if class_slug:
                classes[class_slug] = None
        if more := ran.unlisted[asset]:
            console.print(f"  and {more} classes more", highlight=False)
    if ran.failures:
        arguments = [images, "--plan", str(plan_file)]
        # All classes, where not each that failed is known: what stands costs nothing.
        for class_slug in () if ran.unlisted.total() else classes:
            arguments += ["--class", class_slug]
        console.print(
            f"Mend the cause, then: python run.py {shlex.join(arguments)}",
            markup=False,
            soft_wrap=True,
        )


def _interval(measure: Measure) -> str:
    interval = measure.interval
    return f" ({_ratio(interval.low)} to {_ratio(interval.high)})" if interval else ""


def _ratio(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"


if __name__ == "__main__":
    sys.argv[0] = "run.py"
    typer.run(main)
