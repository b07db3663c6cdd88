"""natgrad's optimizers, with the sampled Fisher of the recipe's likelihood."""

from __future__ import annotations

from collections.abc import Callable

import torch

import natgrad
from natgrad.damping import Damping, TraceRestricted
from natgrad.lab.optimizers.task import Task
from natgrad.optim import NaturalGradient

__all__ = ["ekfac", "exactngd", "kfac", "tekfac", "tkfac"]


def _blockwise(method: type[NaturalGradient]) -> Callable[..., torch.optim.Optimizer]:
    """The builder of a method: the same settings for all, so that they are compared alike."""

    def build(
        task: Task, *, lr: float = 0.01, momentum: float = 0.9, damping: float = 0.1,
        nu: float = 0.0, stats_every: int = 10, refresh_every: int = 50, decay: float = 0.95,
    ) -> torch.optim.Optimizer:  # fmt: skip
        damped: float | Damping = TraceRestricted(nu) if nu else damping
        return method(
            task.model, lr=lr, momentum=momentum, damping=damped, likelihood=task.likelihood,
            stats_every=stats_every, refresh_every=refresh_every, decay=decay, seed=task.seed,
        )  # fmt: skip

    build.__name__ = method.__name__.lower()
    build.__doc__ = (
        f"{method.__name__}; ``nu`` above zero restricts the trace in place of the fixed damping "
        "(TEKFAC 3.5)."
    )
    return build


kfac = _blockwise(natgrad.KFAC)
ekfac = _blockwise(natgrad.EKFAC)
tkfac = _blockwise(natgrad.TKFAC)
tekfac = _blockwise(natgrad.TEKFAC)


def exactngd(
    task: Task, *, lr: float = 0.1, momentum: float = 0.0, damping: float = 1e-2,
    spring: float = 0.0, halvings: int = 0, geodesic: int = 0,
) -> torch.optim.Optimizer:  # fmt: skip
    """The exact natural gradient of the batch, for small networks.

    For recipes with residuals: ``spring`` above zero takes the place of the momentum, ``halvings``
    above zero looks for the length of each step on a grid of so many, ``geodesic=1`` bends steps.
    """
    return natgrad.ExactNGD(
        task.model, lr=lr, momentum=natgrad.Spring(spring) if spring else momentum,
        damping=damping, likelihood=task.likelihood, seed=task.seed,
        line_search=natgrad.GridSearch(halvings) if halvings else None,
        geodesic=bool(geodesic),
    )  # fmt: skip
