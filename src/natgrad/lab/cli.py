"""The command line: ``natgrad list``, ``run``, ``compare``, ``sweep``, ``report`` ..."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import natgrad
from natgrad.lab.bench.command import bench
from natgrad.lab.cache_command import cache
from natgrad.lab.carrying import Manner, carry_through, print_report
from natgrad.lab.comparison import Plan
from natgrad.lab.devices import Compute, compute_on
from natgrad.lab.errors import INTERRUPTED, LabError, UsageError, WriteError, exit_codes
from natgrad.lab.optimizers import BUILDERS, UNTUNED, parse, split_name
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
from natgrad.lab.recipe import Recipe, Suite, find, load, parts
from natgrad.lab.suites import carry_through_suite
from natgrad.lab.sweep.command import sweep

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train networks with the natural gradient, and see how it compares.",
    epilog=exit_codes(),
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"natgrad {natgrad.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Train networks with the natural gradient, and see how it compares."""


@app.command("list")
def list_recipes() -> None:
    """The recipes: what is trained on what, and where it comes from."""
    from natgrad.lab.listing import listing

    typer.echo(listing(Console().width))


@app.command()
def run(
    recipe: RecipeName,
    optimizer: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(BUILDERS)}; default kfac.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of weights and data order; default 0.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the optimizer; repeatable."),
    ] = None,
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
) -> None:
    """Train one optimizer from one seed."""
    with _failures():
        experiment = load(recipe, profile or CPU).scheduled(schedule)
        name = optimizer or "kfac"
        check_optimizers([name])
        settings = {**experiment.settings.get(name, {}), **parse(name, set_ or [])}
        compute = compute_on(device, precision)
        budget = budget_of(experiment, epochs, seconds)
        plan = Plan(experiment, (name,), (seed or 0,), budget, {name: settings}, compute)
        words = (optimizer, seed, set_, profile, epochs, seconds, schedule, device, precision)
        before = not any_given(*words)
        manner = Manner("run", out, data, resume, before, tensorboard, checkpoint_every)
        carry_through(plan, manner)


@app.command("compare")
def compare_optimizers(
    recipe: RecipeName,
    optimizers: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated, of {', '.join(BUILDERS)}; default in the recipe."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many seeds, from 0; default in the recipe.")
    ] = None,
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
    no_tune: Annotated[
        bool, typer.Option("--no-tune", help="Take the recipe's settings instead of tuning.")
    ] = False,
) -> None:
    """Tune every optimizer on the validation set, train all of them, print and plot the outcome."""
    with _failures():
        found = find(recipe)
        chosen = None if optimizers is None else named(optimizers)
        compute = compute_on(device, precision)
        plans = [
            _plan(
                each.profiled(profile or CPU).scheduled(schedule), chosen, seeds, epochs, seconds,
                no_tune, compute,
            )
            for each in parts(found)
        ]  # fmt: skip
        words = (optimizers, seeds, profile, epochs, seconds, schedule, device, precision)
        before = not any_given(*words, no_tune or None)
        manner = Manner("compare", out, data, resume, before, tensorboard, checkpoint_every)
        if isinstance(found, Suite):
            carry_through_suite(found, plans, manner)
        else:
            carry_through(plans[0], manner)


def _plan(
    recipe: Recipe,
    chosen: list[str] | None,
    seeds: int | None,
    epochs: float | None,
    seconds: float | None,
    no_tune: bool,
    compute: Compute,
) -> Plan:
    names = recipe.optimizers if chosen is None else chosen
    check_optimizers(names)
    untuned = [n for n in names if no_tune or split_name(n)[0] in UNTUNED]
    return Plan(
        recipe,
        tuple(names),
        recipe.seeds if seeds is None else tuple(range(seeds)),
        budget_of(recipe, epochs, seconds),
        {name: recipe.settings.get(name, {}) for name in untuned},
        compute,
    )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A results folder.")],
    publish: Annotated[
        Path | None,
        typer.Option(help="Also write a short page in Markdown with one figure into this folder."),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Set the paper's numbers and claims beside ours.")
    ] = False,
) -> None:
    """Print the table of a results folder and write its HTML page."""
    from natgrad.lab.report import publish as write_page

    with _failures():
        print_report(folder, paper)
        if publish is not None:
            typer.echo(f"published: {write_page(folder, publish)}")


@app.command()
def inspect(
    recipe: RecipeName,
    optimizer: Annotated[
        str, typer.Option(help=f"What trains it: one of {', '.join(BUILDERS)}.")
    ] = "adam",
    epochs: Annotated[
        str, typer.Option(help="When to look, in passes over the data, comma-separated.")
    ] = "0,1",
    examples: Annotated[
        int, typer.Option(min=1, help="The Fisher matrices are means over this many.")
    ] = 100,
    damping: Annotated[
        float, typer.Option(help="Added to the eigenvalues for the natural gradients.")
    ] = 1e-3,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Draws an example of the sampled Fisher; by default the exact."),
    ] = None,
    profile: ProfileName = None,
    out: Out = None,
    data: Data = None,
) -> None:
    """Compare the approximations of the Fisher matrix along training."""
    from natgrad.lab.inspection import inspect_training, write_inspection

    with _failures():
        experiment = load(recipe, profile or CPU)
        check_optimizers([optimizer])
        settings = experiment.settings.get(optimizer, {})
        looks = sorted({_number(each) for each in epochs.split(",")})
        splits = experiment.data.load(data)
        snapshots = inspect_training(
            experiment, optimizer, settings, splits, epochs=looks,
            examples=examples, damping=damping, samples=samples, tell=typer.echo,
        )  # fmt: skip
        for snapshot in snapshots:
            typer.echo(f"\nepoch {snapshot.epoch:.3g}\n{snapshot.comparison}")
        folder = out or Path("runs") / f"inspect-{experiment.name.replace('/', '-')}"
        page = write_inspection(
            folder, experiment, optimizer, settings, snapshots, samples,
            experiment.data.name_of(splits),
        )  # fmt: skip
        typer.echo(f"\npage: {page}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f'--epochs takes numbers, comma-separated; got "{text}"') from None


@contextmanager
def _failures() -> Iterator[None]:
    """Turn what the user can do something about into one line and an exit code."""
    try:
        yield
    except LabError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail(str(error), WriteError.exit_code if full else LabError.exit_code)
    except KeyboardInterrupt:
        _fail("stopped", INTERRUPTED)


def _fail(message: str, code: int) -> None:
    typer.echo(f"natgrad: {message}", err=True)
    raise typer.Exit(code)


app.command()(_failures()(sweep))
app.command()(_failures()(cache))
app.command()(_failures()(bench))
