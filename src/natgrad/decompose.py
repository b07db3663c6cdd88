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

__all__ = ["Decomposition", "Factor", "decompose", "decompose_each", "described"]

Decomposition: TypeAlias = Eigen | Tensor


@dataclass(frozen=True)
class Factor:
    """A positive semi-definite matrix to decompose.

    Args:
        matrix: ``[(q,) d, d]``, or the diagonal ``[(q,) d]`` of one that is diagonal.
        ridge: None asks for the eigendecomposition, a number (one per group) for the inverse of
            ``matrix + ridge I``.
        diagonal: whether ``matrix`` is a diagonal.
    """

    matrix: Tensor
    ridge: Tensor | float | None = None
    diagonal: bool = False

    @property
    def _kind(self) -> tuple[object, ...]:
        M = self.matrix
        return self.ridge is None, self.diagonal, M.shape, M.dtype, M.device


def decompose(factors: Sequence[Factor]) -> list[Decomposition | None]:
    """Decompose all factors, stacked by shape; None stands where one failed, even in float64.

    A matrix that is not finite fails at once and spoils none of its stack.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, factor in enumerate(factors):
        groups.setdefault(factor._kind, []).append(index)
    results: list[Decomposition | None] = [None] * len(factors)
    for indices in groups.values():
        members = _decompose_stack([factors[index] for index in indices])
        for index, result in zip(indices, members, strict=True):
            results[index] = result
    return results


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
    if not bool(torch.isfinite(M).all()):
        return f"{shape} (not finite)"
    values = M if factor.diagonal else linalg.extreme_eigenvalues(M)
    if values is None:
        return f"{shape} (no eigenvalues found, largest entry {float(M.abs().amax()):.3g})"
    return f"{shape} (eigenvalues {float(values.amin()):.3g} to {float(values.amax()):.3g})"


def _decompose_stack(factors: list[Factor]) -> list[Decomposition | None]:
    if factors[0].diagonal:
        return [_decompose_diagonal(factor) for factor in factors]
    stack = torch.stack([factor.matrix for factor in factors])
    finite = linalg.finite(stack)
    if not bool(finite.all()):
        stack = torch.where(finite[..., None, None], stack, torch.zeros_like(stack))
    if factors[0].ridge is None:
        eigen, ok = linalg.eigh(stack)
        assert eigen.vectors is not None
        pairs = zip(eigen.values, eigen.vectors, strict=True)
        found: list[Decomposition] = [Eigen(l, U) for l, U in pairs]
    else:
        ridges = [torch.as_tensor(f.ridge).to(stack).expand(stack.shape[1:-2]) for f in factors]
        inverses, ok = linalg.inverse(linalg.add_ridge(stack, torch.stack(ridges)))
        found = list(inverses)
    good = (ok & finite).reshape(len(factors), -1).all(-1).tolist()
    return [result if fine else None for result, fine in zip(found, good, strict=True)]


def _decompose_diagonal(factor: Factor) -> Decomposition | None:
    if factor.ridge is None:
        result: Decomposition = Eigen(factor.matrix.clamp_min(0), None)
        finite = torch.isfinite(factor.matrix)
    else:
        result = 1 / (factor.matrix + torch.as_tensor(factor.ridge).unsqueeze(-1).to(factor.matrix))
        finite = torch.isfinite(result)
    return result if bool(finite.all()) else None
