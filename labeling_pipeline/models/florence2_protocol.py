"""How Florence-2 is asked and how its answers are read, as pure functions.

Source: the prompts and the output formats of ``Florence2Processor`` in transformers, published with
florence-community/Florence-2-base.

Coordinates are the 1000 tokens ``<loc_0>`` .. ``<loc_999>``, relative to the frame: a bin b stands
for the pixel ``(b + 0.5) / 1000 * size``, a pixel x for the bin ``floor(x / size * 1000)``.
"""

from collections.abc import Sequence

from labeling_pipeline.tasks import Task

BINS = 1000

_PROMPTS: dict[Task, str] = {
    Task.OCR: "What is the text in the image?",
    Task.OCR_POLYGON: "What is the text in the image, with regions?",
    Task.CAPTION: "What does the image describe?",
    Task.DETAILED_CAPTION: "Describe in detail what is shown in the image.",
    Task.MORE_DETAILED_CAPTION: "Describe with a paragraph what is shown in the image.",
    Task.OBJECT_DETECTION: "Locate the objects with category name in the image.",
    Task.DENSE_REGION_CAPTION: "Locate the objects in the image, with their descriptions.",
    Task.REGION_PROPOSAL: "Locate the region proposals in the image.",
    Task.DETECTION: "Locate {labels} in the image.",
    Task.PHRASE_GROUNDING: "Locate the phrases in the caption: {labels}",
    Task.REFERRING_SEGMENTATION: "Locate {labels} in the image with mask",
    Task.REGION_TO_SEGMENTATION: "What is the polygon mask of region {region}",
    Task.REGION_TO_CATEGORY: "What is the region {region}?",
    Task.REGION_TO_DESCRIPTION: "What does the region {region} describe?",
    Task.REGION_TO_OCR: "What text is in the region {region}?",
}

TASKS = tuple(_PROMPTS)


def prompt(task: Task, labels: Sequence[str], region: Sequence[int] | None = None) -> str:
    """What the model reads after the image, exactly as the published processor spells it.

    region: x0, y0, x1, y1 in bins, for the tasks about a region.
    """
    spelled = "".join(f"<loc_{b}>" for b in region) if region is not None else "{region}"
    return _PROMPTS[task].format(labels="<and>".join(labels), region=spelled)


def to_bin(value_px: float, size_px: float) -> int:
    """The bin of a pixel coordinate: ``floor(x / size * 1000)``, at most 999."""
    return int(min(max(value_px / size_px, 0.0) * BINS, BINS - 1))


def from_bin(value: int, size_px: float) -> float:
    """The pixel coordinate of a bin: ``(bin + 0.5) / 1000 * size``."""
    return (value + 0.5) / BINS * size_px
