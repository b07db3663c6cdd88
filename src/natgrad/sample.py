"""The paired rows of one layer for one batch, and the moments that can be taken of them.

Shape letters used everywhere: ``n`` examples, ``t`` shared positions of a layer (1 for a plain
Linear, tokens of a sequence, pixels of a convolution), ``i`` fan-in with the bias column,
``o`` fan-out, ``c`` draws or columns whose second moments add up, ``q`` groups of a layer that is
block-diagonal by construction (grouped convolutions, scale and shift of norm layers); most layers
have no ``q``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from natgrad.homogeneous import Homogeneous
from natgrad.padded import times
from natgrad.patches import Patches
from natgrad.split import BlockDiagonal, Matrix, Split, gram

__all__ = [
    "InputRows",
    "Inputs",
    "OneHot",
    "OutputRows",
    "Sample",
    "concatenated",
    "gradients_are_fewer",
    "statistics_dtype",
]

CHUNK_BYTES = 2**27  #: memory for per-example gradients, 128 MiB


@dataclass(frozen=True)
class OneHot:
    """Rows that are unit vectors: ``indices [n, t]`` below ``size``; ``-1`` is a row of zeros."""

    indices: Tensor
    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(n, t, i)``, as if the rows were written out."""
        n, t = self.indices.shape
        return n, t, self.size

    def kept(self) -> OneHot:
        """A copy that shares no memory with the layer's input."""
        return OneHot(self.indices.clone(), self.size)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The rows written out, ``[n, t, i]``."""
        shape = (*self.indices.shape, self.size + 1)
        rows = torch.zeros(shape, dtype=dtype, device=self.indices.device)
        return rows.scatter_(-1, (self.indices + 1).unsqueeze(-1), 1)[..., 1:]


InputRows: TypeAlias = Tensor | OneHot  #: ``a [(q,) n, t, i]``, the bias column of ones last
Unwritten: TypeAlias = Patches | Homogeneous  #: what rows are made of when needed
Inputs: TypeAlias = InputRows | Unwritten  #: the same rows, one way or another
OutputRows: TypeAlias = Tensor  #: ``g [(q,) c, n, t, o]``


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The parameters' dtype, but never below float32."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Sample:
    """Input rows ``a`` and output-gradient rows ``g`` of one layer, paired.

    ``g`` is scaled so that it is the gradient of *one example's* negative log-likelihood: the
    layer's exact Fisher block is ``1/n sum_{n,c} vec(J) vec(J)^T`` with
    ``J[c, n] = sum_t g[c, n, t] a[n, t]^T`` (MATH 0, V:B4, V:B11). ``c`` counts the columns of the
    exact Fisher, the draws of the sampled one (each already scaled by ``draws^-1/2``), and is 1
    for the empirical one.

    ``a`` may be given as :class:`~natgrad.patches.Patches`, or without its column of ones as
    :class:`~natgrad.homogeneous.Homogeneous`. Sums of ``a`` and ``a a^T`` are then had from these;
    what asks for the rows themselves has them made, once for the sample.
    """

    inputs: Inputs
    g: OutputRows

    def __post_init__(self) -> None:
        a, g = tuple(self.inputs.shape), tuple(self.g.shape)
        paired = len(a) in (3, 4) and len(g) == len(a) + 1
        if not paired or (*a[:-3], *a[-3:-1]) != (*g[:-4], *g[-3:-1]):
            raise ValueError(
                f"a Sample pairs a [(q,) n, t, i] with g [(q,) c, n, t, o]; got a {a} and g {g}"
            )

    @property
    def a(self) -> InputRows:
        """The input rows, written out."""
        return self.inputs.rows if isinstance(self.inputs, Unwritten) else self.inputs

    @property
    def examples(self) -> int:
        """Number of examples ``n``."""
        return self.inputs.shape[-3]

    @property
    def positions(self) -> int:
        """Number of shared positions ``t``."""
        return self.inputs.shape[-2]

    @property
    def nbytes(self) -> int:
        """Memory of the rows, or of the images behind them."""
        a = self.inputs.indices if isinstance(self.inputs, OneHot) else self.inputs
        return a.nbytes + self.g.nbytes

    def kept(self) -> Sample:
        """The same, for later: nobody else changes it, and rows made of images are forgotten."""
        a = self.inputs
        return Sample(a.clone() if isinstance(a, Tensor) else a.kept(), self.g.clone())

    def first(self, examples: int) -> Sample:
        """The first so many examples, at least one."""
        some = slice(0, max(1, examples))
        a, g = self.inputs, self.g[..., some, :, :]
        if isinstance(a, OneHot):
            return Sample(OneHot(a.indices[some], a.size), g)
        return Sample(a.part(some) if isinstance(a, Unwritten) else a[..., some, :, :], g)

    def scaled(self, factor: float) -> Sample:
        """``g`` times a number."""
        return self if factor == 1 else Sample(self.inputs, self.g * factor)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for checkpoints."""
        if isinstance(self.inputs, OneHot):
            return {"a": self.inputs.indices, "size": self.inputs.size, "g": self.g}
        if isinstance(self.inputs, Unwritten):
            return {"g": self.g, **self.inputs.state()}
        return {"a": self.inputs, "g": self.g}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Sample:
        """The inverse of :meth:`state`."""
        if "image" in state:
            return Sample(Patches.from_state(state), state["g"])
        if "h" in state:
            return Sample(Homogeneous.from_state(state), state["g"])
        a = OneHot(state["a"], state["size"]) if "size" in state else state["a"]
        return Sample(a, state["g"])

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Sample:
        """The same rows in another dtype, and on another device if one is given."""
        g = self.g.to(device=device, dtype=dtype)
        if isinstance(self.inputs, OneHot):
            return Sample(OneHot(self.inputs.indices.to(device=device), self.inputs.size), g)
        if isinstance(self.inputs, Unwritten):
            return Sample(self.inputs.to(dtype, device), g)
        return Sample(self.inputs.to(device=device, dtype=dtype), g)

    def reduced(self) -> Sample:
        """One position: ``mean_t a`` and ``sum_t g`` (K-FAC-reduce); unit vectors stay as are."""
        a = self.inputs
        if isinstance(a, OneHot) or self.positions == 1:
            return self
        mean = a.mean() if isinstance(a, Unwritten) else a.mean(-2, keepdim=True)
        return Sample(mean, self.g.sum(-2, keepdim=True))

    def rotated(self, U_A: Matrix | None, U_G: Matrix | None) -> Sample:
        """Rows ``a U_A`` and ``g U_G``; None leaves them as they are."""
        a = self.a if U_A is None or isinstance(self.a, OneHot) else _times(self.a, U_A)
        return Sample(a, self.g if U_G is None else _times(self.g, U_G))

    # sums over the rows, not means --------------------------------------------------------------

    def input_moment(self, weights: Tensor | None = None, split: Split | None = None) -> Tensor:
        """``sum_{n,t} w a a^T [(q,) i, i]``; its diagonal ``[i]`` where rows are unit vectors.

        Args:
            weights: ``w [(q,) n, t]``, ones by default.
            split: the blocks on the diagonal that are wanted alone, one after the other.
        """
        if isinstance(self.inputs, Unwritten) and weights is None:
            return self.inputs.moment(split)
        if isinstance(self.inputs, Patches) and weights is not None and split is None:
            return self.inputs.weighted_moment(weights)
        a = self.a
        if isinstance(a, OneHot):
            w = self.g.new_ones(a.indices.shape) if weights is None else weights
            counted = torch.where(a.indices >= 0, w, torch.zeros_like(w))
            total = w.new_zeros(a.size)
            return total.index_add_(0, a.indices.flatten().clamp_min(0), counted.flatten())
        return gram(a.flatten(-3, -2), None if weights is None else weights.flatten(-2), split)

    def input_products(self) -> float | None:
        """Multiply-adds of :meth:`input_moment` for a group from images; None where from rows."""
        if not isinstance(self.inputs, Patches):
            return None
        products = self.inputs.moment_products()
        return None if products is None else products / self.inputs.window.groups

    def output_moment(self, weights: Tensor | None = None, split: Split | None = None) -> Tensor:
        """``sum_{c,n,t} w g g^T [(q,) o, o]``, with ``w [(q,) n, t]``; see :meth:`input_moment`."""
        if weights is not None:
            weights = weights.unsqueeze(-3).expand(self.g.shape[:-1]).flatten(-3)
        return gram(self.g.flatten(-4, -2), weights, split)

    def input_norms(self) -> Tensor:
        """``|a|^2 [(q,) n, t]``."""
        if isinstance(self.inputs, Unwritten):
            return self.inputs.norms()
        if isinstance(self.inputs, OneHot):
            return (self.inputs.indices >= 0).to(self.g.dtype)
        return self.inputs.square().sum(-1)

    def output_norms(self) -> Tensor:
        """``sum_c |g|^2 [(q,) n, t]``."""
        return self.g.square().sum(-1).sum(-3)

    def gradient_sum(self) -> Tensor:
        """``sum_{c,n,t} g a^T [(q,) o, i]``."""
        g = self.g.sum(-4).flatten(-3, -2)
        if isinstance(self.a, OneHot):
            total = g.new_zeros(self.a.size + 1, g.shape[-1])
            return total.index_add_(0, self.a.indices.flatten() + 1, g)[1:].mT
        return g.mT @ self.a.flatten(-3, -2)

    def squared_mean_gradients(self, U_A: Matrix | None, U_G: Matrix | None) -> Tensor:
        """``sum_c (1/n sum_{n,t} U_G^T g a^T U_A)^2 [(q,) o, i]``: squares of batch means."""
        columns = (Sample(self.inputs, g.unsqueeze(-4)).gradient_sum() for g in self.g.unbind(-4))
        total = torch.stack([_rotated(J, U_A, U_G).square() for J in columns]).sum(0)
        return total / self.examples**2

    def squared_gradients(self, U_A: Matrix | None = None, U_G: Matrix | None = None) -> Tensor:
        """``sum_{c,n} (U_G^T J U_A)^2 [(q,) o, i]``, ``J`` the true per-example gradients.

        With one position the squares factor, ``(g^2)^T (a^2)``; else gradients are formed for some
        examples at a time, in at most 128 MiB, and rotated where they are fewer than the rows.
        """
        a, g = self.inputs.shape, self.g.shape
        entries = _entries(U_G, g[-1]), _entries(U_A, a[-1])
        if not isinstance(self.inputs, OneHot) and gradients_are_fewer(
            g[-1], a[-1], positions=a[-2], columns=g[-4], entries=entries
        ):
            total = self.g.new_zeros(*a[:-3], g[-1], a[-1])
            for J in self.gradients():
                total += _rotated(J, U_A, U_G).square_().sum((-4, -3))
            return total
        return self.rotated(U_A, U_G)._squared()

    def _squared(self) -> Tensor:
        """``sum_{c,n} J^2``."""
        a = self.a
        if isinstance(a, OneHot):
            return self._squared_one_hot(a)
        if self.positions == 1:
            g = self.g.square().sum(-4).flatten(-3, -2)
            return g.mT @ a.square().flatten(-3, -2)
        total = a.new_zeros(*a.shape[:-3], self.g.shape[-1], a.shape[-1])
        for J in self.gradients():
            total += J.square_().sum((-4, -3))
        return total

    def _squared_one_hot(self, a: OneHot) -> Tensor:
        example = torch.arange(self.examples, device=self.g.device).unsqueeze(1)
        pair = example * (a.size + 1) + a.indices + 1
        pairs, where = torch.unique(pair.flatten(), return_inverse=True)
        total = self.g.new_zeros(a.size + 1, self.g.shape[-1])
        for g in self.g:  # one column at a time
            J = g.new_zeros(len(pairs), g.shape[-1]).index_add_(0, where, g.flatten(0, 1))
            total.index_add_(0, pairs % (a.size + 1), J.square_())
        return total[1:].mT

    def gradients(self) -> Iterator[Tensor]:
        """Per-example gradients ``J [(q,) c, n', o, i]`` of ``n'`` examples at a time."""
        g, inputs = self.g, self.inputs
        row = g[..., 0, 0, 0].numel() * g.shape[-1] * inputs.shape[-1] * g.element_size()
        chunk = max(1, CHUNK_BYTES // max(row, 1))
        parts = [slice(start, start + chunk) for start in range(0, self.examples, chunk)]
        if isinstance(inputs, Patches) and inputs.gradients_need_no_rows:
            yield from (inputs.part(part).gradients(g[..., part, :, :]) for part in parts)
            return
        a = self.a.dense(g.dtype) if isinstance(self.a, OneHot) else self.a
        for part in parts:
            yield g[..., part, :, :].mT @ a[..., part, :, :].unsqueeze(-4)


def concatenated(inputs: Sequence[Inputs]) -> Inputs:
    """Inputs of several uses of a layer as further positions of the same examples."""
    first = inputs[0]
    if len(inputs) == 1:
        return first
    if isinstance(first, OneHot):
        indices = [each.indices for each in inputs if isinstance(each, OneHot)]
        return OneHot(torch.cat(indices, dim=-1), first.size)
    rows = [each.rows if isinstance(each, Unwritten) else each for each in inputs]
    return torch.cat([each for each in rows if isinstance(each, Tensor)], dim=-2)


def gradients_are_fewer(
    o: int, i: int, *, positions: int, columns: int, entries: tuple[int, int] | None = None
) -> bool:
    """Whether rotating ``c`` gradients ``[o, i]`` takes less than rotating the rows behind them.

    Args:
        o: of the gradients.
        i: likewise.
        positions: rows of ``a`` behind each.
        columns: gradients.
        entries: multiply-adds of a row of ``g``, and of ``a``, times its basis; all by default.
    """
    G, A = entries or (o * o, i * i)
    return columns * (i * G + o * A) < positions * (A + columns * G)


def _rotated(J: Tensor, U_A: Matrix | None, U_G: Matrix | None) -> Tensor:
    """``U_G^T J U_A``; None is the identity."""
    J = J if U_A is None else _times(J, U_A)
    return J if U_G is None else _fit(U_G, J).mT @ J


def _times(rows: Tensor, U: Matrix) -> Tensor:
    """``rows U`` for ``rows [(q,) .., t, d]`` and ``U [(q,) d, d]``."""
    if rows.shape[-2] == 1:  # in one product: else each example's single row reads all of U
        return times(rows.flatten(U.ndim - 2, -2), U).reshape(rows.shape)
    return rows @ _fit(U, rows)


def _entries(U: Matrix | None, d: int) -> int:
    return U.entries if isinstance(U, BlockDiagonal) else d * d


def _fit(U: Matrix, rows: Tensor) -> Matrix:
    """``U [(q,) d, d]`` with dimensions of size one where the rows have theirs."""
    missing = rows.ndim - U.ndim
    if isinstance(U, BlockDiagonal):
        return U.unsqueezed(missing)
    return U.reshape(*U.shape[:-2], *[1] * missing, *U.shape[-2:])
