"""A layer's exact Fisher block through the Gram matrix of its per-example gradients.

With the gradients ``J [R, D]`` of a layer (``R`` examples times columns, ``N`` examples),
``F = J^T J / N`` has the non-zero eigenvalues of ``K / N = J J^T / N``. Norms, inner products with
an approximation and damped solves need ``K`` only, so that ``F [D, D]`` is never written out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from natgrad import linalg
from natgrad.blocks import Block
from natgrad.sample import Sample

__all__ = ["GRADIENT_BYTES", "ExactBlock"]

GRADIENT_BYTES = 2**30  #: per-example gradients of one layer, 1 GiB


class ExactBlock:
    """The exact Fisher block of one layer, from samples of it, in float64.

    Args:
        name: the layer's name, for the error.
        samples: the layer's samples, one per batch.

    Raises:
        ValueError: the per-example gradients would take more than 1 GiB.
    """

    def __init__(self, name: str, samples: Sequence[Sample]) -> None:
        first = samples[0]
        self.examples = sum(sample.examples for sample in samples)
        matrix = (*first.g.shape[:-4], first.g.shape[-1], first.a.shape[-1])
        columns = first.g.shape[-4]
        needed = 8 * self.examples * columns * torch.Size(matrix).numel()
        if needed > GRADIENT_BYTES:
            fewer = max(1, self.examples * GRADIENT_BYTES // needed)
            raise ValueError(
                f"the per-example gradients of layer {name!r} would take {needed / 2**30:.1f} GiB, "
                f"beyond 1 GiB: compare on at most {fewer} of the {self.examples} examples"
            )
        parts = [J for sample in samples for J in sample.to(torch.float64).gradients()]
        self.J = torch.cat([J.flatten(-2).flatten(-3, -2) for J in parts], dim=-2)
        self.K = self.J @ self.J.mT
        self.matrix_shape = matrix

    @property
    def dim(self) -> int:
        """Rows of the block."""
        return torch.Size(self.matrix_shape).numel()

    def trace(self) -> Tensor:
        """``tr F = |J|^2 / N``."""
        return self.J.square().sum() / self.examples

    def squared_norm(self) -> Tensor:
        """``|F|^2 = |K|^2 / N^2`` (Frobenius)."""
        return self.K.square().sum() / self.examples**2

    def inner(self, block: Block) -> Tensor:
        """``<F, F'> = sum_r J_r^T F' J_r / N`` with an approximation ``F'``."""
        rows = self.J.movedim(-2, 0).reshape(-1, *self.matrix_shape)
        return (rows * block.product(rows)).sum() / self.examples

    def error(self, block: Block) -> float:
        """``|F - F'| / |F|``, through ``|F|^2 - 2 <F, F'> + |F'|^2``: good to about 1e-8."""
        norm = self.squared_norm()
        squared = norm - 2 * self.inner(block) + block.squared_norm()
        if not bool(norm) and not bool(squared):
            return 0.0
        return float((squared.clamp_min(0) / norm).sqrt())

    def solve(self, M: Tensor, damping: float) -> Tensor:
        """``(F + damping I)^-1 vec(M)`` for a matrix ``M [(q,) o, i]``, by Woodbury."""
        v = M.flatten(-2).unsqueeze(-1)
        solved = linalg.woodbury_solve(self.J.mT / self.examples**0.5, damping, v)
        return solved.reshape(M.shape)

    def eigenvalues(self) -> Tensor:
        """The ``min(R, D)`` largest eigenvalues, descending; the others are zero."""
        values = linalg.eigenvalues(self.K / self.examples).flatten()
        return values.sort(descending=True).values[: self.dim]

    def dense(self) -> Tensor:
        """``F`` written out, ``[(q,) D, D]``."""
        return self.J.mT @ self.J / self.examples
