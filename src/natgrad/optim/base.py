"""What the optimizers have in common: SGD with momentum on the natural gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn

from natgrad import blocks
from natgrad.arguments import check_range
from natgrad.averaging import IterateAverage
from natgrad.checkpoints import check_momentum
from natgrad.curvature import Joint
from natgrad.damping import Damping
from natgrad.loss_scale import scale_of, unscale_
from natgrad.machine import Machine
from natgrad.modes import RandomState, unchanged
from natgrad.preconditioner import Preconditioner
from natgrad.report import Report
from natgrad.tuning import Auto, Tuner

__all__ = ["NaturalGradient"]


class NaturalGradient(torch.optim.Optimizer):
    """SGD with momentum on the natural gradient; a subclass names the curvature.

    ``U = (F + damping)^-1 M``, ``m <- momentum m + U``,
    ``w <- (1 - lr weight_decay) w - lr m`` (MATH 7). Drop-in for ``torch.optim.SGD``; the loop
    stays unchanged. Parameters that no view covers take the same step with their plain gradient.

    Args:
        model: the model as the training loop calls it, not its parameters.
        lr: learning rate; ``"auto"`` or :class:`natgrad.Auto` lets the quadratic model choose it
            at every step, and what the parameter groups hold under ``lr``, 1 at first, multiplies
            it: schedulers work as ever.
        momentum: heavy-ball momentum on the natural gradient; ``"auto"`` likewise, or
            :class:`natgrad.Auto` where the learning rate is given.
        nesterov: Nesterov's form of it.
        weight_decay: decoupled, ``w <- (1 - lr weight_decay) w``.
        damping: a number, or an object from :mod:`natgrad.damping`. Left out, the class's
            :attr:`untouched` settings are taken: a damping, a bound on the step unless one is
            given, and a schedule unless any part of it is given, with which very different
            networks train (docs/decisions/0014).
        groups: ``[dict(params=..., lr=..., weight_decay=...)]`` as torch's parameter groups; all
            other parameters form the default group.
        reduction_every: every so many steps with a closure, evaluate it once more after the step
            (a forward pass, and a product with each block) to compare the loss's change with the
            quadratic model's; ``stats()["reduction_ratio"]``. None never does.
        average: decay of a running average of the iterates, for :meth:`averaged`; None keeps none.
        kwargs: everything else :class:`natgrad.Preconditioner` takes: likelihood, fisher,
            stats_every, refresh_every, burn_in, spread, decay, reduction, kl_clip, max_norm,
            shared, strict, fused, product_dtype, widest, eigen, logits, seed, nonfinite.

    Raises:
        ValueError: an argument out of range, or nothing to precondition.
    """

    block: ClassVar[type[blocks.Block] | type[Joint]]
    #: what is taken for what is left out, where damping is
    untouched: ClassVar[Mapping[str, Any]] = MappingProxyType({"damping": 1e-3})
    _step_supports_amp_scaling = True  #: a GradScaler hands its scale over instead of unscaling

    def __init__(
        self,
        model: nn.Module,
        lr: float | Auto | Literal["auto"],
        momentum: float | Auto | Literal["auto"] = 0.9,
        *,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        damping: float | Damping | None = None,
        groups: Sequence[dict[str, Any]] | None = None,
        reduction_every: int | None = None,
        average: float | None = None,
        **kwargs: Any,
    ) -> None:
        in_range = average is None or 0 <= average < 1
        check_range("average", average, in_range, "in [0, 1) or None")
        auto, chosen = _auto(lr, momentum)
        check_range("nesterov", nesterov, not (nesterov and any(chosen)), "False with lr='auto'")
        defaults = {
            "lr": 1.0 if chosen[0] else lr,
            "momentum": 1.0 if chosen[1] else momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        super().__init__(_parameter_groups(model, groups), defaults)
        if damping is not None:
            kwargs["damping"] = damping
        else:
            kwargs = {**_left_out(self.untouched, kwargs, any(chosen)), **kwargs}
        self.preconditioner = Preconditioner(model, type(self).block, **kwargs)
        try:
            self.tuner = Tuner(self.preconditioner, auto, *chosen, reduction_every)
        except ValueError:
            self.preconditioner.remove()
            raise
        self.average = None if average is None else IterateAverage(self, average)

    def __getstate__(self) -> dict[str, Any]:
        own = ("preconditioner", "tuner", "average")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own, of a layer added to the model, say.

        Raises:
            ValueError: a setting out of range; names it.
        """
        given = {**self.defaults, **param_group}
        for name in ("lr", "momentum", "weight_decay"):
            if not given[name] >= 0:
                raise ValueError(f"{name} must be >= 0, got {given[name]}")
        if given["nesterov"] and given["momentum"] == 0:
            raise ValueError("nesterov needs momentum > 0")
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None, *, targets: Tensor | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, targets: Tensor | None = None) -> float: ...

    def step(
        self, closure: Callable[[], float] | None = None, *, targets: Tensor | None = None
    ) -> float | None:
        """One step; ``.grad`` holds the natural gradient afterwards.

        Args:
            closure: evaluates the loss again and returns it, as for any torch optimizer. Where the
                loss is wanted after the step too, it is called once more without gradients; one
                that can't be (it calls ``backward()`` whether ``torch.is_grad_enabled()`` or not)
                is called with them.
            targets: of the batch, with a likelihood: the loss is then its mean negative
                log-likelihood, which takes one forward pass after the step and none before.

        Raises:
            RuntimeError: see :meth:`natgrad.Preconditioner.step`; or the loss is needed after the
                step (:class:`natgrad.damping.LevenbergMarquardt`), and there is no way to it.
        """
        pre, tuner = self.preconditioner, self.tuner
        tuner.check(closure is not None, targets is not None)
        evaluates = tuner.evaluates(pre.steps) and (closure is not None or targets is not None)
        random = RandomState.of(pre.model) if evaluates and closure is not None else None
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        loss_scale = scale_of(self)
        unscale_(self)
        pre.keeps_solved = tuner.chooses or evaluates
        try:
            if pre.step(lr=self._rate_of(), loss_scale=loss_scale):
                before = again = None
                if evaluates and targets is not None:
                    before, again = tuner.losses(targets)
                elif evaluates and closure is not None:
                    again = partial(self._again, closure, random)
                before = before if loss is None else _value(loss)
                stays = tuner.take(self, self._update_all, before, again)
                if stays and self.average is not None:
                    self.average.update(pre.steps - tuner.rejected)
        finally:
            tuner.clear()
        return loss

    def _again(self, closure: Callable[[], float], random: RandomState | None) -> float:
        """The loss after the step; all but the closure's own doings stays as it is."""
        grads = [(p, p.grad) for group in self.param_groups for p in group["params"]]
        for p, _ in grads:
            p.grad = None  # a closure may zero them in place
        try:
            return self._evaluated(closure, random)
        finally:
            for p, grad in grads:
                p.grad = grad

    def _evaluated(self, closure: Callable[[], float], random: RandomState | None) -> float:
        pre = self.preconditioner
        if not self.tuner.backward_again:
            try:
                with unchanged(pre.model, random), pre.silently(), torch.no_grad():
                    return _value(closure())
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
                self.tuner.backward_again = True
        with unchanged(pre.model, random), pre.silently(), torch.enable_grad():
            return _value(closure())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, and with them the statistics that wait for a step."""
        super().zero_grad(set_to_none)
        self.preconditioner.discard()
        self.tuner.drop()

    def _rate_of(self) -> Callable[[nn.Parameter], float]:
        rates = {id(p): float(group["lr"]) for group in self.param_groups for p in group["params"]}
        return lambda parameter: rates.get(id(parameter), 0.0)

    def _update_all(self) -> None:
        for group in self.param_groups:
            self._update(group)

    @torch.no_grad()
    def _update(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        steps = [p.grad for p in parameters if p.grad is not None]
        if group["momentum"]:
            steps = self._with_momentum(parameters, steps, group["momentum"], group["nesterov"])
        torch._foreach_add_(parameters, steps, alpha=-float(group["lr"]))

    def _with_momentum(
        self, parameters: list[Tensor], grads: list[Tensor], momentum: float, nesterov: bool
    ) -> list[Tensor]:
        """``m <- momentum m + U``, and at first ``m = U``, as torch's SGD has it."""
        going = [
            (self.state[p]["momentum_buffer"], grad)
            for p, grad in zip(parameters, grads, strict=True)
            if self.state[p].get("momentum_buffer") is not None
        ]
        if going:
            buffers, added = zip(*going, strict=True)
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, added)
        for p, grad in zip(parameters, grads, strict=True):
            if self.state[p].get("momentum_buffer") is None:
                self.state[p]["momentum_buffer"] = grad.detach().clone()
        found = [self.state[p]["momentum_buffer"] for p in parameters]
        return list(torch._foreach_add(grads, found, alpha=momentum)) if nesterov else found

    def state_dict(self) -> dict[str, Any]:
        """Torch's state plus the preconditioner's; loads with ``weights_only=True``."""
        return {
            **super().state_dict(),
            "preconditioner": self.preconditioner.state_dict(),
            "tuner": self.tuner.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume bit-exactly. A checkpoint without curvature (plain SGD's) loads with a warning.

        Raises:
            RuntimeError: a checkpoint of another model or method; names the parameter, or the
                layer and the factor. Nothing has changed then.
        """
        own = ("preconditioner", "tuner")
        plain = {key: value for key, value in state_dict.items() if key not in own}
        if "preconditioner" in state_dict:
            self.preconditioner.check_state(state_dict["preconditioner"])
        check_momentum(plain, self.param_groups, self.preconditioner.model)
        super().load_state_dict(plain)
        for group in self.param_groups:  # other optimizers' groups may lack some
            for name in ("lr", "momentum", "nesterov", "weight_decay"):
                group.setdefault(name, self.defaults[name])
        if "preconditioner" in state_dict:
            self.preconditioner.load_state_dict(state_dict["preconditioner"])
            self.tuner.load_state_dict(state_dict.get("tuner", {}))
        else:
            warnings.warn(
                "natgrad: the checkpoint holds no curvature statistics (written by another "
                "optimizer?); they start anew",
                stacklevel=2,
            )

    def remove(self) -> None:
        """Take natgrad's hooks off the model; this optimizer can't be used any more."""
        self.preconditioner.remove()
        self.tuner.remove()

    def averaged(self) -> AbstractContextManager[None]:
        """The parameters are their running averages inside: ``with opt.averaged(): validate()``.

        Raises:
            RuntimeError: no average is kept.
        """
        if self.average is None:
            raise RuntimeError("natgrad keeps no average of the iterates: say average=0.99")
        return self.average.in_place()

    def report(self, machine: Machine | None = None) -> Report:
        """Every parameter: how it is handled, block sizes, memory, share of the work, and why.

        Args:
            machine: its rates, to print predicted seconds too (:meth:`Machine.measure`).
        """
        return self.preconditioner.report(machine)

    def stats(self) -> dict[str, float]:
        """Live figures by name, cheap enough for every step (:meth:`Preconditioner.stats`).

        Beside them those of :meth:`natgrad.tuning.Tuner.stats`: learning rate, momentum, damping,
        reduction ratio, and how many steps were taken back.
        """
        return {**self.preconditioner.stats(), **self.tuner.stats()}


def _auto(lr: Any, momentum: Any) -> tuple[Auto | None, tuple[bool, bool]]:
    """How the quadratic model is taken, and whether for learning rate and for momentum."""
    for name, given in (("lr", lr), ("momentum", momentum)):
        if isinstance(given, str) and given != "auto":
            raise ValueError(f"{name} must be a number or 'auto', got {given!r}")
    given = [each for each in (lr, momentum) if isinstance(each, Auto)]
    chosen = [each == "auto" or isinstance(each, Auto) for each in (lr, momentum)]
    return given[0] if given else None, (chosen[0], chosen[1])


def _left_out(
    untouched: Mapping[str, Any], given: Mapping[str, Any], chooses: bool
) -> dict[str, Any]:
    """The settings to fill in; a schedule or a bound that is given in part is the user's own."""
    schedule, bounds = {"stats_every", "refresh_every", "burn_in"}, {"kl_clip", "max_norm"}
    own = schedule if schedule & given.keys() else set()
    own = own | bounds if bounds & given.keys() or chooses else own
    return {key: value for key, value in untouched.items() if key not in own}


def _value(loss: Any) -> float:
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


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
