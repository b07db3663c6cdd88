"""A Fisher matrix as a linear operator on the vector of all parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad.blocks import Block
from natgrad.damping import Constant
from natgrad.decompose import decompose_each
from natgrad.layers import Uncovered

__all__ = ["LIMIT_BYTES", "Fisher", "Part", "check_size", "commit", "load"]

LIMIT_BYTES = 2**31  #: the largest dense matrix written out, 2 GiB


@dataclass(frozen=True)
class Part:
    """A diagonal block of the matrix: where its rows are, and what it is.

    ``index [(q,) o, i]`` holds the places of the layer's matrix entries in the vector of all
    parameters.
    """

    name: str
    index: Tensor
    block: Block


class Fisher:
    """A Fisher matrix ``F [P, P]``, the mean over examples, block-diagonal by layer.

    Rows and columns, and vectors, follow ``torch.nn.utils.parameters_to_vector``. Frozen
    parameters, and those of modules that no view covers, have zero rows; the latter are listed in
    :attr:`uncovered`.

    Args:
        size: number of parameters ``P``.
        parts: the diagonal blocks.
        uncovered: modules left out, and why.
    """

    def __init__(self, size: int, parts: list[Part], uncovered: list[Uncovered]) -> None:
        self.size, self.parts, self.uncovered = size, parts, uncovered

    def __repr__(self) -> str:
        kinds = sorted({type(part.block).__name__ for part in self.parts})
        return f"Fisher({self.size}x{self.size}, {len(self.parts)} blocks: {', '.join(kinds)})"

    @property
    def shape(self) -> tuple[int, int]:
        """``(P, P)``."""
        return self.size, self.size

    @property
    def blocks(self) -> dict[str, Block]:
        """The block of each layer, by the layer's name."""
        return {part.name: part.block for part in self.parts}

    def __matmul__(self, v: Tensor) -> Tensor:
        """``F v`` for ``v [P]`` or ``[P, k]``."""
        return self._by_part(v, torch.zeros_like(v), lambda block, M: block.product(M))

    def solve(self, v: Tensor, damping: float) -> Tensor:
        """``(F + damping I)^-1 v`` for ``v [P]`` or ``[P, k]``, exactly, for every structure.

        With ``damping=0`` it is the pseudo-inverse.

        Raises:
            ValueError: negative damping.
        """
        if damping < 0:
            raise ValueError(f"damping must be >= 0, got {damping}")
        self._decompose()
        for part in self.parts:
            part.block.damping = Constant(damping)
        rest = v / damping if damping else torch.zeros_like(v)
        return self._by_part(v, rest, lambda block, M: block.solve(M))

    def _by_part(
        self, v: Tensor, result: Tensor, apply: Callable[[Block, Tensor], Tensor]
    ) -> Tensor:
        if v.shape[0] != self.size or v.ndim > 2:
            raise ValueError(f"expected a vector [{self.size}] or [{self.size}, k], got {v.shape}")
        result = result.clone()
        for part in self.parts:
            M = v[part.index].movedim(-1, 0) if v.ndim == 2 else v[part.index]
            solved = apply(part.block, M.to(part.block.dtype)).to(v.dtype)
            result[part.index] = solved.movedim(0, -1) if v.ndim == 2 else solved
        return result

    def dense(self, limit: int = LIMIT_BYTES) -> Tensor:
        """``F`` written out.

        Args:
            limit: bytes that it may take.

        Raises:
            ValueError: it would take more; says how much.
        """
        dtype, device = self.parts[0].block.dtype, self.parts[0].index.device
        check_size(f"the dense {self.size} x {self.size} matrix", self.size, dtype, limit)
        F = torch.zeros(self.size, self.size, dtype=dtype, device=device)
        for part in self.parts:
            index, matrix = part.index.reshape(*part.block.groups, -1), part.block.dense()
            F[index.unsqueeze(-1), index.unsqueeze(-2)] = matrix
        return F

    def trace(self) -> Tensor:
        """``tr F``."""
        return torch.stack([part.block.trace() for part in self.parts]).sum()

    def eigvalsh(self) -> Tensor:
        """Eigenvalues, ascending, of the covered parameters' part of ``F``."""
        return torch.cat([part.block.eigenvalues() for part in self.parts]).sort().values

    def condition_number(self, damping: float = 0.0) -> Tensor:
        """``(l_max + damping) / (l_min + damping)`` over :meth:`eigvalsh`; inf if singular."""
        l = self.eigvalsh()
        return (l[-1] + damping) / (l[0].clamp_min(0) + damping)

    def _decompose(self) -> None:
        load([part.block for part in self.parts if not part.block.is_ready])


def commit(block: Block) -> None:
    """Let what waits in the block's moments enter them."""
    for moment in block.moments():
        moment.commit()


def load(blocks: list[Block]) -> None:
    """Decompose what the blocks name, stacked by shape.

    Raises:
        RuntimeError: a decomposition failed, in float64 too.
    """
    factors = [block.factors() for block in blocks]
    for block, named, results in zip(blocks, factors, decompose_each(factors), strict=True):
        good = {}
        for name, result in results.items():
            if result is None:
                size = tuple(named[name].matrix.shape)
                raise RuntimeError(f"decomposition of factor {name} {size} failed: not finite?")
            good[name] = result
        block.load(good)


def check_size(what: str, dim: int, dtype: torch.dtype, limit: int) -> None:
    """Refuse a square matrix of dimension ``dim`` beyond ``limit`` bytes.

    Raises:
        ValueError: says how much it would take.
    """
    needed = dim * dim * torch.finfo(dtype).bits // 8
    if needed > limit:
        raise ValueError(
            f"{what} would take {needed / 2**30:.1f} GiB, beyond the limit of "
            f"{limit / 2**30:.1f} GiB; raise limit=, or use a structure that is not written out"
        )
