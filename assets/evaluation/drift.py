"""``model_drift``: what another model answered otherwise."""

import dagster as dg

from assets.evaluation.upstream import EVALUATION, WHEN_LABELS_ARE_IN, labels_of
from assets.metadata import fixed, frame_table, picture, png
from labeling_pipeline.evaluation.report.drift import why_nothing_is_compared
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.drift import (
    draw_changes,
    drift_figures,
    measure_drift,
    write_drift,
)
from labeling_pipeline.reporting.figures import write_figures
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource

_BOXES = ["matched", "moved", "lost", "new"]
_OF_CLASS = ["class", "entry", "images", "changed_images", *_BOXES, "score_before", "score_now"]
_OF_IMAGE = ["path", "entry", "changes", *_BOXES, "states"]


def build_drift_asset(plan: Plan) -> dg.AssetsDefinition:
    """The asset."""

    @dg.asset(
        deps=labels_of(plan.entries),
        group_name=EVALUATION,
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"scipy", "csv"},
        description=(
            "What the models of the plan answer otherwise than the ones before them did, on the "
            "same images: boxes matched, moved, lost and new, answers that turned, scores."
        ),
    )
    def model_drift(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        report = measure_drift(annotation_store.open(), vision_model.applied_to(plan))
        folder = annotation_store.at().reports / "drift"
        write_drift(folder, report)
        if not report.before:
            context.add_output_metadata({"note": why_nothing_is_compared(report.without)})
            return
        figures = drift_figures(report.measured)
        write_figures(folder, figures)
        worst = draw_changes(report.measured, image_source.open())
        told = "\n".join(f"- {entry}: {said}" for entry, said in report.sentences.items())
        context.add_output_metadata(
            {
                "what_changed": dg.MetadataValue.md(told),
                "boxes_as_before": fixed(report.measured.share_as_before),
                "changed_images": len(report.measured.changed),
                "classes": frame_table(report.measured.per_class[_OF_CLASS]),
                "most_changed": frame_table(report.measured.changed[_OF_IMAGE]),
                "answers_that_turned": frame_table(report.turned),
                "tables": dg.MetadataValue.path(folder.resolve()),
                **{name: png(data) for name, data in figures.items()},
                **({"pictures": picture(worst)} if worst is not None else {}),
            }
        )

    return model_drift
