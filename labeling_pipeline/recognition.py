"""Zero-shot recognition: which of some labels an image shows, by the presence of each.

All candidates are asked in one detection prompt. The presence of a label is 1 - P(None) where its
boxes would begin: it is measured while the answer is written. Presences are normalised over the
candidates.

A score says which of the candidates it is rather than another, not whether it is any of them: for
that read the presences of a detection. Labels should exclude one another.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from labeling_pipeline.annotations import LabelAnswer, ParsedAnswer, State
from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import EMBEDDED, load_model, require_task
from labeling_pipeline.tasks import Request, Task


def score_labels(
    image: np.ndarray, labels: Sequence[str], model: Model | None = None
) -> dict[str, float]:
    """The score of every label, in their order; they sum to 1.

    All are 0 where the model is certain that it sees none of them. A label that a whole answer
    passes over scores 0. One that an answer did not come to, because it was cut or went in circles,
    is not known: NaN, and the others sum to 1.

    image: (height, width, 3) uint8 RGB, upright.
    model: the embedded one if none is given.

    Raises:
        ConfigurationError: no label, a label twice, a label that the model must not be asked, or
            a model that cannot detect.
        ModelError: the model could not be loaded.
    """
    return next(score_images([image], labels, model))


def score_images(
    images: Iterable[np.ndarray], labels: Sequence[str], model: Model | None = None
) -> Iterator[dict[str, float]]:
    """``score_labels`` of each image, in batches; images are taken as they are needed.

    Raises:
        ConfigurationError: as for ``score_labels``, before any image is taken.
        ModelError: the model could not be loaded.
    """
    if model is None:
        model = load_model(EMBEDDED, ModelSettings.model_validate({}))
    asked = tuple(labels)
    _check(asked, model)
    return _score(iter(images), asked, model)


def _check(labels: tuple[str, ...], model: Model) -> None:
    require_task(model.card, Task.DETECTION)
    if not labels:
        raise ConfigurationError("there is nothing to recognize: expected labels, got none")
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise ConfigurationError(f"each label is scored once, but given twice: {', '.join(twice)}")
    reasons = [reason for label in labels if (reason := model.why_unsupported(label))]
    if reasons:
        raise ConfigurationError("; ".join(reasons))


def _score(
    images: Iterator[np.ndarray], labels: tuple[str, ...], model: Model
) -> Iterator[dict[str, float]]:
    while batch := list(islice(images, model.batch_limit.images)):
        requests = [Request(image, Task.DETECTION, labels) for image in batch]
        for request, generation in zip(requests, model.generate(requests), strict=True):
            yield _normalised(model.parse(generation, request.task, labels, request.size_px))


def _normalised(answer: ParsedAnswer) -> dict[str, float]:
    presences = {label: _presence(said) for label, said in answer.labels.items()}
    # Where all are 0 there is nothing to share out.
    total = np.nansum(list(presences.values())) or 1.0
    return {label: float(presence / total) for label, presence in presences.items()}


def _presence(said: LabelAnswer) -> float:
    if said.presence is not None:
        return said.presence
    return 0.0 if said.state is State.NOT_MENTIONED else float("nan")
