"""From a plan to its results: the folder, the data, the work, the report."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NoReturn

import torch
import typer
from rich.console import Console

from natgrad.lab import provenance
from natgrad.lab.checkpoints import Rhythm
from natgrad.lab.comparison import Plan, compare
from natgrad.lab.data import Splits
from natgrad.lab.errors import INTERRUPTED, DivergedError, UsageError
from natgrad.lab.folder import Results, open_results
from natgrad.lab.manifest import check_recipe, check_unchanged, describe, plan_of, written
from natgrad.lab.optimizers import Task, build
from natgrad.lab.progress import progress_for
from natgrad.lab.recipe import Recipe
from natgrad.lab.running import Interruption, Status, Together, Watch
from natgrad.lab.study import Work
from natgrad.lab.tables import study_folder
from natgrad.lab.tensorboard import TensorBoard

__all__ = [
    "Manner",
    "begun",
    "carried_out",
    "carry_through",
    "check_plan",
    "check_some_finished",
    "loaded",
    "print_report",
    "tell_how_to_resume",
]


@dataclass(frozen=True)
class Manner:
    """How a plan is carried out; nothing here changes what is measured.

    Attributes:
        verb: the command, to tell how to go on.
        out: the results folder; a new one in ``runs/`` if none is named.
        data: folder of local data sets.
        resume: whether ``out`` holds a beginning.
        as_before: take the plan of the folder, because none was spelled out.
        tensorboard: folder of event files, if they are wanted.
        checkpoint_every: steps between checkpoints, beside those at ends of epochs.
    """

    verb: str
    out: Path | None = None
    data: Path | None = None
    resume: bool = False
    as_before: bool = False
    tensorboard: Path | None = None
    checkpoint_every: int | None = None

    def folder(self, name: str) -> Path:
        """Where results go.

        Raises:
            UsageError: to go on with no folder named.
        """
        if self.resume and self.out is None:
            raise UsageError("--resume needs --out, the folder to go on with")
        stem = name.replace("/", "-")
        return self.out or Path("runs") / f"{stem}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"

    @property
    def rhythm(self) -> Rhythm:
        """Of the checkpoints."""
        return Rhythm(self.checkpoint_every)

    def watch(self, *others: Watch) -> Watch:
        """What is told of every step: the others, and TensorBoard if it is wanted."""
        logs = [] if self.tensorboard is None else [TensorBoard(self.tensorboard)]
        return Together(*others, *logs)

    def words(self, name: str, folder: Path) -> list[str]:
        """The command that goes on with a folder."""
        data = ["--data", str(self.data)] if self.data else []
        return ["natgrad", self.verb, name, "--out", str(folder), "--resume", *data]


def carry_through(plan: Plan, manner: Manner) -> None:
    """Do what a plan says, or go on with it, and report.

    Raises:
        UsageError: to go on without a folder, or with another recipe's.
        DivergedError: no run came to its end with finite figures.
        typer.Exit: the work was interrupted.
    """
    folder = manner.folder(plan.recipe.name)
    check_plan(plan)
    results, plan, splits = begun(plan, folder, manner)
    if carried_out(plan, splits, results, manner) == "interrupted":
        tell_how_to_resume(folder, plan.recipe.name, manner)
    check_some_finished(plan, results)
    print_report(folder)


def begun(plan: Plan, folder: Path, manner: Manner) -> tuple[Results, Plan, Splits]:
    """The results folder, new or to go on with, the plan that holds, and the data."""
    if manner.resume:
        results = open_results(folder, resume=True)
        recorded = plan_of(results.manifest())
        check_recipe(folder, recorded.recipe.name, plan.recipe.name)
        plan = recorded if manner.as_before else plan
    splits = loaded(plan.recipe, manner)
    if manner.resume:
        check_unchanged(results.manifest(), describe(plan, splits))
        results.update_manifest(status="running", finished=None)
    else:
        results = open_results(folder, resume=False)
        results.update_manifest(**written(plan, splits))
    return results, plan, splits


def loaded(recipe: Recipe, manner: Manner) -> Splits:
    """The data; from here on torch has the number of threads that the recipe asks for."""
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    return recipe.data.load(manner.data)


def carried_out(plan: Plan, splits: Splits, results: Results, manner: Manner) -> Status:
    """Train what is left of a plan and let its study conclude; the manifest says how it ended."""
    status: Status = "interrupted"
    study = plan.recipe.study
    try:
        with Interruption() as stop, progress_for(Console(), plan.total()) as shown:
            own = study.watch(results) if study is not None else None
            watch = manner.watch(shown, *([] if own is None else [own]))
            trained = compare(plan, splits, results, watch, stop, manner.rhythm)
            if study is not None and trained == "finished":
                study.conclude(_work(plan, splits, results, shown.say, stop))
                trained = "interrupted" if stop() else trained
            status = trained
    finally:
        results.update_manifest(status=status, finished=provenance.now())
    return status


def _work(
    plan: Plan,
    splits: Splits,
    results: Results,
    tell: Callable[[str], None],
    stop: Callable[[], bool],
) -> Work:
    return Work(
        plan.recipe, plan.optimizers, plan.seeds, splits, results, study_folder(results.path),
        tell, stop, plan.compute,
    )  # fmt: skip


def check_some_finished(plan: Plan, results: Results) -> None:
    """Refuse to report on runs that all diverged.

    Raises:
        DivergedError: no run came to its end with finite figures.
    """
    ended = [results.run(o, s).status() for o in plan.optimizers for s in plan.seeds]
    if ended and not any(run.get("status") == "finished" for run in ended):
        raise DivergedError(
            f"no run came to its end with finite figures; what there is lies in {results.path}. "
            "Take a lower learning rate or more damping (--set lr=...)"
        )


def check_plan(plan: Plan) -> None:
    """Refuse what the plan's optimizers will not take, before anything is written."""
    recipe = plan.recipe
    model = plan.compute.take(recipe.network())
    for name in plan.optimizers:
        known = plan.fixed(name)
        task = Task(copy.deepcopy(model), recipe.likelihood, augmentation=recipe.augmentation)
        build(name, task, recipe.grid(name)[0] if known is None else known)


def print_report(folder: Path, paper: bool = False) -> None:
    """Print the table of a results folder and write its HTML page.

    Args:
        folder: of the results, of one experiment or of a suite.
        paper: print the paper's numbers beside ours too, and draw them.
    """
    from natgrad.lab.report import report_on

    report_on(folder, Console(), paper)


def tell_how_to_resume(folder: Path, recipe: str, manner: Manner) -> NoReturn:
    """Say the command that goes on, and leave with the code of an interruption."""
    command = shlex.join(manner.words(recipe, folder))
    typer.echo(f"stopped; everything done is saved. Go on with:\n  {command}", err=True)
    raise typer.Exit(INTERRUPTED)
