"""``python -m labeling_pipeline VERB``: everything that is not a pipeline run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from labeling_pipeline.models.registry import find_card, registered_names
from labeling_pipeline.tasks import Task

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
    """Which model can do which task."""
    table = Table("task", *registered_names(), title="What each model can do")
    cards = [find_card(name) for name in registered_names()]
    for task in Task:
        table.add_row(task, *("yes" if task in card.tasks else "–" for card in cards))
    vocabulary = ["open" if c.vocabulary is None else ", ".join(c.vocabulary) for c in cards]
    table.add_section()
    table.add_row("vocabulary", *vocabulary)
    table.add_row("licence", *(card.licence for card in cards))
    console.print(table)


if __name__ == "__main__":
    app(prog_name="python -m labeling_pipeline")
