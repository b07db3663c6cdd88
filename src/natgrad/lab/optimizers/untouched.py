"""natgrad's optimizers as they come: the same learning rate everywhere, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch

import natgrad
from natgrad.lab.optimizers.task import Task
from natgrad.optim import NaturalGradient

__all__ = ["ekfac_defaults", "kfac_defaults", "tekfac_defaults", "tkfac_defaults"]


def _untouched(method: type[NaturalGradient]) -> Callable[..., torch.optim.Optimizer]:
    """The builder of a method with its defaults."""

    def build(task: Task, *, lr: float = 0.03) -> torch.optim.Optimizer:
        return method(task.model, lr=lr, likelihood=task.likelihood, seed=task.seed)

    build.__name__ = f"{method.__name__.lower()}_defaults"
    build.__doc__ = f"{method.__name__} with its defaults."
    return build


kfac_defaults = _untouched(natgrad.KFAC)
ekfac_defaults = _untouched(natgrad.EKFAC)
tkfac_defaults = _untouched(natgrad.TKFAC)
tekfac_defaults = _untouched(natgrad.TEKFAC)
