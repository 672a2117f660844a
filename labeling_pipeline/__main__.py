"""``python -m labeling_pipeline VERB``: everything that is not a pipeline run."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from labeling_pipeline.errors import ConfigurationError, LabelingError, MissingDependencyError
from labeling_pipeline.home import Environment
from labeling_pipeline.images.reading import read_image
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import EMBEDDED, capabilities, load_model
from labeling_pipeline.recognition import score_labels

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console()


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
    try:
        environment = Environment.read(Path())
        name = model or environment.model or EMBEDDED
        settings = ModelSettings.model_validate(environment.settings)
        scores = score_labels(read_image(image), label, load_model(name, settings))
    except LabelingError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    table = Table("label", "score", title=f"{image.name}, by {name}")
    for candidate, score in sorted(scores.items(), key=lambda item: -item[1]):
        table.add_row(candidate, f"{score:.3f}")
    console.print(table)


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
    try:
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
    except LabelingError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None


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
