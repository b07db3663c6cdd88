"""How far a step goes, and whether it stays: learning rate, momentum and damping by themselves.

The quadratic model ``M(delta) = <g, delta> + 1/2 delta^T F delta`` with the exact Fisher matrix of
a part of the batch says how long the natural gradient and the last step should be; the loss after
the step says how much the model can be trusted (Martens & Grosse 2015, arXiv 1503.05671, sections
6.4, 6.5 and 7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from natgrad import distributed
from natgrad.arguments import check_range
from natgrad.damping import LevenbergMarquardt
from natgrad.preconditioner import Preconditioner
from natgrad.quadratic import Gradient, Quadratic, StepModel
from natgrad.replay import Replay

__all__ = ["Auto", "Snapshot", "Tuner"]

Groups: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Auto:
    """Learning rate and momentum from the quadratic model of each step.

    ``alpha, mu`` minimise ``M(delta) + (damping + l2)/2 |delta|^2`` over ``delta = -alpha U + mu
    delta_before``. That takes ``F``'s products with both directions, each about two forward passes
    of the part of the batch, beside one shared: with a quarter, 1.5 forward passes, or half of the
    cost of a gradient.

    Args:
        fraction: of the batch, its first examples, that ``F`` is taken of.
        l2: weight of a penalty ``l2/2 |w|^2`` that is part of the loss.

    Raises:
        ValueError: an argument out of range.
    """

    fraction: float = 0.25
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_range("fraction", self.fraction, 0 < self.fraction <= 1, "in (0, 1]")
        check_range("l2", self.l2, self.l2 >= 0, "at least 0")


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


class Tuner:
    """Chooses learning rate and momentum, measures the reduction ratio, takes bad steps back.

    Args:
        preconditioner: of the optimizer.
        lr: None where it is given by the parameter groups.
        momentum: whether it comes from the quadratic model.
        reduction_every: steps between reduction ratios where no damping wants them.

    Raises:
        ValueError: the quadratic model needs something that the optimizer does not have.
    """

    def __init__(
        self, preconditioner: Preconditioner, lr: Auto | None, momentum: bool,
        reduction_every: int | None,
    ) -> None:  # fmt: skip
        check_range(
            "reduction_every", reduction_every, reduction_every is None or reduction_every >= 1,
            "at least 1 or None",
        )  # fmt: skip
        self.pre, self.auto_lr, self.auto_momentum = preconditioner, lr is not None, momentum
        self.auto = lr or Auto()
        self.reduction_every = reduction_every
        self.ratio, self.lr, self.momentum, self.rejected = nan, nan, nan, 0
        self.backward_again = False  #: whether the closure can't be called without gradients
        damping = preconditioner.damping
        self.adapted = damping if isinstance(damping, LevenbergMarquardt) else None
        self.replay = self._replay()
        if self.chooses or self.adapted is not None or reduction_every is not None:
            preconditioner.keep_plain()

    def _replay(self) -> Replay | None:
        pre, tap = self.pre, self.pre.tap
        if self.chooses:
            if tap.likelihood is None:
                raise ValueError(
                    "lr='auto' and momentum='auto' take the exact Fisher matrix of the model's "
                    "output distribution: say likelihood=Categorical(), for example"
                )
            if pre.bounds.bind:
                raise ValueError(
                    "lr='auto' and momentum='auto' bound the step by the quadratic model; "
                    "kl_clip and max_norm are for a given learning rate"
                )
            self._damping()
        elif tap.likelihood is None or self.adapted is None:
            return None
        return Replay(pre.model, tap.likelihood, tap.logits, pre.silently)

    @property
    def chooses(self) -> bool:
        """Whether learning rate or momentum come from the quadratic model."""
        return self.auto_lr or self.auto_momentum

    def _damping(self) -> float:
        value = getattr(self.pre.damping, "value", self.pre.damping)
        if not isinstance(value, (int, float)):
            raise ValueError(
                f"lr='auto' and momentum='auto' need a damping with one number, which the "
                f"quadratic model is damped with too; {type(self.pre.damping).__name__} has none"
            )
        return float(value)

    # when ---------------------------------------------------------------------------------------

    def measures(self, k: int) -> bool:
        """Whether the reduction ratio of step ``k``, counted from 0, is wanted."""
        if self.adapted is not None and self.adapted.measures(k):
            return True
        return self.reduction_every is not None and (k + 1) % self.reduction_every == 0

    def looks(self, k: int) -> bool:
        """Whether step ``k`` is taken back if the loss rose."""
        return self.adapted is not None and self.adapted.looks(k)

    def evaluates(self, k: int) -> bool:
        """Whether the loss is wanted once more after step ``k``."""
        return self.measures(k) or self.looks(k)

    def check(self, closure: bool, targets: bool) -> None:
        """Raise unless the loss can be evaluated where it must be.

        Raises:
            RuntimeError: says what to do.
        """
        if targets and self.replay is None:
            raise RuntimeError(
                "natgrad: step(targets=...) takes the loss from the likelihood, for "
                "LevenbergMarquardt damping; this optimizer needs none, or has no likelihood"
            )
        if targets and not closure and self.replay is not None:
            self.replay.only()
        if self.adapted is not None and not (closure or targets):
            raise RuntimeError(
                "natgrad: LevenbergMarquardt damping needs the loss after the step: call "
                "step(closure), or step(targets=...) with a likelihood"
            )

    def losses(self, targets: Tensor) -> tuple[float, Callable[[], float]]:
        """The loss of the batch, and what evaluates it again."""
        assert self.replay is not None
        replay, size = self.replay, self._size()
        return replay.loss(targets) * size, lambda: replay.loss_again(targets) * size

    def _size(self) -> int:
        """How many times the mean over examples the user's loss is."""
        sums = self.pre.tap.reduction == "sum" and self.replay is not None
        return self.replay.examples() if sums and self.replay is not None else 1

    def clear(self) -> None:
        """The step is over, or never was: forget its batch."""
        if self.replay is not None:
            self.replay.clear()

    def drop(self) -> None:
        """The gradients were dropped, and what is known of their batch with them."""
        if self.replay is not None:
            self.replay.drop()

    def remove(self) -> None:
        """Take the hooks off the model."""
        if self.replay is not None:
            self.replay.remove()

    def stats(self) -> dict[str, float]:
        """Figures of the last step.

        ``lr`` and ``momentum`` as the quadratic model chose them, before the parameter groups'
        multipliers; ``damping`` of Levenberg and Marquardt; ``reduction_ratio``, the loss's change
        over the model's, of the last step measured; ``rejected``, how many steps were taken back.
        NaN before; what is not chosen or adapted is left out.
        """
        found = {"reduction_ratio": self.ratio}
        if self.chooses:
            found |= {"lr": self.lr, "momentum": self.momentum}
        if self.adapted is not None:
            found |= {"damping": self.adapted.value, "rejected": float(self.rejected)}
        return found

    # what ---------------------------------------------------------------------------------------

    def take(
        self, optimizer: torch.optim.Optimizer, update: Callable[[], None],
        before: float | None, again: Callable[[], float] | None,
    ) -> bool:  # fmt: skip
        """Take the step whose natural gradients are in ``.grad``.

        Args:
            optimizer: whose parameters move.
            update: takes the step with the groups' learning rate and momentum.
            before: the loss.
            again: evaluates it once more.

        Returns:
            False if the step was taken back.
        """
        k = self.pre.steps - 1
        evaluates = again is not None and self.evaluates(k)
        kept = Snapshot(optimizer) if evaluates else None
        foretold = nan
        if self.chooses:
            foretold = self._chosen(optimizer, kept if self.measures(k) else None)
        else:
            wanted = evaluates and self.measures(k)
            gradient = Gradient(self.pre.solved, _moving(optimizer)) if wanted else None
            update()
            if gradient is not None and kept is not None:
                foretold = self._foretold(gradient, kept)
        if kept is None or again is None or before is None:
            return True
        torch.clear_autocast_cache()  # weights of before, where the step is inside of autocast
        losses = torch.tensor([before, again()], dtype=torch.float64)
        mean_before, mean_after = distributed.average(losses).tolist()
        stays = self._judged(k, mean_before, mean_after, foretold)
        if not stays:
            kept.restore()
        return stays

    def _judged(self, k: int, before: float, after: float, foretold: float) -> bool:
        if self.measures(k):
            self.ratio = (after - before) / foretold if foretold else nan
            if self.adapted is not None and self.adapted.measures(k):
                self.adapted.adapt(self.ratio)
        if not self.looks(k) or (isfinite(after) and after <= before):
            return True
        assert self.adapted is not None
        self.adapted.reject()
        self.rejected += 1
        self.pre.schedule.forced = True  # factors are inverted with the damping in them
        return False

    def _foretold(self, gradient: Gradient, kept: Snapshot, fraction: float = 1.0) -> float:
        """The change of the model in a step that was taken already."""
        before = dict(kept.parameters)
        move = {p: p.detach() - old for p, old in before.items()}
        if self.replay is None:
            return StepModel(self.pre.curvature, gradient).change(move)
        parameters = list(move)
        A = self.replay.curved(
            parameters, [list(move.values())], fraction, [before[p] for p in parameters]
        )
        size, D = self._size(), torch.zeros_like(A)
        for each in move.values():
            D += self.auto.l2 * each.square().sum(dtype=A.dtype).cpu()
        return size * Quadratic(A + D, D, gradient.along(move).reshape(1) / size).change([1.0])

    # learning rate and momentum -----------------------------------------------------------------

    @torch.no_grad()
    def _chosen(self, optimizer: torch.optim.Optimizer, kept: Snapshot | None) -> float:
        """Move by the coefficients that the quadratic model asks for; its change."""
        assert self.replay is not None
        moving, state = _moving(optimizer), optimizer.state
        gradient = Gradient(self.pre.solved, moving)
        rates, momenta = _by_parameter(optimizer, "lr"), _by_parameter(optimizer, "momentum")
        top_rate, top_momentum = max(rates.values()), max(momenta.values())
        U = {p: _scaled(p.grad, rates[p], top_rate) for p in moving if p.grad is not None}
        directions = [U]
        if any("delta" in state[p] for p in moving) and top_momentum > 0:
            directions.append({
                p: _scaled(state[p]["delta"], momenta[p], top_momentum)
                if "delta" in state[p] else torch.zeros_like(p)
                for p in moving
            })  # fmt: skip
        fixed = [
            None if self.auto_lr else -top_rate,
            None if self.auto_momentum else top_momentum,
        ][: len(directions)]
        model = self._model(moving, directions, gradient)
        w = model.minimiser(self._damping(), fixed)
        self.lr, self.momentum = -w[0], w[1] if len(w) > 1 else 0.0
        if self.auto_lr:
            w[0] *= top_rate
        if self.auto_momentum and len(w) > 1:
            w[1] *= top_momentum
        self._move(optimizer, directions, w, rates, top_rate)
        if kept is not None and any(group["weight_decay"] for group in optimizer.param_groups):
            return self._foretold(gradient, kept, self.auto.fraction)  # decay moves them too
        return model.change(w) * self._size()

    def _model(
        self, moving: list[nn.Parameter], directions: list[dict[nn.Parameter, Tensor]],
        gradient: Gradient,
    ) -> Quadratic:  # fmt: skip
        assert self.replay is not None
        vectors = [[v[p] for p in moving] for v in directions]
        A = self.replay.curved(moving, vectors, self.auto.fraction)
        D = torch.zeros_like(A)
        for i, u in enumerate(vectors):
            for j, v in enumerate(vectors[: i + 1]):
                dots = [torch.dot(x.flatten(), y.flatten()) for x, y in zip(u, v, strict=True)]
                D[i, j] = D[j, i] = torch.stack([dot.double().cpu() for dot in dots]).sum()
        b = torch.stack([gradient.along(v) for v in directions]) / self._size()
        return Quadratic(A + self.auto.l2 * D, D, b)

    def _move(
        self, optimizer: torch.optim.Optimizer, directions: list[dict[nn.Parameter, Tensor]],
        w: list[float], rates: Mapping[nn.Parameter, float], top_rate: float,
    ) -> None:  # fmt: skip
        moving = list(directions[0])
        if len(directions) > 1:
            steps = list(torch._foreach_mul([directions[1][p] for p in moving], w[1]))
            torch._foreach_add_(steps, [directions[0][p] for p in moving], alpha=w[0])
        else:
            steps = list(torch._foreach_mul([directions[0][p] for p in moving], w[0]))
        decays = _by_parameter(optimizer, "weight_decay")
        lr = max(-w[0], 0.0)  # uphill, beside the last step, it must not make weights grow
        for p in moving:
            if decays[p]:
                p.mul_(1 - lr * (rates[p] / top_rate if top_rate else 0.0) * decays[p])
        torch._foreach_add_([p.data for p in moving], steps)
        for p, step in zip(moving, steps, strict=True):
            optimizer.state[p]["delta"] = step  # torch would not bring a "step" to another device

    # state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values; what is not known yet is left out."""
        figures = {"ratio": self.ratio, "lr": self.lr, "momentum": self.momentum}
        known: dict[str, Any] = {key: value for key, value in figures.items() if not isnan(value)}
        if self.adapted is not None:
            known["damping"] = self.adapted.value
        return {**known, "rejected": self.rejected}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        self.ratio, self.rejected = state.get("ratio", nan), state.get("rejected", 0)
        self.lr, self.momentum = state.get("lr", nan), state.get("momentum", nan)
        if self.adapted is not None:
            self.adapted.value = state.get("damping", self.adapted.value)


def _moving(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [p for p in parameters if p.grad is not None]


def _by_parameter(optimizer: torch.optim.Optimizer, name: str) -> dict[nn.Parameter, float]:
    return {p: float(group[name]) for group in optimizer.param_groups for p in group["params"]}


def _scaled(x: Tensor, own: float, top: float) -> Tensor:
    """Relative to the largest of the groups; no copy where they are the same."""
    return x if own == top or top == 0 else x * (own / top)
