"""What every kind of layer can do for a curvature block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from natgrad.sample import InputRows, Inputs

__all__ = ["Kind", "LayerView", "Slot", "Uncovered", "reasons", "rows_of"]


Kind: TypeAlias = Literal["convolution", "dense", "other"]


@dataclass(frozen=True)
class Uncovered:
    """A module whose parameters keep their plain gradient, and why."""

    name: str
    module: nn.Module
    reason: str

    @property
    def trained(self) -> bool:
        """Whether any of the module's own parameters takes gradients."""
        return any(p.requires_grad for p in self.module.parameters(recurse=False))


def reasons(uncovered: Iterable[Uncovered]) -> str:
    """Each module with the reason why it is not covered, in one line."""
    return "; ".join(f"{u.name or type(u.module).__name__}: {u.reason}" for u in uncovered)


@dataclass(frozen=True)
class Slot:
    """A parameter, or some rows of one, that is part of a layer's matrix."""

    parameter: nn.Parameter
    start: int = 0
    stop: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the parameter."""
        return self.start == 0 and self.stop is None

    def of(self, tensor: Tensor) -> Tensor:
        """The slot's part of a tensor shaped like the parameter, as a view of it."""
        return tensor if self.is_whole else tensor[self.start : self.stop]


class LayerView(ABC):
    """One module read as the matrix map ``z = W abar``, ``abar = [h; 1]``.

    The layer's matrix is ``[o, i]``, bias as the last column; its Fisher block acts on the matrix
    flattened row-major. A layer that is ``q`` equal maps side by side (grouped convolution, scale
    and shift of a norm) has a matrix ``[q, o, i]`` and a block-diagonal Fisher block.

    A subclass says which modules it reads and how rows and matrices are made; everything that
    touches parameters and gradients follows. A module that is several maps has several views
    (:meth:`of`); modules that hold the very same parameters are one view with ``twins``.

    Args:
        name: the module's name in the model.
        module: the module itself.
    """

    exact: bool = False  #: the block is small and taken exactly, whatever structure is asked for
    diagonal_input: bool = False  #: input rows are unit vectors, so the input factor is diagonal
    kind: Kind = "other"
    kernel: int = 1  #: entries of a patch in each channel, where input rows are patches
    inner: tuple[str, ...] = ()  #: submodules whose parameters belong to the views of the module

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.twins: list[LayerView] = []  #: views of other modules with the same parameters
        self.sequence_first = False  #: whether activations are ``[t, n, k]``, not ``[n, t, k]``

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {'x'.join(map(str, self.matrix_shape))})"

    @classmethod
    @abstractmethod
    def reads(cls, module: nn.Module) -> bool:
        """Whether this is the view for ``module``."""

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why ``module``, though of the right kind, can't be covered; None if it can."""
        return None

    @classmethod
    def of(cls, name: str, module: nn.Module) -> Sequence[LayerView]:
        """The views of ``module``: one, unless it is several maps."""
        return [cls(name, module)]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(o, i)``: fan-out, and fan-in with the bias column."""

    @property
    def groups(self) -> tuple[int, ...]:
        """``(q,)`` of a layer that is ``q`` equal matrix maps side by side, else ``()``."""
        return ()

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """``(*groups, o, i)``."""
        return (*self.groups, *self.shape)

    @property
    def leaves_rows(self) -> bool:
        """Whether the user's backward pass shows the rows that its gradient is made of."""
        return False

    @abstractmethod
    def input_rows(self, h: Tensor) -> InputRows:
        """The module's input as rows ``[(q,) n, t, i]``, ones in the bias column."""

    def inputs(self, h: Tensor) -> Inputs:
        """What a sample keeps of the module's input: the rows, or what they can be made of."""
        return self.input_rows(h)

    @abstractmethod
    def output_rows(self, grad_z: Tensor) -> Tensor:
        """A gradient with respect to the module's output as rows ``[(q,) n, t, o]``."""

    @abstractmethod
    def slots(self) -> dict[str, Slot]:
        """The trained parameters in the matrix, by their names in the module."""

    @abstractmethod
    def to_matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors shaped like the slots as one matrix ``[(q,) o, i]``.

        Moves entries and nothing else, so that it serves gradients and index tensors alike.
        """

    @abstractmethod
    def from_matrix(self, M: Tensor) -> dict[str, Tensor]:
        """The inverse of :meth:`to_matrix`."""

    @cached_property
    def trained(self) -> dict[str, Slot]:
        """:meth:`slots`, read once: where what is trained changes, views are made anew."""
        return self.slots()

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters in the matrix, by their names in the module."""
        return {name: slot.parameter for name, slot in self.trained.items()}

    def grad(self) -> Tensor | None:
        """The parameters' ``.grad`` as a matrix ``[(q,) o, i]``; None if none has one."""
        slots = self.trained
        if all(slot.parameter.grad is None for slot in slots.values()):
            return None
        return self.to_matrix({name: slot.of(_grad(slot)) for name, slot in slots.items()})

    def set_grad(self, M: Tensor) -> None:
        """Write the matrix ``[(q,) o, i]`` into the parameters' ``.grad``, in place."""
        for place, entries in self.places(M):
            place.copy_(entries)

    def add_grad(self, M: Tensor) -> None:
        """Add the matrix ``[(q,) o, i]`` to the parameters' ``.grad``, from nothing where None."""
        slots = self.trained
        for name, entries in self.from_matrix(M).items():
            slot = slots[name]
            p = slot.parameter
            if p.grad is None and slot.is_whole:
                p.grad = torch.empty_like(p).copy_(entries)
                continue
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            slot.of(p.grad).add_(entries)

    def places(self, M: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Where in the parameters' ``.grad`` the entries of the matrix belong, and those."""
        slots = self.trained
        for name, entries in self.from_matrix(M).items():
            parameter = slots[name].parameter
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            yield slots[name].of(parameter.grad), entries


def _grad(slot: Slot) -> Tensor:
    grad = slot.parameter.grad
    return torch.zeros_like(slot.parameter) if grad is None else grad


def rows_of(h: Tensor) -> Tensor:
    """``[n, ..., k]`` as ``[n, t, k]``; a vector is one example at one position."""
    features = h.shape[-1]
    if h.ndim == 1:
        return h.reshape(1, 1, features)
    return h.reshape(h.shape[0], -1, features)
