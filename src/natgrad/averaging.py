"""The running average of the iterates, which generalises better than the last one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["IterateAverage"]


class IterateAverage:
    """``x_k <- xi_k x_{k-1} + (1 - xi_k) w_k`` with ``xi_k = min(1 - 1/k, decay)``.

    Martens & Grosse 2015 (arXiv 1503.05671), section 13, after Polyak: the plain mean at first,
    then an exponential one. Kept in the optimizer's state, so that it is saved with it.

    Args:
        optimizer: whose parameters are averaged.
        decay: weight of the old average, in [0, 1).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.optimizer, self.decay = optimizer, decay

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def update(self, k: int) -> None:
        """Take the parameters after step ``k``, counted from 1, into the average."""
        state, weight = self.optimizer.state, 1 - min(1 - 1 / k, self.decay)
        known = [p for p in self._parameters() if "average" in state[p]]
        if known:
            averages = [state[p]["average"] for p in known]
            torch._foreach_lerp_(averages, [p.detach() for p in known], weight)
        for p in self._parameters():
            if "average" not in state[p]:
                state[p]["average"] = p.detach().clone()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters are their averages inside, and what they were afterwards."""
        state = self.optimizer.state
        pairs = [(p, p.detach().clone()) for p in self._parameters() if "average" in state[p]]
        with torch.no_grad():
            for p, _ in pairs:
                p.copy_(state[p]["average"])
        try:
            yield
        finally:
            with torch.no_grad():
                for p, before in pairs:
                    p.copy_(before)
