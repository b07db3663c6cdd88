"""From a plan to its results: the folder, the data, the work, the report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NoReturn

import torch
import typer
from rich.console import Console

from natgrad.lab import provenance
from natgrad.lab.comparison import Plan, compare
from natgrad.lab.data import Splits
from natgrad.lab.errors import INTERRUPTED, UsageError
from natgrad.lab.folder import Results, open_results
from natgrad.lab.manifest import check_unchanged, plan_of, written
from natgrad.lab.optimizers import Task, build
from natgrad.lab.progress import progress_for
from natgrad.lab.running import Interruption, Status, Together, Watch
from natgrad.lab.study import Work
from natgrad.lab.tables import study_folder
from natgrad.lab.tensorboard import TensorBoard

__all__ = [
    "Manner",
    "begun",
    "carried_out",
    "carry_through",
    "check",
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
    """

    verb: str
    out: Path | None = None
    data: Path | None = None
    resume: bool = False
    as_before: bool = False
    tensorboard: Path | None = None

    def folder(self, name: str) -> Path:
        """Where results go.

        Raises:
            UsageError: to go on with no folder named.
        """
        if self.resume and self.out is None:
            raise UsageError("--resume needs --out, the folder to go on with")
        stem = name.replace("/", "-")
        return self.out or Path("runs") / f"{stem}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"


def carry_through(plan: Plan, manner: Manner) -> None:
    """Do what a plan says, or go on with it, and report.

    Raises:
        UsageError: to go on without a folder, or with another recipe's.
        typer.Exit: the work was interrupted.
    """
    folder = manner.folder(plan.recipe.name)
    check(plan)
    results, plan, splits = begun(plan, folder, manner)
    if carried_out(plan, splits, results, manner.tensorboard) == "interrupted":
        tell_how_to_resume(folder, plan.recipe.name, manner)
    print_report(folder)


def begun(plan: Plan, folder: Path, manner: Manner) -> tuple[Results, Plan, Splits]:
    """The results folder, new or to go on with, the plan that holds, and the data."""
    if manner.resume:
        results = open_results(folder, resume=True)
        recorded = plan_of(results.manifest())
        if recorded.recipe.name != plan.recipe.name:
            raise UsageError(f"{folder} holds {recorded.recipe.name}, not {plan.recipe.name}")
        plan = recorded if manner.as_before else plan
    if plan.recipe.threads is not None:
        torch.set_num_threads(plan.recipe.threads)
    splits = plan.recipe.data.load(manner.data)
    if manner.resume:
        check_unchanged(results.manifest(), plan, splits)
        results.update_manifest(status="running", finished=None)
    else:
        results = open_results(folder, resume=False)
        results.update_manifest(**written(plan, splits))
    return results, plan, splits


def carried_out(plan: Plan, splits: Splits, results: Results, events: Path | None) -> Status:
    """Train what is left of a plan and let its study conclude; the manifest says how it ended."""
    status: Status = "interrupted"
    study = plan.recipe.study
    try:
        with Interruption() as stop, ExitStack() as stack:
            shown = progress_for(Console(), plan.total())
            stack.enter_context(shown)
            watches: list[Watch] = [shown]
            if events is not None:
                watches.append(TensorBoard(events))
            own = study.watch(results) if study is not None else None
            if own is not None:
                watches.append(own)
            status = compare(plan, splits, results, Together(*watches), stop)
            if study is not None and status == "finished":
                study.conclude(_work(plan, splits, results, shown.say, stop))
                status = "interrupted" if stop() else status
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
        tell, stop,
    )  # fmt: skip


def check(plan: Plan) -> None:
    """Refuse what the plan's optimizers will not take, before anything is written."""
    recipe = plan.recipe
    for name in plan.optimizers:
        known = plan.fixed(name)
        task = Task(recipe.network(), recipe.likelihood, augmentation=recipe.augmentation)
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
    words = ["natgrad", manner.verb, recipe, "--out", str(folder), "--resume"]
    words += ["--data", str(manner.data)] if manner.data else []
    typer.echo(f"stopped; everything done is saved. Go on with:\n  {shlex.join(words)}", err=True)
    raise typer.Exit(INTERRUPTED)
