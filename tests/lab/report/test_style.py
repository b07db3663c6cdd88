"""Optimizers are told apart by marker, and in grey by lightness or dash."""

from __future__ import annotations

from itertools import combinations

import pytest

from natgrad.lab.recipe import addresses, load
from natgrad.lab.report.style import APART, COLOURS, INK, Look, lightness, looks


def alike_in_grey(found: list[Look]) -> list[tuple[Look, Look]]:
    return [
        (a, b)
        for a, b in combinations(found, 2)
        if a.dash == b.dash and abs(lightness(a.colour) - lightness(b.colour)) < APART
    ]


@pytest.mark.parametrize("profile", ["full", "cpu"])
@pytest.mark.parametrize("name", addresses())
def test_optimizers_of_every_recipe_are_told_apart_in_grey(name: str, profile: str) -> None:
    found = list(looks(load(name, profile).optimizers).values())
    assert len({look.marker for look in found}) == len(found)
    assert alike_in_grey(found) == []


@pytest.mark.parametrize("known", [(), ("sgd",), ("sgd", "kfac", "adam")])
def test_ten_are_told_apart_whichever_they_are(known: tuple[str, ...]) -> None:
    found = list(looks([*(f"other{i}" for i in range(10 - len(known))), *known]).values())
    assert len({look.marker for look in found}) == 10
    assert alike_in_grey(found) == []


def test_the_colours_alone_would_not_do() -> None:
    assert alike_in_grey([Look(colour, "o") for colour in COLOURS])


def test_known_names_look_the_same_everywhere() -> None:
    assert looks(["muon", "sgd"])["sgd"] == looks(["sgd", "kfac"])["sgd"] == Look(INK, "o")
    assert list(looks(["muon", "sgd"])) == ["muon", "sgd"]


def test_lightness_is_that_of_grey() -> None:
    assert lightness("#000000") == 0
    assert lightness("#ffffff") == pytest.approx(100)
    assert lightness("#777777") == pytest.approx(50, abs=0.5)
