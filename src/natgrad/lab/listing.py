"""The recipes in words, as ``natgrad list`` prints them."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

from natgrad.lab.recipe import Recipe, Suite, find, names, parts

__all__ = ["listing"]

NOTE = (
    "Data are named as a recipe means them; results carry the name of what was loaded, which may "
    "be another copy."
)


def listing(width: int) -> str:
    """Every recipe: its name and source, below it what is trained on which data.

    Args:
        width: characters in a line; no word is broken.
    """
    entries = (line for name in names() for line in _entry(find(name), width))
    return "\n".join([*entries, "", _wrapped(NOTE, width, 0)])


def _entry(found: Recipe | Suite, width: int) -> Iterator[str]:
    if isinstance(found, Recipe):
        yield from _recipe(found, found.source, width, 0)
        return
    yield _wrapped(f"{found.name}: {found.source}", width, 0)
    yield _wrapped(found.title, width, 4)
    for recipe in parts(found):
        source = "" if recipe.source == found.source else recipe.source
        yield from _recipe(recipe, source, width, 2)


def _recipe(recipe: Recipe, source: str, width: int, indent: int) -> Iterator[str]:
    yield _wrapped(f"{recipe.name}: {source}" if source else recipe.name, width, indent)
    yield _wrapped(f"{recipe.title}. Data: {recipe.data.name}.", width, indent + 4)


def _wrapped(text: str, width: int, indent: int) -> str:
    before = " " * indent
    return fill(
        text, width, initial_indent=before, subsequent_indent=before,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
