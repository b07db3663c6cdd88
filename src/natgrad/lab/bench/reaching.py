"""Time to a training loss: recipes' optimizers side by side, update by update."""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from natgrad.lab.bench.turns import Tell, first_line
from natgrad.lab.data import Splits
from natgrad.lab.errors import LabError
from natgrad.lab.recipe import Recipe
from natgrad.lab.training import Budget, Run, Training
from natgrad.table import aligned

__all__ = ["WINDOW", "Race", "race", "race_table"]

WINDOW = 20  #: updates that the loss is averaged over


@dataclass
class Race:
    """One optimizer on its way to a loss.

    Attributes:
        name: of the optimizer.
        training: its run; None if it could not be started.
        reached: updates and seconds at which the running mean was first at or below the loss.
        lowest: the lowest running mean so far.
        problem: why it goes no further, if not for that.
    """

    name: str
    training: Training | None = None
    reached: tuple[int, float] | None = None
    lowest: float = math.inf
    problem: str | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def advance(self, target: float, seconds: float) -> None:
        """One update, if there is anything left to do."""
        assert self.training is not None
        try:
            self.losses.append(self.training.step())
        except (RuntimeError, LabError) as error:
            self.problem = first_line(error)
            return
        if not math.isfinite(self.losses[-1]):
            self.problem = f"diverged after {self.training.update} updates"
        elif len(self.losses) == WINDOW:
            mean = statistics.fmean(self.losses)
            self.lowest = min(self.lowest, mean)
            if mean <= target:
                self.reached = self.training.update, self.training.seconds
        if not self.over and self.training.seconds >= seconds:
            self.problem = f"not reached in {seconds:g} s; {self._progress()}"

    def _progress(self) -> str:
        updates = f"{self.training.update if self.training else 0} updates"
        return (
            updates if math.isinf(self.lowest) else f"the lowest was {self.lowest:.4g}, {updates}"
        )

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.reached is not None or self.problem is not None

    def to_json(self) -> dict[str, Any]:
        """What came of it."""
        updates, seconds = self.reached or (None, None)
        return {
            "optimizer": self.name,
            "settings": {} if self.training is None else dict(self.training.run.settings),
            "updates": updates,
            "seconds": seconds,
            "lowest": self.lowest if math.isfinite(self.lowest) else None,
            "problem": self.problem,
        }


def race(
    recipe: Recipe,
    splits: Splits,
    names: Sequence[str],
    target: float,
    seconds: float,
    tell: Tell,
    stop: Callable[[], bool] = lambda: False,
) -> list[Race]:
    """Train a recipe's optimizers with its settings until a running mean of the loss is reached.

    They take turns update by update, in another order each time, so that a busy machine slows all
    of them alike; seconds are of an optimizer's own updates, data and statistics before the first
    included. Learning rates are constant: a schedule that ends with the budget would make the
    outcome depend on it.

    Args:
        recipe: what is trained.
        splits: its data.
        names: optimizers.
        target: the loss, a mean over :data:`WINDOW` batches before their updates.
        seconds: given to each at most.
        tell: is told of the progress.
        stop: asked before every update.
    """
    races = [_started(recipe, splits, name, seconds) for name in names]
    order = random.Random(0)
    while running := [each for each in races if not each.over]:
        order.shuffle(running)
        for each in running:
            if stop():
                return races
            each.advance(target, seconds)
            assert each.training is not None
            spent = min(each.training.seconds / seconds, 1.0)
            tell(max(1, round(1000 * spent)), 1000, f"{each.name} at {_latest(each)}")
    return races


def race_table(races: Sequence[Race]) -> list[str]:
    """Updates and seconds of each."""
    rows = [
        [each.name, *(("-", "-") if each.reached is None else _figures(*each.reached))]
        for each in races
    ]
    lines = aligned([["", "updates", "seconds"], *rows], left=1)
    return lines + [f"{each.name}: {each.problem}" for each in races if each.problem]


def _started(recipe: Recipe, splits: Splits, name: str, seconds: float) -> Race:
    settings = recipe.settings.get(name, {})
    constant = recipe.scheduled("constant")
    try:
        run = Run(constant, name, settings, 0, Budget(seconds=seconds))
        Training(run, splits).step()  # modules that are loaded at first use are nobody's time
        return Race(name, Training(run, splits))
    except LabError as error:
        return Race(name, problem=first_line(error))


def _figures(updates: int, seconds: float) -> tuple[str, str]:
    return str(updates), f"{seconds:.2f}"


def _latest(each: Race) -> str:
    return f"{each.losses[-1]:.4g}" if each.losses else "-"
