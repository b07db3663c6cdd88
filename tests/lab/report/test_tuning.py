"""Grids, with the chosen point and the ends."""

import pytest

from natgrad.lab.report.read import read_results
from natgrad.lab.report.tuning import edges, grids, scored, tried


def test_every_point_with_its_loss(comparison):
    table = {grid.name: grid for grid in grids(read_results(comparison))}
    assert table["KFAC"].keys == ("lr", "damping")
    assert table["KFAC"].constant == {"momentum": "0.9"}
    assert len(table["KFAC"].points) == 8
    (chosen,) = [point for point in table["Adam"].points if point.chosen]
    assert chosen.cells == ("0.03",)
    assert chosen.shade == 1
    assert table["Adam"].points[-1].loss == "diverged"
    assert table["Adam"].edges == ()
    assert tried(table["Adam"]) == "lr 0.003, 0.01, 0.03, 0.1"
    words = scored(table["Adam"]).split("; ")
    assert [each.strip("*").partition(":")[0] for each in words] == [
        "lr 0.003", "lr 0.01", "lr 0.03", "lr 0.1",
    ]  # fmt: skip
    assert [each for each in words if each.startswith("**")] == [
        f"**lr {p.cells[0]}: {p.loss}**" for p in table["Adam"].points if p.chosen
    ]
    assert words[-1] == "lr 0.1: diverged"
    assert tried(table["KFAC"]) == "8 points of lr 0.003, 0.01, 0.03, 0.1; damping 0.001, 0.01"
    (end,) = table["KFAC"].edges
    assert end.startswith("damping 0.001 is one of the two") or "damping 0.01 is one" in end


@pytest.mark.parametrize(
    ("chosen", "values", "said"),
    [
        (0.1, (0.001, 0.01, 0.1), "upper"),
        (0.001, (0.001, 0.01, 0.1), "lower"),
        (0.01, (0.001, 0.01, 0.1), None),
        (0.1, (0.01, 0.1), "one of the two values tried"),  # both are ends
        (0.1, (0.1,), None),  # not tuned
        (None, (0.001, 0.01, 0.1), None),
    ],
)
def test_edges(chosen, values, said):
    sentences = edges([{"lr": value} for value in values], {"lr": chosen}, ["lr"])
    assert len(sentences) == (said is not None)
    assert all(said in sentence for sentence in sentences)
