"""Rows with the bias column of ones, written out only where somebody asks for them.

A second moment doesn't: its last row and column are the sum of the rows and their number, and the
product of rows without the column is narrower by one, a round number as a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from natgrad.split import Split, gram

__all__ = ["Homogeneous", "with_ones"]


@dataclass(frozen=True)
class Homogeneous:
    """The rows ``[h, 1]``, ``[n, t, i]``, of ``h [n, t, i - 1]``."""

    h: Tensor

    @property
    def shape(self) -> torch.Size:
        """``[n, t, i]``, of the rows."""
        return torch.Size((*self.h.shape[:-1], self.h.shape[-1] + 1))

    @property
    def nbytes(self) -> int:
        """Memory of what is held."""
        return self.h.nbytes

    @cached_property
    def rows(self) -> Tensor:
        """The rows written out."""
        return with_ones(self.h)

    def by_example(self, n: int, t: int) -> Homogeneous:
        """The same rows as ``t`` positions of ``n`` examples."""
        return Homogeneous(self.h.reshape(n, t, self.h.shape[-1]))

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Homogeneous:
        """The same rows in another dtype, and on another device if one is given."""
        h = self.h.to(device=device, dtype=dtype)
        return self if h is self.h else Homogeneous(h)

    def kept(self) -> Homogeneous:
        """A copy that shares no memory with the layer's input."""
        return Homogeneous(self.h.clone())

    def part(self, examples: slice) -> Homogeneous:
        """Those of some examples."""
        return Homogeneous(self.h[examples])

    def mean(self) -> Homogeneous:
        """``mean_t``, one position."""
        return Homogeneous(self.h.mean(-2, keepdim=True))

    def norms(self) -> Tensor:
        """``|a|^2 [n, t]``."""
        return self.h.square().sum(-1) + 1

    def moment(self, split: Split | None = None) -> Tensor:
        """``sum_{n,t} a a^T [i, i]``, or its blocks of ``split`` alone."""
        if split is not None:
            return gram(self.rows.flatten(0, 1), None, split)
        h = self.h.flatten(0, 1)
        d = h.shape[-1]
        found = h.new_empty(d + 1, d + 1)
        gram(h, out=found[:d, :d])
        found[:d, d] = found[d, :d] = h.sum(0)
        found[d, d] = len(h)
        return found

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for checkpoints."""
        return {"h": self.h}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Homogeneous:
        """The inverse of :meth:`state`."""
        return Homogeneous(state["h"])


def with_ones(rows: Tensor) -> Tensor:
    """Rows with the homogeneous coordinate 1 appended, the bias column of the matrix."""
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)
