"""The thresholds file: what calibration found, for people to read, keep and change, and for a plan
to name. YAML::

    version: 1
    target_precision: 0.95
    ground_truth: ../ground_truth.json
    calibrations:
      - model_key: 0123456789abcdef
        model: rex-omni
        task: detection
        boxes: 4812
        wrong: 391
        error_before: 0.412
        error_after: 0.013
        knots:
          - [0.08, 0.031]
          - [0.412, 0.52]
          - [0.77, 0.981]
    thresholds:
      - entry: object
        label: cat
        model_key: 0123456789abcdef
        threshold: 0.4312
        precision: 0.954
        interval: [0.931, 0.97]
        recall: 0.902
        kept: 604
        boxes: 671

``knots`` are pairs of a measured score and the probability that a box so scored is right, with
straight lines between them. A threshold is a measured score too. What was not calibrated, and what
got no threshold, says why under ``reason``. Only ``model_key``, ``task`` and ``knots``, and
``entry``, ``label``, ``model_key`` and ``threshold``, have an effect; the rest is for people.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from labeling_pipeline.errors import ThresholdsError
from labeling_pipeline.scores import ScoreMap
from labeling_pipeline.tasks import Task
from labeling_pipeline.yaml_files import YamlDocument, read_text

_HEAD = """\
# What the asset `calibration` found. Name this file in the plan and it holds: `thresholds: <path>`.
# It is written anew each time calibration runs: what you change, keep under another name.
"""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CalibrationItem(_Written):
    """What the scores of one model mean in one task. No knots: it was not calibrated."""

    model_key: Text
    model: str | None = None
    task: Task
    boxes: Count | None = None
    wrong: Count | None = None
    error_before: Share | None = None
    error_after: Share | None = None
    reason: str | None = None
    knots: tuple[tuple[Share, Share], ...] = ()

    @field_validator("knots")
    @classmethod
    def _check_knots(
        cls, knots: tuple[tuple[float, float], ...]
    ) -> tuple[tuple[float, float], ...]:
        if knots:
            ScoreMap.through(knots)
        return knots

    @property
    def score_map(self) -> ScoreMap | None:
        """What turns measured scores into calibrated ones."""
        return ScoreMap.through(self.knots) if self.knots else None


class ThresholdItem(_Written):
    """From which measured score on a label counts. ``None``: the entry's own threshold stays."""

    entry: Text
    label: Text
    model_key: Text
    threshold: Share | None
    precision: Share | None = None
    interval: tuple[Share, Share] | None = None
    recall: Share | None = None
    kept: Count | None = None
    boxes: Count | None = None
    reason: str | None = None


class Thresholds(_Written):
    """A whole file."""

    version: Literal[1]
    target_precision: Share | None = None
    ground_truth: str | tuple[str, ...] | None = None
    calibrations: tuple[CalibrationItem, ...] = ()
    thresholds: tuple[ThresholdItem, ...] = ()

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        keys: list[tuple[str, ...]] = [(c.task, c.model_key) for c in self.calibrations]
        keys += [(t.entry, t.label, t.model_key) for t in self.thresholds]
        twice = [key for key, times in Counter(keys).items() if times > 1]
        if twice:
            raise ValueError(
                f"expected each thing once, got {', '.join(twice[0])} more than once: drop one"
            )
        return self

    def to_yaml(self) -> str:
        """As it is written; `read_thresholds` reads it back."""
        # What says nothing is left out; that a label has no threshold says something.
        data = self.model_dump(exclude_defaults=True)
        return _HEAD + yaml.dump(
            data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
        )


def read_thresholds(path: Path) -> Thresholds:
    """Read a file.

    Raises:
        ThresholdsError: names the file, the lines, what was expected and what came.
    """
    text = read_text(path, "the thresholds that the plan names", ThresholdsError)
    document = YamlDocument(text, str(path), "version", ThresholdsError)
    return document.validated(
        Thresholds, {"calibrations": CalibrationItem, "thresholds": ThresholdItem}
    )


class _Dumper(yaml.SafeDumper):
    """Pairs of numbers stand in one line."""

    def represent_pairs(self, values: tuple[Any, ...]) -> yaml.Node:
        in_line = not any(isinstance(value, dict | tuple) for value in values)
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=in_line)


_Dumper.add_representer(tuple, _Dumper.represent_pairs)
_Dumper.add_representer(Task, lambda dumper, task: dumper.represent_str(task.value))
