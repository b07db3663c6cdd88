"""PRONG: whitened layer inputs (Desjardins et al. 2015, arXiv 1507.00210)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from natgrad import linalg
from natgrad.arguments import check_choice, check_range
from natgrad.layers import Whitenable
from natgrad.whiten.bases import BASES, whitening
from natgrad.whiten.coordinates import Constants
from natgrad.whiten.module import Whitened
from natgrad.whiten.rule import Rule
from natgrad.whiten.statistics import RowMoments, Statistics

__all__ = ["PRONG"]


@dataclass(frozen=True)
class PRONG(Rule):
    """``c = E[x]`` and ``P^T P = (Cov(x) + eps I)^-1``, renewed every ``every`` steps.

    Desjardins et al. 2015, Algorithm 1 and equation (7); MATH 5. Between refits one SGD step on
    ``(V, d)`` is a step of ``[W b]`` preconditioned by ``[[Cov + eps I + c c^T, c], [c^T, 1]]^-1``,
    which is K-FAC with ``G = I`` (V:D6); ``eps`` caps what it multiplies the learning rate by,
    at ``1 / eps``. The covariance is centred (the paper's section 3.1 writes ``E[x x^T]``, which
    does not whiten, V:D3) and divides by the number of rows. Layers without a trained bias can't
    be centred: theirs is ``E[x x^T]``.

    With ``gradients`` the output gradients are whitened too (the paper's footnote 4):
    ``Q = (G / (tr G / o) + eps I)^-1/2`` with ``G = E[g g^T]`` of the training loop's own backward
    passes. ``G`` enters relative to its mean eigenvalue [ours]: how the loss is scaled does not
    matter, and a layer's learning rate is on average that of ``gradients=False``. A step is one of
    K-FAC with ``G + eps tr G / o I``, times ``tr G / o``.

    Args:
        every: optimizer steps between refits, the paper's T.
        eps: added to the eigenvalues of the covariance.
        samples: examples each refit uses, the paper's N_s. None is all of the data given, or 1000
            of the training loop's where none is given.
        basis: ``"pca"`` (the paper's), ``"zca"`` or ``"cholesky"`` make the same SGD steps, but
            others of coordinate-wise optimizers; ``"diagonal"`` scales each feature alone.
        gradients: whether to whiten output gradients.
        from_training: whether refits take their statistics from the training loop's own forward
            passes, the latest that hold ``samples`` examples, though data was given to begin with.
            Saves the pass over the data, where that is dear; what is seen is seen in training mode,
            by parameters that are up to ``samples / batch`` steps old.
        spread: whether a refit is shared out over the ``every`` steps that follow it: statistics of
            all layers at once, then constants of some layers in each of several steps, so that no
            single step is slow. Each partial refit keeps the function; the last layers' constants
            are nearly ``every`` steps older than without.

    Raises:
        ValueError: an argument out of range.
    """

    every: int = 100
    eps: float = 1e-3
    samples: int | None = None
    basis: Literal["pca", "zca", "cholesky", "diagonal"] = "pca"
    gradients: bool = False
    from_training: bool = False
    spread: bool = False

    def __post_init__(self) -> None:
        check_range("every", self.every, self.every >= 1, ">= 1")
        check_range("eps", self.eps, self.eps >= 0, ">= 0")
        given = self.samples
        check_range("samples", given, given is None or given >= 1, "None or >= 1")
        check_choice("basis", self.basis, BASES)

    def start(self, view: Whitenable) -> Constants:
        """The identity, with ``P`` diagonal and ``Q`` present where they will be."""
        start, o = super().start(view), view.channels[0]
        P, Q = start.P, None
        if self.basis == "diagonal":
            P = P.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
        if self.gradients:
            Q = torch.eye(o, dtype=P.dtype, device=P.device).repeat(*view.groups, 1, 1)
        return replace(start, P=P.clone(), Q=Q)

    def layer(self, view: Whitenable) -> Whitened:
        """The module for a layer, its function unchanged."""
        made = super().layer(view)
        made.triangular = self.basis == "cholesky"
        return made

    def constants(self, layer: Whitened, seen: Statistics) -> Constants:
        """``c`` and ``P`` of the inputs; ``Q`` stays until there are gradients to take it from."""
        inputs = seen.inputs
        Sigma = inputs.covariance() if layer.centred else inputs.second_moment()
        P, P_inv = whitening(Sigma, self.eps, self.basis)
        c = inputs.mean if layer.centred else None
        if layer.Q is None or seen.gradients.empty:
            return Constants(P, c, layer.Q, P_inv).to(torch.float64, copy=False)
        return Constants(P, c, *self._output_side(seen.gradients, P_inv))

    def _output_side(self, gradients: RowMoments, P_inv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``Q``, ``P^-1`` and ``Q^-1``, in the order of :class:`Constants`."""
        G = gradients.second_moment()
        size = linalg.mean_diagonal(G)[..., None, None]
        Q, Q_inv = whitening(G / torch.where(size > 0, size, 1), self.eps, "zca")
        return Q, P_inv, Q_inv
