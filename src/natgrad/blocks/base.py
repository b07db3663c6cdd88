"""What an approximation of one layer's Fisher block must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from math import nan
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from natgrad.damping import Damping, EigenvalueDamping, LevenbergMarquardt
from natgrad.decompose import Decomposition, Factor
from natgrad.flops import UNCOUNTED, Cost, Rows, Stages
from natgrad.moments import Moment
from natgrad.padded import padded_zeros
from natgrad.sample import Sample

__all__ = ["Block", "Shared"]

Shared: TypeAlias = Literal["expand", "reduce"]


class Block(nn.Module, ABC):
    """An approximation ``F_l [o i, o i]`` of one layer's Fisher matrix, acting on ``vec(M)``.

    ``observe`` is cheap and frequent, decomposing is dear and rare, ``solve`` happens every step.
    State lives in buffers, so that saving, moving and loading are inherited. Of a layer in ``q``
    groups everything has a leading dimension ``q``, and the block is block-diagonal.

    A subclass keeps its statistics in :class:`~natgrad.moments.Moment` submodules, and says with
    :meth:`default_damping` what a plain number as damping means.

    Args:
        shape: ``(o, i)`` of the layer's matrix.
        groups: ``(q,)`` if the layer is ``q`` such matrices side by side.
        diagonal_input: whether input rows are unit vectors, and the input factor so diagonal.
        damping: a number or a damping object.
        decay: weight of the old statistics at each commit.
        shared: how positions of a shared layer are treated, see the subclass.
        dtype: dtype of the statistics, float32 or float64.
        device: where the statistics live.
        product_dtype: of the matrix products of :meth:`solve`; None the statistics'.
        widest: two-factor blocks replace a wider factor by blocks on its diagonal; None never.
        eigen: ``"fresh"``, or ``"warm"``: a step of orthogonal iteration from the last basis in
            place of an eigendecomposition, from the second on, where factors get one.
    """

    eigenvalues_only: ClassVar[bool] = False  #: whether damping of factors makes no sense
    solves_with_moments: ClassVar[bool] = False  #: solve changes whenever statistics enter
    needs_rescale: ClassVar[bool] = False  #: whether :meth:`rescale` does anything

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        groups: tuple[int, ...] = (),
        diagonal_input: bool = False,
        damping: float | Damping,
        decay: float = 0.95,
        shared: Shared = "expand",
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        product_dtype: torch.dtype | None = None,
        widest: int | None = None,
        eigen: Literal["fresh", "warm"] = "fresh",
    ) -> None:
        super().__init__()
        self.product_dtype, self.widest, self.eigen_kind = product_dtype, widest, eigen
        self._is_ready = False
        self._found: tuple[Moment, ...] | None = None
        self._lowered: dict[str, tuple[tuple[int, int], Tensor]] = {}
        self.shape, self.groups, self.diagonal_input = shape, groups, diagonal_input
        self.shared, self.decay, self.dtype, self.device = shared, decay, dtype, device
        self.damping: Damping = self._understood(damping)
        if self.eigenvalues_only and not isinstance(self.damping, EigenvalueDamping):
            raise TypeError(
                f"{type(self).__name__} adds its damping to eigenvalues; it needs a number or an "
                f"object with ridge(trace, dim), got {type(self.damping).__name__}"
            )
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool, device=device))

    ready: Tensor  #: whether a decomposition has been loaded

    def _understood(self, damping: float | Damping) -> Damping:
        """A number, or one that adapts, in the block's own way."""
        if isinstance(damping, (int, float)):
            return self.default_damping(damping)
        if isinstance(damping, LevenbergMarquardt):
            return damping.following(self.default_damping(damping.value))
        return damping

    @staticmethod
    @abstractmethod
    def default_damping(value: float) -> Damping:
        """What a plain number as damping means."""

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`solve` can be called."""
        if not self._is_ready:
            self._is_ready = bool(self.ready)  # asked of the device until it says yes
        return self._is_ready

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._is_ready = False
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def dim(self) -> int:
        """Rows of the block, ``q o i``."""
        o, i = self.shape
        return o * i * self.count

    @property
    def count(self) -> int:
        """Equal blocks side by side, ``q`` or 1."""
        return self.groups[0] if self.groups else 1

    @property
    def sizes(self) -> str:
        """Of what the block is made of, for reports."""
        o, i = self.shape
        return f"A {i}, G {o}"

    @abstractmethod
    def observe(self, sample: Sample) -> None:
        """Let the sample wait in the block's moments for the next commit."""

    def rescale(self, sample: Sample) -> None:
        """Let the scale, measured in the basis now in use, wait for the next commit."""

    def skip(self, examples: int) -> None:
        """Count examples whose gradients with respect to this layer are all zero."""
        for moment in self.moments():
            moment.add(torch.zeros_like(moment.value), examples)

    @abstractmethod
    def factors(self) -> Mapping[str, Factor]:
        """The matrices to decompose, by name."""

    @abstractmethod
    def load(self, decompositions: Mapping[str, Decomposition]) -> None:
        """Take the decompositions of :meth:`factors`, under the same names."""

    @abstractmethod
    def solve(self, M: Tensor) -> Tensor:
        """``(F_l + damping)^-1 vec(M)`` for a gradient matrix ``M [.., (q,) o, i]``."""

    def solve_rows(self, rows: Sample) -> Tensor:
        """``solve(sum g a^T)`` for the rows of one backward pass."""
        return self.solve(rows.gradient_sum())

    def rows_pay(self, count: int) -> bool:
        """Whether :meth:`solve_rows` of so many rows costs less than :meth:`solve`."""
        return False

    def solved_rows(self, rows: Rows) -> int:
        """How many rows the natural gradient is made of; 0 where it is made of the gradient."""
        count = rows.examples * rows.positions
        return count if rows.kept and self.rows_pay(count) else 0

    @abstractmethod
    def product(self, M: Tensor) -> Tensor:
        """``F_l vec(M)``, without damping, for ``M [.., (q,) o, i]``."""

    @abstractmethod
    def dense(self) -> Tensor:
        """``F_l`` without damping, ``[(q,) o i, o i]``."""

    @abstractmethod
    def eigenvalues(self) -> Tensor:
        """All eigenvalues of ``F_l``, in no order, ``[dim]``."""

    def trace(self) -> Tensor:
        """``tr F_l``."""
        return self.eigenvalues().sum()

    def squared_norm(self) -> Tensor:
        """``|F_l|^2`` in the Frobenius norm."""
        return self.eigenvalues().square().sum()

    def ridge(self) -> Tensor | float:
        """The damping that the next solve adds to every eigenvalue (K-FAC: up to cross terms)."""
        if isinstance(self.damping, EigenvalueDamping):
            return self.damping.ridge(self.trace(), self.dim)
        return nan

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest eigenvalue of ``F_l + damping``; cheap, to a few percent."""
        damped = self.eigenvalues() + self.ridge()
        return damped.amin(), damped.amax()

    def effective_rank(self) -> Tensor:
        """``(tr F_l)^2 / |F_l|^2``: the number of equal eigenvalues that would give both."""
        tiny = torch.finfo(self.dtype).tiny
        return self.trace().square() / self.squared_norm().clamp_min(tiny)

    def cost(self, rows: Rows) -> Cost:
        """Of one batch of statistics, one decomposition, one solve, from the shapes alone."""
        return Cost((UNCOUNTED,), (UNCOUNTED,), (UNCOUNTED,), self.dtype.itemsize)

    def flops(self, rows: Rows) -> Stages:
        """Those of :meth:`cost`; NaN where nobody counted."""
        return self.cost(rows).flops

    def state_bytes(self) -> int:
        """Memory of moments and decompositions between steps."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def moments(self) -> Iterator[Moment]:
        """All running means of the block."""
        if self._found is None:  # modules() walks the tree, and steps are short
            self._found = tuple(each for each in self.modules() if isinstance(each, Moment))
        return iter(self._found)

    def basis_moments(self) -> Iterator[Moment]:
        """Those that :meth:`factors` needs; the others are measured after :meth:`load`."""
        return self.moments()

    def observed(self) -> bool:
        """Whether what :meth:`factors` needs has ever been committed."""
        return all(bool(moment.weight > 0) for moment in self.moments())

    def _for_products(self, name: str) -> Tensor:
        """A buffer in the dtype of products, converted once for each time that it changes."""
        buffer = self.get_buffer(name)
        if self.product_dtype is None:
            return buffer
        state = buffer._version, buffer.data_ptr()
        if name not in self._lowered or self._lowered[name][0] != state:
            self._lowered[name] = state, buffer.to(self.product_dtype)
        return self._lowered[name][1]

    def _moment(self, *shape: int, of_inputs: bool = False, of_products: bool = False) -> Moment:
        return Moment(
            *self.groups, *shape, decay=self.decay, dtype=self.dtype, device=self.device,
            of_inputs=of_inputs, of_products=of_products,
        )  # fmt: skip

    def _zeros(self, name: str, *shape: int) -> None:
        zeros = padded_zeros(*self.groups, *shape, dtype=self.dtype, device=self.device)
        self.register_buffer(name, zeros)
