"""What trains a tiny checkpoint from scratch on one CPU thread, whatever its architecture.

The model computes in bfloat16 and is updated in float32: Muon on matrices, AdamW on embeddings,
norms and biases. A state is saved every few minutes; the same command goes on from it. The schedule
follows the run's own processor time, so that what it reaches does not depend on who else computes.
"""

import argparse
import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from training.coordinates import SoftBins
from training.muon import Muon

TRAINING_SEEDS = 1  # the namespace of training pictures, see labeling_pipeline.sample.scenes

_WARMUP_STEPS = 100
_LAST_LR_SHARE = 0.01
_WIDEST_SIGMA_BINS = 25.0
_NARROWEST_SIGMA_BINS = 5.0
_NARROWED_AT = 0.7  # share of the run
_REPORT_SECONDS = 30
_SAVE_SECONDS = 180


class Source(Protocol):
    """An endless, seeded stream of batches."""

    random_state: dict

    def batch(self) -> Any: ...


Objective = Callable[[Any, SoftBins], tuple[Tensor, dict[str, Tensor]]]


class Trainer:
    """Master weights, their bfloat16 working copy, and the optimizers between them."""

    def __init__(
        self,
        model: nn.Module,
        heads: nn.Module,
        source: Source,
        make_objective: Callable[[nn.Module, nn.Module], Objective],
        is_matrix: Callable[[str, nn.Parameter], bool],
        options: argparse.Namespace,
    ):
        """
        Args:
            model: what is exported in the end.
            heads: auxiliary readings, trained along and thrown away.
            source: the batches.
            make_objective: the loss over the working copies of model and heads.
            is_matrix: whether a weight of the model, by name, is Muon's.
            options: learning rates.
        """
        self.master = nn.ModuleDict({"model": model, "heads": heads})
        self.working = copy.deepcopy(self.master).bfloat16().train()
        self.working["model"].tie_weights()
        self.source = source
        self.objective = make_objective(self.working["model"], self.working["heads"])
        self.steps = 0
        self.seconds = 0.0
        matrices = {n: p for n, p in model.named_parameters() if is_matrix(n, p)}
        by_muon = {id(weight) for weight in matrices.values()}
        self._others = [p for p in self.master.parameters() if id(p) not in by_muon]
        self.muon = Muon(
            [(weight, 3 if ".qkv." in name else 1) for name, weight in matrices.items()],
            lr=options.muon_lr,
        )
        self.adam = torch.optim.AdamW(
            [
                {"params": [p for p in self._others if p.ndim >= 2], "weight_decay": 0.01},
                {"params": [p for p in self._others if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=options.adam_lr,
            betas=(0.9, 0.98),
        )
        self._peak_lrs = {self.muon: options.muon_lr, self.adam: options.adam_lr}

    def step(self, soft_bins: SoftBins, lr_share: float) -> dict[str, float]:
        """One batch, one update; returns the parts of the loss by name."""
        loss, parts = self.objective(self.source.batch(), soft_bins)
        loss.backward()
        pairs = list(zip(self.master.parameters(), self.working.parameters(), strict=True))
        for master, working in pairs:
            # A batch without a picture of some kind leaves a head without a gradient.
            master.grad = None if working.grad is None else working.grad.float()
            working.grad = None
        # Muon's updates have one size whatever the gradient's; AdamW's first steps do not.
        nn.utils.clip_grad_norm_(self._others, 1.0)
        for optimizer, peak_lr in self._peak_lrs.items():
            for group in optimizer.param_groups:
                group["lr"] = peak_lr * lr_share
            optimizer.step()
        with torch.no_grad():
            for master, working in pairs:
                working.copy_(master)
        self.steps += 1
        return {name: float(value.detach()) for name, value in parts.items()}

    def save(self, path: Path) -> None:
        """Write everything that going on needs."""
        state = {
            "master": self.master.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "random": self.source.random_state,
            "steps": self.steps,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def restore(self, path: Path) -> None:
        """Go on where a saved run stood."""
        state = torch.load(path, weights_only=True)
        self.master.load_state_dict(state["master"])
        self.working.load_state_dict(state["master"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.source.random_state = state["random"]
        self.steps, self.seconds = state["steps"], state["seconds"]


def lr_share(steps: int, progress: float, hold: float) -> float:
    """Learning rate as a share of its peak: a short rise, a plateau until `hold`, a cosine fall."""
    fall = max(0.0, (progress - hold) / (1 - hold))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, fall)))
    return min(1.0, (steps + 1) / _WARMUP_STEPS) * (_LAST_LR_SHARE + (1 - _LAST_LR_SHARE) * cosine)


def main(
    description: str | None,
    make_trainer: Callable[[argparse.Namespace], Trainer],
    bin_step: int,
    *,
    minutes: float,
    pictures: int,
    hold: float,
) -> None:
    """The command line of a training; minutes, pictures and hold are its own defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--run", type=Path, required=True, help="folder of states and log")
    parser.add_argument("--minutes", type=float, default=minutes, help="of processor time")
    parser.add_argument("--pictures", type=int, default=pictures, help="pictures in a batch")
    parser.add_argument("--muon-lr", type=float, default=0.008)
    parser.add_argument("--adam-lr", type=float, default=1e-3)
    parser.add_argument("--hold", type=float, default=hold, help="share of the run at peak rate")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(make_trainer(options), options, bin_step)


def run(trainer: Trainer, options: argparse.Namespace, bin_step: int) -> None:
    """Train until the minutes of processor time are used up; leaves ``final.pt`` in the folder."""
    options.run.mkdir(parents=True, exist_ok=True)
    state_path = options.run / "state.pt"
    if state_path.exists():
        trainer.restore(state_path)
    sums: dict[str, list[float]] = defaultdict(list)
    reported = saved = trainer.seconds
    while (progress := trainer.seconds / (60 * options.minutes)) < 1:
        started = time.process_time()
        if trainer.steps % 25 == 0 or not sums:
            narrowed = min(1.0, progress / _NARROWED_AT)
            span = _NARROWEST_SIGMA_BINS - _WIDEST_SIGMA_BINS
            soft_bins = SoftBins(_WIDEST_SIGMA_BINS + span * narrowed, bin_step)
        share = lr_share(trainer.steps, progress, options.hold)
        for name, value in trainer.step(soft_bins, share).items():
            sums[name].append(value)
        trainer.seconds += time.process_time() - started
        if trainer.seconds - reported > _REPORT_SECONDS:
            _report(trainer, options, share, sums)
            sums.clear()
            reported = trainer.seconds
        if trainer.seconds - saved > _SAVE_SECONDS:
            trainer.save(state_path)
            saved = trainer.seconds
    trainer.save(state_path)
    torch.save(trainer.master["model"].state_dict(), options.run / "final.pt")


def _report(
    trainer: Trainer, options: argparse.Namespace, share: float, sums: dict[str, list[float]]
) -> None:
    """Print a line about the last steps and append it to the run's log."""
    means = " ".join(f"{name} {np.nanmean(values):.3f}" for name, values in sums.items())
    pictures = trainer.steps * options.pictures
    line = (
        f"{trainer.seconds / 60:.1f} min, {trainer.steps} steps, {pictures} pictures, "
        f"{pictures / trainer.seconds:.1f}/s, lr {share:.3f} | {means}"
    )
    print(line, flush=True)
    with (options.run / "log.txt").open("a") as log:
        log.write(line + "\n")
