"""One run: a network trained by one optimizer from one seed, with its curve.

Everything but the optimizer is the same for all optimizers: the initial weights are a function of
the seed, the order of the data one of seed and epoch, and the L2 penalty is part of the gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.lab.batches import Batches, data_order
from natgrad.lab.data import Pair, Splits
from natgrad.lab.devices import PLAIN, Compute
from natgrad.lab.errors import UsageError
from natgrad.lab.objective import evaluate
from natgrad.lab.optimizers import Setting, Settings, Task, build, complete
from natgrad.lab.recipe import Recipe
from natgrad.lab.schedules import Constant, Position, parse
from natgrad.optim import ExactNGD, NaturalGradient
from natgrad.whiten import Whitened

__all__ = ["Budget", "Run", "Training", "data_order", "evaluate"]


@dataclass(frozen=True)
class Budget:
    """How long a run lasts: passes over the training data, or seconds of training steps."""

    epochs: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = self.epochs if self.seconds is None else self.seconds
        if given is None or (self.epochs is not None and self.seconds is not None):
            raise UsageError("the budget is either --epochs or --seconds")
        if not given > 0:
            raise UsageError(f"the budget must be positive, got {given:g}")

    def used(self, epochs: float, seconds: float) -> float:
        """The share of the budget that is used up, 1 at its end."""
        return epochs / self.epochs if self.epochs else seconds / (self.seconds or math.inf)

    def share(self, fraction: float) -> Budget:
        """A part of this budget."""
        if self.epochs is not None:
            return Budget(epochs=self.epochs * fraction)
        return Budget(seconds=(self.seconds or 0.0) * fraction)

    def __str__(self) -> str:
        count, unit = (self.epochs, "epoch") if self.epochs else (self.seconds, "second")
        return f"{count:g} {unit}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Run:
    """What is trained: one optimizer with its settings, from a seed, for a budget, on a device."""

    recipe: Recipe
    optimizer: str
    settings: Settings
    seed: int
    budget: Budget
    tuning: bool = False
    compute: Compute = PLAIN

    def __str__(self) -> str:
        if not self.tuning:
            return f"{self.optimizer} seed {self.seed}"
        listed = " ".join(f"{key}={_short(value)}" for key, value in self.settings.items())
        return f"tuning {self.optimizer} {listed}"


class Training:
    """A run in progress: can be stepped, evaluated, saved and loaded between any two steps.

    Args:
        run: what to train.
        splits: the data; rows of a tuning run never see its test part.

    Raises:
        UsageError: the optimizer refuses its settings.
    """

    def __init__(self, run: Run, splits: Splits) -> None:
        self.run = run
        torch.manual_seed(run.seed)
        recipe, compute = run.recipe, run.compute
        self.model = compute.take(recipe.network())
        self.splits = compute.hold(splits)
        self.batches = Batches(
            self.splits.train, recipe.batch_size, run.seed, compute, recipe.augmentation
        )
        inputs = compute.first(self.splits.train.inputs)
        task = Task(self.model, recipe.likelihood, run.seed, recipe.l2, inputs, recipe.augmentation)
        torch.compiler.disable(nn.Identity())  # type: ignore[no-untyped-call]  # imports for seconds, once
        begin = time.perf_counter()  # statistics before the first step are on the clock
        self.optimizer = build(run.optimizer, task, run.settings)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule = parse(run.recipe.schedule)
        self.update, self.seconds = 0, time.perf_counter() - begin
        whitened = {id(m.weight) for m in self.model.modules() if isinstance(m, Whitened)}
        matrices = (p for p in self.model.parameters() if p.ndim > 1)
        self.penalised = [p for p in matrices if id(p) not in whitened]  # theirs is on W, not V
        self.rows: list[dict[str, Any]] = []
        self.updates_per_epoch = self.batches.per_epoch

    @property
    def epoch(self) -> float:
        """Passes over the training data so far."""
        return self.update / self.updates_per_epoch

    @property
    def used(self) -> float:
        """The share of the budget that is used up."""
        return self.run.budget.used(self.epoch, self.seconds)

    def step(self) -> float:
        """One update, on the clock.

        Returns:
            The loss of the batch before the update; one that is not finite does not count.
        """
        begin = time.perf_counter()
        x, y = self._batch()
        self._schedule()
        value = self._advance(x, y)
        if math.isfinite(value):
            self.update += 1
        self.seconds += time.perf_counter() - begin
        return value

    def _advance(self, x: Tensor, y: Tensor) -> float:
        if isinstance(self.optimizer, ExactNGD):
            residuals = self.run.recipe.minimised.residuals(Pair(x, y))
            if residuals is not None:
                return self.optimizer.step(residuals)
        value: float = self.optimizer.step(partial(self._loss, x, y))
        return value

    def _loss(self, x: Tensor, y: Tensor) -> float:
        """The batch's loss, with its gradients in ``.grad``: what optimizers call a closure."""
        self.optimizer.zero_grad()
        with self.run.compute.autocast():
            loss = self.run.recipe.minimised.loss(self.model, Pair(x, y))
        if torch.is_grad_enabled():  # else only the loss after a step is asked for
            torch.autograd.backward(loss)
            self._penalise()
        return loss.item()

    def _batch(self) -> tuple[Tensor, Tensor]:
        return self.batches.take(self.update)

    def _schedule(self) -> None:
        """Set the learning rates of this step: a function of where the run stands."""
        recipe = self.run.recipe
        if isinstance(self.schedule, Constant) or self.run.optimizer in recipe.unscheduled:
            return
        at = Position(self.used, self.epoch, self.rows, recipe.metric.better)
        factor = self.schedule.factor(at)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _penalise(self) -> None:
        """Add the gradient of ``l2 / 2 |W|^2``."""
        l2 = self.run.recipe.l2
        if l2:
            for p in self.penalised:
                if p.grad is not None:
                    p.grad.add_(p.detach(), alpha=l2)

    def due(self, *, last: bool = False) -> bool:
        """Whether the curve wants a point here that it does not have yet; the end always does."""
        if self.rows and self.rows[-1]["update"] == self.update:
            return False
        if last:
            return True
        if self.run.recipe.evaluations:
            return self._due_by_budget(self.run.recipe.evaluations)
        points = self.run.recipe.evaluations_per_epoch
        scaled = self.update * points
        return scaled // self.updates_per_epoch > (scaled - points) // self.updates_per_epoch

    def _due_by_budget(self, points: int) -> bool:
        if not self.rows:
            return True
        last = self.run.budget.used(self.rows[-1]["epoch"], self.rows[-1]["seconds"])
        return math.floor(points * self.used) > math.floor(points * last)

    def evaluate(self) -> dict[str, Any]:
        """A point of the curve, off the clock; remembered unless it is not finite."""
        recipe, row = self.run.recipe, self._row()
        measured = {
            "train": self.splits.train.first(recipe.train_evaluated),
            "validation": self.splits.validation,
        }
        if not self.run.tuning:
            measured["test"] = self.splits.test
        with self.averaged():
            for split, pair in measured.items():
                there = self.run.compute.moved(pair)
                loss, figure = recipe.minimised.evaluate(self.model, there)
                row |= {f"{split}_loss": loss, f"{split}_metric": figure}
        if finite(row):
            self.rows.append(row)
        return row

    def averaged(self) -> AbstractContextManager[None]:
        """The model is the optimizer's average of the iterates inside, where it keeps one."""
        optimizer = self.optimizer
        if isinstance(optimizer, NaturalGradient) and optimizer.average is not None:
            return optimizer.averaged()
        return nullcontext()

    def _row(self) -> dict[str, Any]:
        return {
            "optimizer": self.run.optimizer,
            "seed": self.run.seed,
            "settings": complete(self.run.optimizer, self.run.settings),
            "epoch": self.epoch,
            "update": self.update,
            "seconds": self.seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: loads with ``weights_only=True``."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "update": self.update,
            "seconds": self.seconds,
            "fetch_seconds": self.batches.seconds,
            "rows": self.rows,
            "rng": self.run.compute.rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on bit-exactly from a saved point."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.update, self.seconds = state["update"], state["seconds"]
        self.batches.seconds = state["fetch_seconds"]
        self.rows = list(state["rows"])
        self.run.compute.set_rng_state(state["rng"])


def finite(row: Mapping[str, Any]) -> bool:
    """Whether a point of a curve holds finite figures only."""
    return all(math.isfinite(value) for value in row.values() if isinstance(value, float))


def _short(value: Setting) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
