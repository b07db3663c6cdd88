"""From a sweep to its results: the folder, the storage, the workers, the report."""

from __future__ import annotations

import multiprocessing
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import typer
from optuna.storages import RDBStorage
from rich.console import Console

from natgrad.lab import provenance
from natgrad.lab.carrying import check_plan, print_report
from natgrad.lab.checkpoints import Rhythm
from natgrad.lab.data import Splits
from natgrad.lab.devices import PLAIN, Compute
from natgrad.lab.errors import INTERRUPTED, DivergedError, LabError, UsageError
from natgrad.lab.folder import Results, open_results
from natgrad.lab.manifest import check_unchanged, written
from natgrad.lab.progress import progress_for
from natgrad.lab.running import Interruption, Silent, Together, Watch
from natgrad.lab.sweep.outcome import note_outcome
from natgrad.lab.sweep.plan import HEARTBEAT_S, Sweep, described_sweep, sweep_of
from natgrad.lab.sweep.report import print_best, write_sweep
from natgrad.lab.sweep.storage import default_url, open_storage, without_password
from natgrad.lab.sweep.work import Worker
from natgrad.lab.tensorboard import TensorBoard

__all__ = ["Place", "carry_sweep"]


@dataclass(frozen=True)
class Place:
    """Where a sweep's data, trials and figures are, and how its runs are saved.

    Attributes:
        out: the results folder; None for a new one.
        data: folder of local data sets.
        storage: address of the data base; None for a file in the results folder.
        heartbeat: seconds between the signs of life of a worker.
        tensorboard: folder of event files, if they are wanted.
        checkpoint_every: steps between checkpoints, beside those at ends of epochs.
        compute: the device and precision on this machine; a manifest does not say which GPU.
    """

    out: Path | None = None
    data: Path | None = None
    storage: str | None = None
    heartbeat: int = HEARTBEAT_S
    tensorboard: Path | None = None
    checkpoint_every: int | None = None
    compute: Compute = PLAIN

    def watch(self, *others: Watch) -> Watch:
        """What is told of every step."""
        logs = [] if self.tensorboard is None else [TensorBoard(self.tensorboard)]
        return Together(*others, *logs)


def carry_sweep(sweep: Sweep, place: Place, *, resume: bool, as_before: bool, workers: int) -> None:
    """Do what a sweep says, or go on with it, beside whoever works at it elsewhere; report.

    Args:
        sweep: what to do.
        place: where.
        resume: whether ``place.out`` holds a beginning.
        as_before: take the sweep of the folder, because none was spelled out.
        workers: processes on this machine, this one among them.

    Raises:
        UsageError: ``resume`` without a folder, or other conditions than at the start.
        DivergedError: no trial of any optimizer came to its end.
        typer.Exit: the work was interrupted.
    """
    if resume and place.out is None:
        raise UsageError("--resume needs --out, the folder to go on with")
    stamp = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    folder = place.out or Path("runs") / f"sweep-{sweep.plan.recipe.name.replace('/', '-')}-{stamp}"
    check_plan(sweep.plan)
    if resume:
        recorded = sweep_of(open_results(folder, resume=True).manifest())
        if recorded.plan.recipe.name != sweep.plan.recipe.name:
            name = recorded.plan.recipe.name
            raise UsageError(f"{folder} holds {name}, not {sweep.plan.recipe.name}")
        sweep = recorded if as_before else sweep
    place = replace(place, compute=sweep.plan.compute)
    splits = _load(sweep, place)
    results, storage = _open(folder, sweep, splits, place, resume)
    status = "interrupted"
    try:
        with _beside(workers - 1, folder, place) as others, Interruption() as stop:
            with progress_for(Console(), sweep.total()) as shown:
                worker = Worker(
                    sweep, splits, results, storage, place.watch(shown), stop,
                    Rhythm(place.checkpoint_every),
                    lambda done: setattr(shown, "count", done),
                )  # fmt: skip
                status = worker.carry_through()
            if status == "interrupted":  # a signal may have come to this process alone
                for other in others:
                    other.terminate()
            _warn(others)
    finally:
        results.update_manifest(status=status, finished=provenance.now())
    if status == "interrupted":
        _tell_how_to_resume(folder, sweep, place)
        raise typer.Exit(INTERRUPTED)
    _report(worker, folder)


def _load(sweep: Sweep, place: Place) -> Splits:
    recipe = sweep.plan.recipe
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    return recipe.data.load(place.data)


def _open(
    folder: Path, sweep: Sweep, splits: Splits, place: Place, resume: bool
) -> tuple[Results, RDBStorage]:
    """The folder and the storage; nothing is written where the other one is refused."""
    elsewhere = None if place.storage is None else open_storage(place.storage, place.heartbeat)
    results = open_results(folder, resume=resume)
    described = described_sweep(sweep, splits)
    if resume:
        check_unchanged(results.manifest(), described)
        results.update_manifest(status="running", finished=None)
    else:
        entries = {**written(sweep.plan, splits), **described}
        results.update_manifest(**{**entries, **_storage(place, entries["command"])})
    return results, elsewhere or open_storage(default_url(folder), place.heartbeat)


def _storage(place: Place, command: str) -> dict[str, Any]:
    """Where trials are kept, without the password that an address may hold."""
    if place.storage is None:
        return {}
    shown = without_password(place.storage)
    return {"storage": shown, "command": command.replace(place.storage, shown)}


def _report(worker: Worker, folder: Path) -> None:
    best = worker.best()
    trials = note_outcome(worker)
    page = write_sweep(folder, trials)
    if not best:
        raise DivergedError(
            f"no trial came to its end with finite figures; {page} lists them. Take a space "
            "with lower learning rates"
        )
    print_report(folder)
    print_best(Console(), trials)
    typer.echo(f"sweep: {page}")


def _tell_how_to_resume(folder: Path, sweep: Sweep, place: Place) -> None:
    words = ["natgrad", "sweep", sweep.plan.recipe.name, "--out", str(folder), "--resume"]
    words += ["--data", str(place.data)] if place.data else []
    words += ["--storage", without_password(place.storage)] if place.storage else []
    typer.echo(f"stopped; everything done is saved. Go on with:\n  {shlex.join(words)}", err=True)


@contextmanager
def _beside(count: int, folder: Path, place: Place) -> Iterator[list[SpawnProcess]]:
    """Other workers in processes of their own, which end when this one does."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_work, args=(folder, place)) for _ in range(count)]
    for other in others:
        other.start()
    try:
        yield others
    except BaseException:
        for other in others:
            other.terminate()
        raise
    finally:
        for other in others:
            other.join()


def _warn(others: list[SpawnProcess]) -> None:
    for other in others:
        other.join()
        if other.exitcode not in (0, INTERRUPTED):
            typer.echo(
                f"a worker ended with {other.exitcode}; its trial was done by another", err=True
            )


def _work(folder: Path, place: Place) -> None:
    """What a further worker on this machine does: as the manifest says, in silence."""
    parent = multiprocessing.parent_process()
    try:
        results = Results(folder)
        recorded = sweep_of(results.manifest())
        sweep = replace(recorded, plan=replace(recorded.plan, compute=place.compute))
        splits = _load(sweep, place)
        storage = open_storage(place.storage or default_url(folder), place.heartbeat)
        with Interruption() as asked:

            def stop() -> bool:
                return asked() or parent is None or not parent.is_alive()

            watch, rhythm = place.watch(Silent()), Rhythm(place.checkpoint_every)
            status = Worker(sweep, splits, results, storage, watch, stop, rhythm).carry_through()
    except (LabError, OSError) as error:
        typer.echo(f"natgrad: {error}", err=True)
        sys.exit(getattr(error, "exit_code", LabError.exit_code))
    sys.exit(INTERRUPTED if status == "interrupted" else 0)
