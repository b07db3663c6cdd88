"""``nn.Linear``, with any number of leading dimensions."""

from __future__ import annotations

from torch import Tensor, nn

from natgrad.layers.affine import AffineView
from natgrad.layers.base import rows_of, with_ones

__all__ = ["LinearView"]


class LinearView(AffineView):
    """``z = W h + b`` on ``h [n, ..., in_features]``: dimensions between are shared positions.

    An input without a batch dimension, ``[in_features]``, is one example.
    """

    module: nn.Linear
    kinds = (nn.Linear,)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features + 1)``, without the 1 if there is no trainable bias."""
        return self.module.out_features, self.module.in_features + self.has_bias

    def input_rows(self, h: Tensor) -> Tensor:
        """``h [n, ..., in]`` as ``[n, t, in (+1)]``."""
        return with_ones(rows_of(h)) if self.has_bias else rows_of(h)

    def output_rows(self, grad_z: Tensor) -> Tensor:
        """``grad_z [n, ..., out]`` as ``[n, t, out]``."""
        return rows_of(grad_z)
