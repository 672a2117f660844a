"""Trains the tiny Rex-Omni checkpoint from scratch on one CPU thread.

python -m training.rex_omni.train --minutes 77 --run runs/rex-omni
"""

import argparse

import numpy as np
from torch import nn

from training.rex_omni.architecture import initialize, make_config
from training.rex_omni.data import BIN_STEP, BatchSource
from training.rex_omni.objectives import AuxiliaryHeads, Objective
from training.rex_omni.tokenizer import build_tokenizer
from training.trainer import TRAINING_SEEDS, Trainer, main


def make_trainer(options: argparse.Namespace) -> Trainer:
    """A trainer at its first step."""
    tokenizer = build_tokenizer()
    config = make_config(tokenizer)
    seeds = np.random.SeedSequence([TRAINING_SEEDS, options.seed])
    source = BatchSource(tokenizer, np.random.default_rng(seeds), options.pictures)
    return Trainer(
        initialize(config, tokenizer, seed=options.seed),
        AuxiliaryHeads(config.text_config.hidden_size),
        source,
        lambda model, heads: Objective(model, heads, tokenizer, source.prefix_length),
        is_matrix,
        options,
    )


def is_matrix(name: str, weight: nn.Parameter) -> bool:
    """Whether a weight acts as a matrix: not the embeddings."""
    return weight.ndim >= 2 and "embed_tokens" not in name


if __name__ == "__main__":
    main(__doc__, make_trainer, BIN_STEP, minutes=77.0, pictures=16, hold=0.3)
