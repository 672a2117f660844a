"""A question from outside, asked as the pipeline asks it: the same prompts, rounds and conclusions.

What is asked is an entry of a plan in all but name, so one label gets the same prompt here as there
and its answer the same reading.
"""

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labeling_pipeline.annotations import Box, LabelAnswer, State
from labeling_pipeline.asking.questions import Answered, Question
from labeling_pipeline.asking.rounds import conclude, first_questions, second_questions
from labeling_pipeline.errors import LabelingError, RequestError
from labeling_pipeline.labeling import read_answer, request_of
from labeling_pipeline.models.base import Model
from labeling_pipeline.plan import Entry, Group, entry_requests
from labeling_pipeline.service.batching import Batcher, all_of
from labeling_pipeline.service.serving import Service, public_name
from labeling_pipeline.tasks import RULES, Task

_REFERENCED = "object"
"""What is found by its looks is called so, where nothing else is said."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Query:
    """What is asked of every image of a request.

    labels: in the order of asking. unsupported: label -> why it is not asked.
    boxes: xyxy in pixels, of tasks that are about given boxes.
    """

    model_name: str
    model: Model
    entry: Entry
    labels: tuple[str, ...]
    groups: tuple[Group, ...]
    unsupported: dict[str, str]
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What came of one image. labels: one for every label asked. dropped: see ``ParsedAnswer``."""

    labels: dict[str, LabelAnswer]
    dropped: tuple[str, ...]


def make_query(
    service: Service,
    task: Task,
    *,
    model: str = "",
    categories: Sequence[str] = (),
    keypoints: str = "person",
    boxes: Sequence[Box] = (),
) -> Query:
    """Decide what is asked, of which model.

    Raises:
        RequestError: something is missing, or no model can do it; status 422.
    """
    rule = RULES[task]
    name, adapter = service.model_for(task, model)
    if rule.needs_references and not boxes:
        raise RequestError(
            422, f"{task} is about boxes: give some as visual_prompt_boxes, [[x0, y0, x1, y1]]"
        )
    if boxes and not rule.needs_references:
        raise RequestError(422, f"{task} takes no visual_prompt_boxes: leave them out")
    default = rule.default_label or (_REFERENCED if rule.needs_references else None)
    named = [unicodedata.normalize("NFC", category) for category in categories]
    labels = tuple(dict.fromkeys(named)) or ((default,) if default else ())
    if not labels:
        raise RequestError(
            422, f"{task} wants to know what to look for: give categories, separated by commas"
        )
    entry = Entry.model_validate(
        {
            "name": "request",
            "task": task,
            "ask": {label: label for label in labels},
            "keypoints": keypoints,
        }
    )
    classes = {str(number): label for number, label in enumerate(labels)}
    requests = entry_requests(entry, classes, adapter)
    unsupported = {
        label: _reason(reason, adapter) for label, reason in requests.unsupported.values()
    }
    if not requests.groups:
        raise RequestError(422, "; ".join(unsupported.values()))
    return Query(name, adapter, entry, labels, requests.groups, unsupported, tuple(boxes))


def _reason(reason: str, model: Model) -> str:
    """Why a label is not asked, in words for a caller who has no plan to change.

    What the model calls itself may be where it lies.
    """
    fact, _, _ = reason.rpartition(": ")
    fact = fact.replace(model.card.name, public_name(model))
    return f"{fact}: ask for something else, or another model"


async def answer_image(batcher: Batcher, query: Query, pixels: np.ndarray) -> Reply:
    """Ask everything about one image.

    pixels: (height, width, 3) uint8 RGB.

    Raises:
        RequestError: a box lies outside of the image, or the model failed on it; status 422.
        LabelingError: the model cannot answer at all.
    """
    _check_boxes(query.boxes, pixels)
    groups = [_ask_group(batcher, query, group, pixels) for group in query.groups]
    said: dict[str, LabelAnswer] = {
        label: LabelAnswer(State.UNSUPPORTED) for label in query.unsupported
    }
    dropped: tuple[str, ...] = ()
    for one in await all_of(groups):
        said |= one.labels
        dropped += one.dropped
    return Reply({label: said[label] for label in query.labels}, dropped)


async def _ask_group(batcher: Batcher, query: Query, group: Group, pixels: np.ndarray) -> Reply:
    """One group in its two rounds."""
    size_px = (pixels.shape[1], pixels.shape[0])
    answered = await _ask(batcher, query, first_questions(query.entry, group, size_px), pixels)
    again = second_questions(query.entry, group, answered, size_px)
    answered += await _ask(batcher, query, again, pixels)
    conclusion = conclude(query.entry, group, answered, size_px)
    labels = {label: conclusion.labels[label].answer for label in group.labels}
    return Reply(labels, conclusion.dropped)


async def _ask(
    batcher: Batcher, query: Query, questions: Sequence[Question], pixels: np.ndarray
) -> list[Answered]:
    requests = [request_of(query.entry, one, pixels, query.boxes) for one in questions]
    try:
        generations = await batcher.ask(query.model_name, requests)
    except LabelingError:
        raise
    except Exception as error:  # whatever one image does to a model library
        _log.exception("%s failed on an image", query.model_name)
        raise RequestError(
            422, f"the model failed on this image ({type(error).__name__}): try another one"
        ) from error
    return [
        read_answer(query.model, query.entry, question, generation, request.size_px)
        for question, generation, request in zip(questions, generations, requests, strict=True)
    ]


def _check_boxes(boxes: Sequence[Box], pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    for x0, y0, x1, y1 in boxes:
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise RequestError(
                422,
                f"expected visual_prompt_boxes inside the image of {width} x {height} px as "
                f"[x0, y0, x1, y1] with x0 < x1 and y0 < y1, got [{x0:g}, {y0:g}, {x1:g}, {y1:g}]",
            )
