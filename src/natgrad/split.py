"""Second moments of rows, whole or as blocks on the diagonal of a wide one.

A factor ``[d, d]`` wider than a bound can be replaced by its block diagonal: with blocks of width
``w``, ``d w^2`` in place of ``d^3`` to decompose, ``d w`` in place of ``d^2`` to keep. The widths
differ by one at most, so that the blocks make one or two stacks; in memory they lie one after the
other in a vector, of which the stacks are views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, overload

import torch
from torch import Tensor

__all__ = ["GRAM_BLOCK", "BlockDiagonal", "Matrix", "Split", "dense", "flat", "gram", "mirrors"]


GRAM_BLOCK = 256  #: rows of a Gram matrix formed at once, on CPU
GRAM_ROWS = 192  #: of fewer the product takes less than the copies


@dataclass(frozen=True)
class BlockDiagonal:
    """A block-diagonal matrix ``[.., d, d]``: stacks ``[.., b, w, w]`` along its diagonal.

    What stands in the formulas for a square matrix may be one: products with matrices from either
    side, the transpose, and entrywise squares.
    """

    stacks: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        """That of the matrix written out."""
        d = sum(stack.shape[-3] * stack.shape[-1] for stack in self.stacks)
        return torch.Size((*self.stacks[0].shape[:-3], d, d))

    @property
    def ndim(self) -> int:
        """Of the matrix written out."""
        return len(self.shape)

    @property
    def entries(self) -> int:
        """Of all blocks of one matrix; multiply-adds of a product with one row."""
        return sum(stack.shape[-3:].numel() for stack in self.stacks)

    @property
    def mT(self) -> BlockDiagonal:
        """The transpose."""
        return self.map(lambda stack: stack.mT)

    def map(self, function: Callable[[Tensor], Tensor]) -> BlockDiagonal:
        """The matrix with ``function`` of the stacks as its stacks."""
        return BlockDiagonal(tuple(function(stack) for stack in self.stacks))

    def to(self, dtype: torch.dtype) -> BlockDiagonal:
        """In another dtype."""
        return self.map(lambda stack: stack.to(dtype))

    def square(self) -> BlockDiagonal:
        """Entrywise."""
        return self.map(torch.square)

    def clone(self) -> BlockDiagonal:
        """In memory of its own."""
        return self.map(torch.clone)

    def unsqueezed(self, count: int) -> BlockDiagonal:
        """With ``count`` dimensions of size one in front of the matrix."""
        return self.map(lambda x: x.reshape(*x.shape[:-3], *[1] * count, *x.shape[-3:]))

    def per_block(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``function`` makes of the matrices of a stack, ``[.., b]``, for all blocks."""
        return torch.cat([function(stack) for stack in self.stacks], -1)

    def joined(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Vectors ``[.., b, w]`` that ``function`` makes of a stack, one after the other."""
        return torch.cat([function(stack).flatten(-2) for stack in self.stacks], -1)

    def dense(self) -> Tensor:
        """Written out, ``[.., d, d]``."""
        found, start = self.stacks[0].new_zeros(self.shape), 0
        for stack in self.stacks:
            for block in stack.unbind(-3):
                end = start + block.shape[-1]
                found[..., start:end, start:end] = block
                start = end
        return found

    def flat(self) -> Tensor:
        """All entries within the blocks as a vector ``[.., sum b w^2]``."""
        return torch.cat([stack.flatten(-3) for stack in self.stacks], -1)

    def _parts(self, M: Tensor, dim: int) -> list[Tensor]:
        """``M`` along ``dim``, for each stack, as ``[.., b, w, ..]``."""
        counts = [stack.shape[-3:-1] for stack in self.stacks]
        parts = torch.split(M, [b * w for b, w in counts], dim)
        after = M.shape[M.ndim + dim + 1 :]
        pairs = zip(parts, counts, strict=True)
        return [x.reshape(*M.shape[:dim], b, w, *after) for x, (b, w) in pairs]

    @overload
    def __matmul__(self, M: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, M: BlockDiagonal) -> BlockDiagonal: ...

    def __matmul__(self, M: Matrix) -> Matrix:
        """``self M``; block-diagonal again where ``M`` has the same blocks."""
        if isinstance(M, BlockDiagonal):
            pairs = zip(self.stacks, M.stacks, strict=True)
            return BlockDiagonal(tuple(X @ Y for X, Y in pairs))
        parts = zip(self.stacks, self._parts(M, -2), strict=True)
        return torch.cat([(stack @ x).flatten(-3, -2) for stack, x in parts], -2)

    def __rmatmul__(self, M: Tensor) -> Tensor:
        """``M self``; the rows of ``M`` are one matrix unless there are several of ``self``."""
        if self.shape[:-2].numel() == 1:
            shape, M = M.shape, M.flatten(0, -2)
            stacks = [stack.reshape(stack.shape[-3:]) for stack in self.stacks]
        else:
            shape, stacks = M.shape, list(self.stacks)
        parts = zip(self._parts(M, -1), stacks, strict=True)
        each = [(x.transpose(-3, -2) @ stack).transpose(-3, -2).flatten(-2) for x, stack in parts]
        return torch.cat(each, -1).reshape(shape)


Matrix: TypeAlias = Tensor | BlockDiagonal  #: ``[.., d, d]``


def flat(M: Matrix) -> Tensor:
    """As it is kept in a buffer."""
    return M.flat() if isinstance(M, BlockDiagonal) else M


def dense(M: Matrix) -> Tensor:
    """Written out."""
    return M.dense() if isinstance(M, BlockDiagonal) else M


@dataclass(frozen=True)
class Split:
    """How a factor of width ``d`` falls into blocks: ``(count, width)`` of one or two stacks."""

    runs: tuple[tuple[int, int], ...]

    @staticmethod
    def of(d: int, widest: int | None) -> Split | None:
        """As few blocks of at most ``widest`` as there can be; None where one is enough."""
        if widest is None or d <= widest:
            return None
        count = -(-d // widest)
        width, wider = divmod(d, count)
        runs = ((wider, width + 1), (count - wider, width))
        return Split(tuple(run for run in runs if run[0]))

    @property
    def entries(self) -> int:
        """``sum b w^2``: numbers kept, and multiply-adds of a product with one row."""
        return sum(b * w**2 for b, w in self.runs)

    @property
    def cubes(self) -> int:
        """``sum b w^3``, what decompositions cost."""
        return sum(b * w**3 for b, w in self.runs)

    def matrix(self, flat: Tensor) -> BlockDiagonal:
        """The matrix whose blocks' entries are ``flat [.., entries]``; its stacks are views."""
        parts = torch.split(flat, [b * w**2 for b, w in self.runs], -1)
        shaped = zip(parts, self.runs, strict=True)
        return BlockDiagonal(tuple(x.reshape(*x.shape[:-1], b, w, w) for x, (b, w) in shaped))

    def places(self) -> Iterator[slice]:
        """Where each block lies along the diagonal."""
        start = 0
        for b, w in self.runs:
            for _ in range(b):
                yield slice(start, start + w)
                start += w

    def taken(self, M: Tensor) -> Tensor:
        """The blocks of ``M [.., d, d]``, flat."""
        return torch.cat([M[..., part, part].flatten(-2) for part in self.places()], -1)

    def moment(self, left: Tensor, right: Tensor) -> Tensor:
        """The blocks of ``left^T right`` for rows ``[.., n, d]``, and nothing between, flat."""
        parts = self.places()
        return torch.cat([(left[..., k].mT @ right[..., k]).flatten(-2) for k in parts], -1)


def mirrors(rows: int, d: int, groups: bool, device: torch.device) -> bool:
    """Whether :func:`gram` of so many rows multiplies only half of a matrix, and mirrors it."""
    return not groups and d >= 2 * GRAM_BLOCK and rows >= GRAM_ROWS and device.type == "cpu"


def gram(
    rows: Tensor,
    weights: Tensor | None = None,
    split: Split | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``sum_n w_n a_n a_n^T [.., d, d]`` for rows ``a [.., n, d]``.

    Of a wide matrix on CPU only the blocks on and below the diagonal are multiplied, and mirrored.

    Args:
        rows: ``[.., n, d]``.
        weights: ``[.., n]``, ones by default.
        split: the blocks on the diagonal that are wanted alone, ``[.., split.entries]``.
        out: ``[d, d]``, where to write a whole matrix.
    """
    left = rows if weights is None else rows * weights.unsqueeze(-1)
    if split is not None:
        return split.moment(left, rows)
    n, d = rows.shape[-2:]
    if not mirrors(n, d, rows.ndim > 2, rows.device):
        return left.mT @ rows if out is None else torch.mm(left.mT, rows, out=out)
    found = rows.new_empty(d, d) if out is None else out
    for start in range(0, d, GRAM_BLOCK):
        end = min(start + GRAM_BLOCK, d)
        torch.mm(left[:, start:end].mT, rows[:, :end], out=found[start:end, :end])
        found[:start, start:end] = found[start:end, :start].mT
    return found
