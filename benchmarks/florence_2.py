"""The tiny Florence-2: batches of eight against one by one, of one task and of all in turns.

A batch takes as many steps as its longest answer, so the more alike its questions are the better.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.florence2_protocol import TASKS
from labeling_pipeline.models.registry import load_model
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.tasks import RULES, Request, Task

_QUESTIONS = 96
_SEEDS = 4  # a namespace of its own, see labeling_pipeline.sample.scenes


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (questions, rate, ratio to one by one)."""
    model = load_model("tiny-florence-2", ModelSettings(device="cpu"))
    for name, tasks in (("objects", [Task.OBJECT_DETECTION]), ("all tasks in turns", TASKS)):
        requests = [_request(number, tasks) for number in range(_QUESTIONS)]
        model.generate(requests[:1])
        alone = None
        for size in (1, 8):
            started = time.perf_counter()
            for first in range(0, len(requests), size):
                model.generate(requests[first : first + size])
            rate = len(requests) / (time.perf_counter() - started)
            alone = alone or rate
            yield f"{name}, {size} at once", f"{rate:.1f}/s", f"{rate / alone:.2f}"


def _request(number: int, tasks: Sequence[Task]) -> Request:
    task = tasks[number % len(tasks)]
    scene = draw_scene(np.random.default_rng([_SEEDS, number]), 320, 240)
    boxes = tuple(tuple(map(float, o.bbox_px)) for o in scene.objects)
    return Request(
        scene.image,
        task,
        (RULES[task].default_label or "a circle",),
        reference_boxes=boxes[:1] if RULES[task].needs_references else (),
    )
