"""What every kind of layer can do for a curvature block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["LayerView", "Uncovered"]


@dataclass(frozen=True)
class Uncovered:
    """A module whose parameters keep their plain gradient, and why."""

    name: str
    module: nn.Module
    reason: str


class LayerView(ABC):
    """One module read as the matrix map ``z = W abar``, ``abar = [h; 1]``.

    The layer's matrix is ``[o, i]``, bias as the last column; its Fisher block acts on
    the matrix flattened row-major.

    Args:
        name: the module's name in the model.
        module: the module itself.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module

    def __repr__(self) -> str:
        o, i = self.shape
        return f"{type(self).__name__}({self.name!r}, {o}x{i})"

    @classmethod
    @abstractmethod
    def reads(cls, module: nn.Module) -> bool:
        """Whether this is the view for ``module``."""

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why ``module``, though of the right kind, can't be covered; None if it can."""
        return None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(o, i)``: fan-out, and fan-in with the bias column."""

    @abstractmethod
    def input_rows(self, h: Tensor) -> Tensor:
        """The module's input as rows ``[n, t, i]``, ones in the bias column."""

    @abstractmethod
    def output_rows(self, grad_z: Tensor) -> Tensor:
        """A gradient with respect to the module's output as rows ``[n, t, o]``."""

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters in the matrix, by their names in the module."""

    @abstractmethod
    def grad(self) -> Tensor | None:
        """The parameters' ``.grad`` as a matrix ``[o, i]``; None if there is none."""

    @abstractmethod
    def set_grad(self, M: Tensor) -> None:
        """Write the matrix ``[o, i]`` back into the parameters' ``.grad``, in place."""
