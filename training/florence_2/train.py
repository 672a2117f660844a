"""Trains the tiny Florence-2 checkpoint from scratch on one CPU thread.

python -m training.florence_2.train --run runs/florence-2 --minutes 48
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.florence_2.architecture import WIDTH, initialize, make_config
from training.florence_2.data import BatchSource
from training.florence_2.objectives import AuxiliaryHeads, Objective
from training.florence_2.tokenizer import build_tokenizer
from training.florence_2.wording import BIN_STEP
from training.trainer import TRAINING_SEEDS, Trainer, run


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of states and log")
    parser.add_argument("--minutes", type=float, default=48.0, help="of processor time")
    parser.add_argument("--pictures", type=int, default=32, help="pictures in a batch")
    parser.add_argument("--muon-lr", type=float, default=0.008)
    parser.add_argument("--adam-lr", type=float, default=1e-3)
    parser.add_argument("--hold", type=float, default=0.15, help="share of the run at peak rate")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(make_trainer(options), options, BIN_STEP)


if __name__ == "__main__":
    main()
