"""Scores a tiny checkpoint on held-out scenes, through the library's own adapter and evaluation.

    python -m training.rex_omni.evaluate
    python -m training.rex_omni.evaluate --model some/checkpoint/folder

Every number comes from pictures that training cannot have seen: their seeds are in a namespace of
their own (see ``labeling_pipeline.sample.scenes``) and frozen in ``heldout_seeds.txt``.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from labeling_pipeline.annotations import LabelAnswer, ParsedAnswer
from labeling_pipeline.asking.questions import Answered, Question
from labeling_pipeline.asking.rounds import conclude, first_questions, second_questions
from labeling_pipeline.evaluation.detection import DetectionEvaluation, evaluate_detection
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.keypoints import evaluate_keypoints
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import EMBEDDED, load_model
from labeling_pipeline.plan import Entry, Group
from labeling_pipeline.sample.scenes import (
    PERSON_KEYPOINTS,
    POSTURE_LABELS,
    Scene,
    SceneObject,
    draw_scene,
)
from labeling_pipeline.tasks import PERSON, Request, Task
from training.rex_omni.data import is_called
from training.rex_omni.tokenizer import BASE_LABELS, LABELS

HELDOUT_SEEDS = 2  # the namespace, see labeling_pipeline.sample.scenes
SEEDS_FILE = Path(__file__).with_name("heldout_seeds.txt")

Size = tuple[int, int]  # width, height, pixels

SQUARE: tuple[Size, ...] = ((320, 320), (168, 168))
MIXED: tuple[Size, ...] = ((400, 300), (240, 320), (320, 180), (196, 140), (112, 196))
ODD: tuple[Size, ...] = ((480, 200), (160, 400))  # over the card's aspect limit: padded

POSTURE_GROUP = tuple(POSTURE_LABELS.values())


@dataclass(frozen=True)
class Asked:
    """One question about one held-out scene, and its answer."""

    image_id: str
    scene: Scene
    labels: tuple[str, ...]
    answer: ParsedAnswer


class HeldOut:
    """Held-out scenes, and a model to ask about them."""

    def __init__(self, model: Model, batch_size: int):
        self._model = model
        self._batch_size = batch_size
        self._seeds = [int(line) for line in SEEDS_FILE.read_text().split()]

    def ask(
        self,
        n: int,
        sizes: Sequence[Size],
        labels: Sequence[str] | Callable[[Scene, int], Sequence[str]],
        kinds: Sequence[str] | None = None,
        task: Task = Task.DETECTION,
    ) -> list[Asked]:
        """Ask one question about each of the first `n` held-out scenes.

        Args:
            n: number of scenes, at most 600.
            sizes: sizes of the pictures, taken in turns.
            labels: what to ask for, or a function of the scene and its number.
            kinds: what to draw, see `draw_scene`.
            task: detection, or keypoints of people.
        """
        skeleton = PERSON if task is Task.KEYPOINT else None
        asked = []
        for numbers in _chunks(range(n), self._batch_size):
            scenes = [self._scene(i, sizes[i % len(sizes)], kinds) for i in numbers]
            wanted = [
                tuple(labels(scene, i) if callable(labels) else labels)
                for scene, i in zip(scenes, numbers, strict=True)
            ]
            requests = [
                Request(scene.image, task, names, skeleton)
                for scene, names in zip(scenes, wanted, strict=True)
            ]
            generations = self._model.generate(requests)
            for i, request, generation, scene in zip(
                numbers, requests, generations, scenes, strict=True
            ):
                answer = self._model.parse(
                    generation, task, request.labels, request.size_px, skeleton
                )
                asked.append(Asked(f"{i:03d}", scene, request.labels, answer))
        return asked

    def ask_top_down(self, n: int, sizes: Sequence[Size], kinds: Sequence[str]) -> list[Asked]:
        """The keypoints of people, asked for as a ``top_down`` entry does."""
        entry = Entry(name="pose", task=Task.KEYPOINT, top_down=True)
        group = Group(("person",), {"person": "person"}, request_hash="")
        scenes = [self._scene(i, sizes[i % len(sizes)], kinds) for i in range(n)]
        answered: list[list[Answered]] = [[] for _ in scenes]
        for ask_for in (
            lambda i: first_questions(entry, group, _size(scenes[i])),
            lambda i: second_questions(entry, group, answered[i], _size(scenes[i])),
        ):
            asked = [(i, question) for i in range(n) for question in ask_for(i)]
            for (i, question), read in zip(asked, self._answers(scenes, asked), strict=True):
                answered[i].append(Answered(question, read))
        concluded = [
            conclude(entry, group, rounds, _size(scene)).labels
            for scene, rounds in zip(scenes, answered, strict=True)
        ]
        return [
            Asked(
                f"{i:03d}",
                scene,
                group.labels,
                ParsedAnswer({label: said.answer for label, said in labels.items()}),
            )
            for i, (scene, labels) in enumerate(zip(scenes, concluded, strict=True))
        ]

    def _answers(
        self, scenes: Sequence[Scene], asked: Sequence[tuple[int, Question]]
    ) -> Iterator[ParsedAnswer]:
        """Answers to questions about scenes by number, in pixels of the whole scene."""
        for chunk in _chunks(range(len(asked)), self._batch_size):
            requests, corners = [], []
            for i, question in (asked[k] for k in chunk):
                x0, y0, x1, y1 = question.crop_px or (0, 0, *_size(scenes[i]))
                skeleton = PERSON if question.task is Task.KEYPOINT else None
                image = np.ascontiguousarray(scenes[i].image[y0:y1, x0:x1])
                requests.append(Request(image, question.task, question.labels, skeleton))
                corners.append((x0, y0))
            for request, corner, generation in zip(
                requests, corners, self._model.generate(requests), strict=True
            ):
                yield self._model.parse(
                    generation, request.task, request.labels, request.size_px, request.skeleton
                ).moved(*corner)

    def _scene(self, number: int, size: Size, kinds: Sequence[str] | None) -> Scene:
        """The scene of a seed; drawn again, differently, until everything wanted found a place."""
        rng = np.random.default_rng([HELDOUT_SEEDS, self._seeds[number], *size])
        while True:
            scene = draw_scene(rng, *size, kinds)
            if scene.objects and (kinds is None or len(scene.objects) == len(kinds)):
                return scene


def _size(scene: Scene) -> Size:
    return scene.image.shape[1], scene.image.shape[0]


def _chunks(numbers: range, size: int) -> Iterator[range]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def detection(asked: Sequence[Asked], score: str = "window_mass") -> DetectionEvaluation:
    """Judge the boxes of detection answers, ranked by one of the token scores."""
    predictions = [
        (one.image_id, label, getattr(found.token_scores, score, None), *found.bbox)
        for one in asked
        for label, answer in one.answer.labels.items()
        for found in answer.annotations
        if found.bbox is not None
    ]
    truths = [
        (one.image_id, label, *thing.bbox_px)
        for one in asked
        for thing in one.scene.objects
        for label in LABELS
        if is_called(thing, label)
    ]
    pairs = [(one.image_id, label) for one in asked for label in one.labels]
    return evaluate_detection(
        pd.DataFrame(predictions, columns=["image_id", "label", "score", *BOX_COLUMNS]),
        pd.DataFrame(truths, columns=["image_id", "label", *BOX_COLUMNS]),
        pd.DataFrame(pairs, columns=["image_id", "label"]),
    )


def detection_rows(name: str, asked: Sequence[Asked]) -> dict[str, float]:
    """F1 at two overlaps."""
    by_threshold = detection(asked).by_threshold
    return {
        f"{name}, F1 at IoU 0.5": by_threshold[0.5].f1 or 0.0,
        f"{name}, F1 at IoU 0.75": by_threshold[0.75].f1 or 0.0,
    }


def keypoint_rows(name: str, asked: Sequence[Asked]) -> dict[str, float]:
    """PCK over all true people, found or not, and how sound the answers are."""
    predictions, truths = [], []
    right_count = 0
    for one in asked:
        people = [o for o in one.scene.objects if o.keypoints_px is not None]
        found = one.answer.labels["person"].annotations
        right_count += len(found) == len(people)
        predictions += [(one.image_id, f.score, *(f.bbox or ()), f.keypoints) for f in found]
        for instance, person in enumerate(people):
            truths += _true_points(one.image_id, f"{one.image_id}-{instance}", person)
    evaluation = evaluate_keypoints(
        pd.DataFrame(predictions, columns=["image_id", "score", *BOX_COLUMNS, "keypoints"]),
        pd.DataFrame(
            truths,
            columns=["image_id", "instance", *BOX_COLUMNS, "name", "x_px", "y_px", "visibility"],
        ),
        pd.DataFrame({"image_id": [one.image_id for one in asked]}),
    )
    return {
        f"{name}, PCK@0.1": evaluation.correct / (evaluation.persons * len(PERSON_KEYPOINTS)),
        f"{name}, people found": evaluation.matched / evaluation.persons,
        f"{name}, right number of people": right_count / len(asked),
        f"{name}, answer complete": float(np.mean([one.answer.complete for one in asked])),
    }


def _true_points(image_id: str, instance: str, person: SceneObject) -> list[tuple]:
    assert person.keypoints_px is not None
    return [
        (image_id, instance, *person.bbox_px, name, x, y, 2)
        for name, (x, y) in zip(PERSON_KEYPOINTS, person.keypoints_px, strict=True)
    ]


def posture_by_presence(asked: Sequence[Asked]) -> float:
    """Share of lone people whose own posture's label has the highest presence."""

    def presence(item: tuple[str, LabelAnswer]) -> float:
        return item[1].presence or 0.0

    right = []
    for one in asked:
        guess, _ = max(one.answer.labels.items(), key=presence)
        right.append(is_called(one.scene.objects[0], guess))
    return float(np.mean(right))


def false_box_rate(asked: Sequence[Asked]) -> float:
    """Share of the asked labels that are absent and got a box all the same."""
    evaluation = detection(asked)
    return evaluation.absent_with_boxes / evaluation.absent


def score_auroc(asked: Sequence[Asked], score: str) -> float:
    """How well a token score tells right boxes (IoU 0.5) from wrong ones; 0.5 is chance."""
    matches = detection(asked, score).matches
    if matches["correct"].nunique() < 2:
        return float("nan")
    return float(roc_auc_score(matches["correct"], matches["score"]))


def absent_label(scene: Scene, number: int) -> tuple[str]:
    """A base label that the scene does not show, another one from scene to scene."""
    absent = [x for x in BASE_LABELS if not any(is_called(o, x) for o in scene.objects)]
    return (absent[number % len(absent)],)


def scores(held_out: HeldOut) -> dict[str, float]:
    """All scores by name, in the order of the table."""
    rows: dict[str, float] = {}
    square = held_out.ask(600, SQUARE, BASE_LABELS)
    mixed = held_out.ask(600, MIXED, BASE_LABELS)
    ten = held_out.ask(300, SQUARE, LABELS)
    rows |= detection_rows("five labels, square", square)
    rows |= detection_rows("five labels, mixed aspect", mixed)
    rows |= detection_rows("five labels, padded", held_out.ask(200, ODD, BASE_LABELS))
    rows |= detection_rows("ten labels in one prompt", ten)

    lone = held_out.ask(300, SQUARE, POSTURE_GROUP, ["person"])
    rows["posture of a lone person, by presence"] = posture_by_presence(lone)
    company = held_out.ask(200, SQUARE, POSTURE_GROUP, ["person", "person", "star"])
    rows |= detection_rows("postures of two people", company)

    for people in (1, 2):
        asked = held_out.ask(
            200, (*SQUARE, (400, 300)), ["person"], ["person"] * people, Task.KEYPOINT
        )
        rows |= keypoint_rows(f"keypoints of {people}", asked)
        looked_again = held_out.ask_top_down(200, (*SQUARE, (400, 300)), ["person"] * people)
        top_down = keypoint_rows(f"keypoints of {people}, top-down", looked_again)
        rows |= {name: score for name, score in top_down.items() if name.endswith("PCK@0.1")}
    nobody = held_out.ask(100, SQUARE, ["person"], ("circle", "star"), Task.KEYPOINT)
    empty = [one.answer.complete and not one.answer.labels["person"].annotations for one in nobody]
    rows["keypoints of nobody, empty answer"] = float(np.mean(empty))

    rows["false boxes on absent labels, asked alone"] = false_box_rate(
        held_out.ask(300, SQUARE, absent_label)
    )
    rows["false boxes on absent labels, in a group"] = false_box_rate(square)
    rows["false boxes on absent labels, ten together"] = false_box_rate(ten)
    for score in ("window_mass", "geometric_mean"):
        rows[f"AUROC of {score}, right against wrong"] = score_auroc([*square, *mixed], score)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=EMBEDDED, help="a registered name or a folder")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    held_out = HeldOut(load_model(options.model, ModelSettings(device="cpu")), options.batch_size)
    rows = scores(held_out)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value:.3f}")


if __name__ == "__main__":
    main()
