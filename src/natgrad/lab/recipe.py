"""A recipe: everything that defines an experiment, in one frozen object."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import nn

from natgrad.lab import recipes
from natgrad.lab.data import DataSet
from natgrad.lab.errors import UsageError, unknown
from natgrad.lab.metrics import Metric
from natgrad.lab.objective import Objective, Supervised
from natgrad.lab.optimizers import Settings
from natgrad.lab.space import Space
from natgrad.likelihood import Likelihood

__all__ = ["Recipe", "load", "names"]


@dataclass(frozen=True)
class Recipe:
    """One experiment: data, network, objective, budget, and how optimizers are tuned for it.

    The objective is ``mean nll + l2 / 2 |W|^2`` over weight matrices ``W``, for every optimizer,
    unless the recipe has one of its own.

    Attributes:
        name: as the command line takes it.
        title: one line.
        source: paper and figure, or where the experiment comes from.
        architecture: the network in words.
        data: what it is trained on.
        network: makes the network, in its initialisation.
        likelihood: of the targets given the network's output; its ``nll`` is the loss.
        metric: what is reported beside the loss.
        batch_size: examples in a batch.
        l2: weight of the penalty.
        epochs: default budget.
        tuning_epochs: budget of one tuning run; its share of ``epochs`` holds for seconds too.
        evaluations_per_epoch: how often the curves get a point.
        grids: the settings tried for each optimizer, the same number for all.
        settings: what is used without tuning; the outcome of tuning when the recipe was written.
        schedule: of the learning rate, for every optimizer alike: ``"constant"``, or ``"linear"``
            from its value at the start to zero at the end of the budget.
        unscheduled: optimizers whose learning rate stays as it is, because they look for the
            length of each step themselves.
        threads: that torch computes with; None leaves torch's default. Networks of this size are
            faster with one, all the more on a busy machine.
        train_evaluated: the training curve is measured on this many examples, the first ones.
        objective: what is minimised and how it is judged, in place of the likelihood's.
        seconds: default budget in place of ``epochs``.
        evaluations: points of a curve, spread evenly over the budget in place of the epochs; zero
            leaves them to ``evaluations_per_epoch``.
        illustrate: draws trained networks, by optimizer, into a PNG for the report.
        optimizers: compared by default.
        seeds: compared by default.
        paper_numbers: figures of the paper by name.
        differs: what differs from the source.
        spaces: what a sweep draws the settings of each optimizer from, in place of its grid.
    """

    name: str
    title: str
    source: str
    architecture: str
    data: DataSet
    network: Callable[[], nn.Module]
    likelihood: Likelihood
    metric: Metric
    batch_size: int
    l2: float
    epochs: float
    tuning_epochs: float
    evaluations_per_epoch: int
    grids: Mapping[str, list[Settings]]
    settings: Mapping[str, Settings]
    schedule: Literal["constant", "linear"] = "constant"
    unscheduled: tuple[str, ...] = ()
    threads: int | None = None
    train_evaluated: int = 10_000
    objective: Objective | None = None
    seconds: float | None = None
    evaluations: int = 0
    illustrate: Callable[[Mapping[str, nn.Module], Path], None] | None = None
    optimizers: tuple[str, ...] = ("sgd", "adam", "adamw", "muon", "kfac")
    seeds: tuple[int, ...] = (0, 1, 2)
    paper_numbers: Mapping[str, float] = field(default_factory=dict)
    differs: str = ""
    spaces: Mapping[str, Space] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {name: len(grid) for name, grid in self.grids.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"recipe {self.name}: grids must be equally long, got {counts}")

    @property
    def minimised(self) -> Objective:
        """The objective, by default the likelihood's."""
        return self.objective or Supervised(self.likelihood, self.metric)

    def scheduled(self, schedule: str | None) -> Recipe:
        """The recipe with another schedule of the learning rate; None leaves its own.

        Raises:
            UsageError: no such schedule.
        """
        if schedule is None:
            return self
        if schedule not in ("constant", "linear"):
            raise unknown("schedule", schedule, ["constant", "linear"])
        return replace(self, schedule=schedule)  # type: ignore[arg-type]

    def grid(self, optimizer: str) -> list[Settings]:
        """The settings to try for an optimizer.

        Raises:
            UsageError: the recipe has no grid for it.
        """
        if optimizer not in self.grids:
            raise UsageError(
                f"recipe {self.name} has no tuning grid for {optimizer}; "
                f"there are grids for {', '.join(self.grids)}"
            )
        return self.grids[optimizer]


def names() -> list[str]:
    """The recipes there are: one per file in ``lab/recipes``."""
    found = pkgutil.iter_modules(recipes.__path__)
    return sorted(module.name.replace("_", "-") for module in found)


def load(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UsageError: there is none; names those there are.
    """
    if name not in names():
        raise unknown("recipe", name, names())
    module = importlib.import_module(f"{recipes.__name__}.{name.replace('-', '_')}")
    recipe = module.RECIPE
    assert isinstance(recipe, Recipe), module
    return recipe
