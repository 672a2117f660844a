"""Front door of the Dagster code location: the fixed assets and one asset per plan entry."""

import warnings
from pathlib import Path

import dagster as dg

from assets.annotation import build_annotation_asset
from assets.automation import build_automation
from assets.checks import build_checks
from assets.evaluation.actions import build_action_assets
from assets.evaluation.agreement import build_agreement_asset
from assets.evaluation.audit import build_audit_asset
from assets.evaluation.calibration import build_calibration_asset
from assets.evaluation.detection import build_detection_asset
from assets.evaluation.drift import build_drift_asset
from assets.evaluation.report import build_report_asset
from assets.evaluation.review import build_review_asset
from assets.ingestion import build_ingestion_assets
from assets.outputs import build_output_assets
from assets.rederivation import build_rederivation_asset
from labeling_pipeline.asks import fitted_thresholds
from labeling_pipeline.home import SAMPLE_IMAGES, Environment
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.plan import Plan, load_plan
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource

REPOSITORY = Path(__file__).resolve().parent


def build_definitions(plan: Plan, environment: Environment) -> dg.Definitions:
    """Everything Dagster needs for one plan and one home.

    Raises:
        ConfigurationError: a model that the plan names does not exist, cannot do its task, or does
            not go with the settings; or its thresholds file cannot be read.
        PlanError: a time that the plan gives cannot be.
    """
    effective = plan.with_model(environment.model, **environment.settings)
    effective.check_models()
    images = environment.images or plan.source.url or REPOSITORY / SAMPLE_IMAGES
    # What the plan names must be there.
    fitted_thresholds(effective)
    definitions = dg.Definitions(
        assets=[
            *build_ingestion_assets(plan),
            *(build_annotation_asset(plan, entry) for entry in plan.entries),
            *build_output_assets(plan),
            *build_action_assets(plan),
            build_detection_asset(plan),
            build_calibration_asset(plan),
            build_agreement_asset(plan),
            build_audit_asset(plan),
            build_drift_asset(plan),
            build_review_asset(plan),
            build_report_asset(plan),
            build_rederivation_asset(plan),
        ],
        asset_checks=build_checks(plan),
        resources={
            "annotation_store": AnnotationStoreResource(home=str(environment.home.resolve())),
            "image_source": ImageSourceResource(
                root=open_source(images).root, options=plan.source.options
            ),
            "vision_model": VisionModelResource(model=environment.model, **environment.settings),
        },
        # One process, so that a model loads once a run.
        executor=dg.in_process_executor,
    )
    return dg.Definitions.merge(definitions, build_automation(plan))


@dg.definitions
def defs() -> dg.Definitions:
    """What the environment asks for; built when Dagster loads it, so that others can import us."""
    environment = Environment.read(REPOSITORY)
    return build_definitions(load_plan(environment.plan), environment)


# Single-run backfills are in beta; what we need of them is tested here.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
