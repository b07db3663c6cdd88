"""What is added to a curvature block before it is inverted.

A damping object answers one of two questions, from the block's traces alone. ``ridges`` gives a
ridge for each of the two factors of a Kronecker block, so that plain inverses of the factors do;
``ridge`` gives one number that is added to the eigenvalues of the whole block. Two-factor blocks
ask for ``ridges`` where there is one, all others for ``ridge``. An object of one's own is a class
with either method::

    class Halving:
        def ridge(self, trace, dim):
            return 0.5 * trace / dim

What depends on the other layers too goes through ``across`` (:class:`NetworkDamping`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from natgrad.linalg import factored_ridges

__all__ = [
    "Constant",
    "Damping",
    "EigenvalueDamping",
    "Factored",
    "FactoredDamping",
    "LayerCurvature",
    "LayerDamping",
    "NetworkDamping",
    "TraceRestricted",
    "checked",
    "on_eigenvalues",
]

FC_SCALES = ("none", "paper", "theta", "as_damping")


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
class TraceRestricted:
    """A layer's mean eigenvalue as its damping: ``lambda_l = max(tr F_l, nu) / dim F_l``.

    Gao et al. 2020 (arXiv 2011.13609), (3.5). Above ``nu`` the step is homogeneous of degree -1 in
    the scale of the loss (V:C16, V:C17); below it the damping is constant. EKFAC and TEKFAC add it
    to their scale. TKFAC and K-FAC split it over the factors, ``sqrt(lambda_l) p`` on ``A`` and
    ``sqrt(lambda_l) / p`` on ``G`` with ``p = sqrt(tr A / tr G)``: for TKFAC, whose traces are
    equal, that is (5.15) of arXiv 2011.10741; for K-FAC the split of scale between the factors
    drops out.

    For dense layers of a network with convolutions the paper multiplies the Fisher by
    ``beta = max_l lambda_l`` over the convolutions, in words that leave three readings (MATH 4):

    * ``"none"``: every layer gets (3.5) of its own;
    * ``"paper"``: ``beta (F + lambda I)``, which divides the step by ``beta``;
    * ``"theta"``: ``beta F + lambda I``;
    * ``"as_damping"``: ``F + beta I``.

    Args:
        nu: floor of the trace, "parameter to restrict trace".
        fc_scale: the reading.

    Raises:
        ValueError: ``nu`` below zero or not finite, or an unknown reading.
    """

    nu: float
    fc_scale: Literal["none", "paper", "theta", "as_damping"] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.nu < float("inf"):
            raise ValueError(f"nu must be a finite number >= 0, got {self.nu}")
        if self.fc_scale not in FC_SCALES:
            raise ValueError(f"fc_scale must be one of {FC_SCALES}, got {self.fc_scale!r}")

    def ridge(self, trace: Tensor, dim: int) -> Tensor:
        """``max(trace, nu) / dim``."""
        return trace.clamp_min(self.nu) / dim

    def ridges(self, trace_A: Tensor, trace_G: Tensor, d: int, m: int) -> tuple[Tensor, Tensor]:
        """``sqrt(lambda)`` on both factors, in the proportion of their traces."""
        trace = (trace_A * trace_G).sum()
        return split_ridge(self.ridge(trace, d * m * trace_A.numel()), trace_A, trace_G)

    def across(self, layers: Sequence[LayerCurvature]) -> list[LayerDamping] | None:
        """(3.5) for each layer, with ``beta`` for dense layers beside convolutions."""
        own = [self.ridge(layer.trace, layer.dim) for layer in layers]
        both = list(zip(layers, own, strict=True))
        of_convolutions = [value for layer, value in both if layer.kind == "convolution"]
        if self.fc_scale == "none" or not of_convolutions:
            return None
        beta = torch.stack(of_convolutions).amax()
        return [
            self._scaled(value, beta) if layer.kind == "dense" else LayerDamping(value)
            for layer, value in both
        ]

    def _scaled(self, ridge: Tensor, beta: Tensor) -> LayerDamping:
        if self.fc_scale == "as_damping":
            return LayerDamping(beta)
        # dead convolutions without a floor give no beta to go by
        factor = torch.where(beta > torch.finfo(beta.dtype).tiny, beta, torch.ones_like(beta))
        if self.fc_scale == "paper":
            return LayerDamping(ridge, 1 / factor)
        return LayerDamping(ridge / factor, 1 / factor)  # (b F + l)^-1 = (F + l / b)^-1 / b


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
