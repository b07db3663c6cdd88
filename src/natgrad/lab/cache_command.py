"""``natgrad cache``: what is kept of data sets, and whether it is whole."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from natgrad.lab.cache import cache_folder, check, entries
from natgrad.lab.errors import DamagedError, UsageError

__all__ = ["cache"]


def cache(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything and compare checksums.")
    ] = False,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove all; data sets are decoded anew when needed.")
    ] = False,
) -> None:
    """What is kept of data sets, in NATGRAD_CACHE or ~/.cache/natgrad."""
    if verify and clear:
        raise UsageError("--verify or --clear, not both")
    folder, damaged = cache_folder(), []
    for place in entries(folder):
        size = sum(path.stat().st_size for path in place.iterdir()) / 2**20
        wrong = check(place) if verify else []
        state = f", damaged: {', '.join(wrong)}" if wrong else ", whole" if verify else ""
        typer.echo(f"{place.relative_to(folder)}: {size:.1f} MiB{state}")
        if clear or wrong:
            shutil.rmtree(place)
        damaged += [str(place.relative_to(folder))] if wrong else []
    if damaged:
        raise DamagedError(
            f"removed what was damaged, it is made anew when needed: {', '.join(damaged)}"
        )
