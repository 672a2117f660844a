"""A home: the folder of one dataset's state, and where the pipeline's settings come from."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from labeling_pipeline.errors import ConfigurationError, HomeError
from labeling_pipeline.files import write_if_changed
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.models.cards import ModelSettings

SAMPLE_HOME = Path(".labeling/sample")
"""Home of the sample dataset, where nothing else is said."""

SAMPLE_IMAGES = SAMPLE_HOME / "dataset/images"
"""Its images."""


@dataclass(frozen=True)
class Home:
    """Where one dataset's store, results and Dagster instance lie."""

    path: Path

    @property
    def store_path(self) -> Path:
        """The DuckDB file."""
        return self.path / "annotations.duckdb"

    @property
    def results(self) -> Path:
        """Per class: JSON and pictures."""
        return self.path / "auto_labeling_results"

    @property
    def reports(self) -> Path:
        """Evaluation figures and the annotation report."""
        return self.path / "reports"

    @property
    def dagster(self) -> Path:
        """DAGSTER_HOME of this dataset."""
        return self.path / "dagster"

    def claim(self, source: ImageSource) -> None:
        """Bind this home to a folder or URL of images on first use.

        Raises:
            HomeError: it belongs to another one; names the fix.
            ConfigurationError: it is meant to be a folder and is none.
        """
        folder = source.folder
        if folder is not None and not folder.is_dir():
            raise ConfigurationError(
                f"{folder}: expected a folder of images, found "
                f"{'a file' if folder.exists() else 'nothing'}; set LABELING_IMAGES, or write "
                "the sample dataset with `make demo`"
            )
        record = self.path / "home.json"
        if record.is_file():
            owner = json.loads(record.read_text(encoding="utf-8"))["image_root"]
            if owner != source.root:
                raise HomeError(
                    f"{self.path} holds the labels of {owner}, not of {source.root}: choose "
                    f"another home (LABELING_HOME), or delete {record} if the images were moved"
                )
            return
        write_if_changed(record, json.dumps({"image_root": source.root}).encode())

    def prepare_dagster(self, config: Path) -> Path:
        """Make DAGSTER_HOME with our instance configuration; returns it."""
        write_if_changed(self.dagster / "dagster.yaml", config.read_bytes())
        return self.dagster.resolve()


def home_for(source: ImageSource, base: Path = Path(".labeling")) -> Home:
    """The default home of a folder or URL of images: ``<base>/<its name>-<hash of all of it>``."""
    digest = hashlib.sha256(source.root.encode()).hexdigest()[:6]
    return Home(base / f"{source.name}-{digest}")


@dataclass(frozen=True)
class Environment:
    """The LABELING_* variables; they beat the plan.

    images: a folder or URL. images, model: ``None`` if not set. settings: what is set of the
        model settings, by field: LABELING_DEVICE, LABELING_MAX_PIXELS and so on.
    """

    home: Path
    plan: Path
    images: str | Path | None
    model: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, repository: Path) -> "Environment":
        """Relative defaults are taken from the repository, so that any working folder will do.

        Raises:
            ConfigurationError: a value that cannot be; names the variable.
        """

        def get(name: str) -> str | None:
            return os.environ.get(f"LABELING_{name.upper()}") or None

        home = Path(get("HOME") or repository / SAMPLE_HOME)
        return cls(
            home=home,
            plan=Path(get("PLAN") or repository / "plans/sample.yaml"),
            images=get("IMAGES"),
            model=get("MODEL"),
            settings=_settings({f: value for f in ModelSettings.model_fields if (value := get(f))}),
        )


def _settings(texts: dict[str, str]) -> dict[str, Any]:
    """Texts of the environment, by field -> checked values."""
    try:
        settings = ModelSettings.model_validate(texts)
    except ValidationError as error:
        problems = "; ".join(
            f"LABELING_{str(p['loc'][0]).upper()}: {p['msg']}, got {p['input']!r}"
            for p in error.errors()
        )
        raise ConfigurationError(f"the environment is not valid: {problems}") from None
    return settings.model_dump(include=set(texts))
