"""A recipe: everything that defines an experiment, in one frozen object."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from natgrad.lab import recipes, schedules
from natgrad.lab.augmentation import Augmentation
from natgrad.lab.data import DataSet
from natgrad.lab.errors import UsageError, unknown
from natgrad.lab.metrics import Metric
from natgrad.lab.objective import Objective, Supervised
from natgrad.lab.optimizers import Settings
from natgrad.lab.paper import Claim, Number
from natgrad.lab.profile import CPU, FULL, PROFILES, SMOKE, Applied, Profile, described
from natgrad.lab.space import Space
from natgrad.likelihood import Likelihood

if TYPE_CHECKING:
    from natgrad.lab.study import Study

__all__ = ["Recipe", "Suite", "addresses", "find", "load", "names", "parts"]


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
        schedule: of the learning rate, for every optimizer alike, as
            :func:`natgrad.lab.schedules.parse` takes it: ``"constant"``, ``"linear"`` from its
            value at the start to zero at the end of the budget, ``"steps:40:0.1"``,
            ``"plateau:5:0.1"``.
        augmentation: what is done to the images of a training batch; none to those evaluated.
        unscheduled: optimizers whose learning rate stays as it is, because they look for the
            length of each step themselves.
        threads: that torch computes with; None leaves torch's default. Networks of this size are
            faster with one, all the more on a busy machine.
        train_evaluated: the training curve is measured on this many examples, the first ones.
        objective: what is minimised and how it is judged, in place of the likelihood's.
        seconds: default budget in place of ``epochs``.
        evaluations: points of a curve, spread evenly over the budget in place of the epochs; zero
            leaves them to ``evaluations_per_epoch``.
        illustrate: draws trained networks, by optimizer, into a PDF and a PNG for the report.
        optimizers: compared by default; none where the study does it all.
        seeds: compared by default.
        paper: what the paper states.
        differs: what differs from the source.
        spaces: what a sweep draws the settings of each optimizer from, in place of its grid.
        profiles: smaller sizes of the experiment, by name.
        study: what is measured beside the curves.
        profile: the one that the recipe is in.
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
    schedule: str = "constant"
    augmentation: Augmentation | None = None
    unscheduled: tuple[str, ...] = ()
    threads: int | None = None
    train_evaluated: int = 10_000
    objective: Objective | None = None
    seconds: float | None = None
    evaluations: int = 0
    illustrate: Callable[[Mapping[str, nn.Module], Path], list[Path]] | None = None
    optimizers: tuple[str, ...] = ("sgd", "adam", "adamw", "muon", "kfac")
    seeds: tuple[int, ...] = (0, 1, 2)
    paper: tuple[Number | Claim, ...] = ()
    differs: str = ""
    spaces: Mapping[str, Space] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    study: Study | None = None
    profile: Applied = field(default_factory=Applied)

    def __post_init__(self) -> None:
        counts = {name: len(grid) for name, grid in self.grids.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"recipe {self.name}: grids must be equally long, got {counts}")
        schedules.parse(self.schedule)
        for name in self.profiles:
            if name == FULL or name not in PROFILES:
                raise ValueError(f"recipe {self.name}: a profile is smoke or cpu, got {name}")

    @property
    def minimised(self) -> Objective:
        """The objective, by default the likelihood's."""
        return self.objective or Supervised(self.likelihood, self.metric)

    def profiled(self, name: str) -> Recipe:
        """The recipe in another size; without a ``cpu`` profile of its own that is the full one.

        Raises:
            UsageError: no such profile.
        """
        if name not in PROFILES:
            raise unknown("profile", name, PROFILES)
        if name == SMOKE and SMOKE not in self.profiles:
            raise UsageError(f"recipe {self.name} has no smoke profile")
        profile = self.profiles.get(name, Profile(comparable=True))
        words = described(self, profile.changes)
        applied = Applied(name, words, profile.comparable)
        return replace(self, **profile.changes, profile=applied)

    def scheduled(self, schedule: str | None) -> Recipe:
        """The recipe with another schedule of the learning rate; None leaves its own.

        Raises:
            UsageError: no such schedule.
        """
        if schedule is None:
            return self
        return replace(self, schedule=schedule)

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


@dataclass(frozen=True)
class Suite:
    """A figure or table that takes several experiments: one command, one report on top.

    Attributes:
        name: as the command line takes it; ``name/variant`` addresses one of them.
        title: one line.
        source: paper and figure.
        variants: the experiments by name; each gets its address as its name.
        paper: what the paper states of several of them together; readings name the variant in
            ``Cell.table`` as ``variant/table`` and in ``Final.optimizer`` as ``variant/optimizer``.
    """

    name: str
    title: str
    source: str
    variants: Mapping[str, Recipe]
    paper: tuple[Claim, ...] = ()

    def variant(self, name: str) -> Recipe:
        """One of the experiments, under its address.

        Raises:
            UsageError: no such variant.
        """
        if name not in self.variants:
            raise unknown(f"variant of {self.name}", name, list(self.variants))
        return replace(self.variants[name], name=f"{self.name}/{name}")


def names() -> list[str]:
    """The recipes and suites there are: one per file in ``lab/recipes``."""
    found = pkgutil.iter_modules(recipes.__path__)
    return sorted(module.name.replace("_", "-") for module in found)


def addresses() -> list[str]:
    """Everything that can be run by itself: recipes, and the variants of suites."""
    return [recipe.name for name in names() for recipe in parts(find(name))]


def find(name: str) -> Recipe | Suite:
    """What a name or address stands for, at full size.

    Raises:
        UsageError: there is none; names those there are.
    """
    stem, _, variant = name.partition("/")
    if stem not in names():
        raise unknown("recipe", stem, names())
    found = importlib.import_module(f"{recipes.__name__}.{stem.replace('-', '_')}").RECIPE
    assert isinstance(found, (Recipe, Suite)), name
    if not variant:
        return found
    if isinstance(found, Recipe):
        raise UsageError(f"recipe {stem} has no variants")
    return found.variant(variant)


def load(name: str, profile: str = CPU) -> Recipe:
    """The recipe of that name or address, in a profile.

    Raises:
        UsageError: there is none, or it is a suite; names those there are.
    """
    found = find(name)
    if isinstance(found, Suite):
        listed = ", ".join(f"{name}/{variant}" for variant in found.variants)
        raise UsageError(f"{name} is several experiments, name one of them: {listed}")
    return found.profiled(profile)


def parts(found: Recipe | Suite) -> list[Recipe]:
    """The recipe, or the variants of a suite, at full size."""
    if isinstance(found, Recipe):
        return [found]
    return [found.variant(name) for name in found.variants]
