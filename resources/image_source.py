"""Where the images lie, as a Dagster resource."""

from typing import Any

import dagster as dg

from labeling_pipeline.images.sources import ImageSource, open_source


class ImageSourceResource(dg.ConfigurableResource):
    """A folder or URL, and what fsspec takes for the URL."""

    root: str
    options: dict[str, Any] = {}  # noqa: RUF012, pydantic copies it

    def open(self) -> ImageSource:
        """The source; connects when it is first listed or read."""
        return open_source(self.root, self.options)
