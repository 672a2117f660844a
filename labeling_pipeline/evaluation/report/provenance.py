"""Section of the report: which models answered, and the plan that asked them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labeling_pipeline.evaluation.report.data import Section


@dataclass(frozen=True)
class ModelUse:
    """Which model answered an entry. ``parameters`` is all that went into the key."""

    entry: str
    name: str
    checkpoint: str
    revision: str
    licence: str
    model_key: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_words(self) -> str:
        """The model and its key."""
        return f"{self.name} ({self.model_key})"


@dataclass(frozen=True)
class Provenance:
    """What the labels come from. plan: its text."""

    models: Sequence[ModelUse]
    plan: str


def provenance_section(models: Sequence[ModelUse], plan: str) -> Section:
    """The section."""
    return Section(
        "provenance",
        "Provenance",
        "provenance.html.j2",
        Provenance(models, plan) if models or plan else None,
        absent="Provenance: no model has been used yet.",
    )
