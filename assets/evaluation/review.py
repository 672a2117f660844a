"""``review_queue``: which images a person should look at first."""

import dagster as dg

from assets.evaluation.upstream import EVALUATION, WHEN_LABELS_ARE_IN, labels_of
from assets.metadata import frame_table, picture, png
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.figures import write_figures
from labeling_pipeline.reporting.review import make_queue, review_figures, review_sheet
from labeling_pipeline.reporting.settled import review_folder
from resources.annotation_store import AnnotationStoreResource
from resources.image_source import ImageSourceResource
from resources.vision_model import VisionModelResource

_LONGEST_REASONS = 110


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
        home = annotation_store.at()
        folder = review_folder(home)
        review, drawn = make_queue(
            annotation_store.open(), vision_model.applied_to(plan), image_source.open(), home
        )
        figures = review_figures(review.queue)
        write_figures(folder, figures)
        sheet = review_sheet(review, folder)
        shown = review.table[["rank", "path", "classes", "expected_errors", "reasons"]]
        shown = shown.assign(reasons=shown["reasons"].str.slice(stop=_LONGEST_REASONS))
        context.add_output_metadata(
            {
                "images": review.queue.total,
                "worth_a_look": review.queue.worth_a_look,
                "settled_by_people": review.queue.settled,
                "expected_errors": round(review.queue.expected_errors, 1),
                "look_at_first": frame_table(shown),
                "drawn": drawn,
                "queue": dg.MetadataValue.path((folder / "queue.csv").resolve()),
                **{name: png(data) for name, data in figures.items()},
                **({"pictures": picture(sheet)} if sheet is not None else {}),
            }
        )

    return review_queue
