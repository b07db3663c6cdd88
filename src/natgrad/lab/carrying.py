"""From a plan to its results: the folder, the data, the work, the report."""

from __future__ import annotations

import copy
import shlex
from datetime import datetime, timezone
from pathlib import Path

import torch
import typer
from rich.console import Console

from natgrad.lab import provenance
from natgrad.lab.checkpoints import Rhythm
from natgrad.lab.comparison import Plan, compare
from natgrad.lab.errors import INTERRUPTED, DivergedError, UsageError
from natgrad.lab.folder import Results, open_results
from natgrad.lab.manifest import check_unchanged, describe, plan_of, written
from natgrad.lab.optimizers import Task, build
from natgrad.lab.progress import progress_for
from natgrad.lab.running import Interruption, Together, Watch
from natgrad.lab.tensorboard import TensorBoard

__all__ = ["carry_through", "check_plan", "print_report"]


def carry_through(
    plan: Plan,
    out: Path | None,
    data: Path | None,
    resume: bool,
    verb: str,
    as_before: bool,
    tensorboard: Path | None = None,
    checkpoint_every: int | None = None,
) -> None:
    """Do what a plan says, or go on with it, and report.

    Args:
        plan: what to do.
        out: the results folder.
        data: folder of local data sets.
        resume: whether ``out`` holds a beginning.
        verb: the command, to tell how to go on.
        as_before: take the plan of the folder, because none was spelled out.
        tensorboard: folder of event files, if they are wanted.
        checkpoint_every: steps between checkpoints, beside those at ends of epochs.

    Raises:
        UsageError: ``resume`` without a folder, or with another recipe's.
        DivergedError: no run came to its end with finite figures.
        typer.Exit: the work was interrupted.
    """
    if resume and out is None:
        raise UsageError("--resume needs --out, the folder to go on with")
    folder = out or Path("runs") / f"{plan.recipe.name}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    check_plan(plan)
    if resume:
        results = open_results(folder, resume=True)
        recorded = plan_of(results.manifest())
        if recorded.recipe.name != plan.recipe.name:
            raise UsageError(f"{folder} holds {recorded.recipe.name}, not {plan.recipe.name}")
        plan = recorded if as_before else plan
    if plan.recipe.threads is not None:
        torch.set_num_threads(plan.recipe.threads)
    splits = plan.recipe.data.load(data)
    if resume:
        check_unchanged(results.manifest(), describe(plan, splits))
        results.update_manifest(status="running", finished=None)
    else:
        results = open_results(folder, resume=False)
        results.update_manifest(**written(plan, splits))
    status = "interrupted"
    try:
        with Interruption() as stop, progress_for(Console(), plan.total()) as shown:
            watch: Watch = (
                shown if tensorboard is None else Together(shown, TensorBoard(tensorboard))
            )
            status = compare(plan, splits, results, watch, stop, Rhythm(checkpoint_every))
    finally:
        results.update_manifest(status=status, finished=provenance.now())
    if status == "interrupted":
        _tell_how_to_resume(results, verb, plan.recipe.name, data)
        raise typer.Exit(INTERRUPTED)
    ended = [results.run(o, s).status() for o in plan.optimizers for s in plan.seeds]
    if not any(run.get("status") == "finished" for run in ended):
        raise DivergedError(
            f"no run came to its end with finite figures; what there is lies in {folder}. Take a "
            "lower learning rate or more damping (--set lr=...)"
        )
    print_report(folder)


def check_plan(plan: Plan) -> None:
    """Refuse what the plan's optimizers will not take, before anything is written."""
    model = plan.compute.take(plan.recipe.network())
    for name in plan.tuned():
        plan.recipe.grid(name)
    for name, settings in plan.settings.items():
        build(name, Task(copy.deepcopy(model), plan.recipe.likelihood), settings)


def print_report(folder: Path) -> None:
    """Print the table of a results folder and write its HTML page."""
    from natgrad.lab.report import summarize, write_report

    summary = summarize(folder)
    page = write_report(folder)
    Console().print(summary.table())
    if summary.tenths is not None:
        Console().print()
        Console().print(summary.tenths.table())
    typer.echo(f"\nreport: {page}")


def _tell_how_to_resume(results: Results, verb: str, recipe: str, data: Path | None) -> None:
    words = ["natgrad", verb, recipe, "--out", str(results.path), "--resume"]
    words += ["--data", str(data)] if data else []
    typer.echo(f"stopped; everything done is saved. Go on with:\n  {shlex.join(words)}", err=True)
