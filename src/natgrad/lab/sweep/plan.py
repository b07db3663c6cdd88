"""What a sweep tries: for each optimizer the points of a grid, or draws from a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from natgrad.lab.comparison import TUNING_SEED, Plan
from natgrad.lab.data import Splits
from natgrad.lab.errors import LabError, UsageError
from natgrad.lab.manifest import describe, plan_of
from natgrad.lab.optimizers import Settings
from natgrad.lab.recipe import Recipe
from natgrad.lab.space import Space, read_space, written_space

__all__ = [
    "HEARTBEAT_S",
    "PRUNERS",
    "Pruner",
    "Search",
    "Sweep",
    "described_sweep",
    "search_of",
    "sweep_of",
]

Pruner: TypeAlias = Literal["median", "halving", "none"]
PRUNERS: tuple[Pruner, ...] = ("median", "halving", "none")
TRIALS = 20
HEARTBEAT_S = 20  #: between signs of life; a trial silent for three times as long is given away


@dataclass(frozen=True)
class Search:
    """What is tried for one optimizer.

    Attributes:
        optimizer: its name.
        points: of a grid, each tried once; empty where there is a space.
        space: draws come from.
        draws: how many.
        first: settings within the space that the first draw takes.
    """

    optimizer: str
    points: tuple[Settings, ...] = ()
    space: Space | None = None
    draws: int = 0
    first: Settings | None = None

    def __len__(self) -> int:
        return len(self.points) if self.space is None else self.draws

    def fixed(self, place: int) -> Settings:
        """The settings of a trial that are not drawn."""
        if self.space is None:
            return self.points[place]
        return self.first if place == 0 and self.first else {}

    def values(self, key: str) -> list[Any]:
        """The values of a setting on the grid, in order."""
        return sorted({point[key] for point in self.points if key in point}, key=_order)


@dataclass(frozen=True)
class Sweep:
    """A search for every optimizer, then the best of each from every seed.

    Attributes:
        name: of its studies in the storage.
        plan: recipe, seeds, budget and device; nothing in it is tuned.
        searches: one for each optimizer of the plan.
        pruner: stops trials that fall behind.
        seed: of the draws.
    """

    name: str
    plan: Plan
    searches: tuple[Search, ...]
    pruner: Pruner = "median"
    seed: int = 0

    def total(self) -> int:
        """Trials and runs."""
        return sum(map(len, self.searches)) + len(self.searches) * len(self.plan.seeds)

    def rule(self) -> str:
        """How settings are chosen, in words."""
        tried = "; ".join(f"{search.optimizer}: {_tried(search)}" for search in self.searches)
        stopped = {
            "median": "a trial behind the median of the finished ones is stopped",
            "halving": "trials are stopped by successive halving",
            "none": "none is stopped early",
        }[self.pruner]
        return (
            f"{tried}; each trained from seed {TUNING_SEED} for {self.plan.tuning_budget()}; "
            f"{stopped}; the lowest validation loss is taken, averaged over the last quarter of "
            "the evaluations"
        )


def _tried(search: Search) -> str:
    kind = "points of the grid" if search.space is None else "draws (TPE) from the stated space"
    return f"{len(search)} {kind}"


def _order(value: Any) -> tuple[str, Any]:
    return ("", value) if isinstance(value, (int, float)) else (type(value).__name__, value)


def search_of(
    recipe: Recipe, optimizer: str, kind: str | None, trials: int | None, space: Space | None
) -> Search:
    """The search for one optimizer.

    Args:
        recipe: has a grid for it, a stated space, or both.
        optimizer: its name.
        kind: ``"grid"`` or ``"space"``; None takes the space if there is one.
        trials: draws from a space; None for 20.
        space: in place of the recipe's.

    Raises:
        UsageError: there is no such grid or space, or ``trials`` with a grid.
    """
    if kind not in (None, "grid", "space"):
        raise UsageError(f'--search takes grid or space, got "{kind}"')
    stated = space or recipe.spaces.get(optimizer)
    if kind == "grid" or (kind is None and stated is None):
        points = tuple(recipe.grid(optimizer))
        if trials is not None:
            raise UsageError(
                f"--trials counts draws from a space; the grid of {optimizer} has {len(points)} "
                "points and all are tried. State a space with --vary KEY=LOW..HIGH"
            )
        return Search(optimizer, points)
    if stated is None:
        raise UsageError(
            f"recipe {recipe.name} states no search space for {optimizer}: give one with "
            "--vary KEY=LOW..HIGH, or take --search grid"
        )
    known = recipe.settings.get(optimizer, {})
    first = {key: known[key] for key, range_ in stated.items() if _within(range_, known.get(key))}
    whole = first if len(first) == len(stated) else None
    return Search(optimizer, space=stated, draws=TRIALS if trials is None else trials, first=whole)


def _within(kind: Any, value: Any) -> bool:
    return value is not None and kind.holds(value)


def described_sweep(sweep: Sweep, splits: Splits) -> dict[str, Any]:
    """The entries of the manifest that must not change: on resume, and on every machine."""
    return {
        **describe(sweep.plan, splits),
        "tuning_rule": sweep.rule(),
        "tuning_budget": {
            "epochs": sweep.plan.tuning_budget().epochs,
            "seconds": sweep.plan.tuning_budget().seconds,
        },
        "sweep": {
            "name": sweep.name,
            "pruner": sweep.pruner,
            "seed": sweep.seed,
            "searches": [_of_search(search) for search in sweep.searches],
        },
    }


def _of_search(search: Search) -> dict[str, Any]:
    return {
        "optimizer": search.optimizer,
        "points": [dict(point) for point in search.points],
        "space": None if search.space is None else written_space(search.space),
        "draws": search.draws,
        "first": None if search.first is None else dict(search.first),
    }


def sweep_of(manifest: Mapping[str, Any]) -> Sweep:
    """The sweep that a manifest records.

    Raises:
        LabError: it records none.
    """
    about = manifest.get("sweep")
    if about is None:
        raise LabError("the folder holds no sweep: its manifest was written by another command")
    return Sweep(
        about["name"],
        plan_of(manifest),
        tuple(_search(each) for each in about["searches"]),
        about["pruner"],
        about["seed"],
    )


def _search(about: Mapping[str, Any]) -> Search:
    points: Sequence[Settings] = about["points"]
    space = None if about["space"] is None else read_space(about["space"])
    return Search(about["optimizer"], tuple(points), space, about["draws"], about["first"])
