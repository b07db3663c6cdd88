"""What a GradScaler multiplied the loss by, where it steps one of our optimizers.

A scaler hands its scale over to an optimizer that unscales by itself, but not if the loop has
called ``scaler.unscale_(opt)`` before (to clip gradients). The empirical Fisher needs the scale
all the same, for its rows are of the scaled loss.
"""

from __future__ import annotations

import inspect
from types import FrameType

import torch

__all__ = ["scale_of", "unscale_"]


def scale_of(optimizer: torch.optim.Optimizer) -> float:
    """The scale of the loss in the step under way; 1 without a scaler."""
    if not hasattr(optimizer, "found_inf"):
        return 1.0
    handed = getattr(optimizer, "grad_scale", None)
    if handed is not None:
        return float(handed)
    scaler = _caller(inspect.currentframe())
    return 1.0 if scaler is None else float(scaler.get_scale())


def unscale_(optimizer: torch.optim.Optimizer) -> None:
    """Divide the gradients by the scale that was handed over."""
    handed = getattr(optimizer, "grad_scale", None)
    if handed is None:
        return
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_((1 / handed).to(p.grad.device))


def _caller(frame: FrameType | None) -> torch.amp.GradScaler | None:
    """The scaler whose ``step`` is on the stack."""
    code = torch.amp.GradScaler.step.__code__
    while frame is not None:
        if frame.f_code is code:
            found = frame.f_locals["self"]
            assert isinstance(found, torch.amp.GradScaler)
            return found
        frame = frame.f_back
    return None
