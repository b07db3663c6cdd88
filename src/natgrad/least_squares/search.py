"""Step lengths found by looking at the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Protocol, runtime_checkable

__all__ = ["Backtracking", "GridSearch", "LineSearch"]


@runtime_checkable
class LineSearch(Protocol):
    """Chooses how much of a step is taken."""

    def length(self, loss: Callable[[float], float], before: float, slope: float) -> float:
        """A factor of the step.

        Args:
            loss: after this much of the step; may be asked for any factor.
            before: the loss without a step.
            slope: derivative of ``loss`` at zero; below zero where the step goes down.

        Returns:
            A factor whose loss is below ``before``; 0 if there is none.
        """
        ...


@dataclass(frozen=True)
class GridSearch:
    """The best of ``2^0, 2^-1, ..., 2^-halvings`` times the step (arXiv 2302.13163, section 4).

    Args:
        halvings: of the shortest step tried.
        whole: evaluate the whole grid, as the paper does; else stop at the first length that is
            worse than a longer one that lowered the loss.

    Raises:
        ValueError: ``halvings`` below zero.
    """

    halvings: int = 30
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.halvings >= 0:
            raise ValueError(f"GridSearch: halvings must be >= 0, got {self.halvings}")

    def length(self, loss: Callable[[float], float], before: float, slope: float) -> float:
        """See :class:`LineSearch`."""
        best, found = before, 0.0
        for k in range(self.halvings + 1):
            value = loss(0.5**k)
            if value < best:  # never true of one that is not finite
                best, found = value, 0.5**k
            elif found and not self.whole:
                break
        return found


@dataclass(frozen=True)
class Backtracking:
    """The first of ``1, shrink, shrink^2, ...`` with ``loss(t) <= loss(0) + armijo t slope``.

    Args:
        armijo: the share of the decrease promised by the slope that must be kept.
        shrink: factor between lengths.
        most: lengths tried.

    Raises:
        ValueError: an argument out of range.
    """

    armijo: float = 1e-4
    shrink: float = 0.5
    most: int = 30

    def __post_init__(self) -> None:
        if not (0 <= self.armijo < 1 and 0 < self.shrink < 1 and self.most >= 1):
            raise ValueError(f"an argument is out of range: {self}")

    def length(self, loss: Callable[[float], float], before: float, slope: float) -> float:
        """See :class:`LineSearch`."""
        if not slope < 0:
            return 0.0
        for k in range(self.most):
            t = self.shrink**k
            value = loss(t)
            if isfinite(value) and value < before and value <= before + self.armijo * t * slope:
                return t
        return 0.0
