"""pycocotools, to hold our numbers against, and random boxes to hold them against on."""

import contextlib
import io

import numpy as np
import pandas as pd
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

BOX = ["x0_px", "y0_px", "x1_px", "y1_px"]


def random_boxes(seed, images=6, labels=("cat", "dog", "owl"), crowds=True, ties=False):
    """Predictions, truths and what was asked; some labels are missing on either side."""
    rng = np.random.default_rng(seed)
    found, true = [], []
    for image in map(str, range(images)):
        for label in labels:
            for _ in range(rng.integers(0, 5)):
                corner = rng.uniform(0, 200, 2)
                box = np.concatenate([corner, corner + rng.uniform(8, 160, 2)])
                true.append((image, label, *box, bool(crowds and rng.random() < 0.15)))
                for _ in range(rng.integers(0, 3)):
                    moved = np.sort((box + rng.normal(0, 6, 4)).reshape(2, 2), axis=0).ravel()
                    score = rng.integers(1, 4) / 4 if ties else rng.random()
                    found.append((image, label, *moved, score))
    columns = ["image_id", "label", *BOX]
    return (
        pd.DataFrame(found, columns=[*columns, "score"]),
        pd.DataFrame(true, columns=[*columns, "iscrowd"]),
        pd.DataFrame(
            [(str(image), label) for image in range(images) for label in labels],
            columns=["image_id", "label"],
        ),
    )


def coco_evaluation(found, true, asked, kind="bbox", found_extra=(), true_extra=()):
    """COCO's own evaluation of the same boxes, evaluated and accumulated.

    found_extra, true_extra: more keys of each annotation, a mapping a row.
    """
    images = {name: i + 1 for i, name in enumerate(asked["image_id"].unique())}
    labels = {name: i + 1 for i, name in enumerate(sorted(asked["label"].unique()))}

    def data(rows, extra, more):
        annotations = []
        for i, row in enumerate(rows.to_dict("records")):
            x0, y0, x1, y1 = (row[name] for name in BOX)
            annotations.append(
                {
                    "id": i + 1,
                    "image_id": images[row["image_id"]],
                    "category_id": labels[row["label"]],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    **{name: row[name] for name in more},
                    **(extra[i] if extra else {}),
                }
            )
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in images.values()],
            "categories": [{"id": i, "name": name} for name, i in labels.items()],
            "annotations": annotations,
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        crowd = [name for name in ("iscrowd", "area") if name in true]
        evaluation = COCOeval(
            data(true, true_extra, crowd), data(found, found_extra, ["score"]), kind
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
