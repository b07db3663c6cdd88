"""The layer of PRONG+ in its second reading: batch normalization after the linear map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad.layers import Whitenable
from natgrad.modes import without_autocast
from natgrad.sample import statistics_dtype
from natgrad.whiten.coordinates import Constants, canonical, whitened
from natgrad.whiten.module import Change, Pair, Whitened
from natgrad.whiten.rows import rows_are_cheaper, through_rows
from natgrad.whiten.statistics import RowMoments, pooled_mean

__all__ = ["Normalized"]

EPS = 1e-5  #: added to variances of outputs, as torch's BatchNorm does
MOMENTUM = 0.1  #: weight of a batch in the running statistics, as there


@dataclass(frozen=True, eq=False)
class _Beginning(Change):
    """A change that brings the first statistics of the outputs with it."""

    outputs: RowMoments | None = None


class Normalized(Whitened):
    """``y = BN(V P (x - c))`` with trained scale ``gamma`` and shift (MATH 5.6).

    What Desjardins et al. 2015, section 3.2, call the simpler implementation. Gradients go through
    the batch's mean and variance; each process has its own, as with torch's BatchNorm. ``d`` before
    the normalization would be redundant: the parameter ``bias`` is BN's shift instead, and
    ``gamma`` is a parameter that the plain layer does not have.

    Begins as the plain layer. The first statistics of the outputs, of the data given to ``whiten``
    or else of the first training batch, become ``gamma`` (their standard deviation) and shift
    (their mean), so that the function stays, on these examples taken as one batch. Evaluation uses
    running statistics; so does a training batch that has a single row, and folding, which absorbs
    the affine map of evaluation into weight and bias.

    Args:
        view: how the layer is read; it must have a bias.
        start: constants to begin with, those of the identity.
    """

    bias: nn.Parameter
    gamma: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    started: Tensor

    added = ("gamma",)

    def __init__(self, view: Whitenable, start: Constants) -> None:
        super().__init__(view, start)
        ones = torch.ones_like(self.bias)
        self.gamma = nn.Parameter((ones + EPS).sqrt())
        self.register_buffer("running_mean", torch.zeros_like(ones))
        self.register_buffer("running_var", ones)
        self.register_buffer("started", torch.tensor(False))
        self._started = False  # what the buffer says; asking that would wait for the device
        self._seen = RowMoments()

    def forward(self, input: Tensor) -> Tensor:
        """The layer's own function with ``V P``, then BN."""
        at, o = self.in_place(), self.view.channels[0]
        if self.view.kind == "dense" and rows_are_cheaper(at, o, input, self.weight.requires_grad):
            z = through_rows(at, input, self.weight, None)
        else:
            z = self.view.compute(input, *self.linear())
        z = self._normalized(z.reshape(-1, *z.shape[self.view.channel_dim :])).reshape(z.shape)
        if self.heard is not None:
            self.heard(self, input, z)
        return z

    def linear(self) -> tuple[Tensor, Tensor]:
        """``V P`` and ``-V P c``: the map before BN."""
        with without_autocast(self.weight.device.type):
            V, _ = self.matrices(self.weight, None)
            W, b = self.tensors(*canonical(self.in_place(), V, V.new_zeros(V.shape[:-2])))
        assert b is not None
        return W, b

    def in_place(self) -> Constants:
        """The constants before BN."""
        return Constants(self.P, self.c, lower=self.triangular)

    def in_use(self) -> Constants:
        """Those of evaluation: ``P``, and as ``Q`` what BN multiplies by; its shift is apart."""
        scale = self.scale()
        W = self.matrices(self.weight, None)[0]
        return Constants(self.P, None, scale.reshape(*W.shape[:-2], 1), lower=self.triangular)

    def scale(self) -> Tensor:
        """What evaluation multiplies each output by."""
        return self.gamma / (self.running_var + EPS).sqrt()

    def canonical(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the plain layer that evaluation amounts to."""
        W, b = self.linear()
        scale = self.scale()
        column = scale.reshape(-1, *[1] * (W.ndim - 1))
        return column * W, self.bias + scale * (b - self.running_mean)

    def _normalized(self, z: Tensor) -> Tensor:
        """``z [r, o, *space]`` normalized: by the batch in training, else by what is remembered."""
        if self.heard is not None and not self.training and not self._started:
            self._seen.add(z.detach().movedim(1, -1).flatten(0, -2))
        live = self.training and z.numel() > z.shape[1]
        if live and self.counts and not self._started:
            self._start_on(z.detach())
        live = live and self._started
        mean, var = self.running_mean, self.running_var
        if live and not self.counts:  # run again by checkpointing, say: nothing to remember
            mean, var = mean.clone(), var.clone()
        return F.batch_norm(z, mean, var, self.gamma, self.bias, live, MOMENTUM, EPS)

    @torch.no_grad()
    def _start_on(self, z: Tensor) -> None:
        rows = z.movedim(1, -1).flatten(0, -2).to(statistics_dtype(self.weight.dtype))
        mean, _ = pooled_mean(rows)
        self._start(mean, pooled_mean((rows - mean).square())[0])

    def _start(self, mean: Tensor, var: Tensor) -> None:
        """Begin to normalize; on examples of this mean and variance nothing changes."""
        if not bool(mean.isfinite().all() & var.isfinite().all()):
            return
        self.bias.add_(mean.to(self.bias.dtype) - self.running_mean)
        self.gamma.copy_((var + EPS).sqrt())
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        self.started.fill_(True)
        self._started, self._seen = True, RowMoments()

    @torch.no_grad()
    def planned(self, new: Constants, plain: Pair | None = None) -> Change:
        """New ``P`` and ``c``, the same ``V P``; BN's shift has no part in it."""
        self._check(new)
        new = replace(new.to(torch.float64, copy=False), lower=self.triangular)
        old = self.in_place().to(torch.float64)
        V, _ = self.matrices(self.weight.double(), None)
        weight, _ = self.tensors(whitened(new, canonical(old, V, None)[0], None)[0], None)
        seen = None if self._started else self._seen.pooled(self.running_mean)
        return _Beginning(self, old, new, weight, None, outputs=seen)

    @torch.no_grad()
    def accept(self, change: Change) -> None:
        """Make a planned change; the running mean moves along with ``c``."""
        first = change.outputs if isinstance(change, _Beginning) else None
        if first is not None and not first.empty:
            self._start(first.mean, first.covariance().diagonal())
        if change.old.c is not None and change.new.c is not None and self.c is not None:
            V = self.matrices(change.weight, None)[0]
            W = canonical(change.new, V, None)[0]
            moved = (W.sum(-2) @ (change.old.c - change.new.c).unsqueeze(-1)).flatten()
            self.running_mean.add_(moved.to(self.running_mean.dtype))
            self.c.copy_(change.new.c)
        self.P.copy_(change.new.P)
        self.weight.copy_(change.weight)
        if change.bias is not None:
            self.bias.copy_(change.bias)
        # the shift lies behind V P and stays: a follower must not take it for the layer's d
        told = Change(
            self, replace(change.old, c=None), replace(change.new, c=None), change.weight,
            change.bias,
        )  # fmt: skip
        for follow in self.followers:
            follow(told)

    @torch.no_grad()
    def folding(self) -> Change:
        """The move to the plain layer that evaluation amounts to."""
        weight, bias = (x.double() for x in self.canonical())
        old, identity = self.in_use().to(torch.float64), self.identity()
        assert old.Q is not None
        new = Constants(identity.P, None, torch.ones_like(old.Q), identity.P)
        return Change(self, old, new.to(torch.float64), weight, bias)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._started = bool(self.started)
