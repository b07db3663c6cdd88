"""Commands and examples in the documentation stand for something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from natgrad.lab.errors import UsageError
from natgrad.lab.optimizers import split_name
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import find

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# at the start of a line, after a backtick or a shell's "do"; NAME and RECIPE stand for any
COMMAND = re.compile(r"(?:^\s*|`|\bdo )natgrad (?:compare|run|sweep|inspect) ([a-z][\w/-]*)", re.M)


def addressed() -> list[tuple[str, str]]:
    found = {
        (name, str(page.relative_to(ROOT)))
        for page in PAGES
        for name in COMMAND.findall(page.read_text(encoding="utf-8"))
    }
    return sorted(found)


def test_commands_are_found() -> None:
    names = {name for name, _ in addressed()}
    assert {"mnist-mlp", "prong-autoencoder/eps", "tekfac-table3/resnet20-cifar10"} <= names


@pytest.mark.parametrize(("name", "page"), addressed())
def test_every_recipe_named_in_a_command_is_there(name: str, page: str) -> None:
    try:
        find(name)
    except UsageError as error:
        pytest.fail(f"{page} names {name}: {error}")


def test_the_guide_to_recipes_names_tuples_and_mappings() -> None:
    text = (ROOT / "docs" / "guides" / "recipes.md").read_text(encoding="utf-8")
    (example,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "grids =" in b]
    made: dict[str, object] = {}
    exec(compile(example, "recipes.md", "exec"), made)
    optimizers, grids = made["optimizers"], made["grids"]
    assert isinstance(optimizers, tuple)
    assert isinstance(grids, dict)
    assert set(optimizers) == set(grids)
    assert {split_name(name)[0] for name in optimizers} == {"prong"}
    assert Profile({"grids": grids}).changes["grids"] is grids
