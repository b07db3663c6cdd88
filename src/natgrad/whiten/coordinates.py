"""The two sets of coordinates of a layer, as functions of tensors.

Plain ``(W, b)`` and whitened ``(V, d)`` parametrize one map, ``y = Q (V P (x - c) + d)``, hence

    ``W = Q V P``,  ``b = Q d - sum_p W[:, p] c``

with constants ``c, P, Q`` (Desjardins et al. 2015, section 3; MATH 5.1, 5.5). Matrices are
``W [(q,) o, p, k]``: ``k`` features; ``p`` offsets of a kernel (1 for a Linear layer), which share
the constants; ``q`` groups, each with constants of its own. Biases are ``[(q,) o]``. Both maps are
linear, so what they do to parameters they do to displacements.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from natgrad import linalg
from natgrad.whiten.triangle import times_lower

__all__ = ["Constants", "canonical", "carried_gradient", "pulled_back", "whitened"]


@dataclass(frozen=True)
class Constants:
    """What a whitened layer computes with beside its parameters.

    Args:
        P: ``[(q,) k, k]``, or as a row ``[(q,) 1, k]`` the diagonal of a diagonal matrix.
        c: ``[(q,) k]``. Without it the layer is ``y = Q V P x + b``: the bias is left alone.
        Q: ``[(q,) o, o]``, or as a column ``[(q,) o, 1]`` a diagonal. None is the identity.
        P_inv: the inverse of ``P``, where it is known without a solve.
        Q_inv: the inverse of ``Q``.
        lower: whether ``P`` is lower triangular; products then leave out its zeros.
    """

    P: Tensor
    c: Tensor | None = None
    Q: Tensor | None = None
    P_inv: Tensor | None = None
    Q_inv: Tensor | None = None
    lower: bool = field(default=False, kw_only=True)

    def to(self, dtype: torch.dtype, copy: bool = True) -> Constants:
        """In another dtype; without ``copy`` what has it already is the same tensor."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        moved: dict[str, Any] = {
            key: x.to(dtype, copy=copy) for key, x in named.items() if isinstance(x, Tensor)
        }
        return replace(self, **moved)

    def inverted(self) -> Constants:
        """With both inverses: those given, else ``P^-1 = P^T (P P^T)^-1``."""
        P_inv = _inverse(self.P) if self.P_inv is None else self.P_inv
        known = self.Q is None or self.Q_inv is not None
        Q_inv = self.Q_inv if known or self.Q is None else _inverse(self.Q)
        return replace(self, P_inv=P_inv, Q_inv=Q_inv)


def canonical(at: Constants, V: Tensor, d: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``W = Q V P`` and ``b = Q d - sum_p W[:, p] c``."""
    W = _left(at.Q, _right(V, at.P, at.lower))
    if at.c is None or d is None:
        return W, d
    return W, _apply(at.Q, d) - _summed(W, at.c)


def whitened(at: Constants, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The inverse: ``V = Q^-1 W P^-1`` and ``d = Q^-1 (b + sum_p W[:, p] c)``."""
    at = at.inverted()
    V = _left(at.Q_inv, _right(W, at.P_inv, at.lower))
    if at.c is None or b is None:
        return V, b
    return V, _apply(at.Q_inv, b + _summed(W, at.c))


def pulled_back(at: Constants, W: Tensor, b: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """A gradient with respect to ``(W, b)`` as one with respect to ``(V, d)``.

    ``grad V = Q^T (grad W - grad b c^T) P^T``, ``grad d = Q^T grad b`` (the chain rule).
    """
    if at.c is None or b is None:
        return _left(_transposed(at.Q), _right(W, _transposed(at.P))), b
    W = W - b[..., None, None] * at.c[..., None, None, :]
    Q = _transposed(at.Q)
    return _left(Q, _right(W, _transposed(at.P))), _apply(Q, b)


def carried_gradient(
    old: Constants, new: Constants, V: Tensor, d: Tensor | None, squared: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A gradient in old whitened coordinates as one in new ones.

    ``grad d <- S grad d`` and ``grad V <- S grad V T + (S grad d) e^T`` with
    ``S = Q_new^T Q_old^-T``, ``T = P_old^-T P_new^T`` and ``e = P_new (c_old - c_new)``: the chain
    rule back to ``(W, b)`` and on to the new ``(V, d)``.

    With ``squared`` the tensors are second moments of gradients, taken as the diagonal of a matrix:
    ``S, T, e`` enter with their entries squared, which is exact for such a matrix. Between PCA
    bases of equal scale this is the ``R o R`` rule of MATH 2 and 5.4 (V:C18).
    """
    old = old.inverted()
    T = _product(_transposed(old.P_inv), _transposed(new.P))
    S = _product(_transposed(new.Q), _transposed(old.Q_inv))
    e = None
    if old.c is not None and new.c is not None:
        e = _apply(new.P.mT if new.P.shape[-2] == 1 else new.P, old.c - new.c)
    if squared:
        T, S, e = (x if x is None else x.square() for x in (T, S, e))
    V = _left(S, _right(V, T))
    if e is None or d is None:
        return V, d
    d = _apply(S, d)
    return V + d[..., None, None] * e[..., None, None, :], d


def _right(V: Tensor, P: Tensor | None, lower: bool = False) -> Tensor:
    """``V P``; a row is a diagonal matrix."""
    if P is None:
        return V
    rows = V.flatten(-3, -2)
    if lower and P.ndim == 2:
        return times_lower(rows, P).reshape(V.shape)
    return (rows * P if P.shape[-2] == 1 else rows @ P).reshape(V.shape)


def _left(Q: Tensor | None, V: Tensor) -> Tensor:
    """``Q V``; a column is a diagonal matrix."""
    if Q is None:
        return V
    columns = V.flatten(-2)
    return (Q * columns if Q.shape[-1] == 1 else Q @ columns).reshape(V.shape)


def _apply(Q: Tensor | None, d: Tensor) -> Tensor:
    """``Q d``; a column is a diagonal matrix."""
    if Q is None:
        return d
    return Q.squeeze(-1) * d if Q.shape[-1] == 1 else (Q @ d.unsqueeze(-1)).squeeze(-1)


def _summed(W: Tensor, c: Tensor) -> Tensor:
    """``sum_p W[:, p] c``."""
    return (W.sum(-2) @ c.unsqueeze(-1)).squeeze(-1)


def _transposed(M: Tensor | None) -> Tensor | None:
    return M if M is None or 1 in M.shape[-2:] else M.mT


def _product(M: Tensor | None, N: Tensor | None) -> Tensor | None:
    if M is None or N is None:
        return None
    return M * N if 1 in M.shape[-2:] else M @ N


def _inverse(M: Tensor) -> Tensor:
    if 1 in M.shape[-2:]:
        return 1 / M
    return M.mT @ linalg.inverse(M @ M.mT)[0]
