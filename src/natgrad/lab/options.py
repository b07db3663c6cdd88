"""Options that commands have in common, and how they are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from natgrad.lab.errors import UsageError, unknown
from natgrad.lab.optimizers import BUILDERS, split_name
from natgrad.lab.profile import CPU, PROFILES
from natgrad.lab.recipe import Recipe
from natgrad.lab.training import Budget

__all__ = [
    "Data",
    "Device",
    "Epochs",
    "Events",
    "Every",
    "Out",
    "Precise",
    "ProfileName",
    "RecipeName",
    "Resume",
    "Schedule",
    "Seconds",
    "any_given",
    "budget_of",
    "check_optimizers",
    "named",
]

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
    typer.Option(
        help="Of the learning rate: constant, linear (to zero), steps:EPOCHS[:RATIO], "
        "plateau:EPOCHS[:RATIO]; default in the recipe."
    ),
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
Device: TypeAlias = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:N, or auto for a GPU if there is one.")
]
Precise: TypeAlias = Annotated[
    str | None, typer.Option("--precision", help="float32, or bf16 by autocast.")
]
Every: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--checkpoint-every", metavar="STEPS", min=1,
        help="Save a run every so many steps too; always at ends of epochs 2 s apart.",
    ),
]  # fmt: skip


def any_given(*options: object) -> bool:
    """Whether one of the options was spelled out."""
    return any(option is not None for option in options)


def named(optimizers: str) -> list[str]:
    """The optimizers of a list with commas, each once; a name may hold settings in brackets."""
    outside = re.split(r",(?![^\[]*\])", optimizers)  # not at the commas within brackets
    found = [name.strip() for name in outside if name.strip()]
    if not found:
        raise UsageError(f"--optimizers names none; there are: {', '.join(BUILDERS)}")
    return list(dict.fromkeys(found))


def check_optimizers(chosen: list[str] | tuple[str, ...]) -> None:
    """Refuse names that no optimizer has."""
    for name in chosen:
        if split_name(name)[0] not in BUILDERS:
            raise unknown("optimizer", name, list(BUILDERS))


def budget_of(recipe: Recipe, epochs: float | None, seconds: float | None) -> Budget:
    """The budget of a run: as asked, else the recipe's."""
    if epochs is None and seconds is None:
        if recipe.seconds is not None:
            return Budget(seconds=recipe.seconds)
        return Budget(epochs=recipe.epochs)
    return Budget(epochs, seconds)
