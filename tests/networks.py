"""Small float64 networks and their inputs."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class SumPool(nn.Module):
    """``[n, t, k] -> [n, k]``."""

    def forward(self, h: Tensor) -> Tensor:
        return h.sum(1)


def mlp(
    *widths: int, seed: int = 0, activation: type[nn.Module] | None = nn.Tanh, bias: bool = True
) -> nn.Sequential:
    """Linear layers of the given widths with ``activation`` between; None is a deep linear net."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o, bias=bias)] + ([activation()] if activation else [])
    return nn.Sequential(*(layers[:-1] if activation else layers)).double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, expected: Tensor) -> float:
    """``|found - expected| / |expected|`` in the Frobenius norm."""
    return float(((found - expected).norm() / expected.norm()).detach())
