"""What a layer's curvature costs, counted on paper: operations and memory traffic of each stage.

A multiply-add is two flop. Only products and decompositions have flop: passes over the entries of
a tensor are bound by memory, and counted in the words that they read and write.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan, nan
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "DECOMPOSITIONS",
    "EIGH",
    "INVERSE",
    "UNCOUNTED",
    "WARM",
    "Cost",
    "Kind",
    "Rows",
    "Stages",
    "Work",
    "backward_again",
    "committed",
    "eigh",
    "gathering",
    "inverse",
    "known",
    "layer_passes",
    "model_flops",
    "passes",
    "product",
    "rows_pay",
    "warm",
]

EIGH = 9  #: of a symmetric eigendecomposition with vectors, per d^3
WARM = 20 / 3  #: of two products and a QR factorisation with ``Q`` formed, per d^3
WORTHWHILE = 5e6  #: multiply-adds to be saved before another way is taken: some 0.1 ms on a core
INVERSE = 1  #: of a Cholesky factorisation and inverse, per d^3

Kind: TypeAlias = Literal["product", "inverse", "eigh", "warm", "pass", "gather"]

DECOMPOSITIONS: tuple[Kind, ...] = ("inverse", "eigh", "warm")


class Rows(NamedTuple):
    """What one batch gives a layer."""

    examples: int = 1
    positions: int = 1
    columns: int = 1  #: draws of the sampled Fisher, columns of the exact one
    kernel: int = 1  #: offsets of a convolution's kernel, whose input rows are patches
    moment: float | None = None  #: multiply-adds of sum a a^T, where it is not taken of the rows
    kept: bool = False  #: whether the user's backward pass leaves as many to solve from


class Work(NamedTuple):
    """Some operations of one kind, whose rates differ."""

    kind: Kind
    flops: float
    words: float  #: numbers read and written, in all calls
    size: float  #: what the rate depends on: width of a matrix, shortest side, numbers of a pass
    calls: float = 1  #: kernels, or stacked matrices of a decomposition
    fresh: float = 0  #: numbers among the words that are written to memory just taken

    def times(self, count: int) -> Work:
        """``count`` of it in one stack; of decompositions, whose stacks are loops, more calls."""
        decomposes = self.kind in DECOMPOSITIONS
        grows = self.kind in ("pass", "gather")
        return Work(
            self.kind,
            count * self.flops,
            count * self.words,
            self.size * count if grows else self.size,
            self.calls * count if decomposes else self.calls,
            count * self.fresh,
        )

    def again(self, count: int) -> Work:
        """``count`` of it one after another, each a call of its own."""
        return self._replace(
            flops=count * self.flops, words=count * self.words, calls=count * self.calls,
            fresh=count * self.fresh,
        )  # fmt: skip


UNCOUNTED = Work("pass", nan, nan, 0)  #: what nobody counted


class Stages(NamedTuple):
    """A figure for each batch of statistics, each decomposition, and each step's solve."""

    statistics: float
    decomposition: float
    solve: float

    def per_step(self, stats_every: int, refresh_every: int) -> float:
        """The average over a schedule."""
        return sum(self.averaged(stats_every, refresh_every))

    def averaged(self, stats_every: int, refresh_every: int) -> Stages:
        """Each stage's part of the average step."""
        return Stages(self.statistics / stats_every, self.decomposition / refresh_every, self.solve)

    def plus(self, other: Stages) -> Stages:
        """Stage by stage."""
        return Stages(*(a + b for a, b in zip(self, other, strict=True)))


class Cost(NamedTuple):
    """The work of each stage of one layer; :data:`UNCOUNTED` where nobody counted."""

    statistics: tuple[Work, ...]
    decomposition: tuple[Work, ...]
    solve: tuple[Work, ...]
    itemsize: int = 4  #: bytes of a number

    @property
    def flops(self) -> Stages:
        """Of products and decompositions."""
        return Stages(*(_total(stage, "flops") for stage in self[:3]))

    @property
    def bytes(self) -> Stages:
        """Read and written, if nothing stays in a cache between two operations."""
        return Stages(*(self.itemsize * _total(stage, "words") for stage in self[:3]))

    def plus(self, other: Cost) -> Cost:
        """Both, stage by stage."""
        return Cost(
            self.statistics + other.statistics,
            self.decomposition + other.decomposition,
            self.solve + other.solve,
            self.itemsize,
        )

    def times(self, count: int) -> Cost:
        """``count`` equal blocks side by side, in one stack."""
        stages = [tuple(work.times(count) for work in stage) for stage in self[:3]]
        return Cost(stages[0], stages[1], stages[2], self.itemsize)


def _total(stage: Iterable[Work], field: Literal["flops", "words"]) -> float:
    return sum((work.flops if field == "flops" else work.words for work in stage), 0)


def known(stages: Stages) -> Stages:
    """With zeros where nobody counted."""
    return Stages(*(0 if isnan(x) else x for x in stages))


def product(m: int, k: int, n: int, stack: int = 1) -> Work:
    """``[m, k] @ [k, n]``, ``stack`` of them."""
    words = stack * (m * k + k * n + m * n)
    return Work("product", 2.0 * stack * m * k * n, words, min(m, k, n), 1, stack * m * n)


def inverse(d: int) -> Work:
    """The Cholesky inverse of a ``[d, d]``."""
    return Work("inverse", INVERSE * d**3, 2 * d * d, d)


def eigh(d: int) -> Work:
    """The eigendecomposition of a ``[d, d]``."""
    return Work("eigh", EIGH * d**3, 2 * d * d, d)


def warm(d: int) -> Work:
    """A step of orthogonal iteration in place of that (:func:`natgrad.linalg.eigh_from`)."""
    return Work("warm", WARM * d**3, 2 * d * d, d)


def passes(numbers: float, count: float, calls: float = 1, fresh: float = 0) -> Work:
    """Reading or writing ``numbers`` numbers, ``count`` times in all, by ``calls`` kernels.

    Args:
        numbers: size of the tensors.
        count: of reads and writes.
        calls: kernels.
        fresh: how many of the writes make a new tensor.
    """
    return Work("pass", 0, numbers * count, numbers, calls, numbers * fresh)


def gathering(numbers: float) -> Work:
    """Writing ``numbers`` numbers in another order than they are read, as patches are.

    The padding and the views that it takes are calls too.
    """
    return Work("gather", 0, 2 * numbers, numbers, 10)


def committed(numbers: float) -> Work:
    """What waits enters a running mean: ``value.mul_(decay).add_(pending)``."""
    return passes(numbers, 5, 2)


def layer_passes(o: int, i: int, rows: Rows) -> tuple[Work, ...]:
    """The layer's own forward and backward pass: output, gradient of the input, of the weight."""
    nt = rows.examples * rows.positions
    return product(nt, i, o), product(nt, o, i), product(o, nt, i)


def backward_again(o: int, i: int, rows: Rows) -> tuple[Work, ...]:
    """The tap's own backward passes through a layer, one per column, without weight gradients."""
    return (product(rows.columns * rows.examples * rows.positions, o, i),)


def model_flops(o: int, i: int, rows: Rows) -> float:
    """Forward and backward pass of a layer ``[o, i]``: three products of its rows and matrix."""
    return 6.0 * rows.examples * rows.positions * o * i


def rows_pay(shape: tuple[int, int], entries: tuple[int, int], rows: int) -> bool:
    """Whether ``(g G^-1)^T (a A^-1)`` costs less than ``G^-1 M A^-1`` for ``M [o, i]``.

    ``n (o^2 + i^2 + o i)`` multiply-adds against ``o i (o + i)``; less where a factor is split.

    Args:
        shape: ``(o, i)``.
        entries: multiply-adds of a row times ``G^-1``, and times ``A^-1``.
        rows: their number.
    """
    (o, i), (G, A) = shape, entries
    return i * G + o * A - rows * (G + A + o * i) > WORTHWHILE
