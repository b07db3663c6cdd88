"""``nn.Linear``, with any number of leading dimensions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from natgrad.layers.dense import DenseView
from natgrad.layers.whitenable import Whitenable

__all__ = ["LinearView"]


class LinearView(DenseView, Whitenable):
    """``z = W h + b`` on ``h [n, ..., in_features]``: dimensions between are shared positions.

    An input without a batch dimension, ``[in_features]``, is one example.
    """

    module: nn.Linear
    kinds = (nn.Linear,)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features + 1)``, without the 1 if there is no trainable bias."""
        return self.module.out_features, self.module.in_features + self.has_bias

    @property
    def leaves_rows(self) -> bool:
        """Unless other modules hold the same parameters."""
        return not self.twins

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
