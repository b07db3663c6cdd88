"""The layer of PRONG+ in its exact reading: whitened features get unit variance on every batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from natgrad.layers import Whitenable
from natgrad.modes import without_autocast
from natgrad.sample import statistics_dtype
from natgrad.whiten.coordinates import Constants
from natgrad.whiten.module import Change, Whitened
from natgrad.whiten.statistics import pooled_mean

__all__ = ["Scaled"]


class Scaled(Whitened):
    """``y = Q (V D U (x - c) + d)`` with ``D`` renewed on each training batch (MATH 5.6).

    ``D`` is diagonal with ``D^2 diag(U (Cov_batch + eps I) U^T) = I``: for ``eps = 0`` the features
    ``D U (x - c)`` have variance 1 on the batch. The paper has no ``eps`` here; without it ``D``
    would undo what ``eps`` does to ``U``. With it no row of ``D U`` is longer than ``eps^-1/2``,
    and on the data that ``U`` was made of ``D = I``. Layers that are not centred take
    ``E[x x^T]``.

    The buffer ``P`` holds ``D U``. The function stays: ``V <- V D_old D_new^-1`` (V:D11), and
    followers carry the optimizer's state. To autograd ``D`` is a constant.

    Renewed at the first training forward pass of each optimizer step; all others of that step, of
    micro-batches, of a layer used twice, of activation checkpointing, compute with the same ``D``.
    It stays where it is as well for features without any variance, if ``eps = 0``, on batches that
    are not finite, and on a single row, which has no variance.

    Args:
        view: how the layer is read.
        start: constants to begin with.
        eps: added to the eigenvalues of the covariance.
    """

    def __init__(self, view: Whitenable, start: Constants, eps: float) -> None:
        super().__init__(view, start)
        self.eps = eps
        self.due = False  #: whether the next training batch is the first of its step

    def stepped(self) -> None:
        """The next training batch belongs to a new step."""
        self.due = True

    def forward(self, input: Tensor) -> Tensor:
        """As the whitened layer, on a new ``D`` if it is time."""
        # parameters that torch.func put in the place of ours are not ours to change
        mine = self.followers and isinstance(self.weight, nn.Parameter)
        if self.due and mine and self.counts:
            self.due = False
            self.rescale(input)
        return super().forward(input)

    @torch.no_grad()
    def rescale(self, h: Tensor) -> None:
        """Renew ``D`` on an input of the layer; the function stays."""
        with without_autocast(h.device.type):
            ratio = self._ratio(self.view.features(h.detach()))
        V, _ = self.matrices(self.weight, None)
        weight, _ = self.tensors(V / ratio.unsqueeze(-2), None)
        self.weight.copy_(weight)
        self.P.mul_(ratio if self.P.shape[-2] == 1 else ratio.mT)
        old, new = Constants(torch.ones_like(ratio)), Constants(ratio, P_inv=1 / ratio)
        change = Change(self, old, new, weight, None, rescaling=True)
        for follow in self.followers:
            follow(change)

    def _ratio(self, x: Tensor) -> Tensor:
        """``D_new D_old^-1`` as a row ``[(q,) 1, k]``, from features ``[(q,) r, k]``."""
        dtype = statistics_dtype(self.P.dtype)
        x, P = x.to(dtype), self.P.to(dtype)
        rows = x.shape[-2]
        if self.centred:
            mean, rows = pooled_mean(x)
            x = x - mean.unsqueeze(-2)
        row = P.shape[-2] == 1
        white = x * P if row else x @ P.mT
        length = P.square() if row else P.square().sum(-1).unsqueeze(-2)
        found = pooled_mean(white.square())[0].unsqueeze(-2) + self.eps * length
        usable = found.isfinite() & (found > 0)
        if rows < 2 and self.centred:
            usable = torch.zeros_like(usable)
        return torch.where(usable, found.rsqrt(), 1.0)
