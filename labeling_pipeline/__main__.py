"""``python -m labeling_pipeline VERB``: everything that is not a pipeline run."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from labeling_pipeline import corrections
from labeling_pipeline.errors import (
    ConfigurationError,
    LabelingError,
    MissingDependencyError,
    StoreError,
)
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.home import SAMPLE_IMAGES, Environment, Home
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import EMBEDDED, capabilities, load_model
from labeling_pipeline.plan import load_plan
from labeling_pipeline.recognition import score_labels
from labeling_pipeline.rederivation import NOTHING_LEFT, rederive
from labeling_pipeline.store import maintenance
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.database_file import DatabaseFile

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
store_verbs = typer.Typer(
    no_args_is_help=True, help="The file that holds everything: keep it safe."
)
app.add_typer(store_verbs, name="store")
correction_verbs = typer.Typer(
    no_args_is_help=True, help="What people changed: it holds whatever a model says later."
)
app.add_typer(correction_verbs, name="corrections")
console = Console()

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="default: LABELING_HOME, or the sample")
]


@contextmanager
def errors_said() -> Iterator[None]:
    """An error raised on purpose is printed and ends the program with exit code 1."""
    try:
        yield
    except LabelingError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


@app.callback()
def main() -> None:
    """Everything that is not a pipeline run."""


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="where to write it")] = Path("sample"),
    images_per_class: Annotated[int, typer.Option(min=1)] = 14,
    seed: int = 20,
) -> None:
    """Write the sample dataset: ten classes, flawed files among them, ground truth beside it."""
    from labeling_pipeline.sample.dataset import write_sample

    with errors_said():
        summary = write_sample(folder, images_per_class, seed)
    console.print(
        f"{summary.files} files under {summary.image_root}, {summary.good_images} good images, "
        f"{summary.annotations} true annotations in {summary.ground_truth} "
        f"({summary.written} written, {summary.unchanged} unchanged, {summary.removed} removed)"
    )


@app.command()
def tasks() -> None:
    """Which model can do which task, and which one does where nobody names one."""
    for title, (header, *rows) in capabilities().items():
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)


@app.command()
def recognize(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    label: Annotated[list[str], typer.Option(help="a candidate; repeat it for more")],
    model: Annotated[str | None, typer.Option(help="default: LABELING_MODEL, or ours")] = None,
) -> None:
    """Which of some labels an image shows: the presence of each, normalised over all of them."""
    with errors_said():
        environment = Environment.read(Path())
        name = model or environment.model or EMBEDDED
        settings = ModelSettings.model_validate(environment.settings)
        scores = score_labels(read_image(image), label, load_model(name, settings))
    table = Table("label", "score", title=f"{image.name}, by {name}")
    for candidate, score in sorted(scores.items(), key=lambda item: -item[1]):
        table.add_row(candidate, f"{score:.3f}")
    console.print(table)


@app.command("rederive")
def read_again(home: HomeOption = None) -> None:
    """Read stored answers again with today's parsers, where older ones read them. Loads no model.

    What is asked stands in the plan (LABELING_PLAN). Nothing is overwritten.
    """
    with errors_said():
        environment = Environment.read(Path())
        plan = load_plan(environment.plan).with_model(environment.model, **environment.settings)
        store = AnnotationStore(Home(home or environment.home).store_path)
        if not store.path.exists():
            raise StoreError(f"there is no store at {store.path}: name its home with --home")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
            bar = bars.add_task("answers", total=None)
            summary = rederive(
                store,
                plan,
                str(uuid.uuid4()),
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
    rows = [one.row() for one in summary.worth_telling]
    if rows:
        table = Table(*(name.replace("_", " ") for name in rows[0]))
        for row in rows:
            table.add_row(*map(str, row.values()))
        console.print(table)
    if summary.read:
        _say(f"{summary.read} answers read in {summary.seconds:.1f} s")
        _say("Materialize what is drawn, exported and evaluated to see it there")
    else:
        _say(NOTHING_LEFT)


@store_verbs.command()
def backup(
    home: HomeOption = None,
    keep: Annotated[int, typer.Option(min=1, help="of all backups")] = maintenance.KEEP,
) -> None:
    """Write a backup into the home, and keep only the newest ones."""
    with errors_said():
        written = maintenance.back_up(_store_file(home), keep)
    _say(f"{written}, {_size(written.stat().st_size)}")


@store_verbs.command()
def compact(home: HomeOption = None) -> None:
    """Write the file anew, without the room that deleted and rewritten rows took."""
    with errors_said():
        before, after = maintenance.compact(_store_file(home))
    _say(f"{_size(before)} before, {_size(after)} now")


@store_verbs.command()
def restore(
    backup: Annotated[Path | None, typer.Argument(help="default: the newest")] = None,
    home: HomeOption = None,
) -> None:
    """Put a backup in place of the file, which is kept beside it. End all runs first."""
    with errors_said():
        restored, aside = maintenance.restore(_store_file(home), backup)
    _say(f"{restored} is in place" + (f"; what was there is now {aside}" if aside else ""))
    _say("What was labeled since is due again")


@store_verbs.command()
def check(home: HomeOption = None) -> None:
    """Read everything in the file and say what it holds. Exit code 1 if anything is wrong."""
    with errors_said():
        file = _store_file(home)
        condition = maintenance.check(file)
    table = Table("table", "rows")
    for name, rows in condition.rows.items():
        table.add_row(name, f"{rows:,}")
    console.print(table)
    version = condition.version or "unknown"
    _say(f"{file.path}: {_size(condition.size_bytes)}, schema version {version}")
    for problem in condition.problems:
        _say(f"WRONG: {problem}")
    if condition.problems:
        raise typer.Exit(1)
    _say("Nothing is wrong")


@correction_verbs.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="JSON, see docs/corrections.md")],
    author: Annotated[str | None, typer.Option(help="of corrections that name none")] = None,
    home: HomeOption = None,
) -> None:
    """Read corrections from a file: all of them, or none if anything is wrong."""
    with errors_said():
        environment = Environment.read(Path())
        store = _existing_store(home)
        plan = load_plan(environment.plan).with_model(environment.model, **environment.settings)
        images = environment.images or plan.source.url or SAMPLE_IMAGES
        source = open_source(images, plan.source.options)
        Home(home or environment.home).claim(source)
        summary = corrections.import_corrections(store, plan, file, source, author=author)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.added.items()))
    _say(
        f"{file}: {summary.added.total()} added{f' ({kinds})' if kinds else ''}, "
        f"{summary.known} known already"
    )
    for note in summary.notes:
        _say(f"  {note}")
    if summary.classes:
        _say(
            "They hold from now on. Materialize visualizations and class_exports to see them, for "
            + ", ".join(summary.classes)
        )


@correction_verbs.command("export")
def export(
    file: Annotated[
        Path,
        typer.Argument(
            help="where to write it; - for standard output",
            dir_okay=False,
            writable=True,
            allow_dash=True,
        ),
    ],
    home: HomeOption = None,
) -> None:
    """Write all corrections as JSON, which another home of the same images can import."""
    with errors_said():
        text, count = corrections.export_corrections(_existing_store(home))
    if file == Path("-"):
        typer.echo(text, nl=False)
        return
    write_if_changed(file, text.encode())
    _say(f"{file}: {count} corrections")


def _existing_store(home: Path | None) -> AnnotationStore:
    path = Home(home or Environment.read(Path()).home).store_path
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: expected the store of a home, found nothing; materialize raw_images first, "
            "or set LABELING_HOME"
        )
    return AnnotationStore(path)


def _store_file(home: Path | None) -> DatabaseFile:
    return DatabaseFile(Home(home or Environment.read(Path()).home).store_path)


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(help="repeat it for more; default: LABELING_MODEL, or ours"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="any but the machine's own wants LABELING_API_KEY")
    ] = "127.0.0.1",
    port: int = 6996,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="a web page's origin that may read answers; repeatable")
    ] = None,
    max_file_mb: Annotated[int, typer.Option(min=1, help="size of one file")] = 20,
    max_request_mb: Annotated[int, typer.Option(min=1, help="size of a whole request")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="of one image")] = 50_000_000,
    max_files: Annotated[int, typer.Option(min=1, help="in one request")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="images at once; more get a 503")] = 64,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="of one request")] = 60.0,
) -> None:
    """Answer over HTTP, with a page to try it: http://localhost:6996"""
    with errors_said():
        _serve(
            models=model,
            host=host,
            port=port,
            cors_origins=cors_origin or (),
            max_file_bytes=max_file_mb << 20,
            max_request_bytes=max_request_mb << 20,
            max_pixels=max_pixels,
            max_files=max_files,
            queue_images=queue,
            timeout_s=timeout_s,
        )


def _serve(models: list[str] | None, **options: Any) -> None:
    try:
        from labeling_pipeline.service.app import serve as serve_http
        from labeling_pipeline.service.config import ServiceConfig, api_key_of_environment
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the service needs another package, {error.name}: "
            "pip install 'labeling-pipeline[service]'"
        ) from None
    environment = Environment.read(Path())
    try:
        config = ServiceConfig(
            models=tuple(models or (environment.model or EMBEDDED,)),
            settings=ModelSettings.model_validate(environment.settings),
            api_key=api_key_of_environment(),
            **options,
        )
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors())
        raise ConfigurationError(f"the service cannot start like this: {problems}") from None
    serve_http(config)


if __name__ == "__main__":
    app(prog_name="python -m labeling_pipeline")
