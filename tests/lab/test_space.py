from __future__ import annotations

import json

import pytest

from natgrad.lab.errors import UsageError
from natgrad.lab.recipe import addresses, load
from natgrad.lab.space import Choice, Range, checked, read_space, space_from, written_space


def test_what_the_command_line_takes() -> None:
    words = ["lr=1e-3..1", "stats_every=1..20", "decay=0.9,0.95,0.99"]
    assert space_from("kfac", words) == {
        "lr": Range(1e-3, 1.0),
        "stats_every": Range(1, 20, whole=True),
        "decay": Choice((0.9, 0.95, 0.99)),
    }
    assert space_from("sgd", ["momentum=0..0.9"]) == {"momentum": Range(0, 0.9, log=False)}
    assert space_from("prong", ["basis=pca,zca"]) == {"basis": Choice(("pca", "zca"))}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lr", "KEY=LOW..HIGH or KEY=A,B,C"),
        ("lr=", "KEY=LOW..HIGH or KEY=A,B,C"),
        ("lr=1..0.1", r"a range goes up, got 1\.\.0\.1"),
        ("lr=a..b", "lr takes a number"),
        ("rate=1..2", "no setting of sgd"),
    ],
)
def test_what_it_refuses(word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        space_from("sgd", [word])


def test_impossible_spaces() -> None:
    with pytest.raises(UsageError, match="positive"):
        Range(0, 1)
    with pytest.raises(UsageError, match="needs values"):
        Choice(())
    with pytest.raises(UsageError, match="no number"):
        space_from("prong", ["basis=a..b"])


def test_a_space_survives_a_manifest() -> None:
    space = space_from("kfac", ["lr=1e-3..1", "stats_every=1..20", "decay=0.9,0.95"])
    assert read_space(json.loads(json.dumps(written_space(space)))) == space


def test_recipes_state_spaces_that_hold_their_own_settings() -> None:
    stated = 0
    for name in addresses():
        recipe = load(name)
        for optimizer, space in recipe.spaces.items():
            stated += 1
            checked(optimizer, space)
            for key, value in recipe.settings.get(optimizer, {}).items():
                assert key not in space or space[key].holds(value), (name, optimizer, key)
    assert stated
