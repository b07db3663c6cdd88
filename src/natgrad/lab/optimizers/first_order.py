"""Optimizers that look at the gradient alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.lab.errors import UsageError
from natgrad.lab.optimizers.task import Task

__all__ = ["Joint", "adam", "adamw", "lbfgs", "muon", "rmsprop", "sgd"]


def sgd(task: Task, *, lr: float = 0.03, momentum: float = 0.9) -> torch.optim.Optimizer:
    """SGD with heavy-ball momentum."""
    return torch.optim.SGD(task.model.parameters(), lr=lr, momentum=momentum)


def adam(
    task: Task, *, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999
) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015)."""
    return torch.optim.Adam(task.model.parameters(), lr=lr, betas=(beta1, beta2))


def rmsprop(
    task: Task, *, lr: float = 1e-3, momentum: float = 0.9, alpha: float = 0.99, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """RMSprop (Tieleman & Hinton 2012) with heavy-ball momentum, as PRONG is compared with it."""
    parameters = task.model.parameters()
    return torch.optim.RMSprop(parameters, lr=lr, momentum=momentum, alpha=alpha, eps=eps)


def adamw(
    task: Task,
    *,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019): decoupled decay on top of the recipe's L2 penalty."""
    betas = (beta1, beta2)
    parameters = task.model.parameters()
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay)


def lbfgs(
    task: Task, *, lr: float = 1.0, history: int = 100, iterations: int = 20
) -> torch.optim.Optimizer:
    """L-BFGS with a strong-Wolfe line search; one update is so many iterations on one batch."""
    return torch.optim.LBFGS(
        task.model.parameters(), lr=lr, max_iter=iterations, history_size=history,
        tolerance_grad=0.0, tolerance_change=0.0, line_search_fn="strong_wolfe",
    )  # fmt: skip


def muon(task: Task, *, lr: float = 1e-3, momentum: float = 0.95) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for hidden weight matrices, AdamW for everything else.

    The output layer (the last matrix), embeddings, convolutions and biases are AdamW's.

    Updates are scaled to the root mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982), so
    that one learning rate serves both. No decoupled decay: the recipe's L2 penalty is the only one.
    """
    if not hasattr(torch.optim, "Muon"):
        raise UsageError(f"muon needs torch 2.9 or newer, this is torch {torch.__version__}")
    tables = {id(m.weight) for m in task.model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in task.model.parameters() if p.ndim == 2 and id(p) not in tables]
    hidden = matrices[:-1]
    rest = [p for p in task.model.parameters() if all(p is not q for q in hidden)]
    if not hidden:
        raise UsageError("muon needs a hidden weight matrix; the network has none")
    return Joint(
        torch.optim.Muon(
            hidden, lr=lr, momentum=momentum, weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.0),
    )  # fmt: skip


class Joint(torch.optim.Optimizer):
    """Several optimizers that share out a model's parameters, stepped and saved as one.

    Its parameter groups are those of the members, so that a schedule reaches them all.
    """

    def __init__(self, *members: torch.optim.Optimizer) -> None:
        super().__init__([group for member in members for group in member.param_groups], {})
        self.members = members

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of every member."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The members' states, in order."""
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the members' states; their new parameter groups become this optimizer's."""
        for member, state in zip(self.members, state_dict["members"], strict=True):
            member.load_state_dict(state)
        self.param_groups = [group for member in self.members for group in member.param_groups]
