"""The partitions of this pipeline, in a module of their own so that nothing imports in a circle."""

import dagster as dg

CLASSES = dg.DynamicPartitionsDefinition(name="class")
"""One partition per class; raw_images registers them."""
