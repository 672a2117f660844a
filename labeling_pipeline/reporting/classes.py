"""What came of each class."""

import pandas as pd

from labeling_pipeline.asks import current_view, model_keys
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.remembered import remembered
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.ledger import current_annotations, current_outcomes


@remembered
def class_table(store: AnnotationStore, plan: Plan) -> pd.DataFrame:
    """One row per entry x class it covers, over the class's own images.

    Columns: entry, class, display_name, label, images, annotations, mean_score, and a count for
    each state that occurs.
    """
    keys = model_keys(plan)
    outcomes = current_outcomes(store, keys)
    outcomes = outcomes[outcomes["belongs"]]
    annotations = current_annotations(store, current_view(plan), nested=False)
    annotations = annotations[annotations["belongs"]]
    group = ["entry", "class"]
    found = annotations.groupby(group).agg(
        annotations=("annotation_id", "count"), mean_score=("score", "mean")
    )
    states = outcomes.groupby([*group, "state"]).size().unstack(fill_value=0)
    names = outcomes.groupby(group).agg(
        display_name=("display_name", "first"),
        label=("label", "first"),
        images=("image_id", "nunique"),
    )
    table = names.join(found).join(states).reset_index()
    table["annotations"] = table["annotations"].fillna(0).astype(int)
    order = {entry.name: position for position, entry in enumerate(plan.entries)}
    return table.sort_values(
        ["entry", "class"], key=lambda c: c.map(order) if c.name == "entry" else c
    )
