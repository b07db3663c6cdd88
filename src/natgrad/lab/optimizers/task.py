"""What an optimizer is built for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from natgrad.lab.augmentation import Augmentation
from natgrad.likelihood import Likelihood

__all__ = ["Setting", "Settings", "Task"]

Setting: TypeAlias = float | int | bool | str
Settings: TypeAlias = Mapping[str, Setting]


@dataclass(frozen=True)
class Task:
    """What an optimizer may need to know beside its settings."""

    model: nn.Module
    likelihood: Likelihood
    seed: int = 0
    l2: float = 0.0  #: weight of the recipe's penalty, which is on the layers' own weights
    inputs: Tensor | None = None  #: training inputs, for what starts from statistics of them
    augmentation: Augmentation | None = None  #: of the training batches
