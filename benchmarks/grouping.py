"""Labels asked together or alone: speed, and what company does to the answers.

The ten labels of the embedded model on scenes it never saw, cut in order into groups. Distractors
are further labels of the ten that stand in the prompt and whose answers are not counted.

The tiny model proves the measurement only. That company keeps a model from seeing what is not there
is a claim about the real weights, and those want a GPU. What a tiny model saves by a group is less
than a large one does, too: its images are 36 tokens, not a thousand.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from labeling_pipeline.annotations import LabelAnswer, ParsedAnswer
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import EMBEDDED, load_model
from labeling_pipeline.sample.scenes import Scene, draw_scene
from labeling_pipeline.tasks import Request, Task
from training.rex_omni.evaluate import Asked, detection

SEEDS = 5  # the namespace, see labeling_pipeline.sample.scenes
SCENES = 64
BATCH = 8
SIDE_PX = 168
GROUPS = ((1, 0), (1, 4), (2, 0), (2, 3), (5, 0), (5, 3), (8, 0), (10, 0))
"""Labels in a group, and distractors beside them."""


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (what, rate and quality, ratio of the rate to labels asked alone)."""
    model = load_model(EMBEDDED, ModelSettings.model_validate({"batch_size": BATCH}))
    labels = model.card.vocabulary
    assert labels is not None
    scenes = [
        draw_scene(np.random.default_rng([SEEDS, number]), SIDE_PX, SIDE_PX)
        for number in range(SCENES)
    ]
    list(_ask(model, scenes[:BATCH], labels, ()))  # loads the weights
    alone = None
    for size, distractors in GROUPS:
        started = time.perf_counter()
        said: list[dict[str, LabelAnswer]] = [{} for _ in scenes]
        for group, company in _groups(labels, size, distractors):
            for of_scene, answer in zip(said, _ask(model, scenes, group, company), strict=True):
                of_scene |= {label: answer[label] for label in group}
        rate = len(scenes) * len(labels) / (time.perf_counter() - started)
        alone = alone or rate
        asked = [
            Asked(f"{number:03}", scene, labels, ParsedAnswer(of_scene))
            for number, (scene, of_scene) in enumerate(zip(scenes, said, strict=True))
        ]
        quality = detection(asked)
        false = f"{quality.absent_with_boxes} of {quality.absent} absent labels with boxes"
        what = "each label alone" if size == 1 else f"groups of {size}"
        if distractors:
            what += f" with {distractors} distractors"
        yield (
            what,
            f"{rate:.0f} labels/s, F1 {quality.by_threshold[0.5].f1 or 0.0:.3f}, {false}",
            f"{rate / alone:.2f}",
        )


def _groups(
    labels: Sequence[str], size: int, distractors: int
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Groups of labels, each with the labels that follow it, round, as distractors."""
    for start in range(0, len(labels), size):
        group = tuple(labels[start : start + size])
        others = (*labels[start + size :], *labels[:start])
        yield group, others[:distractors]


def _ask(
    model: Model, scenes: Sequence[Scene], group: tuple[str, ...], company: tuple[str, ...]
) -> Iterator[dict[str, LabelAnswer]]:
    """For every scene, label -> what was said of it."""
    for start in range(0, len(scenes), BATCH):
        requests = [
            Request(scene.image, Task.DETECTION, (*group, *company))
            for scene in scenes[start : start + BATCH]
        ]
        for request, generation in zip(requests, model.generate(requests), strict=True):
            answer = model.parse(generation, request.task, request.labels, request.size_px)
            yield answer.labels
