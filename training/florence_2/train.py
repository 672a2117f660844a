"""Trains the tiny Florence-2 checkpoint from scratch on one CPU thread.

python -m training.florence_2.train --run runs/florence-2 --minutes 48
"""

import argparse

import numpy as np
from torch import nn

from training.florence_2.architecture import WIDTH, initialize, make_config
from training.florence_2.data import BatchSource
from training.florence_2.objectives import AuxiliaryHeads, Objective
from training.florence_2.tokenizer import build_tokenizer
from training.florence_2.wording import BIN_STEP
from training.trainer import TRAINING_SEEDS, Trainer, main


def make_trainer(options: argparse.Namespace) -> Trainer:
    """A trainer at its first step."""
    tokenizer = build_tokenizer()
    model = initialize(make_config(tokenizer), tokenizer, seed=options.seed)
    seeds = np.random.SeedSequence([TRAINING_SEEDS, options.seed])
    return Trainer(
        model,
        AuxiliaryHeads(WIDTH),
        BatchSource(tokenizer, np.random.default_rng(seeds), options.pictures),
        lambda working, heads: Objective(working, heads, tokenizer),
        is_matrix,
        options,
    )


def is_matrix(name: str, weight: nn.Parameter) -> bool:
    """Whether a weight acts as a matrix: no embedding, and no convolution of single channels."""
    is_table = any(part in name for part in ("embed_positions", "_embeddings", "shared"))
    is_depthwise = weight.ndim == 4 and weight.shape[1] == 1
    return weight.ndim >= 2 and not is_table and not is_depthwise


if __name__ == "__main__":
    main(__doc__, make_trainer, BIN_STEP, minutes=48.0, pictures=32, hold=0.15)
