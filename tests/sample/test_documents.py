from itertools import pairwise

import numpy as np
import pytest

from labeling_pipeline.drawing import CJK_FONT, font_files
from labeling_pipeline.sample.documents import CHINESE, JAPANESE, LATIN, draw_page

POOLS = [LATIN, CHINESE, JAPANESE]
IDS = ["Latin script", "Chinese", "Japanese"]


@pytest.mark.parametrize("texts", POOLS, ids=IDS)
def test_a_page_says_where_each_of_its_texts_stands(texts):
    for seed in range(10):
        page = draw_page(np.random.default_rng(seed), texts)
        assert {line.text for line in page.lines} <= set(texts)
        assert len({line.text for line in page.lines}) == len(page.lines) >= 4
        paper = page.image[0, 0].astype(int)
        written = np.abs(page.image.astype(int) - paper).sum(axis=2) > 60
        for line in page.lines:
            x0, y0, x1, y1 = line.bbox_px.astype(int)
            inside = written[y0:y1, x0:x1]
            columns, rows = inside.any(axis=0), inside.any(axis=1)
            # The outermost pixels may be too faint to count.
            assert all(ink.any() for ink in (columns[:2], columns[-2:], rows[:2], rows[-2:]))
            assert not written[y0:y1, :x0].any()
            assert not written[y0:y1, x1:].any()


@pytest.mark.parametrize("texts", POOLS, ids=IDS)
def test_texts_do_not_touch_each_other(texts):
    for seed in range(10):
        boxes = [line.bbox_px for line in draw_page(np.random.default_rng(seed), texts).lines]
        for above, below in pairwise(boxes):
            assert above[3] < below[1]


def test_the_same_generator_draws_the_same_page():
    one, two = (draw_page(np.random.default_rng(7), CHINESE) for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)


@pytest.mark.parametrize("text", [*CHINESE, *JAPANESE])
def test_the_font_of_the_package_has_every_character_of_the_pages(text: str):
    """So pages and their pictures look the same on a machine without any such font."""
    assert font_files(text)[-1][1] == str(CJK_FONT)
