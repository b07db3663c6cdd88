"""Muon, in bfloat16 as torch has it, or in float32 for processors without bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["FullMuon", "orthogonalised"]


class FullMuon(torch.optim.Muon):
    """``torch.optim.Muon`` whose Newton-Schulz iteration is in the gradient's own dtype.

    torch's is in bfloat16, which a processor without instructions for it emulates, tens of times
    slower than float32: a comparison by time would be one with the emulation.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; see ``torch.optim.Muon``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group)
        return loss

    def _move(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[p], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        average = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        update = grad.lerp(average, momentum) if group["nesterov"] else average
        update = orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] * _length(p.shape, group["adjust_lr_fn"]))


def orthogonalised(
    G: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """About ``U V^T`` of ``G = U S V^T``, by the quintic ``X <- a X + (b X X^T + c (X X^T)^2) X``.

    Args:
        G: a matrix.
        coefficients: ``a, b, c``.
        steps: of the iteration.
        eps: the least that ``|G|`` is divided by.
    """
    a, b, c = coefficients
    wide = G if G.shape[0] <= G.shape[1] else G.mT
    X = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        S = X @ X.mT
        X = torch.addmm(X, torch.addmm(S, S, S, beta=b, alpha=c), X, beta=a)
    result: Tensor = X if G.shape[0] <= G.shape[1] else X.mT
    return result


def _length(shape: torch.Size, adjusted: str | None) -> float:
    """What the learning rate is multiplied by, as ``torch.optim.Muon``'s ``adjust_lr_fn``."""
    o, i = shape
    if adjusted == "match_rms_adamw":
        return float(0.2 * max(o, i) ** 0.5)
    return float(max(1.0, o / i) ** 0.5)
