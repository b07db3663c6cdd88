"""The command line: ``natgrad list``, ``run``, ``compare``, ``report``, ``inspect``, ``bench``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

import natgrad
from natgrad.lab.bench.command import bench
from natgrad.lab.carrying import Manner, carry_through, print_report
from natgrad.lab.comparison import Plan
from natgrad.lab.errors import INTERRUPTED, LabError, UsageError, unknown
from natgrad.lab.optimizers import BUILDERS, UNTUNED, parse, split_name
from natgrad.lab.profile import CPU, PROFILES
from natgrad.lab.recipe import Recipe, Suite, find, load, names, parts
from natgrad.lab.suites import carry_through_suite
from natgrad.lab.training import Budget

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train networks with the natural gradient, and see how it compares.",
)

RecipeName: TypeAlias = Annotated[
    str, typer.Argument(help="Name of a recipe, or recipe/variant (natgrad list).")
]
ProfileName: TypeAlias = Annotated[
    str | None,
    typer.Option("--profile", help=f"Size: {', '.join(PROFILES)} (the paper's); default {CPU}."),
]
Epochs: TypeAlias = Annotated[
    float | None, typer.Option(help="Budget of a run in passes over the data.")
]
Seconds: TypeAlias = Annotated[
    float | None, typer.Option(help="Budget of a run in seconds of training steps.")
]
Schedule: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Of the learning rate: constant, or linear to zero; default in the recipe."),
]
Out: TypeAlias = Annotated[
    Path | None, typer.Option(help="Folder for the results; by default a new one in runs/.")
]
Data: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Folder of local data sets, DIR/mnist/train.parquet; or NATGRAD_DATA."),
]
Resume: TypeAlias = Annotated[bool, typer.Option("--resume", help="Go on with what --out holds.")]
Events: TypeAlias = Annotated[
    Path | None, typer.Option("--tensorboard", help="Write live figures for TensorBoard there.")
]


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
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    for heading in ("what", "source", "data"):
        table.add_column(heading, overflow="fold")
    for name in names():
        found = find(name)
        if isinstance(found, Suite):
            table.add_row(name, found.title, found.source, "")
        for recipe in parts(found):
            indent = "  " if isinstance(found, Suite) else ""
            table.add_row(indent + recipe.name, recipe.title, recipe.source, recipe.data.name)
    Console().print(table)


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
) -> None:
    """Train one optimizer from one seed."""
    with _failures():
        experiment = load(recipe, profile or CPU).scheduled(schedule)
        name = optimizer or "kfac"
        _check_optimizers([name])
        settings = {**experiment.settings.get(name, {}), **parse(name, set_ or [])}
        budget = _budget(experiment, epochs, seconds)
        plan = Plan(experiment, (name,), (seed or 0,), budget, {name: settings})
        given = _any_given(optimizer, seed, profile, epochs, seconds, schedule, set_)
        carry_through(plan, Manner("run", out, data, resume, not given, tensorboard))


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
    no_tune: Annotated[
        bool, typer.Option("--no-tune", help="Take the recipe's settings instead of tuning.")
    ] = False,
) -> None:
    """Tune every optimizer on the validation set, train all of them, print and plot the outcome."""
    with _failures():
        found = find(recipe)
        chosen = None if optimizers is None else _named(optimizers)
        plans = [
            _plan(
                each.profiled(profile or CPU).scheduled(schedule), chosen, seeds, epochs, seconds,
                no_tune,
            )
            for each in parts(found)
        ]  # fmt: skip
        given = _any_given(optimizers, seeds, profile, epochs, seconds, schedule) or no_tune
        manner = Manner("compare", out, data, resume, not given, tensorboard)
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
) -> Plan:
    names = recipe.optimizers if chosen is None else chosen
    _check_optimizers(names)
    untuned = [n for n in names if no_tune or split_name(n)[0] in UNTUNED]
    return Plan(
        recipe,
        tuple(names),
        recipe.seeds if seeds is None else tuple(range(seeds)),
        _budget(recipe, epochs, seconds),
        {name: recipe.settings.get(name, {}) for name in untuned},
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
        _check_optimizers([optimizer])
        settings = experiment.settings.get(optimizer, {})
        looks = sorted({_number(each) for each in epochs.split(",")})
        snapshots = inspect_training(
            experiment, optimizer, settings, experiment.data.load(data), epochs=looks,
            examples=examples, damping=damping, samples=samples, tell=typer.echo,
        )  # fmt: skip
        for snapshot in snapshots:
            typer.echo(f"\nepoch {snapshot.epoch:.3g}\n{snapshot.comparison}")
        folder = out or Path("runs") / f"inspect-{experiment.name.replace('/', '-')}"
        page = write_inspection(folder, experiment, optimizer, settings, snapshots, samples)
        typer.echo(f"\npage: {page}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f'--epochs takes numbers, comma-separated; got "{text}"') from None


def _any_given(*options: object) -> bool:
    return any(option is not None for option in options)


def _named(optimizers: str) -> list[str]:
    outside = re.split(r",(?![^\[]*\])", optimizers)  # not at the commas within brackets
    found = [name.strip() for name in outside if name.strip()]
    if not found:
        raise UsageError(f"--optimizers names none; there are: {', '.join(BUILDERS)}")
    return list(dict.fromkeys(found))


def _check_optimizers(chosen: list[str] | tuple[str, ...]) -> None:
    for name in chosen:
        if split_name(name)[0] not in BUILDERS:
            raise unknown("optimizer", name, list(BUILDERS))


def _budget(recipe: Recipe, epochs: float | None, seconds: float | None) -> Budget:
    if epochs is None and seconds is None:
        if recipe.seconds is not None:
            return Budget(seconds=recipe.seconds)
        return Budget(epochs=recipe.epochs)
    return Budget(epochs, seconds)


@contextmanager
def _failures() -> Iterator[None]:
    """Turn what the user can do something about into one line and an exit code."""
    try:
        yield
    except LabError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(str(error), LabError.exit_code)
    except KeyboardInterrupt:
        _fail("stopped", INTERRUPTED)


def _fail(message: str, code: int) -> None:
    typer.echo(f"natgrad: {message}", err=True)
    raise typer.Exit(code)


app.command()(_failures()(bench))
