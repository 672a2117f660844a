"""Which model answers, and how it is loaded, as a Dagster resource."""

import dagster as dg

from labeling_pipeline.plan import Plan


class VisionModelResource(dg.ConfigurableResource):
    """Overrides of what the plan says; ``None`` leaves the plan's choice.

    Nothing loads here. The library loads a model when it is first asked and keeps it for the
    process, because Dagster sets resources up in every step, before the step holds its pool slot.
    """

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    cache_dir: str | None = None
    revision: str | None = None

    def applied_to(self, plan: Plan) -> Plan:
        """The plan with these settings."""
        return plan.with_model(
            self.model,
            device=self.device,
            dtype=self.dtype,
            cache_dir=self.cache_dir,
            revision=self.revision,
        )
