"""How coordinates are taught: embeddings that start out near their neighbours', soft targets."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

COORDINATES = 1000


def fourier_features(position: Tensor, width: int, highest: float = 40.0) -> Tensor:
    """Unit rows (n, width) for positions (n,) in 0..1, in a random rotation.

    highest: cycles over the unit interval of the fastest wave; fast waves weigh less.
    """
    frequency = torch.from_numpy(np.geomspace(0.25, highest, width // 2)).float()
    phase = 2 * math.pi * position[:, None] * frequency
    amplitude = 1 / (1 + frequency / 8)
    features = torch.cat([amplitude * phase.cos(), amplitude * phase.sin()], dim=1)
    rotation, _ = torch.linalg.qr(torch.randn(width, width))
    return F.normalize(features @ rotation, dim=1)


class SoftBins:
    """Coordinate targets: Gaussians over the taught bins, narrowed as training goes on."""

    def __init__(self, sigma_bins: float, step: int):
        """step: only every so many bins are taught."""
        bins = torch.arange(COORDINATES)
        density = torch.exp(-0.5 * ((bins[:, None] - bins[None, :]) / sigma_bins) ** 2)
        density = density * (bins % step == 0)
        self.target = density / density.sum(1, keepdim=True)  # (1000, 1000), a row per true bin
        self.entropy = -torch.special.xlogy(self.target, self.target).sum(1)  # (1000,)

    def divergence(self, log_probabilities: Tensor, bins: Tensor) -> Tensor:
        """Kullback-Leibler divergence (n,) of predictions (n, 1000) from targets (n,) of bins."""
        return -(log_probabilities * self.target[bins]).sum(1) - self.entropy[bins]
