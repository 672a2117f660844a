"""The annotation store as a Dagster resource."""

from pathlib import Path

import dagster as dg

from labeling_pipeline.home import Home
from labeling_pipeline.store.annotation_store import AnnotationStore


class AnnotationStoreResource(dg.ConfigurableResource):
    """A home: the store of one dataset and the folder its results go to."""

    home: str

    def at(self) -> Home:
        """The home."""
        return Home(Path(self.home))

    def open(self) -> AnnotationStore:
        """The store; opens the file only while it is read or written."""
        return AnnotationStore(self.at().store_path)
