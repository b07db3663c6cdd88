"""What layers that take vectors of features have in common."""

from __future__ import annotations

from torch import Tensor

from natgrad.homogeneous import Homogeneous, with_ones
from natgrad.layers.affine import AffineView
from natgrad.layers.base import rows_of
from natgrad.sample import Inputs

__all__ = ["DenseView"]


class DenseView(AffineView):
    """``z = W h + b`` on ``h [n, ..., features]``: dimensions between are shared positions.

    An input without a batch dimension, ``[features]``, is one example.
    """

    def input_rows(self, h: Tensor) -> Tensor:
        """``h`` as ``[n, t, features (+1)]``, ones in the bias column."""
        return with_ones(rows_of(h)) if self.has_bias else rows_of(h)

    def inputs(self, h: Tensor) -> Inputs:
        """The same, the column of ones written when the rows are asked for."""
        return Homogeneous(rows_of(h)) if self.has_bias else rows_of(h)

    def output_rows(self, grad_z: Tensor) -> Tensor:
        """``grad_z [n, ..., o]`` as ``[n, t, o]``."""
        return rows_of(grad_z)
