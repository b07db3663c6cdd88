"""natgrad's optimizers, with the sampled Fisher of the recipe's likelihood."""

from __future__ import annotations

from typing import Any

import torch

import natgrad
from natgrad.damping import Damping, TraceRestricted
from natgrad.lab.optimizers.task import Task

__all__ = ["ekfac", "exactngd", "kfac", "tekfac", "tkfac"]


def kfac(
    task: Task, *, lr: float = 0.01, momentum: float = 0.9, damping: float = 0.1, nu: float = 0.0,
    stats_every: int = 10, refresh_every: int = 50, decay: float = 0.95,
) -> torch.optim.Optimizer:  # fmt: skip
    """K-FAC. ``nu`` above zero restricts the trace in place of the fixed damping (TEKFAC 3.5)."""
    return natgrad.KFAC(task.model, **_common(task, locals()))


def ekfac(
    task: Task, *, lr: float = 0.01, momentum: float = 0.9, damping: float = 0.1, nu: float = 0.0,
    stats_every: int = 10, refresh_every: int = 50, decay: float = 0.95,
) -> torch.optim.Optimizer:  # fmt: skip
    """EKFAC, as :func:`kfac`."""
    return natgrad.EKFAC(task.model, **_common(task, locals()))


def tkfac(
    task: Task, *, lr: float = 0.01, momentum: float = 0.9, damping: float = 0.1, nu: float = 0.0,
    stats_every: int = 10, refresh_every: int = 50, decay: float = 0.95,
) -> torch.optim.Optimizer:  # fmt: skip
    """TKFAC, as :func:`kfac`."""
    return natgrad.TKFAC(task.model, **_common(task, locals()))


def tekfac(
    task: Task, *, lr: float = 0.01, momentum: float = 0.9, damping: float = 0.1, nu: float = 0.0,
    stats_every: int = 10, refresh_every: int = 50, decay: float = 0.95,
) -> torch.optim.Optimizer:  # fmt: skip
    """TEKFAC, as :func:`kfac`."""
    return natgrad.TEKFAC(task.model, **_common(task, locals()))


def exactngd(
    task: Task, *, lr: float = 0.1, momentum: float = 0.0, damping: float = 1e-2
) -> torch.optim.Optimizer:
    """The exact natural gradient of the batch, for small networks."""
    return natgrad.ExactNGD(
        task.model, lr=lr, momentum=momentum, damping=damping, likelihood=task.likelihood,
        seed=task.seed,
    )  # fmt: skip


def _common(task: Task, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a natgrad optimizer from the settings of a builder."""
    settings = {key: value for key, value in given.items() if key not in ("task", "nu", "damping")}
    damping: float | Damping = TraceRestricted(given["nu"]) if given["nu"] else given["damping"]
    return {**settings, "damping": damping, "likelihood": task.likelihood, "seed": task.seed}
