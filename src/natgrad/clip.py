"""Bounds on the whole step: by the divergence it causes, and by its length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from natgrad.curvature import Solved
from natgrad.layers import LayerView

__all__ = ["Rate", "divergence", "kl_scale", "length_scale"]

Rate: TypeAlias = float | Callable[[nn.Parameter], float]


def divergence(solved: Sequence[Solved], lr: Rate) -> Tensor | None:
    """``lr^2 sum_l <U_l, M_l>``: twice the KL divergence of a step ``lr U``, damping included.

    None where a plain gradient is not known (fused layers), or nothing was solved.
    """
    known = [(s.view, s.M, s.U) for s in solved if s.M is not None]
    if not known or len(known) < len(solved):
        return None
    terms = [
        _rate(lr, view) ** 2 * torch.dot(U.reshape(-1), M.reshape(-1).to(U.dtype))
        for view, M, U in known
    ]
    return torch.stack([term.to(terms[0]) for term in terms]).sum()


def kl_scale(twice_kl: Tensor, kl_clip: float) -> Tensor:
    """``min(1, sqrt(kappa / (lr^2 sum_l <U_l, M_l>)))`` (MATH 7)."""
    tiny = torch.finfo(twice_kl.dtype).tiny
    return (kl_clip / twice_kl.clamp_min(tiny)).sqrt().clamp_max(1)


def length_scale(solved: Sequence[Solved], lr: Rate, max_norm: float) -> Tensor:
    """``min(1, max_norm / |lr U|_2)`` over all layers together."""
    terms = [_rate(lr, s.view) ** 2 * s.U.square().sum() for s in solved]
    length = torch.stack([term.to(terms[0]) for term in terms]).sum().sqrt()
    return (max_norm / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1)


def _rate(lr: Rate, view: LayerView) -> float:
    if not callable(lr):
        return lr
    parameters = view.parameters()
    return lr(next(iter(parameters.values())))
