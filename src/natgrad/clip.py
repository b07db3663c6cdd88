"""Bounds on the whole step: by the divergence it causes, and by its length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from typing import TypeAlias

import torch
from torch import Tensor, nn

from natgrad.arguments import check_range
from natgrad.curvature import Solved
from natgrad.layers import LayerView

__all__ = ["Bounds", "Rate", "divergence", "kl_scale", "length_scale"]

Rate: TypeAlias = float | Callable[[nn.Parameter], float]


class Bounds:
    """Bounds on a step, and what they made of the last one.

    Args:
        kl_clip: on ``lr^2 sum_l <U_l, M_l>``, or None.
        max_norm: on ``lr |U|_2``, or None.

    Raises:
        ValueError: one of them is not positive.
    """

    def __init__(self, kl_clip: float | None, max_norm: float | None) -> None:
        check_range("kl_clip", kl_clip, kl_clip is None or kl_clip > 0, "positive or None")
        check_range("max_norm", max_norm, max_norm is None or max_norm > 0, "positive or None")
        self.kl_clip, self.max_norm = kl_clip, max_norm
        self._twice_kl: Tensor | None = None
        self._scale: Tensor | None = None

    @property
    def bind(self) -> bool:
        """Whether there are any."""
        return self.kl_clip is not None or self.max_norm is not None

    def write(self, solved: Sequence[Solved], lr: Rate) -> None:
        """Put the natural gradients, scaled, into ``.grad``."""
        self._twice_kl, self._scale = divergence(solved, lr), None
        if self.kl_clip is not None and self._twice_kl is not None:
            self._scale = kl_scale(self._twice_kl, self.kl_clip)
        if self.max_norm is not None and solved:
            short = length_scale(solved, lr, self.max_norm)
            self._scale = short if self._scale is None else torch.minimum(short, self._scale)
        if solved:
            _write(solved, self._scale)

    def figures(self) -> dict[str, float]:
        """``kl``, before clipping, and ``clip``, the factor."""
        return {
            "kl": nan if self._twice_kl is None else float(self._twice_kl) / 2,
            "clip": 1.0 if self._scale is None else float(self._scale),
        }


def _write(solved: Sequence[Solved], scale: Tensor | None) -> None:
    """Every natural gradient into ``.grad``, in one call for all layers of one kind."""
    places, entries = zip(*(pair for s in solved for pair in s.view.places(s.U)), strict=True)
    torch._foreach_copy_(places, entries)
    if scale is not None:
        torch._foreach_mul_(places, scale)


def divergence(solved: Sequence[Solved], lr: Rate) -> Tensor | None:
    """``lr^2 sum_l <U_l, M_l>``: twice the KL divergence of a step ``lr U``, damping included.

    None where a plain gradient is not known (fused layers), or nothing was solved.
    """
    known = [(s.view, s.M, s.U) for s in solved if s.M is not None]
    if not known or len(known) < len(solved):
        return None
    dots = [torch.dot(U.reshape(-1), M.reshape(-1).to(U.dtype)) for _, M, U in known]
    return _summed(dots, [_rate(lr, view) ** 2 for view, _, _ in known])


def _summed(terms: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """``sum_l factor_l term_l``, in few calls where the factors are all the same."""
    if len(set(factors)) > 1:
        terms = [factor * term for factor, term in zip(factors, terms, strict=True)]
        factors = [1.0]
    if len({(term.device, term.dtype) for term in terms}) > 1:
        terms = [term.to(terms[0]) for term in terms]
    return torch.stack(list(terms)).sum() * factors[0]


def kl_scale(twice_kl: Tensor, kl_clip: float) -> Tensor:
    """``min(1, sqrt(kappa / (lr^2 sum_l <U_l, M_l>)))`` (MATH 7)."""
    tiny = torch.finfo(twice_kl.dtype).tiny
    return (kl_clip / twice_kl.clamp_min(tiny)).sqrt().clamp_max(1)


def length_scale(solved: Sequence[Solved], lr: Rate, max_norm: float) -> Tensor:
    """``min(1, max_norm / |lr U|_2)`` over all layers together."""
    rates = [_rate(lr, s.view) ** 2 for s in solved]
    length = _summed([s.U.square().sum() for s in solved], rates).sqrt()
    return (max_norm / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1)


def _rate(lr: Rate, view: LayerView) -> float:
    if not callable(lr):
        return lr
    parameters = view.parameters()
    return lr(next(iter(parameters.values())))
