"""Which model answers, and how it is loaded, as a Dagster resource."""

from typing import Any

import dagster as dg

from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.plan import Plan


class VisionModelResource(dg.ConfigurableResource):
    """Overrides of what the plan says; ``None`` leaves the plan's choice.

    Nothing loads here. The library loads a model when it is first asked and keeps it for the
    process, because Dagster sets resources up in every step, before the step holds its pool slot.
    """

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    cache_dir: str | None = None
    revision: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None
    attention: str | None = None
    static_cache: bool | None = None
    batch_size: int | None = None

    def applied_to(self, plan: Plan) -> Plan:
        """The plan with these settings.

        Raises:
            pydantic.ValidationError: a setting that cannot be; names it and what was expected.
        """
        settings: dict[str, Any] = {
            name: getattr(self, name) for name in ModelSettings.model_fields
        }
        return plan.with_model(self.model, **settings)
