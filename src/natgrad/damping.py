"""What is added to a curvature block before it is inverted.

A damping object answers one of two questions. *Factored* ones give a ridge for each of the two
factors, so that plain inverses of the factors do; the others give one number that is added to the
eigenvalues of the whole block. A user's own object needs ``factored`` and the method that goes
with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from natgrad.linalg import factored_ridges

__all__ = [
    "Constant",
    "Damping",
    "EigenvalueDamping",
    "Factored",
    "FactoredDamping",
    "checked",
    "on_eigenvalues",
]


@runtime_checkable
class FactoredDamping(Protocol):
    """Damping of the two factors of a Kronecker block."""

    def ridges(self, A: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
        """Ridges to add to ``A [d, d]`` and ``G [m, m]``, zero-dimensional tensors."""
        ...


@runtime_checkable
class EigenvalueDamping(Protocol):
    """Damping added to the eigenvalues of a block."""

    def ridge(self, trace: Tensor, dim: int) -> Tensor | float:
        """The number to add, given the block's trace and dimension ``dim = m d``."""
        ...


Damping: TypeAlias = FactoredDamping | EigenvalueDamping


def checked(damping: float | Damping) -> float | Damping:
    """``damping`` itself, if it is usable.

    Raises:
        ValueError: a number below zero or not finite.
        TypeError: neither a number nor an object with ``ridges`` or ``ridge``.
    """
    if isinstance(damping, (int, float)):
        if not 0 <= damping < float("inf"):
            raise ValueError(f"damping must be a finite number >= 0, got {damping}")
        return float(damping)
    if not isinstance(damping, (FactoredDamping, EigenvalueDamping)):
        raise TypeError(
            "damping must be a number or an object with ridges(A, G) or ridge(trace, dim), "
            f"as in natgrad.damping; got {type(damping).__name__}"
        )
    return damping


def on_eigenvalues(damping: float | Damping) -> float | Damping:
    """The damping for a block without factors: its value, added to the eigenvalues.

    Raises:
        TypeError: a factored damping without a ``value``.
    """
    if isinstance(damping, (int, float, EigenvalueDamping)):
        return damping
    value = getattr(damping, "value", None)
    if not isinstance(value, (int, float)):
        raise TypeError(
            f"{type(damping).__name__} damps factors only; the exact blocks of norm layers need "
            "ridge(trace, dim) or a number in .value"
        )
    return float(value)


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

    def ridges(self, A: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
        """``(pi sqrt(value), sqrt(value) / pi)``."""
        return factored_ridges(A, G, self.value, self.balanced)


@dataclass
class Constant:
    """``value`` added to every eigenvalue: the block becomes ``F + value I`` exactly (V:B10)."""

    value: float

    def __post_init__(self) -> None:
        checked(self.value)

    def ridge(self, trace: Tensor, dim: int) -> float:
        """``value``, whatever the block."""
        return self.value
