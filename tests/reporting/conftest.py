import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.cleaning import clean
from labeling_pipeline.home import Home
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import Plan, parse_plan
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

WIDTHS = {"cat/a.png": 120, "cat/b.png": 130, "dog/a.png": 140, "dog/b.png": 150}


class Dataset:
    """Two images each of the classes cat and dog, of widths of their own, and what is labeled."""

    def __init__(self, images: Path, home: Path) -> None:
        self.source = open_source(images)
        self.store = AnnotationStore(home / "annotations.duckdb")
        self.home = Home(home)
        self.reports = self.home.reports
        self.widths = WIDTHS

    def ingest(self) -> None:
        update_inventory(self.store, self.source)
        clean(self.store, self.source, CleaningRules(only_flag=("near_duplicate",)))

    @property
    def ids(self) -> dict[str, str]:
        """Path -> image id."""
        rows = self.store.query("SELECT path, image_id FROM class_images").to_pylist()
        return {row["path"]: row["image_id"] for row in rows}

    def label(self, *entries: dict[str, Any], classes=("cat", "dog"), **keys: Any) -> Plan:
        """Label the classes as a plan with these entries says; returns it."""
        plan = self.plan(*entries, **keys)
        for entry in plan.entries:
            for class_slug in classes:
                label_class(self.store, plan, entry, class_slug, self.source, "run")
        return plan

    def plan(self, *entries: dict[str, Any], **keys: Any) -> Plan:
        # YAML reads JSON.
        return parse_plan(json.dumps({"entries": list(entries), **keys}))


@pytest.fixture(scope="session")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a store that has read them, which every test takes a copy of."""
    folder = tmp_path_factory.mktemp("ingested")
    for number, (path, width) in enumerate(WIDTHS.items()):
        file = folder / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        scene = draw_scene(np.random.default_rng([8, number]), width, 100)
        Image.fromarray(scene.image).save(file)
    Dataset(folder / "images", folder).ingest()
    return folder


@pytest.fixture
def dataset(ingested: Path, tmp_path: Path) -> Dataset:
    shutil.copy(ingested / "annotations.duckdb", tmp_path)
    return Dataset(ingested / "images", tmp_path)
