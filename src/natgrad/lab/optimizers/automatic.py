"""natgrad's optimizers that tune themselves: learning rate, momentum and damping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import natgrad
from natgrad.damping import LevenbergMarquardt
from natgrad.lab.optimizers.task import Task
from natgrad.optim import NaturalGradient

__all__ = ["ekfac_auto", "kfac_auto", "tekfac_auto", "tkfac_auto", "tkfac_auto_bf16"]


def _automatic(
    method: type[NaturalGradient], product_dtype: torch.dtype | None = None
) -> Callable[..., torch.optim.Optimizer]:
    """The builder of a method: the same settings for all, so that they are compared alike."""

    def build(
        task: Task, *, damping: float = 0.01, fraction: float = 0.25, stats_every: int = 2,
        refresh_every: int = 10, burn_in: int = 5, every: int = 5, reject_every: int = 1,
        damping_decay: float = 0.95, decay: float = 0.95, per: str = "step", average: float = 0.0,
    ) -> torch.optim.Optimizer:  # fmt: skip
        own = [{"params": _output(task.model)}] if per == "output" else None
        divided: Any = "group" if per == "output" else per
        return method(
            task.model, lr=natgrad.Auto(fraction=fraction, l2=task.l2, per=divided),
            momentum="auto", groups=own, average=average or None,
            damping=LevenbergMarquardt(
                damping, every=every, decay=damping_decay, reject_every=reject_every
            ),
            likelihood=task.likelihood, stats_every=stats_every, refresh_every=refresh_every,
            burn_in=burn_in, decay=decay, seed=task.seed,
            product_dtype=product_dtype,
        )  # fmt: skip

    half = "_bf16" if product_dtype is torch.bfloat16 else ""
    build.__name__ = f"{method.__name__.lower()}_auto{half}"
    build.__doc__ = (
        f"{method.__name__} with learning rate and momentum from the quadratic model, and "
        "Levenberg-Marquardt damping that starts at ``damping``. ``per`` is that of natgrad.Auto, "
        'or "output" for a rate of the output layer and one of the rest; ``average`` above zero is '
        "the decay of an average of the iterates, which is then what the curves are measured with."
    )
    return build


def _output(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the last layer that has any."""
    return [list(m.parameters(recurse=False)) for m in model.modules() if _has_own(m)][-1]


def _has_own(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


kfac_auto = _automatic(natgrad.KFAC)
ekfac_auto = _automatic(natgrad.EKFAC)
tkfac_auto = _automatic(natgrad.TKFAC)
tekfac_auto = _automatic(natgrad.TEKFAC)
tkfac_auto_bf16 = _automatic(natgrad.TKFAC, torch.bfloat16)
