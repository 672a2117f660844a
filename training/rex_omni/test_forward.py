"""Training computes what the published class computes, from the pixels on."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Tokenizer, Qwen2VLImageProcessorPil

from training.rex_omni.architecture import (
    CELL_PX,
    MAX_PIXELS,
    MIN_PIXELS,
    Grid,
    TinyRexOmni,
    TrainingForward,
    initialize,
    make_config,
    to_patches,
)
from training.rex_omni.tokenizer import build_tokenizer

pytestmark = pytest.mark.checkpoint

GRIDS = [(4, 4), (6, 6), (7, 7), (6, 8), (9, 5)]


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Qwen2Tokenizer) -> TinyRexOmni:
    return initialize(make_config(tokenizer), tokenizer, seed=0).eval()


def pictures(grid: Grid, n: int) -> np.ndarray:
    shape = (n, CELL_PX * grid[0], CELL_PX * grid[1], 3)
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def processed(images: np.ndarray) -> dict[str, torch.Tensor]:
    processor = Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return dict(processor(images=list(images), return_tensors="pt"))


@pytest.mark.parametrize("grid", GRIDS)
def test_patches_are_those_of_the_image_processor(grid: Grid) -> None:
    images = pictures(grid, 2)
    expected = processed(images)["pixel_values"]
    doubled = to_patches(images).view(2, -1, 3, 1, 14, 14).expand(-1, -1, -1, 2, -1, -1)
    torch.testing.assert_close(doubled.flatten(0, 1).flatten(1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_logits_are_those_of_the_published_class(
    model: TinyRexOmni, tokenizer: Qwen2Tokenizer, grid: Grid
) -> None:
    prefix = tokenizer("<|im_start|>user\n<|vision_start|>").input_ids
    cells = grid[0] * grid[1]
    rest = tokenizer("<|vision_end|>Detect person, star.<|im_end|>\n<12><996>").input_ids
    tokens = torch.tensor([prefix + [model.config.image_token_id] * cells + rest] * 2)
    images = pictures(grid, 2)
    forward = TrainingForward(model, len(prefix))
    with torch.no_grad():
        expected = model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            mm_token_type_ids=(tokens == model.config.image_token_id).int(),
            **processed(images),
        ).logits
        hidden, _ = forward.language(forward.vision(to_patches(images), grid), tokens, grid, 1)
        actual = model.lm_head(hidden)
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)
