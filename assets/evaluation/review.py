"""``review_queue``: which images a person should look at first."""

import dagster as dg

from assets.evaluation.upstream import EVALUATION, WHEN_LABELS_ARE_IN, labels_of
from assets.metadata import frame_table, picture, png
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.agreement import measure_agreement
from labeling_pipeline.reporting.drift import measure_drift
from labeling_pipeline.reporting.figures import write_figures
from labeling_pipeline.reporting.review import (
    draw_queue,
    measure_review,
    review_figures,
    review_sheet,
    write_review,
)
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource


def build_review_asset(plan: Plan) -> dg.AssetsDefinition:
    """The asset."""

    @dg.asset(
        deps=[*labels_of(plan.entries), "model_agreement", "model_drift"],
        group_name=EVALUATION,
        automation_condition=WHEN_LABELS_ARE_IN,
        kinds={"csv", "jpeg"},
        description=(
            "Images in the order of the errors to be expected on them, with the reasons; without "
            "those that people have corrected, audited or marked as reviewed."
        ),
    )
    def review_queue(
        context: dg.AssetExecutionContext,
        annotation_store: AnnotationStoreResource,
        image_source: ImageSourceResource,
        vision_model: VisionModelResource,
    ) -> None:
        store, reports = annotation_store.open(), annotation_store.at().reports
        effective = vision_model.applied_to(plan)
        agreement, drift = measure_agreement(store, effective), measure_drift(store, effective)
        review = measure_review(store, effective, reports, agreement, drift.measured)
        folder = reports / "review"
        write_review(folder, review)
        drawn = draw_queue(review, image_source.open(), folder / "pictures")
        figures = review_figures(review.queue)
        write_figures(folder, figures)
        sheet = review_sheet(review, folder)
        shown = ["rank", "path", "classes", "expected_errors", "reasons"]
        context.add_output_metadata(
            {
                "images": review.queue.total,
                "worth_a_look": review.queue.worth_a_look,
                "settled_by_people": review.queue.settled,
                "expected_errors": round(review.queue.expected_errors, 1),
                "look_at_first": frame_table(review.table[shown]),
                "drawn": drawn,
                "queue": dg.MetadataValue.path((folder / "queue.csv").resolve()),
                **{name: png(data) for name, data in figures.items()},
                **({"pictures": picture(sheet)} if sheet is not None else {}),
            }
        )

    return review_queue
