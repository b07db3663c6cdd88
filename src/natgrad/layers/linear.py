"""``nn.Linear``, with any number of leading dimensions."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from natgrad.layers.base import LayerView

__all__ = ["LinearView"]


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
    def _bias(self) -> nn.Parameter | None:
        bias: nn.Parameter | None = self.module.bias
        return bias if bias is not None and bias.requires_grad else None

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features + 1)``, without the 1 if there is no trainable bias."""
        return self.module.out_features, self.module.in_features + (self._bias is not None)

    def input_rows(self, h: Tensor) -> Tensor:
        """``h [n, ..., in]`` as ``[n, t, in (+1)]``."""
        rows = _rows(h)
        if self._bias is None:
            return rows
        return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=-1)

    def output_rows(self, grad_z: Tensor) -> Tensor:
        """``grad_z [n, ..., out]`` as ``[n, t, out]``."""
        return _rows(grad_z)

    def parameters(self) -> dict[str, nn.Parameter]:
        """``weight`` and, where there is a trainable one, ``bias``."""
        named = {"weight": cast(nn.Parameter, self.module.weight)}
        if self._bias is not None:
            named["bias"] = self._bias
        return named

    def grad(self) -> Tensor | None:
        """``[grad W, grad b]``."""
        weight = self.module.weight.grad
        if weight is None:
            return None
        bias = self._bias
        if bias is None:
            return weight
        column = torch.zeros_like(bias) if bias.grad is None else bias.grad
        return torch.cat([weight, column.unsqueeze(1)], dim=1)

    def set_grad(self, M: Tensor) -> None:
        """Split ``M`` into weight and bias."""
        weight, bias = self.module.weight, self._bias
        assert weight.grad is not None
        weight.grad.copy_(M[:, : self.module.in_features])
        if bias is not None:
            bias.grad = torch.empty_like(bias) if bias.grad is None else bias.grad
            bias.grad.copy_(M[:, -1])


def _rows(h: Tensor) -> Tensor:
    """``[n, ..., k]`` as ``[n, t, k]``; a vector is one example at one position."""
    features = h.shape[-1]
    if h.ndim == 1:
        return h.reshape(1, 1, features)
    return h.reshape(h.shape[0], -1, features)
