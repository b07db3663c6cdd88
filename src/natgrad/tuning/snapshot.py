"""Parameters and optimizer state as they were."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Snapshot"]


class Snapshot:
    """Parameters and optimizer state before a step, to take it back exactly."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.parameters = [
            (p, p.detach().clone()) for group in optimizer.param_groups for p in group["params"]
        ]
        self.state = {
            p: {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()}
            for p, _ in self.parameters
            if p in optimizer.state
        }

    @torch.no_grad()
    def restore(self) -> None:
        """As it was."""
        for p, before in self.parameters:
            p.copy_(before)
            if p in self.state:
                self.optimizer.state[p] = self.state[p]
            else:
                self.optimizer.state.pop(p, None)
