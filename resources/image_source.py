"""The image root as a Dagster resource."""

from pathlib import Path

import dagster as dg


class ImageSourceResource(dg.ConfigurableResource):
    """The folder that holds one sub-folder of images per class."""

    root: str

    def path(self) -> Path:
        """The image root, absolute."""
        return Path(self.root).resolve()
