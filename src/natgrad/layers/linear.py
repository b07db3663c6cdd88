"""``nn.Linear``, with any number of leading dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from natgrad.layers.base import LayerView, Slot, rows_of

__all__ = ["LinearView", "with_ones"]


class LinearView(LayerView):
    """``z = W h + b`` on ``h [n, ..., in_features]``: dimensions between are shared positions.

    An input without a batch dimension, ``[in_features]``, is one example. A frozen bias is left
    out of the matrix, a frozen weight leaves nothing to precondition.
    """

    module: nn.Linear

    @classmethod
    def reads(cls, module: nn.Module) -> bool:
        """Linear and its subclasses."""
        return isinstance(module, nn.Linear)

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """A frozen weight, a layer without features, a forward of its own."""
        assert isinstance(module, nn.Linear)
        if not module.weight.requires_grad:
            return "weight is frozen (requires_grad=False)"
        if module.weight.numel() == 0:
            return f"weight is empty, shape {tuple(module.weight.shape)}"
        if type(module).forward is not nn.Linear.forward:
            return f"{type(module).__name__} overrides nn.Linear.forward"
        return None

    @property
    def _has_bias(self) -> bool:
        bias: Tensor | None = self.module.bias
        return bias is not None and bias.requires_grad

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features + 1)``, without the 1 if there is no trainable bias."""
        return self.module.out_features, self.module.in_features + self._has_bias

    def input_rows(self, h: Tensor) -> Tensor:
        """``h [n, ..., in]`` as ``[n, t, in (+1)]``."""
        return with_ones(rows_of(h)) if self._has_bias else rows_of(h)

    def output_rows(self, grad_z: Tensor) -> Tensor:
        """``grad_z [n, ..., out]`` as ``[n, t, out]``."""
        return rows_of(grad_z)

    def slots(self) -> dict[str, Slot]:
        """``weight`` and, where there is a trainable one, ``bias``."""
        named = {"weight": Slot(cast(nn.Parameter, self.module.weight))}
        if self._has_bias:
            named["bias"] = Slot(self.module.bias)
        return named

    def to_matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """``[W, b]``."""
        weight = tensors["weight"]
        if not self._has_bias:
            return weight
        return torch.cat([weight, tensors["bias"].unsqueeze(1)], dim=1)

    def from_matrix(self, M: Tensor) -> dict[str, Tensor]:
        """Weight and bias out of ``[W, b]``."""
        weight = {"weight": M[:, : self.module.in_features]}
        return {**weight, "bias": M[:, -1]} if self._has_bias else weight


def with_ones(rows: Tensor) -> Tensor:
    """Rows with the homogeneous coordinate 1 appended, the bias column of the matrix."""
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)
