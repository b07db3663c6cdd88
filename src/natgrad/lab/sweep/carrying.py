"""From a sweep to its results: the folder, the storage, the workers, the report."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import typer
from optuna.storages import RDBStorage
from rich.console import Console

from natgrad.lab import provenance
from natgrad.lab.carrying import Manner, check_plan, loaded, print_report, tell_how_to_resume
from natgrad.lab.data import Splits
from natgrad.lab.devices import PLAIN, Compute
from natgrad.lab.errors import INTERRUPTED, DivergedError, LabError
from natgrad.lab.folder import Results, open_results
from natgrad.lab.manifest import check_recipe, check_unchanged, written
from natgrad.lab.progress import progress_for
from natgrad.lab.running import Interruption
from natgrad.lab.sweep.outcome import note_outcome
from natgrad.lab.sweep.plan import HEARTBEAT_S, Sweep, described_sweep, sweep_of
from natgrad.lab.sweep.report import print_best, write_sweep
from natgrad.lab.sweep.storage import default_url, open_storage, without_password
from natgrad.lab.sweep.work import Worker

__all__ = ["SharedManner", "carry_sweep"]


@dataclass(frozen=True)
class SharedManner(Manner):
    """How this machine takes part in a sweep.

    Attributes:
        storage: address of the data base; None for a file in the results folder.
        heartbeat: seconds between the signs of life of a worker.
        workers: processes on this machine, this one among them.
        compute: the device and precision on this machine; a manifest does not say which GPU.
    """

    storage: str | None = None
    heartbeat: int = HEARTBEAT_S
    workers: int = 1
    compute: Compute = PLAIN

    def words(self, name: str, folder: Path) -> list[str]:
        """The command that goes on with a folder."""
        storage = ["--storage", without_password(self.storage)] if self.storage else []
        return [*super().words(name, folder), *storage]


def carry_sweep(name: str, asked: Callable[[], Sweep], manner: SharedManner) -> None:
    """Do what a sweep says, or go on with it, beside whoever works at it elsewhere; report.

    Args:
        name: of the recipe.
        asked: makes the sweep from the words of the command.
        manner: how it is carried out here.

    Raises:
        UsageError: to go on without a folder, or under other conditions than at the start.
        DivergedError: no trial of any optimizer came to its end.
        typer.Exit: the work was interrupted.
    """
    folder = manner.folder(f"sweep-{name}")
    sweep = _recorded(folder, name) if manner.resume and manner.as_before else asked()
    check_plan(sweep.plan)
    manner = replace(manner, compute=sweep.plan.compute)
    splits = loaded(sweep.plan.recipe, manner)
    results, storage = _open(folder, sweep, splits, manner)
    status = "interrupted"
    try:
        with _beside(folder, manner) as others, Interruption() as stop:
            with progress_for(Console(), sweep.total()) as shown:
                worker = Worker(
                    sweep, splits, results, storage, manner.watch(shown), stop, manner.rhythm,
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
        tell_how_to_resume(folder, name, manner)
    _report(worker, folder)


def _recorded(folder: Path, name: str) -> Sweep:
    found = sweep_of(open_results(folder, resume=True).manifest())
    check_recipe(folder, found.plan.recipe.name, name)
    return found


def _open(
    folder: Path, sweep: Sweep, splits: Splits, manner: SharedManner
) -> tuple[Results, RDBStorage]:
    """The folder and the storage; nothing is written where the other one is refused."""
    elsewhere = None if manner.storage is None else open_storage(manner.storage, manner.heartbeat)
    results = open_results(folder, resume=manner.resume)
    described = described_sweep(sweep, splits)
    if manner.resume:
        check_unchanged(results.manifest(), described)
        results.update_manifest(status="running", finished=None)
    else:
        entries = {**written(sweep.plan, splits), **described}
        results.update_manifest(**{**entries, **_storage(manner.storage, entries["command"])})
    return results, elsewhere or open_storage(default_url(folder), manner.heartbeat)


def _storage(address: str | None, command: str) -> dict[str, Any]:
    """Where trials are kept, without the password that an address may hold."""
    if address is None:
        return {}
    shown = without_password(address)
    return {"storage": shown, "command": command.replace(address, shown)}


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


@contextmanager
def _beside(folder: Path, manner: SharedManner) -> Iterator[list[SpawnProcess]]:
    """Other workers in processes of their own, which end when this one does."""
    context = multiprocessing.get_context("spawn")
    count = manner.workers - 1
    others = [context.Process(target=_work, args=(folder, manner)) for _ in range(count)]
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


def _work(folder: Path, manner: SharedManner) -> None:
    """What a further worker on this machine does: as the manifest says, in silence."""
    parent = multiprocessing.parent_process()
    try:
        results = Results(folder)
        recorded = sweep_of(results.manifest())
        sweep = replace(recorded, plan=replace(recorded.plan, compute=manner.compute))
        splits = loaded(sweep.plan.recipe, manner)
        storage = open_storage(manner.storage or default_url(folder), manner.heartbeat)
        with Interruption() as asked:

            def stop() -> bool:
                return asked() or parent is None or not parent.is_alive()

            status = Worker(
                sweep, splits, results, storage, manner.watch(), stop, manner.rhythm
            ).carry_through()
    except (LabError, OSError) as error:
        typer.echo(f"natgrad: {error}", err=True)
        sys.exit(getattr(error, "exit_code", LabError.exit_code))
    sys.exit(INTERRUPTED if status == "interrupted" else 0)
