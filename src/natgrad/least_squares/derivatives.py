"""Derivatives of a function of one point, for residuals of differential equations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev, jvp, vmap

__all__ = ["laplacian"]


def laplacian(u: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``sum_i d^2 u / dx_i^2`` at one point, for every component of ``u``.

    Forward over reverse: the gradient is differentiated along the ``d`` coordinates at once, which
    costs about ``d`` times a forward and a backward pass of ``u``. Can be differentiated again, as
    the Jacobian of a residual needs, and mapped over points with ``torch.func.vmap``.

    Args:
        u: function of one point ``[d]``, of any shape.
        x: the point ``[d]``.

    Returns:
        A tensor of the shape of ``u(x)``.

    >>> laplacian(lambda x: (x**2).sum(), torch.tensor([1.0, 2.0, 3.0]))
    tensor(6.)
    """
    basis = torch.eye(x.numel(), dtype=x.dtype, device=x.device)

    def along(direction: Tensor) -> Tensor:
        found: Tensor = jvp(jacrev(u), (x,), (direction,))[1]
        return found

    curved = vmap(along)(basis)  # [d, ..., d]
    return curved.movedim(0, -1).diagonal(dim1=-2, dim2=-1).sum(-1)
