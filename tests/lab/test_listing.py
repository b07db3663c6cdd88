"""The list of recipes is readable where a line has 80 characters."""

from __future__ import annotations

import pytest

from natgrad.lab.listing import listing
from natgrad.lab.recipe import find, names, parts

from .test_cli import natgrad_command


def words() -> set[str]:
    entries = [(found, *parts(found)) for found in map(find, names())]
    each = [recipe for group in entries for recipe in group]
    whole = " ".join(f"{recipe.name}: {recipe.source} {recipe.title}." for recipe in each)
    return {word.rstrip(":.") for word in whole.split()}


@pytest.mark.parametrize("width", [80, 120])
def test_no_word_is_broken(width: int) -> None:
    shown = listing(width)
    assert max(map(len, shown.splitlines())) <= width
    assert words() <= {word.rstrip(":.") for word in shown.split()}


def test_name_and_source_come_first_then_what_and_data() -> None:
    shown = listing(80)
    source = "prong-imagenet: Desjardins et al. 2015 (PRONG, arXiv 1507.00210), Fig. 4c and d\n"
    assert source in shown
    assert (
        "  tekfac-table3/resnet20-cifar10\n      ResNet-20 on CIFAR-10. Data: CIFAR-10.\n" in shown
    )
    assert "mnist-mlp: Liu & Liu 2021 (SNGD), Fig. 3\n    MLP on MNIST, the network" in shown


def test_the_command_prints_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert natgrad_command("list").output == listing(80) + "\n"
