"""What an optimizer's step does once the natural gradients are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite, isnan, nan
from typing import Any

import torch
from torch import Tensor

from natgrad import distributed
from natgrad.arguments import check_range
from natgrad.damping import LevenbergMarquardt
from natgrad.preconditioner import Preconditioner
from natgrad.quadratic import Gradient, Quadratic, StepModel
from natgrad.replay import Replay
from natgrad.tuning.auto import Auto, Chooser
from natgrad.tuning.factors import FactorSearch
from natgrad.tuning.snapshot import Snapshot

__all__ = ["Tuner"]


class Tuner:
    """Chooses learning rate and momentum, measures the reduction ratio, takes bad steps back.

    Args:
        preconditioner: of the optimizer.
        auto: how the quadratic model is taken; None as by default.
        lr: whether the learning rate comes from it, and not from the parameter groups.
        momentum: whether the momentum does.
        reduction_every: steps between reduction ratios where no damping wants them.

    Raises:
        ValueError: the quadratic model needs something that the optimizer does not have.
    """

    def __init__(
        self, preconditioner: Preconditioner, auto: Auto | None, lr: bool, momentum: bool,
        reduction_every: int | None,
    ) -> None:  # fmt: skip
        check_range(
            "reduction_every", reduction_every, reduction_every is None or reduction_every >= 1,
            "at least 1 or None",
        )  # fmt: skip
        self.pre, self.auto = preconditioner, auto or Auto()
        self.reduction_every = reduction_every
        self.ratio, self.lr, self.momentum, self.rejected = nan, nan, nan, 0
        self.backward_again = False  #: whether the closure can't be called without gradients
        damping = preconditioner.damping
        self.adapted = damping if isinstance(damping, LevenbergMarquardt) else None
        self.replay = self._replay(lr or momentum)
        self.chooser: Chooser | None = None
        try:
            if (lr or momentum) and self.replay is not None:
                self.chooser = Chooser(preconditioner, self.replay, self.auto, lr, momentum)
            self.search = self._search()
        except ValueError:
            self.remove()
            raise
        if self.chooses or self.adapted is not None or reduction_every is not None:
            preconditioner.keep_plain()

    def _replay(self, chooses: bool) -> Replay | None:
        pre, tap = self.pre, self.pre.tap
        if chooses and tap.likelihood is None:
            raise ValueError(
                "lr='auto' and momentum='auto' take the exact Fisher matrix of the model's "
                "output distribution: say likelihood=Categorical(), for example"
            )
        if chooses and pre.bounds.bind:
            raise ValueError(
                "lr='auto' and momentum='auto' bound the step by the quadratic model; "
                "kl_clip and max_norm are for a given learning rate"
            )
        needed = chooses or self.adapted is not None or self.reduction_every is not None
        if tap.likelihood is None or not needed:
            return None
        return Replay(pre.model, tap.likelihood, tap.logits, pre.silently)

    def _search(self) -> FactorSearch | None:
        if self.adapted is None or self.adapted.factors_every is None:
            return None
        if self.chooser is None:
            raise ValueError(
                "LevenbergMarquardt(factors_every=...) compares candidates by the quadratic model, "
                "with lr='auto' or momentum='auto'"
            )
        return FactorSearch(self.pre, self.adapted, self.chooser)

    @property
    def chooses(self) -> bool:
        """Whether learning rate or momentum come from the quadratic model."""
        return self.chooser is not None

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
                "LevenbergMarquardt damping or reduction_every; this optimizer has no use for it, "
                "or no likelihood"
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
        if self.chooser is not None:
            foretold = self._chosen(optimizer, kept if self.measures(k) else None)
        else:
            wanted = evaluates and self.measures(k)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            gradient = Gradient(self.pre.solved, parameters) if wanted else None
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

    def _chosen(self, optimizer: torch.optim.Optimizer, kept: Snapshot | None) -> float:
        """Move by the coefficients that the quadratic model asks for; its change."""
        assert self.chooser is not None
        size, search = self._size(), self.search
        searches = search is not None and search.due(self.pre.steps - 1)
        choose = search.best if searches and search is not None else self.chooser.choose
        choice = choose(optimizer, size)
        self.lr, self.momentum = choice.lr, choice.momentum
        self.chooser.move(optimizer, choice)
        if kept is not None and any(group["weight_decay"] for group in optimizer.param_groups):
            gradient = Gradient(self.pre.solved, choice.span.parameters)
            return self._foretold(gradient, kept, self.auto.fraction)  # decay moves them too
        return choice.change() * size

    def _judged(self, k: int, before: float, after: float, foretold: float) -> bool:
        if self.measures(k):
            self.ratio = (after - before) / foretold if foretold else nan
            if self.adapted is not None and self.adapted.measures(k):
                # a model that foretells a rise is a bad one, whatever the loss did
                self.adapted.adapt(self.ratio if foretold < 0 else nan)
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
        if self.replay is None or (self.adapted is None and not self.chooses):
            return StepModel(self.pre.curvature, gradient).change(move, self._size())
        parameters = list(move)
        A = self.replay.curved(
            parameters, [list(move.values())], fraction, [before[p] for p in parameters]
        )
        size, D = self._size(), torch.zeros_like(A)
        for each in move.values():
            D += self.auto.l2 * each.square().sum(dtype=A.dtype).cpu()
        return size * Quadratic(A + D, D, gradient.along(move).reshape(1) / size).change([1.0])

    # state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values; what is not known yet is left out."""
        figures = {"ratio": self.ratio, "lr": self.lr, "momentum": self.momentum}
        known: dict[str, Any] = {key: value for key, value in figures.items() if not isnan(value)}
        if self.adapted is not None:
            known |= {"damping": self.adapted.value, "factors": self.adapted.of_factors}
        return {**known, "rejected": self.rejected}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        self.ratio, self.rejected = state.get("ratio", nan), state.get("rejected", 0)
        self.lr, self.momentum = state.get("lr", nan), state.get("momentum", nan)
        if self.adapted is not None:
            self.adapted.value = state.get("damping", self.adapted.value)
            self.adapted.of_factors = state.get("factors")
