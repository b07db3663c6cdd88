"""K-FAC: the layer's block as the Kronecker product of two second moments."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from natgrad.blocks.two_factor import TwoFactor
from natgrad.damping import Factored
from natgrad.moments import Later
from natgrad.patches import Patches
from natgrad.sample import Sample

__all__ = ["KFAC"]

SMALLER = 2  #: times that images must take less memory than the moment, to wait in its place


class KFAC(TwoFactor):
    """``F_l ~ G (x) A`` with ``A = E[a a^T]`` and ``G = E[g g^T]``.

    Martens & Grosse 2015 (arXiv 1503.05671), section 3. Layers with shared weights (Eschenhagen
    et al. 2023, arXiv 2311.00636):

    * ``shared="expand"``: every position is a row. ``A`` is the mean over examples and positions,
      ``G`` the mean over examples of the sum over positions. Exact for a deep linear network with
      squared error and one loss term per position (V:B13). It is KFC (Grosse & Martens 2016) with
      the factor ``t`` moved from one side to the other, which gives another ``pi`` (V:C25).
    * ``shared="reduce"``: ``a`` is averaged and ``g`` summed over positions first. Exact for a deep
      linear network with sum-pooled outputs (V:B12).

    The block is exact for a single example, for deep linear networks with squared error, and
    wherever ``a`` and ``g`` are independent (V:B1, V:B2, V:B6); else it is an approximation.
    """

    A_of_inputs = True

    @staticmethod
    def default_damping(value: float) -> Factored:
        """Factored Tikhonov damping with ``pi``."""
        return Factored(value)

    def observe(self, sample: Sample) -> None:
        """``2 n t (i^2 + c o^2)`` flop."""
        if self.shared == "reduce":
            sample = sample.reduced()
        self.A.add(self._of_inputs(sample), sample.examples * sample.positions)
        self.G.add(sample.output_moment(split=self.output.split), sample.examples)

    def _of_inputs(self, sample: Sample) -> Tensor | Later:
        """The input moment, left for later where a copy of the images is much smaller."""
        images, split = sample.inputs, self.input.split
        if not isinstance(images, Patches) or SMALLER * images.nbytes > self.A.value.nbytes:
            return sample.input_moment(split=split)
        return Later(partial(images.kept().moment, split), images.bound())

    def skip(self, examples: int) -> None:
        """``G`` is a mean over all examples; ``A`` one over the rows that the layer saw."""
        self.G.add(torch.zeros_like(self.G.value), examples)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """The second moments themselves."""
        return self.A.mean(), self.G.mean()
