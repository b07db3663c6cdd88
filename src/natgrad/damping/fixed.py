"""Damping by a number that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad.damping.base import checked

__all__ = ["Constant", "Factored", "Given", "factored_ridges", "split_ridge"]


@dataclass
class Factored:
    """Factored Tikhonov damping: ``A + pi sqrt(value) I`` and ``G + sqrt(value)/pi I``.

    ``pi = sqrt((tr A/d) / (tr G/m))``; expands to ``G (x) A + value I`` plus cross terms whose
    trace norm this ``pi`` minimises (Martens & Grosse 2015, section 6.3; V:B8, V:B9).

    Args:
        value: the damping.
        balanced: False takes ``pi = 1``, as TKFAC does.
    """

    value: float
    balanced: bool = True

    def __post_init__(self) -> None:
        checked(self.value)

    def ridges(self, trace_A: Tensor, trace_G: Tensor, d: int, m: int) -> tuple[Tensor, Tensor]:
        """``(pi sqrt(value), sqrt(value) / pi)``."""
        if not self.balanced:
            root = torch.full_like(trace_A, self.value).sqrt()
            return root, root
        return factored_ridges(trace_A / d, trace_G / m, self.value)


@dataclass
class Constant:
    """``value`` added to every eigenvalue: the block becomes ``F + value I`` exactly (V:B10)."""

    value: float

    def __post_init__(self) -> None:
        checked(self.value)

    def ridge(self, trace: Tensor, dim: int) -> float:
        """``value``, whatever the block."""
        return self.value


@dataclass
class Given:
    """A damping already decided, for either kind of block."""

    value: Tensor | float

    def ridge(self, trace: Tensor, dim: int) -> Tensor | float:
        """The value."""
        return self.value

    def ridges(self, trace_A: Tensor, trace_G: Tensor, d: int, m: int) -> tuple[Tensor, Tensor]:
        """Its root on both factors, in the proportion of their traces."""
        return split_ridge(torch.as_tensor(self.value).to(trace_A), trace_A, trace_G)


def split_ridge(value: Tensor, trace_A: Tensor, trace_G: Tensor) -> tuple[Tensor, Tensor]:
    """``(p sqrt(value), sqrt(value) / p)`` with ``p = sqrt(tr A / tr G)``, 1 if that is no use."""
    return factored_ridges(trace_A, trace_G, value)


def factored_ridges(
    mean_A: Tensor, mean_G: Tensor, damping: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Factored Tikhonov ridges ``(pi sqrt(damping), sqrt(damping) / pi)`` for ``A`` and ``G``.

    With ``mean_A = tr A / d`` and ``mean_G = tr G / m``, ``pi = sqrt(mean_A / mean_G)`` minimises
    the trace norm of the cross terms of ``(G + sqrt(damping)/pi I) (x) (A + pi sqrt(damping) I)``
    (Martens & Grosse 2015, section 6.3; MATH 1, V:B8, V:B9). Where a mean is zero or not finite,
    ``pi = 1``.
    """
    ratio = mean_A / mean_G
    usable = torch.isfinite(ratio) & (ratio > 0)
    pi = torch.where(usable, ratio, torch.ones_like(ratio)).sqrt()
    root = torch.as_tensor(damping, dtype=mean_A.dtype, device=mean_A.device).sqrt()
    return pi * root, root / pi
