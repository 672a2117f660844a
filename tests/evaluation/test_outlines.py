import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from labeling_pipeline.evaluation.outlines import evaluate_outlines, mask_iou

SQUARE, HALF = [0, 0, 40, 0, 40, 40, 0, 40], [0, 0, 40, 0, 40, 20, 0, 20]


def test_areas_overlap_by_what_they_share():
    assert mask_iou([SQUARE], [SQUARE]) == 1
    assert mask_iou([SQUARE], [HALF]) == 0.5
    assert mask_iou([HALF], [HALF, [0, 20, 40, 20, 40, 40, 0, 40]]) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_overlaps_are_those_of_pycocotools_in_every_encoding(seed):
    rng = np.random.default_rng(seed)
    one, other = (rng.uniform(2, 58, 10).tolist() for _ in range(2))
    first, second = (coco_mask.merge(coco_mask.frPyObjects([a], 60, 60)) for a in (one, other))
    expected = pytest.approx(float(coco_mask.iou([first], [second], [0])[0, 0]))
    counts = [0]
    pixels = coco_mask.decode(second).ravel(order="F")
    for value, before in zip(pixels, [0, *pixels[:-1]], strict=True):
        if value != before:
            counts.append(0)
        counts[-1] += 1
    assert mask_iou([one], [other]) == expected
    assert mask_iou([one], {"size": [60, 60], "counts": second["counts"].decode()}) == expected
    assert mask_iou([one], {"size": [60, 60], "counts": counts}) == expected


def corners(outline):
    return [{"x_px": x, "y_px": y} for x, y in zip(outline[::2], outline[1::2], strict=True)]


def test_of_right_outlines_the_areas_are_compared():
    box = ["x0_px", "y0_px", "x1_px", "y1_px"]
    found = pd.DataFrame(
        [
            ("a", "cat", 0.9, 0, 0, 40, 40, corners([0, 0, 40, 0, 40, 40])),
            ("a", "cat", 0.8, 100, 100, 140, 140, corners(SQUARE)),
            ("b", "cat", 0.8, 0, 0, 40, 40, None),
        ],
        columns=["image_id", "label", "score", *box, "polygon"],
    )
    true = pd.DataFrame(
        [("a", "cat", 0, 0, 40, 40, [SQUARE]), ("b", "cat", 0, 0, 40, 40, [SQUARE])],
        columns=["image_id", "label", *box, "segmentation"],
    )
    asked = pd.DataFrame({"image_id": ["a", "b"], "label": "cat"})
    evaluation = evaluate_outlines(found, true, asked)
    assert evaluation.compared == 1
    assert evaluation.mask_iou == pytest.approx(0.5, abs=0.02)
    nothing = evaluate_outlines(found, true.assign(segmentation=None), asked)
    assert (nothing.compared, nothing.mask_iou) == (0, None)
