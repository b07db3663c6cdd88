"""The modes a computation runs in: training or evaluation of a model, autocast or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RandomState", "autocasting", "autocasts", "evaluating", "unchanged", "without_autocast"]


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


def autocasting(kind: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to ``dtype`` for this kind of device, off where that is None."""
    return without_autocast(kind) if dtype is None else torch.autocast(kind, dtype)


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Autocast off for this kind of device, where it is on."""
    return torch.autocast(kind, enabled=False) if autocasts(kind) else nullcontext()


@dataclass(frozen=True)
class RandomState:
    """The user's random numbers at one moment, of the CPU and of the model's devices."""

    cpu: Tensor
    cuda: dict[int, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> RandomState:
        """As it is now."""
        devices = {p.get_device() for p in model.parameters() if p.is_cuda}
        cuda = {device: torch.cuda.get_rng_state(device) for device in sorted(devices)}
        return cls(torch.get_rng_state(), cuda)

    def put_back(self) -> None:
        """Go on from there."""
        torch.set_rng_state(self.cpu)
        for device, state in self.cuda.items():
            torch.cuda.set_rng_state(state, device)


@contextmanager
def unchanged(model: nn.Module, random: RandomState | None) -> Iterator[None]:
    """Whatever runs the model leaves its buffers and the user's random numbers as they were.

    Args:
        model: whose buffers (running means of BatchNorm) are kept.
        random: what the random numbers inside begin with (dropout as at another time).
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    now = RandomState.of(model)
    if random is not None:
        random.put_back()
    try:
        yield
    finally:
        now.put_back()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
