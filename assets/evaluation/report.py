"""``annotation_report``: one page over everything."""

from datetime import UTC, datetime

import dagster as dg

from assets.evaluation.upstream import EVALUATION, WHEN_LABELS_ARE_IN, every_class_of, labels_of
from assets.metadata import frame_table, table
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.classes import class_table
from labeling_pipeline.reporting.report import headline_rows, write_report
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource


def build_report_asset(plan: Plan) -> dg.AssetsDefinition:
    """The asset, made after all other evaluations."""

    @dg.asset(
        deps=[
            *labels_of(plan.entries),
            every_class_of("visualizations"),
            "har_evaluation",
            "detection_evaluation",
            "calibration",
            "model_agreement",
            "audit_sample",
            "model_drift",
            "review_queue",
        ],
        group_name=EVALUATION,
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"html"},
        description="One self-contained HTML page over everything: open it in a browser.",
    )
    def annotation_report(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        effective = vision_model.applied_to(plan)
        home = annotation_store.at()
        written = write_report(
            annotation_store.open(), effective, image_source.open(), home, datetime.now(UTC)
        )
        context.add_output_metadata(
            {
                "report": dg.MetadataValue.path(written.page.resolve()),
                "all_reports": dg.MetadataValue.path(written.index.resolve()),
                "numbers": table(headline_rows(written)),
                "classes": frame_table(class_table(annotation_store.open(), effective)),
            }
        )

    return annotation_report
