"""The eigenvalue-corrected and trace-restricted methods with the TEKFAC paper's damping."""

from __future__ import annotations

from collections.abc import Callable

import torch

import natgrad
from natgrad.damping import TraceRestricted
from natgrad.lab.optimizers.task import Task
from natgrad.optim import NaturalGradient

__all__ = ["ekfac_restricted", "tekfac_restricted", "tkfac_restricted"]


def _restricted(method: type[NaturalGradient]) -> Callable[..., torch.optim.Optimizer]:
    """The builder of a method: the same settings for all, so that factorisations are compared."""

    def build(
        task: Task, *, lr: float = 1e-4, momentum: float = 0.9, nu: float = 0.01,
        stats_every: int = 10, refresh_every: int = 50, decay: float = 0.95,
        fc_scale: str = "none",
    ) -> torch.optim.Optimizer:  # fmt: skip
        damping = TraceRestricted(nu, fc_scale)  # type: ignore[arg-type]
        return method(
            task.model, lr=lr, momentum=momentum, damping=damping, likelihood=task.likelihood,
            stats_every=stats_every, refresh_every=refresh_every, decay=decay, seed=task.seed,
        )  # fmt: skip

    build.__name__ = f"{method.__name__.lower()}_restricted"
    build.__doc__ = (
        f"{method.__name__}, each layer damped by its mean eigenvalue ``max(tr F, nu) / dim F`` "
        "(Gao et al. 2020, arXiv 2011.13609, (3.5)); ``fc_scale`` reads the paper's beta."
    )
    return build


ekfac_restricted = _restricted(natgrad.EKFAC)
tkfac_restricted = _restricted(natgrad.TKFAC)
tekfac_restricted = _restricted(natgrad.TEKFAC)
