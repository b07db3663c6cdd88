"""Eigenvalues of a layer's exact Fisher block, in the coordinates that are trained."""

from __future__ import annotations

from functools import reduce
from math import prod

import torch
from torch import Tensor

from natgrad import linalg
from natgrad.layers import Whitenable
from natgrad.sample import Sample
from natgrad.whiten.coordinates import Constants
from natgrad.whiten.module import Whitened
from natgrad.whiten.normalized import EPS, Normalized

__all__ = ["evaluated", "spectrum"]

GRAM_ROWS = 4096  #: the largest eigenvalue problem, 128 MiB and about 15 s
GRADIENT_BYTES = 2**30  #: per-example gradients of one layer, 1 GiB


@torch.no_grad()
def spectrum(view: Whitenable, layer: Whitened | None, samples: list[Sample]) -> tuple[Tensor, int]:
    """Eigenvalues of a layer's block, descending, without those that rank makes zero; and its size.

    With the gradients ``J [R, D]`` they are those of ``J J^T / N`` or ``J^T J / N``, whichever is
    smaller. Where a layer has one position, ``J J^T`` comes of the rows alone.

    Args:
        view: of the plain layer.
        layer: the layer as it is trained; None is the plain one.
        samples: of the plain layer, in float64.

    Raises:
        ValueError: too many examples for a layer of this size; says how many will do.
    """
    n = sum(sample.examples for sample in samples)
    moved = [_in_coordinates(view, layer, sample) for sample in samples]
    o, i = view.shape
    dim = o * i + (o if isinstance(layer, Normalized) else 0)
    size = min(n * samples[0].g.shape[-4], dim)
    if size > GRAM_ROWS:
        raise ValueError(
            f"the Fisher block of layer {view.name!r} has rank {size} on {n} examples, beyond "
            f"{GRAM_ROWS}: give at most {max(1, n * GRAM_ROWS // size)} examples"
        )
    one = all(sample.positions == 1 for sample in samples)
    rows_alone = one and size < dim and not _apart(layer)
    M = _gram_of_rows(moved) if rows_alone else _gram(view.name, layer, moved, n, dim)
    values = linalg.eigenvalues(linalg.symmetrize(M) / n).flatten().clamp_min(0)
    return values.sort(descending=True).values, dim * prod(view.groups)


def _in_coordinates(view: Whitenable, layer: Whitened | None, sample: Sample) -> Sample:
    """Rows whose products are the gradients with respect to ``V`` and ``d``."""
    if layer is None:
        return sample
    at, g = evaluated(layer), sample.g
    k = view.channels[1]
    a = _inputs(sample)
    x, ones = a.tensor_split([a.shape[-1] - view.has_bias], dim=-1)
    x = x.reshape(*x.shape[:-1], k, -1)  # features by offsets of the kernel
    if at.c is not None:
        x = x - _beside(at.c.unsqueeze(-1), x)
    P = at.P.mT if at.P.shape[-2] == 1 else at.P
    x = _beside(P, x) * x if P.shape[-1] == 1 else _beside(P, x) @ x
    if at.Q is not None:
        Q = at.Q.mT if at.Q.shape[-1] == 1 else at.Q
        g = g * _beside(Q, g) if at.Q.shape[-1] == 1 else g @ _beside(Q, g)
    return Sample(torch.cat([x.flatten(-2), ones], -1), g)


def evaluated(layer: Whitened) -> Constants:
    """The constants of evaluation in float64; a normalized layer's with what it centres by."""
    training, layer.training = layer.training, False
    try:
        at = layer.exact()
    finally:
        layer.training = training
    if isinstance(layer, Normalized):
        return Constants(at.P, layer.in_place().to(torch.float64).c, at.Q)
    return at


def _beside(M: Tensor, rows: Tensor) -> Tensor:
    """``M [(q,) .., ..]`` with dimensions of size one where the rows have theirs."""
    return M.reshape(*M.shape[:-2], *[1] * (rows.ndim - M.ndim), *M.shape[-2:])


def _gram_of_rows(samples: list[Sample]) -> Tensor:
    """``J J^T = (g g^T) o (a a^T)`` of layers with one position, examples times columns."""
    a = torch.cat([_inputs(s)[..., 0, :] for s in samples], -2)  # [(q,) n, i]
    g = torch.cat([s.g[..., 0, :] for s in samples], -2)  # [(q,) c, n, o]
    columns = g.shape[-3]
    g = g.flatten(-3, -2)
    inputs = a @ a.mT
    inputs = inputs.repeat(*[1] * (inputs.ndim - 2), columns, columns)
    return (g @ g.mT) * inputs


def _gram(name: str, layer: Whitened | None, samples: list[Sample], n: int, dim: int) -> Tensor:
    """The smaller of ``J^T J`` and ``J J^T``, the gradients written out."""
    first = samples[0].g
    rows = n * first.shape[-4]
    needed = 8 * rows * dim * first.shape[:-4].numel()
    if rows <= dim and needed > GRADIENT_BYTES:
        raise ValueError(
            f"the per-example gradients of layer {name!r} would take {needed / 2**30:.1f} GiB, "
            f"beyond 1 GiB: give at most {max(1, n * GRADIENT_BYTES // needed)} of the {n} examples"
        )
    chunks = (_gradients(layer, J) for sample in samples for J in sample.gradients())
    if rows > dim:
        return reduce(torch.add, (J.mT @ J for J in chunks))
    J = torch.cat(list(chunks), -2)
    return J @ J.mT


def _apart(layer: Whitened | None) -> bool:
    """Whether the layer's bias lies behind ``Q``, so that its gradient is not ``Q^T g``."""
    if layer is None or layer.bias is None or not layer.bias.requires_grad:
        return False
    at = evaluated(layer)
    return isinstance(layer, Normalized) or (at.c is None and at.Q is not None)


def _gradients(layer: Whitened | None, J: Tensor) -> Tensor:
    """Gradients ``[(q,) c, n, o, i]`` as rows ``[(q,) c n, D]``, BN's parameters among them."""
    if isinstance(layer, Normalized):
        J = _normalization(layer, J)
    elif layer is not None and _apart(layer):
        Q_inv = evaluated(layer).inverted().Q_inv
        assert Q_inv is not None
        Q_inv = Q_inv.unsqueeze(-3)
        d = J[..., -1]
        d = d * Q_inv.mT if Q_inv.shape[-1] == 1 else d @ Q_inv
        J = torch.cat([J[..., :-1], d.unsqueeze(-1)], -1)
    return J.flatten(-2).flatten(-3, -2)


def _normalization(layer: Normalized, J: Tensor) -> Tensor:
    """From gradients with respect to ``V, d``, with ``d`` inside BN, to ``V``, shift, ``gamma``."""
    lead = layer.matrices(layer.weight, None)[0].shape[:-2]

    def column(x: Tensor) -> Tensor:
        return x.detach().double().reshape(*lead[:-1], 1, 1, lead[-1])

    scale = column(layer.scale())
    shift = J[..., -1] / scale
    V = layer.view.weight_as_matrix(layer.weight.detach().double())
    V = V.reshape(*V.shape[:-2], 1, 1, *V.shape[-2:])
    mapped = (J[..., :-1] * V).sum(-1) / scale  # sum_t g z, with z before BN
    std = column((layer.running_var + EPS).sqrt())
    gamma = (mapped - column(layer.running_mean) * shift) / std
    return torch.cat([J[..., :-1], shift.unsqueeze(-1), gamma.unsqueeze(-1)], -1)


def _inputs(sample: Sample) -> Tensor:
    """The input rows; those of layers that can be whitened are never one-hot."""
    assert isinstance(sample.a, Tensor)
    return sample.a
