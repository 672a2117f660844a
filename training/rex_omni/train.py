"""Trains the tiny Rex-Omni checkpoint from scratch on one CPU thread.

python -m training.rex_omni.train --minutes 77 --run runs/rex-omni
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.rex_omni.architecture import initialize, make_config
from training.rex_omni.data import BIN_STEP, BatchSource
from training.rex_omni.objectives import AuxiliaryHeads, Objective
from training.rex_omni.tokenizer import build_tokenizer
from training.trainer import TRAINING_SEEDS, Trainer, run


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of states and log")
    parser.add_argument("--minutes", type=float, default=77.0, help="of processor time")
    parser.add_argument("--pictures", type=int, default=16, help="pictures in a batch")
    parser.add_argument("--muon-lr", type=float, default=0.008)
    parser.add_argument("--adam-lr", type=float, default=1e-3)
    parser.add_argument("--hold", type=float, default=0.3, help="share of the run at peak rate")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(make_trainer(options), options, BIN_STEP)


if __name__ == "__main__":
    main()
