"""``natgrad sweep``: its options, and the sweep they stand for."""

from __future__ import annotations

from typing import Annotated

import typer

from natgrad.lab.comparison import Plan
from natgrad.lab.devices import compute_on
from natgrad.lab.errors import UsageError, unknown
from natgrad.lab.options import (
    Data,
    Device,
    Epochs,
    Events,
    Every,
    Out,
    Precise,
    ProfileName,
    RecipeName,
    Resume,
    Schedule,
    Seconds,
    any_given,
    budget_of,
    check_optimizers,
    named,
)
from natgrad.lab.profile import CPU
from natgrad.lab.recipe import Recipe, load
from natgrad.lab.space import checked, space_from
from natgrad.lab.sweep.plan import HEARTBEAT_S, PRUNERS, Pruner, Search, Sweep, search_of

__all__ = ["sweep"]


def sweep(
    recipe: RecipeName,
    optimizers: Annotated[
        str | None,
        typer.Option(
            "--optimizer", "--optimizers", help="One or several, with commas."
        ),
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="grid or space; default: the space where one is stated.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=LOW..HIGH", help="A space, or KEY=A,B,C; repeatable."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Draws from the space for each optimizer; default 20.")
    ] = None,
    prune: Annotated[
        str | None, typer.Option(help="median (default) or halving: stop trials that fall behind.")
    ] = None,
    no_prune: Annotated[
        bool, typer.Option("--no-prune", help="Train every trial to its end.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draws; default 0.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="The best of each is trained from so many seeds.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="NATGRAD_STORAGE", show_envvar=True,
            help="Data base that workers share, sqlite:///FILE, postgresql://...; "
            "default: a file in --out.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the sweep in the storage; default: the recipe's.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    heartbeat: Annotated[
        int,
        typer.Option(
            min=1, metavar="SECONDS",
            help="Between a worker's signs of life; after three without one its trial is given "
            "to another.",
        ),
    ] = HEARTBEAT_S,
    profile: ProfileName = None,
    epochs: Epochs = None,
    seconds: Seconds = None,
    schedule: Schedule = None,
    out: Out = None,
    data: Data = None,
    resume: Resume = False,
    tensorboard: Events = None,
    device: Device = None,
    precision: Precise = None,
    checkpoint_every: Every = None,
) -> None:  # fmt: skip
    """Search the settings of optimizers, on any number of machines; the best over seeds."""
    words = (
        optimizers, search, vary or None, trials, prune, no_prune or None, seed, seeds, name,
        profile, epochs, seconds, schedule, device, precision,
    )  # fmt: skip

    def asked() -> Sweep:
        experiment = load(recipe, profile or CPU).scheduled(schedule)
        chosen = _chosen(experiment, optimizers)
        plan = Plan(
            experiment,
            chosen,
            experiment.seeds if seeds is None else tuple(range(seeds)),
            budget_of(experiment, epochs, seconds),
            {each: {} for each in chosen},
            compute_on(device, precision),
        )
        searches = tuple(_search(experiment, each, search, trials, vary or []) for each in chosen)
        return Sweep(name or recipe, plan, searches, _pruner(prune, no_prune), seed or 0)

    from natgrad.lab.sweep.carrying import SharedManner, carry_sweep  # optuna: half a second

    manner = SharedManner(
        "sweep", out, data, resume, not any_given(*words), tensorboard, checkpoint_every,
        storage, heartbeat, workers,
    )  # fmt: skip
    carry_sweep(recipe, asked, manner)


def _chosen(recipe: Recipe, optimizers: str | None) -> tuple[str, ...]:
    chosen = tuple(recipe.optimizers if optimizers is None else named(optimizers))
    if not chosen:
        raise UsageError(f"recipe {recipe.name} compares no optimizers: name some with --optimizer")
    check_optimizers(chosen)
    return chosen


def _search(
    recipe: Recipe, optimizer: str, kind: str | None, trials: int | None, vary: list[str]
) -> Search:
    space = space_from(optimizer, vary) if vary else None
    found = search_of(recipe, optimizer, kind, trials, space)
    if found.space is not None:
        checked(optimizer, found.space)
    return found


def _pruner(prune: str | None, no_prune: bool) -> Pruner:
    if no_prune:
        if prune is not None:
            raise UsageError("--prune or --no-prune, not both")
        return "none"
    found = next((each for each in PRUNERS[:2] if each == (prune or "median")), None)
    if found is None:
        raise unknown("pruner", str(prune), PRUNERS[:2])
    return found
