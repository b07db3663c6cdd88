"""``nn.Linear``, with any number of leading dimensions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from natgrad.homogeneous import Homogeneous, with_ones
from natgrad.layers.base import rows_of
from natgrad.layers.whitenable import Whitenable
from natgrad.sample import Inputs

__all__ = ["LinearView"]


class LinearView(Whitenable):
    """``z = W h + b`` on ``h [n, ..., in_features]``: dimensions between are shared positions.

    An input without a batch dimension, ``[in_features]``, is one example.
    """

    module: nn.Linear
    kinds = (nn.Linear,)
    leaves_rows = True

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features + 1)``, without the 1 if there is no trainable bias."""
        return self.module.out_features, self.module.in_features + self.has_bias

    def input_rows(self, h: Tensor) -> Tensor:
        """``h [n, ..., in]`` as ``[n, t, in (+1)]``."""
        return with_ones(rows_of(h)) if self.has_bias else rows_of(h)

    def inputs(self, h: Tensor) -> Inputs:
        """The same, the column of ones written when the rows are asked for."""
        return Homogeneous(rows_of(h)) if self.has_bias else rows_of(h)

    def output_rows(self, grad_z: Tensor) -> Tensor:
        """``grad_z [n, ..., out]`` as ``[n, t, out]``."""
        return rows_of(grad_z)

    @property
    def channels(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.module.out_features, self.module.in_features

    def features(self, h: Tensor) -> Tensor:
        """``h [..., in]`` as ``[r, in]``."""
        return h.reshape(-1, h.shape[-1])

    def by_channel(self, weight: Tensor) -> Tensor:
        """``weight [out, in]`` as ``[out, 1, in]``."""
        return weight.unsqueeze(-2)

    def from_channel(self, W: Tensor) -> Tensor:
        """The inverse."""
        return W.squeeze(-2)

    def compute(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``h W^T + b``."""
        return F.linear(h, weight, bias)

    def examples(self, h: Tensor) -> int:
        """Length of the first dimension; a vector is one example."""
        return h.shape[0] if h.ndim > 1 else 1
