"""Label every class of every entry of a plan: a process that a test can kill at any moment.

``python labeler.py HOME IMAGES PLAN``; says "labeling" once it begins to ask.
"""

import sys
from pathlib import Path

from labeling_pipeline.asks import class_names
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import load_plan
from labeling_pipeline.store.annotation_store import AnnotationStore


def main(home: Path, images: Path, plan_file: Path) -> None:
    plan = load_plan(plan_file)
    store = AnnotationStore(Home(home).store_path)
    print("labeling", flush=True)
    for entry in plan.entries:
        for class_slug in class_names(store):
            label_class(store, plan, entry, class_slug, open_source(images), "labeler")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
