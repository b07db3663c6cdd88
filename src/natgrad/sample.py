"""The paired rows of one layer for one batch.

Shape letters used everywhere: ``n`` examples, ``t`` shared positions of a layer (1 for a plain
Linear, tokens of a sequence, pixels of a convolution), ``i`` fan-in with the bias column,
``o`` fan-out, ``c`` draws or columns whose second moments add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["InputRows", "OutputRows", "Sample", "statistics_dtype"]

InputRows: TypeAlias = Tensor  #: ``a [n, t, i]``, the bias column of ones last
OutputRows: TypeAlias = Tensor  #: ``g [c, n, t, o]``


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The parameters' dtype, but never below float32."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Sample:
    """Input rows ``a`` and output-gradient rows ``g`` of one layer, paired.

    ``g`` is scaled so that it is the gradient of *one example's* negative log-likelihood: the
    layer's exact Fisher block is ``1/n sum_{n,c} vec(J) vec(J)^T`` with
    ``J[c, n] = sum_t g[c, n, t] a[n, t]^T`` (MATH 0, V:B4, V:B11). ``c`` counts the columns of the
    exact Fisher, the draws of the sampled one (each already scaled by ``draws^-1/2``), and is 1
    for the empirical one.
    """

    a: InputRows
    g: OutputRows

    def __post_init__(self) -> None:
        if self.a.ndim != 3 or self.g.ndim != 4 or self.a.shape[:2] != self.g.shape[1:3]:
            raise ValueError(
                "a Sample pairs a [n, t, i] with g [c, n, t, o]; got "
                f"a {tuple(self.a.shape)} and g {tuple(self.g.shape)}"
            )

    @property
    def examples(self) -> int:
        """Number of examples ``n``."""
        return self.a.shape[0]

    @property
    def positions(self) -> int:
        """Number of shared positions ``t``."""
        return self.a.shape[1]

    def to(self, dtype: torch.dtype) -> Sample:
        """The same rows in another dtype."""
        return Sample(self.a.to(dtype), self.g.to(dtype))
