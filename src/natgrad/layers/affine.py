"""What layers with a ``weight`` and a ``bias`` have in common."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from operator import attrgetter
from typing import ClassVar

import torch
from torch import Tensor, nn

from natgrad.layers.base import Kind, LayerView, Slot

__all__ = ["AffineView"]


class AffineView(LayerView):
    """``z = W h + b`` with the weight as the matrix and the bias as its last column.

    A frozen bias is left out of the matrix, a frozen weight leaves nothing to precondition. A
    subclass names its modules in ``kinds``, and how the weight is laid out in the matrix where it
    is not the matrix itself.
    """

    kind: Kind = "dense"
    kinds: ClassVar[tuple[type[nn.Module], ...]]  #: the modules it reads, and their subclasses
    weight: str = "weight"  #: the weight's name in the module
    bias: str = "bias"  #: the bias's name in the module

    @classmethod
    def reads(cls, module: nn.Module) -> bool:
        """Modules of ``kinds`` and their subclasses."""
        return isinstance(module, cls.kinds)

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """A weight that is computed, frozen or empty; a forward of its own."""
        weight = module.weight
        if not isinstance(weight, nn.Parameter):
            return "weight is computed from other parameters"
        if not weight.requires_grad:
            return "weight is frozen (requires_grad=False)"
        if weight.numel() == 0:
            return f"weight is empty, shape {tuple(weight.shape)}"
        return cls.overridden(module)

    @classmethod
    def overridden(cls, module: nn.Module) -> str | None:
        """A reason if ``module`` is of a subclass that computes its output in its own way."""
        kind, found = next(kind for kind in cls.kinds if isinstance(module, kind)), type(module)
        for method in ("forward", "_conv_forward"):
            if getattr(found, method, None) is not getattr(kind, method, None):
                return f"{found.__name__} overrides nn.{kind.__name__}.{method}"
        return None

    @cached_property
    def has_bias(self) -> bool:
        """Whether the matrix has a bias column; read once, as :attr:`trained`."""
        bias: Tensor | None = attrgetter(self.bias)(self.module)
        return bias is not None and bias.requires_grad

    def slots(self) -> dict[str, Slot]:
        """The weight and, where there is a trainable one, the bias."""
        names = [self.weight, self.bias] if self.has_bias else [self.weight]
        return {name: self.slot(name) for name in names}

    def slot(self, name: str) -> Slot:
        """The part of the parameter of this name that is in the matrix: all of it."""
        return Slot(attrgetter(name)(self.module))

    def to_matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """``[W, b]``."""
        W = self.weight_as_matrix(tensors[self.weight])
        if not self.has_bias:
            return W
        return torch.cat([W, tensors[self.bias].reshape(*W.shape[:-1], 1)], dim=-1)

    def from_matrix(self, M: Tensor) -> dict[str, Tensor]:
        """Weight and bias out of ``[W, b]``."""
        if not self.has_bias:
            return {self.weight: self.matrix_as_weight(M)}
        W, b = M[..., :-1], M[..., -1]
        return {self.weight: self.matrix_as_weight(W), self.bias: b.flatten()}

    def weight_as_matrix(self, weight: Tensor) -> Tensor:
        """A tensor shaped like the weight as ``[(q,) o, i]`` without the bias column."""
        return weight

    def matrix_as_weight(self, W: Tensor) -> Tensor:
        """The inverse of :meth:`weight_as_matrix`."""
        return W
