"""The preconditioned optimizers: drop-in ``torch.optim.Optimizer``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from natgrad import blocks
from natgrad.damping import Damping
from natgrad.preconditioner import Preconditioner
from natgrad.report import Report

__all__ = ["KFAC"]


class NaturalGradient(torch.optim.Optimizer):
    """SGD with momentum on the natural gradient; a subclass names the curvature block.

    ``U_l = (F_l + damping)^-1 M_l``, ``m <- momentum m + U``,
    ``w <- (1 - lr weight_decay) w - lr m`` (MATH 7). Parameters that no view covers take the same
    step with their plain gradient.
    """

    block: ClassVar[type[blocks.Block]]

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        momentum: float = 0.9,
        *,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        damping: float | Damping = 1e-3,
        groups: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must be >= 0, got {value}")
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs momentum > 0")
        defaults = {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay,
        }  # fmt: skip
        super().__init__(_parameter_groups(model, groups), defaults)
        self.preconditioner = Preconditioner(model, type(self).block, damping=damping, **kwargs)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; ``.grad`` holds the natural gradient afterwards.

        Args:
            closure: evaluates the loss again and returns it, as for any torch optimizer.

        Raises:
            RuntimeError: see :meth:`natgrad.Preconditioner.step`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.preconditioner.step(lr=self._rate_of()):
            for group in self.param_groups:
                self._update(group)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, and with them the statistics that wait for a step."""
        super().zero_grad(set_to_none)
        self.preconditioner.discard()

    def _rate_of(self) -> Callable[[nn.Parameter], float]:
        rates = {id(p): float(group["lr"]) for group in self.param_groups for p in group["params"]}
        return lambda parameter: rates[id(parameter)]

    @torch.no_grad()
    def _update(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        buffers = [self.state[p].get("momentum_buffer") for p in parameters]
        sgd(
            parameters, [p.grad for p in parameters if p.grad is not None], buffers,
            has_sparse_grad=False, foreach=None, weight_decay=0.0, momentum=group["momentum"],
            lr=group["lr"], dampening=0.0, nesterov=group["nesterov"], maximize=False,
        )  # fmt: skip
        if group["momentum"]:
            for p, buffer in zip(parameters, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer

    def state_dict(self) -> dict[str, Any]:
        """Torch's state plus the preconditioner's; loads with ``weights_only=True``."""
        return {**super().state_dict(), "preconditioner": self.preconditioner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume bit-exactly. A checkpoint without curvature (plain SGD's) loads with a warning."""
        plain = {key: value for key, value in state_dict.items() if key != "preconditioner"}
        super().load_state_dict(plain)
        if "preconditioner" in state_dict:
            self.preconditioner.load_state_dict(state_dict["preconditioner"])
        else:
            warnings.warn(
                "natgrad: the checkpoint holds no curvature statistics (written by another "
                "optimizer?); they start anew",
                stacklevel=2,
            )

    def report(self) -> Report:
        """Every parameter: how it is handled, block sizes, memory, and why."""
        return self.preconditioner.report()


class KFAC(NaturalGradient):
    """K-FAC (Martens & Grosse 2015, arXiv 1503.05671): ``U = G^-1 M A^-1`` for every layer.

    Drop-in for ``torch.optim.SGD``; the loop stays unchanged. A plain number as damping is
    factored Tikhonov damping with ``pi`` (MATH 1).

    Args:
        model: the model as the training loop calls it, not its parameters.
        lr: learning rate.
        momentum: heavy-ball momentum on the natural gradient.
        nesterov: Nesterov's form of it.
        weight_decay: decoupled, ``w <- (1 - lr weight_decay) w``.
        damping: a number, or an object from :mod:`natgrad.damping`.
        groups: ``[dict(params=..., lr=..., weight_decay=...)]`` as torch's parameter groups; all
            other parameters form the default group.
        kwargs: everything else :class:`natgrad.Preconditioner` takes: likelihood, fisher,
            stats_every, refresh_every, decay, reduction, kl_clip, shared, strict, fused, logits,
            seed.

    Raises:
        ValueError: an argument out of range, or nothing to precondition.
    """

    block = blocks.KFAC


def _parameter_groups(
    model: nn.Module, groups: Sequence[dict[str, Any]] | None
) -> list[dict[str, Any]]:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"natgrad optimizers take the model, not its parameters; got {type(model).__name__}"
        )
    given = [{**group, "params": _as_list(group["params"])} for group in groups or ()]
    taken = {id(p) for group in given for p in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [*([{"params": rest}] if rest else []), *given]


def _as_list(params: Any) -> list[nn.Parameter]:
    return [params] if isinstance(params, Tensor) else list(params)  # type: ignore[list-item]
