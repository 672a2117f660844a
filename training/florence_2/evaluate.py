"""Scores a tiny Florence-2 on held-out pictures, through the library's own adapter and evaluation.

    python -m training.florence_2.evaluate
    python -m training.florence_2.evaluate --model some/checkpoint/folder

Every number comes from pictures that training cannot have seen: their seeds are in a namespace of
their own (see ``labeling_pipeline.sample.scenes``) and frozen in ``heldout_seeds.txt``.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score

from labeling_pipeline.annotations import Annotation, Box, ParsedAnswer
from labeling_pipeline.evaluation.detection import DetectionEvaluation, evaluate_detection
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import load_model
from labeling_pipeline.sample.scenes import SHAPES, SceneObject, draw_scene
from labeling_pipeline.tasks import Request, Task
from training.florence_2.data import absent_shapes, draw_page
from training.florence_2.export import NAME
from training.florence_2.wording import (
    BASE_LABELS,
    LABELS,
    Picture,
    Word,
    caption,
    caption_phrases,
    description,
    detailed_caption,
    more_detailed_caption,
    noun,
    outline_px,
    text_answer,
)
from training.rex_omni.data import is_called

HELDOUT_SEEDS = 2  # the namespace, see labeling_pipeline.sample.scenes
SEEDS_FILE = Path(__file__).parent.with_name("rex_omni") / "heldout_seeds.txt"

Size = tuple[int, int]  # width, height, pixels
Named = tuple[str, Box]

SQUARE: tuple[Size, ...] = ((320, 320), (160, 160))
MIXED: tuple[Size, ...] = ((400, 300), (240, 320), (320, 180), (196, 140), (112, 196))


@dataclass(frozen=True)
class Asked:
    """One question about one held-out picture, and its answer."""

    picture: Picture
    request: Request
    answer: ParsedAnswer

    @property
    def found(self) -> tuple[Annotation, ...]:
        """Everything that was answered."""
        return tuple(a for said in self.answer.labels.values() for a in said.annotations)

    @property
    def text(self) -> str:
        """All words of the answer."""
        return " ".join(a.text or "" for a in self.found)


class HeldOut:
    """Held-out pictures, and a model to ask about them."""

    def __init__(self, model: Model, batch_size: int):
        self._model = model
        self._batch_size = batch_size
        self._seeds = [int(line) for line in SEEDS_FILE.read_text().split()]

    def scenes(
        self, n: int, sizes: Sequence[Size] = SQUARE, fewest: int = 1, most: int = 3
    ) -> list[Picture]:
        """The first `n` held-out scenes, their sizes in turns, with `fewest` to `most` objects."""
        return [self._scene(i, sizes[i % len(sizes)], fewest, most) for i in range(n)]

    def _scene(self, number: int, size: Size, fewest: int, most: int) -> Picture:
        """The scene of a seed; drawn again, differently, until enough objects found a place."""
        rng = np.random.default_rng([HELDOUT_SEEDS, self._seeds[number], *size, most])
        while True:
            scene = draw_scene(rng, *size, max_objects=most)
            if fewest <= len(scene.objects) <= most:
                return Picture(scene.image, scene.objects)

    def pages(self, n: int) -> list[Picture]:
        """The first `n` held-out pages, each with a word at least."""
        pages = []
        for seed in self._seeds[:n]:
            rng = np.random.default_rng([HELDOUT_SEEDS, seed, 0])
            while not (page := draw_page(rng)).words:
                pass
            pages.append(page)
        return pages

    def ask(
        self,
        pictures: Sequence[Picture],
        task: Task,
        labels: Callable[[Picture], Sequence[str]] | None = None,
        regions: Callable[[Picture], Sequence[Box]] = lambda picture: (),
    ) -> list[Asked]:
        """Ask one question about each picture; those with nothing to ask are left out.

        Args:
            pictures: held-out ones.
            task: what to ask.
            labels: of the prompt, where the task takes any.
            regions: of the prompt, where the task takes some.
        """
        requests = []
        for picture in pictures:
            wanted = tuple(labels(picture)) if labels else ("thing",)
            boxes = tuple(regions(picture))
            if wanted and (boxes or regions(picture) == ()):
                requests.append((picture, Request(picture.image, task, wanted, None, boxes)))
        asked = []
        for start in range(0, len(requests), self._batch_size):
            batch = requests[start : start + self._batch_size]
            generations = self._model.generate([request for _, request in batch])
            for (picture, request), generation in zip(batch, generations, strict=True):
                answer = self._model.parse(generation, task, request.labels, request.size_px)
                asked.append(Asked(picture, request, answer))
        return asked


def box_of(thing: SceneObject | Word) -> Box:
    """A true box as a plain tuple."""
    x0, y0, x1, y1 = map(float, thing.bbox_px)
    return x0, y0, x1, y1


def judge(
    asked: Sequence[Asked],
    said: Callable[[Annotation], str],
    truth: Callable[[Asked], Sequence[Named]],
    score: str = "window_mass",
) -> DetectionEvaluation:
    """Judge boxes under the names that `said` gives them, ranked by one of the token scores.

    A name counts as asked on a picture if it was said or is true there.
    """
    predictions, truths, pairs = [], [], set()
    for number, one in enumerate(asked):
        image = f"{number:03d}"
        for found in one.found:
            if found.bbox is not None:
                rank = getattr(found.token_scores, score, None)
                predictions.append((image, said(found), rank, *found.bbox))
        truths += [(image, name, *box) for name, box in truth(one)]
    pairs = {(image, name) for image, name, *_ in (*predictions, *truths)}
    return evaluate_detection(
        pd.DataFrame(predictions, columns=["image_id", "label", "score", *BOX_COLUMNS]),
        pd.DataFrame(truths, columns=["image_id", "label", *BOX_COLUMNS]),
        pd.DataFrame(sorted(pairs), columns=["image_id", "label"]),
    )


def f1_rows(name: str, evaluation: DetectionEvaluation) -> dict[str, float]:
    """F1 at two overlaps."""
    return {
        f"{name}, F1 at IoU {threshold}": evaluation.by_threshold[threshold].f1 or 0.0
        for threshold in (0.5, 0.75)
    }


def _label(found: Annotation) -> str:
    return found.label


def _text(found: Annotation) -> str:
    return found.text or ""


def _labels_there(labels: Sequence[str]) -> Callable[[Asked], list[Named]]:
    return lambda one: [
        (label, box_of(o)) for label in labels for o in one.picture.objects if is_called(o, label)
    ]


def _phrases_there(one: Asked) -> list[Named]:
    return [(p.text, box_of(o)) for p in caption_phrases(one.picture) for o in p.objects]


def _descriptions_there(one: Asked) -> list[Named]:
    return [(description(one.picture, o), box_of(o)) for o in one.picture.objects]


def _words_there(one: Asked) -> list[Named]:
    return [(word.text, box_of(word)) for word in one.picture.words]


def share(asked: Sequence[Asked], right: Callable[[Asked], bool]) -> float:
    """Share of answers that are right."""
    return float(np.mean([right(one) for one in asked]))


def mean_mask_iou(asked: Sequence[Asked], truth: Callable[[Asked], Sequence[SceneObject]]) -> float:
    """Mean overlap of everything outlined with the true outlines."""
    overlaps = []
    for one in asked:
        size = one.request.size_px
        found = _mask([a.polygon for a in one.found if a.polygon], size)
        true = _mask([tuple(map(tuple, outline_px(o))) for o in truth(one)], size)
        overlaps.append((found & true).sum() / max(1, (found | true).sum()))
    return float(np.mean(overlaps))


def _mask(polygons: Sequence[Sequence[tuple[float, float]]], size: Size) -> np.ndarray:
    """(2 * height, 2 * width) bool, at twice the resolution."""
    image = Image.new("1", (2 * size[0], 2 * size[1]))
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        draw.polygon([(2 * x, 2 * y) for x, y in polygon], fill=1)
    return np.asarray(image)


def auroc(evaluation: DetectionEvaluation) -> float:
    """How well a score tells right boxes (IoU 0.5) from wrong ones; 0.5 is chance."""
    matches = evaluation.matches
    if matches["correct"].nunique() < 2:
        return float("nan")
    return float(roc_auc_score(matches["correct"], matches["score"]))


def _shape_phrase(picture: Picture) -> list[str]:
    """The first phrase of the caption that is about shapes, if there is one."""
    phrases = [p.text for p in caption_phrases(picture) if p.objects[0].label in SHAPES]
    return phrases[:1]


def _meant(one: Asked) -> tuple[SceneObject, ...]:
    (text,) = one.request.labels
    return next(p.objects for p in caption_phrases(one.picture) if p.text == text)


def _shapes(picture: Picture) -> list[SceneObject]:
    return [o for o in picture.objects if o.label in SHAPES]


def _answers_each(one: Asked, truths: Sequence[str]) -> bool:
    return [a.text for a in one.found] == list(truths)


def detection_scores(held_out: HeldOut, scenes: Sequence[Picture]) -> dict[str, float]:
    """Boxes by name, with and without names in the prompt, and how good their scores are."""
    rows: dict[str, float] = {}
    base = _labels_there(BASE_LABELS)
    by_score = {}
    for name, pictures in (
        ("object detection", scenes),
        ("object detection, 4 to 6 objects", held_out.scenes(300, SQUARE, 4, 6)),
        ("object detection, mixed aspect", held_out.scenes(300, MIXED)),
    ):
        asked = held_out.ask(pictures, Task.OBJECT_DETECTION)
        by_score[name] = asked
        rows |= f1_rows(name, judge(asked, _text, base))
    for score in ("window_mass", "geometric_mean"):
        everything = [one for asked in by_score.values() for one in asked]
        evaluation = judge(everything, _text, base, score)
        rows[f"AUROC of {score}, right against wrong"] = auroc(evaluation)
    five = held_out.ask(scenes, Task.DETECTION, lambda picture: BASE_LABELS)
    rows |= f1_rows("five labels in one prompt", judge(five, _label, base))
    ten = held_out.ask(scenes[:300], Task.DETECTION, lambda picture: LABELS)
    rows |= f1_rows("ten labels in one prompt", judge(ten, _label, _labels_there(LABELS)))
    absent = held_out.ask(
        scenes[:300],
        Task.DETECTION,
        lambda picture: [
            label for label in LABELS if not any(is_called(o, label) for o in picture.objects)
        ][:1],
    )
    rows["false boxes on absent labels, asked alone"] = share(absent, lambda one: bool(one.found))
    return rows


def caption_scores(held_out: HeldOut, scenes: Sequence[Picture]) -> dict[str, float]:
    """Captions to the letter, and what their phrases speak of."""
    rows = {}
    for task, says, pictures in (
        (Task.CAPTION, caption, scenes),
        (Task.DETAILED_CAPTION, detailed_caption, scenes[:300]),
        (Task.MORE_DETAILED_CAPTION, more_detailed_caption, scenes[:300]),
    ):
        asked = held_out.ask(pictures, task)
        rows[f"{task}, exact"] = share(
            asked,
            lambda one, says=says: one.text == says(one.picture),  # type: ignore[misc]
        )
    grounded = held_out.ask(scenes, Task.PHRASE_GROUNDING, lambda picture: [caption(picture)])
    rows |= f1_rows("phrase grounding", judge(grounded, _text, _phrases_there))
    both = held_out.ask(scenes[:300], Task.GROUNDED_CAPTION)
    rows |= f1_rows("caption and its grounding", judge(both, _text, _phrases_there))
    return rows


def region_scores(held_out: HeldOut, scenes: Sequence[Picture]) -> dict[str, float]:
    """Regions found, named and described, and outlines."""

    def every_box(picture: Picture) -> list[Box]:
        return [box_of(o) for o in picture.objects]

    proposals = held_out.ask(scenes[:300], Task.REGION_PROPOSAL)
    rows = f1_rows(
        "region proposal",
        judge(
            proposals,
            lambda found: "region",
            lambda one: [("region", box_of(o)) for o in one.picture.objects],
        ),
    )
    dense = held_out.ask(scenes[:300], Task.DENSE_REGION_CAPTION)
    rows |= f1_rows("dense region captions", judge(dense, _text, _descriptions_there))
    categories = held_out.ask(scenes[:300], Task.REGION_TO_CATEGORY, regions=every_box)
    rows["region to category"] = share(
        categories, lambda one: _answers_each(one, [o.label for o in one.picture.objects])
    )
    described = held_out.ask(scenes[:300], Task.REGION_TO_DESCRIPTION, regions=every_box)
    rows["region to description"] = share(
        described,
        lambda one: _answers_each(one, [description(one.picture, o) for o in one.picture.objects]),
    )
    rows["region to description, but for size"] = share(
        described,
        lambda one: (
            [_text(a).split(" ", 1)[-1] for a in one.found]
            == [noun(o) for o in one.picture.objects]
        ),
    )
    expressions = held_out.ask(scenes, Task.REFERRING_SEGMENTATION, _shape_phrase)
    rows["expression segmentation, mean IoU"] = mean_mask_iou(expressions, _meant)
    absent = held_out.ask(
        scenes[:300],
        Task.REFERRING_SEGMENTATION,
        lambda picture: [f"a {shape}" for shape in absent_shapes(picture)][:1],
    )
    rows["nothing outlined that is not there"] = share(absent, lambda one: not one.found)
    outlines = held_out.ask(
        [p for p in scenes if _shapes(p)][:300],
        Task.REGION_TO_SEGMENTATION,
        regions=lambda picture: [box_of(o) for o in _shapes(picture)],
    )
    rows["region to segmentation, mean IoU"] = mean_mask_iou(
        outlines, lambda one: _shapes(one.picture)
    )
    return rows


def text_scores(held_out: HeldOut, scenes: Sequence[Picture]) -> dict[str, float]:
    """Words of two to four capital letters."""
    pages = held_out.pages(300)
    rows = {
        "text of a page, exact": share(
            held_out.ask(pages, Task.OCR), lambda one: one.text == text_answer(one.picture)
        )
    }
    rows |= f1_rows(
        "words with regions", judge(held_out.ask(pages, Task.OCR_POLYGON), _text, _words_there)
    )
    regions = held_out.ask(
        pages, Task.REGION_TO_OCR, regions=lambda picture: [box_of(w) for w in picture.words]
    )
    rows["text of a region, exact"] = share(
        regions, lambda one: _answers_each(one, [w.text for w in one.picture.words])
    )
    nothing = held_out.ask(scenes[:100], Task.OCR)
    rows["no text read where there is none"] = share(nothing, lambda one: not one.found)
    return rows


def scores(held_out: HeldOut) -> dict[str, float]:
    """All scores by name, in the order of the table."""
    scenes = held_out.scenes(600)
    rows: dict[str, float] = {}
    for part in (detection_scores, caption_scores, region_scores, text_scores):
        rows |= part(held_out, scenes)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=NAME, help="a registered name or a folder")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, ModelSettings(device="cpu", batch_size=options.batch_size))
    rows = scores(HeldOut(model, options.batch_size))
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value:.3f}")


if __name__ == "__main__":
    main()
