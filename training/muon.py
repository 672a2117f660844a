"""Muon: momentum whose update of a matrix is made orthogonal before it is applied.

Method: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with the
quintic Newton-Schulz iteration and the coefficients published there.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
_FIRST_MOMENTUM = 0.85
_MOMENTUM_WARMUP_STEPS = 200


class Muon(torch.optim.Optimizer):
    """Muon for weights that act as matrices; everything else belongs to another optimizer.

    Weights of equal shape are made orthogonal together, which is what keeps it cheap for many
    small matrices.
    """

    def __init__(
        self, weights: Iterable[tuple[nn.Parameter, int]], lr: float, weight_decay: float = 0.01
    ):
        """
        Args:
            weights: parameters, each with the number of matrices stacked along its first
                dimension: 3 for a joint query, key and value projection, else 1. Further
                dimensions count as columns.
            lr: learning rate; 0.02 is usual and does not depend on the matrix's size.
            weight_decay: decoupled weight decay, as a share of the learning rate.
        """
        pairs = list(weights)
        self._stacked = dict(pairs)
        super().__init__(
            [parameter for parameter, _ in pairs], {"lr": lr, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Apply one update from the gradients at hand."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                rows = parameter.shape[0] // self._stacked[parameter]
                by_shape.setdefault((rows, parameter[0].numel()), []).append(parameter)
            for shape, parameters in by_shape.items():
                self._step_shape(shape, parameters, group["lr"], group["weight_decay"])

    def _step_shape(
        self,
        shape: tuple[int, int],
        parameters: list[nn.Parameter],
        lr: float,
        weight_decay: float,
    ) -> None:
        directions = [self._direction(p).reshape(-1, *shape) for p in parameters]
        updates = orthogonalize(torch.cat(directions)) * max(1.0, shape[0] / shape[1]) ** 0.5
        parts = updates.split([len(d) for d in directions])
        for parameter, update in zip(parameters, parts, strict=True):
            parameter.mul_(1 - lr * weight_decay)
            parameter.sub_(update.reshape(parameter.shape), alpha=lr)

    def _direction(self, parameter: nn.Parameter) -> Tensor:
        """Gradient with Nesterov momentum."""
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
            state["steps"] = 0
        assert parameter.grad is not None
        warm = min(1.0, state["steps"] / _MOMENTUM_WARMUP_STEPS)
        momentum = _FIRST_MOMENTUM + (_MOMENTUM - _FIRST_MOMENTUM) * warm
        state["steps"] += 1
        state["average"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["average"], momentum)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of those given.

    Args:
        matrices: (n, rows, columns) float32.

    Returns:
        (n, rows, columns) float32 with singular values of about 1.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.transpose(-1, -2)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    if tall:
        x = x.transpose(-1, -2)
    return x.float()
