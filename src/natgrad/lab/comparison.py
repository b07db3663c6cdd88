"""A comparison: every optimizer tuned on the validation set, then trained from every seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from natgrad.lab.checkpoints import Rhythm
from natgrad.lab.data import Splits
from natgrad.lab.devices import PLAIN, Compute
from natgrad.lab.folder import Results
from natgrad.lab.optimizers import Settings, complete
from natgrad.lab.recipe import Recipe
from natgrad.lab.running import Status, Watch, carry_on
from natgrad.lab.training import Budget, Run

__all__ = ["Plan", "best_index", "compare", "on_edge", "settled"]

TUNING_SEED = 0


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        recipe: the experiment.
        optimizers: in this order.
        seeds: each trained from every one.
        budget: of every run.
        settings: of optimizers that are not tuned.
        compute: the device and precision of every run.
    """

    recipe: Recipe
    optimizers: Sequence[str]
    seeds: Sequence[int]
    budget: Budget
    settings: Mapping[str, Settings] = field(default_factory=dict)
    compute: Compute = PLAIN

    def run(self, optimizer: str, settings: Settings, seed: int) -> Run:
        """A run that counts."""
        return Run(self.recipe, optimizer, settings, seed, self.budget, compute=self.compute)

    def trial(self, optimizer: str, settings: Settings) -> Run:
        """A run that settings are judged by."""
        budget = self.tuning_budget()
        return Run(self.recipe, optimizer, settings, TUNING_SEED, budget, True, self.compute)

    def tuned(self) -> list[str]:
        """The optimizers whose settings are to be found."""
        return [name for name in self.optimizers if self.fixed(name) is None]

    def fixed(self, name: str) -> Settings | None:
        """The settings of an optimizer that is not tuned: given, or the one point of its grid."""
        grid = self.recipe.grids.get(name, ())
        return self.settings.get(name, grid[0] if len(grid) == 1 else None)

    def tuning_budget(self) -> Budget:
        """Of one tuning run: the recipe's share, never more than a run gets."""
        recipe = self.recipe
        if self.budget.epochs is not None:
            return Budget(epochs=min(recipe.tuning_epochs, self.budget.epochs))
        return self.budget.share(min(1.0, recipe.tuning_epochs / recipe.epochs))

    def total(self) -> int:
        """The number of runs, those of the tuning included."""
        points = sum(len(self.recipe.grid(name)) for name in self.tuned())
        return points + len(self.optimizers) * len(self.seeds)

    def rule(self) -> str:
        """How settings were chosen, in words."""
        if not self.tuned():
            return "no tuning: each optimizer has one setting"
        points = len(self.recipe.grid(self.tuned()[0]))
        return (
            f"each optimizer's {points} grid points trained from seed {TUNING_SEED} for "
            f"{self.tuning_budget()}; the lowest validation loss is taken, averaged over the last "
            "quarter of the evaluations"
        )


def compare(
    plan: Plan,
    splits: Splits,
    results: Results,
    watch: Watch,
    stop: Callable[[], bool],
    rhythm: Rhythm | None = None,
) -> Status:
    """Carry a plan out, leaving what an earlier call finished.

    Optimizers take turns within a seed, so that a busy machine slows all of them alike.
    ``rhythm`` is that of the checkpoints.

    Returns:
        ``"finished"``, or ``"interrupted"`` when ``stop`` said so.
    """
    chosen: dict[str, dict[str, Any]] = {}
    tuning: dict[str, list[float | None]] = {}
    for name in plan.optimizers:
        known = plan.fixed(name)
        if known is not None:
            found = complete(name, known)
        else:
            losses = _tune(plan, name, splits, results, watch, stop, rhythm)
            if losses is None:
                return "interrupted"
            tuning[name] = losses
            results.update_manifest(tuning_losses=tuning)
            index = best_index(losses)
            if index is None:
                watch.say(f"{name}: every point of its grid diverged; it is left out")
                continue
            found = complete(name, plan.recipe.grid(name)[index])
            watch.say(_announcement(name, plan.recipe.grid(name), index))
        chosen[name] = found
        results.update_manifest(tuned=chosen)
    for seed in plan.seeds:
        for name, settings in chosen.items():
            run = plan.run(name, settings, seed)
            place = results.run(name, seed)
            if carry_on(run, splits, place, watch, stop, rhythm) == "interrupted":
                return "interrupted"
    return "finished"


def _tune(
    plan: Plan,
    name: str,
    splits: Splits,
    results: Results,
    watch: Watch,
    stop: Callable[[], bool],
    rhythm: Rhythm | None,
) -> list[float | None] | None:
    """What each point of an optimizer's grid reached, None where diverged; None when stopped."""
    losses: list[float | None] = []
    for index, settings in enumerate(plan.recipe.grid(name)):
        run = plan.trial(name, settings)
        place = results.tuning(name, index)
        status = carry_on(run, splits, place, watch, stop, rhythm)
        if status == "interrupted":
            return None
        losses.append(settled(place.rows()) if status == "finished" else None)
    return losses


def settled(rows: Sequence[Mapping[str, Any]]) -> float:
    """The mean validation loss over the last quarter of the evaluations.

    The last one alone would favour settings that happen to dip there: a constant learning rate
    leaves the loss noisy to the end.
    """
    last = rows[-max(1, len(rows) // 4) :]
    return statistics.fmean(row["validation_loss"] for row in last)


def best_index(losses: Sequence[float | None]) -> int | None:
    """The first of the lowest losses, those that are None left out; None if there is none."""
    found = [(loss, index) for index, loss in enumerate(losses) if loss is not None]
    return min(found)[1] if found else None


def on_edge(grid: Sequence[Settings], index: int) -> list[str]:
    """Settings whose chosen value is the lowest or highest of those tried; of two, both are.

    >>> on_edge([{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}], 2)
    ['lr']
    >>> on_edge([{"lr": 0.1, "eps": 1}, {"lr": 0.2, "eps": 1}], 0)
    ['lr']
    """
    edges = []
    for key, value in grid[index].items():
        tried = sorted({float(point[key]) for point in grid if not isinstance(point[key], str)})
        if len(tried) >= 2 and value in (tried[0], tried[-1]):
            edges.append(key)
    return edges


def _announcement(name: str, grid: Sequence[Settings], index: int) -> str:
    listed = ", ".join(f"{key} {value}" for key, value in grid[index].items())
    edges = on_edge(grid, index)
    hint = f" (on the edge of the grid: {', '.join(edges)})" if edges else ""
    return f"{name}: {listed} is the best of {len(grid)}{hint}"
