"""What an experiment reports beside the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["ACCURACY", "SQUARED_ERROR", "Metric"]


@dataclass(frozen=True)
class Metric:
    """A figure of merit of a whole split.

    Attributes:
        name: as it stands on an axis.
        unit: appended to its values, may be empty.
        better: whether ``"higher"`` or ``"lower"`` is better.
        of: the figure, from all outputs ``f [n, ...]`` and targets of the split.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    of: Callable[[Tensor, Tensor], float]


def _accuracy(f: Tensor, targets: Tensor) -> float:
    return 100 * (f.argmax(-1) == targets).double().mean().item()


def _squared_error(f: Tensor, targets: Tensor) -> float:
    return (f.sigmoid() - targets).square().flatten(1).sum(1).double().mean().item()


ACCURACY = Metric("accuracy", "%", "higher", _accuracy)
#: of Bernoulli logits, summed over an example's entries, as Martens 2010 reports autoencoders
SQUARED_ERROR = Metric("squared error per image", "", "lower", _squared_error)
