"""What a damping object must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

__all__ = [
    "Damping",
    "EigenvalueDamping",
    "FactoredDamping",
    "LayerCurvature",
    "LayerDamping",
    "NetworkDamping",
    "checked",
    "on_eigenvalues",
]


@runtime_checkable
class FactoredDamping(Protocol):
    """Damping of the two factors of a Kronecker block ``G (x) A``."""

    def ridges(self, trace_A: Tensor, trace_G: Tensor, d: int, m: int) -> tuple[Tensor, Tensor]:
        """Ridges to add to ``A [d, d]`` and ``G [m, m]``.

        Traces and ridges are zero-dimensional, or ``[q]`` of a layer in ``q`` groups.
        """
        ...


@runtime_checkable
class EigenvalueDamping(Protocol):
    """Damping added to the eigenvalues of a block."""

    def ridge(self, trace: Tensor, dim: int) -> Tensor | float:
        """The number to add, given the block's trace and dimension ``dim`` (``m d`` in all)."""
        ...


class LayerCurvature(NamedTuple):
    """What a damping may know of a layer."""

    trace: Tensor  #: of the layer's block
    dim: int  #: its rows
    kind: Literal["convolution", "dense", "other"]


class LayerDamping(NamedTuple):
    """One layer's ``(F_l + ridge I)^-1``, times ``scale``."""

    ridge: Tensor | float
    scale: Tensor | float = 1.0


@runtime_checkable
class NetworkDamping(Protocol):
    """Damping of a layer that depends on the others, asked before the layers are solved."""

    def across(self, layers: Sequence[LayerCurvature]) -> Sequence[LayerDamping] | None:
        """What each layer gets; None where every layer can be asked by itself."""
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
            "damping must be a number or an object with ridges(trace_A, trace_G, d, m) or "
            f"ridge(trace, dim), as in natgrad.damping; got {type(damping).__name__}"
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
