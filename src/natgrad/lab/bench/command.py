"""``natgrad bench``: what it is asked, and in which order things are done."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from natgrad.lab import provenance
from natgrad.lab.bench.intervals import Interval
from natgrad.lab.bench.measuring import Conditions, measure
from natgrad.lab.bench.methods import METHODS, method
from natgrad.lab.bench.progress import Progress
from natgrad.lab.bench.reaching import race, race_table
from natgrad.lab.bench.tables import heading, table
from natgrad.lab.bench.tasks import TASKS, Task, task
from natgrad.lab.errors import INTERRUPTED, UsageError, unknown
from natgrad.lab.optimizers import BUILDERS
from natgrad.lab.recipe import load
from natgrad.lab.running import Interruption

__all__ = ["bench"]

SCHEMA = 1


def bench(
    tasks: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(TASKS)}; default all.")
    ] = None,
    optimizers: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated; default all. Settings follow a name, as in kfac:fused=True. "
            f"There are {', '.join(METHODS)}."
        ),
    ] = None,
    intervals: Annotated[
        str, typer.Option(help="Steps between statistics / between decompositions.")
    ] = "1/1,10/100",
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Periods of 6 steps that count; by default the task's own."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="That torch computes with; default torch's.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    memory: Annotated[
        bool, typer.Option("--memory", help="Also peak memory, in processes of their own.")
    ] = False,
    direct: Annotated[
        int,
        typer.Option(min=0, help="Also so many steps under each interval itself, as a check."),
    ] = 0,
    together: Annotated[
        int | None,
        typer.Option(min=2, help="Methods that take turns at a time; by default the task's own."),
    ] = None,
    processor_time: Annotated[
        bool,
        typer.Option("--processor-time", help="In place of wall time, with --threads 1."),
    ] = False,
    to_loss: Annotated[
        float | None, typer.Option(help="Instead: updates and seconds to this training loss.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="For --to-loss: given to each optimizer at most.")
    ] = 60.0,
    data: Annotated[
        Path | None, typer.Option(help="For --to-loss: folder of data sets; or NATGRAD_DATA.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write all figures as JSON there.")] = None,
) -> None:
    """Time of a step against SGD's and peak memory, for natgrad's methods and others."""
    chosen = [task(name) for name in dict.fromkeys(tasks or TASKS)]
    _check_device(device)
    if processor_time and (threads != 1 or device != "cpu"):
        raise UsageError("--processor-time adds up all threads: it needs --threads 1, on a cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    if to_loss is not None:
        _race_all(
            chosen if tasks else _with_recipe(), _listed(optimizers), to_loss, seconds, data, out
        )
        return
    names = _listed(optimizers) or list(METHODS)
    for name in names:
        method(name)
    asked = tuple(dict.fromkeys(Interval.read(text) for text in intervals.split(",")))
    how = Conditions(names, asked, rounds, direct, together, memory, device, processor_time)
    _measure_all(chosen, how, out)


def _measure_all(chosen: list[Task], how: Conditions, out: Path | None) -> None:
    about = _about(how.device, [METHODS[name.partition(":")[0]].package for name in how.methods])
    about |= {"clock": "processor time" if how.processor_time else "wall time"}
    typer.echo("\n".join(heading(about)))
    results: list[dict[str, Any]] = []

    def one(each: Task, shown: Progress, stop: Callable[[], bool]) -> list[str]:
        result = measure(each, how, shown.tell, stop)
        results.append(result.to_json())
        _write(out, {**about, "tasks": results})
        return table(result)

    _in_order(chosen, one)


def _race_all(
    chosen: list[Task],
    names: list[str],
    target: float,
    seconds: float,
    data: Path | None,
    out: Path | None,
) -> None:
    for each in chosen:
        if each.recipe is None:
            able = ", ".join(t.name for t in _with_recipe())
            raise UsageError(f"--to-loss has no recipe for {each.name}; there are some for {able}")
    for name in names:
        if name not in BUILDERS:
            raise unknown("optimizer", name, list(BUILDERS))
    if not seconds > 0:
        raise UsageError(f"--seconds must be positive, got {seconds:g}")
    about = _about("cpu", []) | {"target": target, "limit": seconds}
    typer.echo("\n".join(heading(about)))
    results: list[dict[str, Any]] = []

    def one(each: Task, shown: Progress, stop: Callable[[], bool]) -> list[str]:
        recipe = load(str(each.recipe))
        splits = recipe.data.load(data)
        races = race(recipe, splits, names or recipe.optimizers, target, seconds, shown.tell, stop)
        results.append({"recipe": recipe.name, "races": [found.to_json() for found in races]})
        _write(out, {**about, "recipes": results})
        title = f"{recipe.name}: to a training loss of {target:g}, batch {recipe.batch_size}"
        return [title, *race_table(races)]

    _in_order(chosen, one)


def _in_order(
    chosen: list[Task], one: Callable[[Task, Progress, Callable[[], bool]], list[str]]
) -> None:
    """One task after the other, each printed when it is over; Ctrl-C prints what there is."""
    with Interruption() as stop:
        for each in chosen:
            with Progress(Console(stderr=True)) as shown:
                shown.begin(each.name)
                lines = one(each, shown, stop)
            typer.echo("\n" + "\n".join(lines))
            if stop():
                raise typer.Exit(INTERRUPTED)


def _about(device: str, packages: list[str | None]) -> dict[str, Any]:
    versions = {key: provenance.versions()[key] for key in ("python", "torch", "natgrad")}
    for package in dict.fromkeys(filter(None, packages)):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "schema": SCHEMA,
        "command": provenance.command(),
        "started": provenance.now(),
        "device": device,
        "machine": provenance.machine(),
        "versions": versions,
        "git": provenance.git(),
    }


def _write(out: Path | None, figures: dict[str, Any]) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _listed(optimizers: str | None) -> list[str]:
    if optimizers is None:
        return []
    found = [name.strip() for name in optimizers.split(",") if name.strip()]
    if not found:
        raise UsageError(f"--optimizers names none; there are: {', '.join(METHODS)}")
    return list(dict.fromkeys(found))


def _with_recipe() -> list[Task]:
    return [each for each in TASKS.values() if each.recipe is not None]


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise unknown("device", device, ["cpu", "cuda"])
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here")
