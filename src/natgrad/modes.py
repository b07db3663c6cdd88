"""The modes a computation runs in: training or evaluation of a model, autocast or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

__all__ = ["autocasts", "evaluating", "without_autocast"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, with every module's own mode put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def autocasts(kind: str) -> bool:
    """Whether autocast is on for this kind of device."""
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Autocast off for this kind of device, where it is on."""
    return torch.autocast(kind, enabled=False) if autocasts(kind) else nullcontext()
