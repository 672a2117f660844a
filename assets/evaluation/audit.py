"""``audit_sample``: what a person looks at to say how good the labels are."""

import dagster as dg

from assets.evaluation.upstream import EVALUATION, WHEN_LABELS_ARE_IN, labels_of
from assets.metadata import frame_table, png
from assets.progress import Reporter
from labeling_pipeline.evaluation.audit import audit_table
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.audit import audit_figures, audit_folder, write_audit
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource


def build_audit_asset(plan: Plan) -> dg.AssetsDefinition:
    """The asset."""

    @dg.asset(
        deps=labels_of(plan.entries),
        group_name=EVALUATION,
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"csv", "html"},
        description=(
            "A random sample of images and labels to check by hand: sheets, pictures, and what the "
            "verdicts so far say of precision and recall. Fill in a sheet, then materialize this."
        ),
    )
    def audit_sample(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        audits = write_audit(
            annotation_store.open(),
            vision_model.applied_to(plan),
            image_source.open(),
            annotation_store.at(),
            progress=Reporter(context).of("audit_sample"),
        )
        estimates = audit_table(audits)
        context.add_output_metadata(
            {
                "rows": sum(audit.rows for audit in audits),
                "to_check": sum(audit.to_check for audit in audits),
                "changed_since_checked": sum(audit.changed for audit in audits),
                "estimates": frame_table(estimates[estimates["checked"] > 0]),
                **{name: png(data) for name, data in audit_figures(audits).items()},
                "folder": dg.MetadataValue.path(audit_folder(annotation_store.at()).resolve()),
            }
        )

    return audit_sample
