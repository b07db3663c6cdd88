"""What an approximation of one layer's Fisher block must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from natgrad.damping import Damping
from natgrad.decompose import Decomposition, Factor
from natgrad.moments import Moment
from natgrad.sample import Sample

__all__ = ["Block", "Shared"]

Shared: TypeAlias = Literal["expand", "reduce"]


class Block(nn.Module, ABC):
    """An approximation ``F_l [o i, o i]`` of one layer's Fisher matrix, acting on ``vec(M)``.

    ``observe`` is cheap and frequent, decomposing is dear and rare, ``solve`` happens every step.
    State lives in buffers, so that saving, moving and loading are inherited.

    A subclass needs ``observe``, ``factors``, ``load``, ``solve`` and ``dense``, keeps its
    statistics in :class:`~natgrad.moments.Moment` submodules, and says with ``default_damping``
    what a plain number as damping means.

    Args:
        shape: ``(o, i)`` of the layer's matrix.
        damping: a damping object.
        decay: weight of the old statistics at each commit.
        shared: how positions of a shared layer are treated, see the subclass.
        dtype: dtype of the statistics, float32 or float64.
        device: where the statistics live.
    """

    default_damping: Callable[[float], Damping]

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        damping: float | Damping,
        decay: float = 0.95,
        shared: Shared = "expand",
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.shared = shape, shared
        self.damping: Damping = (
            type(self).default_damping(damping) if isinstance(damping, (int, float)) else damping
        )
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.dtype, self.device, self.decay = dtype, device, decay

    ready: Tensor  #: whether a decomposition has been loaded

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`solve` can be called."""
        return bool(self.ready)

    @abstractmethod
    def observe(self, sample: Sample) -> None:
        """Let the sample wait in the block's moments for the next commit."""

    @abstractmethod
    def factors(self) -> Mapping[str, Factor]:
        """The matrices to decompose, by name."""

    @abstractmethod
    def load(self, decompositions: Mapping[str, Decomposition]) -> None:
        """Take the decompositions of :meth:`factors`, under the same names."""

    @abstractmethod
    def solve(self, M: Tensor) -> Tensor:
        """``(F_l + damping)^-1 vec(M)`` for a gradient matrix ``M [o, i]``."""

    def solve_rows(self, a: Tensor, g: Tensor) -> Tensor:
        """``solve(g^T a)`` for rows ``a [r, i]`` and ``g [r, o]`` of one backward pass."""
        return self.solve(g.mT @ a)

    @abstractmethod
    def dense(self) -> Tensor:
        """``F_l`` without damping, ``[o i, o i]``."""

    def moments(self) -> Iterator[Moment]:
        """All running means of the block."""
        return (module for module in self.modules() if isinstance(module, Moment))

    def observed(self) -> bool:
        """Whether any statistics have ever been committed."""
        return all(bool(moment.weight > 0) for moment in self.moments())
