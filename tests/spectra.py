"""Symmetric matrices of a chosen spectrum, with their exact roots."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.networks import normal


def with_eigenvalues(l: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """``(A, A^(1/2), A^(-1/2))`` in a random eigenbasis, float64."""
    Q = torch.linalg.qr(normal(len(l), len(l), seed=seed))[0]
    A, Y, Z = ((Q * power) @ Q.mT for power in (l, l.sqrt(), l.rsqrt()))
    return (A + A.mT) / 2, Y, Z


def with_condition(d: int, condition: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues from 1 down, spaced evenly in their logarithms."""
    return with_eigenvalues(condition ** -torch.linspace(0, 1, d, dtype=torch.float64), seed)
