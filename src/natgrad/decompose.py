"""One place for all decompositions: equal shapes are stacked, failures are reported, not raised.

A block names what it needs as :class:`Factor` objects; the answers come back in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from natgrad import linalg
from natgrad.linalg import Eigen
from natgrad.split import BlockDiagonal, Matrix, dense, flat

__all__ = ["Decomposition", "Factor", "decompose", "decompose_each", "described"]

Decomposition: TypeAlias = Eigen | Matrix


@dataclass(frozen=True)
class Factor:
    """A positive semi-definite matrix to decompose.

    Args:
        matrix: ``[(q,) d, d]``, or the diagonal ``[(q,) d]`` of one that is diagonal. What becomes
            of one in blocks is in the same blocks.
        ridge: None asks for the eigendecomposition, a number (one per group) for the inverse of
            ``matrix + ridge I``.
        diagonal: whether ``matrix`` is a diagonal.
        last: the eigenvectors of an earlier one like it; asks for a step of orthogonal iteration
            from there in place of the eigendecomposition.
    """

    matrix: Matrix
    ridge: Tensor | float | None = None
    diagonal: bool = False
    last: Matrix | None = None

    def parts(self) -> list[_Part]:
        """What is decomposed by itself: the matrix, or each stack of its blocks."""
        M, ridge, last = self.matrix, self.ridge, self.last
        if not isinstance(M, BlockDiagonal):
            return [_Part(M, ridge, self.diagonal, None if last is None else dense(last))]
        # one ridge for all blocks of a group
        ridge = ridge.unsqueeze(-1) if isinstance(ridge, Tensor) else ridge
        lasts = last.stacks if isinstance(last, BlockDiagonal) else [None] * len(M.stacks)
        pairs = zip(M.stacks, lasts, strict=True)
        return [_Part(stack, ridge, False, last) for stack, last in pairs]

    def put_together(self, found: Sequence[Eigen | Tensor | None]) -> Decomposition | None:
        """The decomposition from those of the parts; None if one of these failed."""
        if not isinstance(self.matrix, BlockDiagonal):
            return found[0]
        if self.ridge is not None:
            inverses = [M for M in found if isinstance(M, Tensor)]
            return BlockDiagonal(tuple(inverses)) if len(inverses) == len(found) else None
        eigen = [each for each in found if isinstance(each, Eigen)]
        if len(eigen) < len(found):
            return None
        values = torch.cat([l.flatten(-2) for l, _ in eigen], -1)
        return Eigen(values, BlockDiagonal(tuple(U for _, U in eigen if isinstance(U, Tensor))))


@dataclass(frozen=True)
class _Part:
    """A factor that is no :class:`BlockDiagonal`."""

    matrix: Tensor
    ridge: Tensor | float | None
    diagonal: bool
    last: Tensor | None

    @property
    def kind(self) -> tuple[object, ...]:
        """Parts of one kind are stacked."""
        M, warm = self.matrix, self.last is not None
        return self.ridge is None, self.diagonal, warm, M.shape, M.dtype, M.device


def decompose(factors: Sequence[Factor]) -> list[Decomposition | None]:
    """Decompose all factors, stacked by shape; None stands where one failed, even in float64.

    A matrix that is not finite fails at once and spoils none of its stack.
    """
    parts = [factor.parts() for factor in factors]
    found = iter(_decompose_parts([part for each in parts for part in each]))
    return [
        factor.put_together([next(found) for _ in each])
        for factor, each in zip(factors, parts, strict=True)
    ]


def decompose_each(
    owners: Sequence[Mapping[str, Factor]],
) -> list[dict[str, Decomposition | None]]:
    """Decompose the named factors of several owners, all stacked together, and sort them back."""
    factors = [factor for named in owners for factor in named.values()]
    results = iter(decompose(factors))
    return [{name: next(results) for name in named} for named in owners]


def described(factor: Factor) -> str:
    """Shape and extreme eigenvalues of a factor, for messages."""
    M, shape = factor.matrix, "x".join(map(str, factor.matrix.shape))
    if not bool(torch.isfinite(flat(M)).all()):
        return f"{shape} (not finite)"
    M = dense(M)
    values = M if factor.diagonal else linalg.extreme_eigenvalues(M)
    if values is None:
        return f"{shape} (no eigenvalues found, largest entry {float(M.abs().amax()):.3g})"
    return f"{shape} (eigenvalues {float(values.amin()):.3g} to {float(values.amax()):.3g})"


def _decompose_parts(parts: Sequence[_Part]) -> list[Eigen | Tensor | None]:
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, part in enumerate(parts):
        groups.setdefault(part.kind, []).append(index)
    results: list[Eigen | Tensor | None] = [None] * len(parts)
    for indices in groups.values():
        members = _decompose_stack([parts[index] for index in indices])
        for index, result in zip(indices, members, strict=True):
            results[index] = result
    return results


def _decompose_stack(factors: list[_Part]) -> list[Eigen | Tensor | None]:
    if factors[0].diagonal:
        return [_decompose_diagonal(factor) for factor in factors]
    stack = _stacked([factor.matrix for factor in factors])
    finite = linalg.finite(stack)
    if not bool(finite.all()):
        stack = torch.where(finite[..., None, None], stack, torch.zeros_like(stack))
    if factors[0].ridge is None:
        last = [factor.last for factor in factors if factor.last is not None]
        eigen, ok = linalg.eigh_from(stack, _stacked(last)) if last else linalg.eigh(stack)
        assert isinstance(eigen.vectors, Tensor)
        pairs = zip(eigen.values, eigen.vectors, strict=True)
        found: list[Eigen | Tensor] = [Eigen(l, U) for l, U in pairs]
    else:
        ridges = [torch.as_tensor(f.ridge).to(stack).expand(stack.shape[1:-2]) for f in factors]
        stack = linalg.add_ridge(stack, torch.stack(ridges))  # the one without is let go of
        inverses, ok = linalg.inverse(stack)
        found = list(inverses)
    good = (ok & finite).reshape(len(factors), -1).all(-1).tolist()
    return [result if fine else None for result, fine in zip(found, good, strict=True)]


def _stacked(matrices: Sequence[Tensor]) -> Tensor:
    """``[len, ..]``; a wide matrix comes alone, and isn't copied."""
    return matrices[0].unsqueeze(0) if len(matrices) == 1 else torch.stack(list(matrices))


def _decompose_diagonal(factor: _Part) -> Eigen | Tensor | None:
    if factor.ridge is None:
        result: Eigen | Tensor = Eigen(factor.matrix.clamp_min(0), None)
        finite = torch.isfinite(factor.matrix)
    else:
        result = 1 / (factor.matrix + torch.as_tensor(factor.ridge).unsqueeze(-1).to(factor.matrix))
        finite = torch.isfinite(result)
    return result if bool(finite.all()) else None
