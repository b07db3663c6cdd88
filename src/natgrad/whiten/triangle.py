"""Products with lower triangular matrices, and those that are symmetric: half is worked out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["gram", "parts", "times_lower", "times_upper"]

PARTS = 6  #: of a wide triangle: of its square (1 + 1 / 6) / 2 are multiplied
WIDTH = 160  #: columns of a part at the least: narrower products are slow for their size


def times_lower(x: Tensor, L: Tensor) -> Tensor:
    """``x L`` for ``x [.., k]`` and a lower triangular ``L [k, k]``, a constant to autograd."""
    return _product(x, L, False)


def times_upper(x: Tensor, L: Tensor) -> Tensor:
    """``x L^T``."""
    return _product(x, L, True)


def gram(x: Tensor) -> Tensor:
    """``x^T x [.., k, k]`` for rows ``x [.., r, k]``, without gradients."""
    k = x.shape[-1]
    found = x.new_empty(*x.shape[:-2], k, k)
    for p in parts(k):
        torch.matmul(x[..., p].mT, x[..., : p.stop], out=found[..., p, : p.stop])
        found[..., : p.start, p] = found[..., p, : p.start].mT
    return found


def parts(k: int) -> list[slice]:
    """Columns ``0 .. k`` in parts of like width."""
    size = -(-k // max(1, min(PARTS, k // WIDTH)))
    return [slice(start, min(start + size, k)) for start in range(0, k, size)]


def _product(x: Tensor, L: Tensor, transposed: bool) -> Tensor:
    if len(parts(len(L))) < 2:
        return x @ (L.mT if transposed else L)
    rows = x.flatten(0, -2)
    if torch.is_grad_enabled() and x.requires_grad:
        found: Tensor = _Triangular.apply(rows, L, transposed)  # type: ignore[no-untyped-call]
    else:  # data, and refits: the class alone costs a small product's time
        found = _by_parts(rows, L, transposed)
    return found.reshape(x.shape)


def _by_parts(x: Tensor, L: Tensor, transposed: bool) -> Tensor:
    # sums of products with few rows and wide results run faster than the other way round
    if transposed:
        first, *others = parts(len(L))
        total = x[:, first] @ L[:, first].mT
        for p in others:
            total[:, p.start :].addmm_(x[:, p], L[p.start :, p].mT)
        return total
    *others, last = parts(len(L))
    total = x[:, last] @ L[last]
    for p in others:
        total[:, : p.stop].addmm_(x[:, p], L[p, : p.stop])
    return total


class _Triangular(torch.autograd.Function):
    """``x L^T`` if ``transposed``, else ``x L``; either one's derivative is the other."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, L: Tensor, transposed: bool) -> Tensor:
        return _by_parts(x, L, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        _, L, ctx.transposed = inputs
        ctx.save_for_backward(L)
        ctx.save_for_forward(L)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (L,) = ctx.saved_tensors
        return _product(grad, L, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        (L,) = ctx.saved_tensors
        return _product(tangent, L, ctx.transposed)
