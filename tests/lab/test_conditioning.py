"""Condition numbers along a run: what is written, that nothing else changes, the figure."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from natgrad.lab.conditioning import (
    Conditioning,
    conditioning_figure,
    read_conditioning,
    write_conditioning,
)
from natgrad.lab.data import Splits
from natgrad.lab.errors import UsageError
from natgrad.lab.folder import Results, read_rows
from natgrad.lab.recipe import Recipe
from natgrad.lab.running import Silent, Together, carry_out
from natgrad.lab.training import Budget, Run, Training
from natgrad.whiten import whitening_report


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))


@pytest.fixture
def small(tiny: Recipe) -> Recipe:
    return dataclasses.replace(tiny, network=network)


def never() -> bool:
    return False


class StopAfter(Silent):
    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, training: Training, loss: float) -> None:
        self.left -= 1

    def __call__(self) -> bool:
        return self.left <= 0


def runs(folder: Path, optimizer: str, seed: int = 0) -> Any:
    return Results(folder).run(optimizer, seed)


def run(recipe: Recipe, optimizer: str, seed: int = 0, **kwargs: Any) -> Run:
    return Run(recipe, optimizer, {}, seed, Budget(epochs=2), **kwargs)


def measured(folder: Path, optimizer: str = "sgd") -> list[dict[str, Any]]:
    return read_rows(runs(folder, optimizer).path / "conditioning.jsonl")


def test_every_point_of_the_curve_gets_a_row_for_each_layer(
    small: Recipe, digits: Splits, tmp_path: Path
) -> None:
    place = runs(tmp_path, "sgd")
    carry_out(run(small, "sgd"), digits, place, Conditioning(tmp_path, examples=20), never)
    rows = measured(tmp_path)
    updates = [row["update"] for row in place.rows()]
    assert len(updates) == 3
    assert [(r["update"], r["layer"]) for r in rows] == [(u, l) for u in updates for l in "02"]
    net = network()
    net.load_state_dict(torch.load(place.path / "weights.pt", weights_only=True))
    last = whitening_report(net, digits.train.first(20).inputs, small.likelihood)
    for row, expected in zip(rows[-2:], last.records(), strict=True):
        assert {key: row[key] for key in expected} == expected
        assert (row["optimizer"], row["seed"], row["epoch"]) == ("sgd", 0, 2.0)
    assert rows[0]["condition"] != rows[-2]["condition"]


@pytest.mark.parametrize("optimizer", ["sgd", "prong", "prongplus"])
def test_the_run_is_the_same_as_without(
    small: Recipe, digits: Splits, tmp_path: Path, optimizer: str
) -> None:
    ends = []
    for name, watch in (("a", Silent()), ("b", Conditioning(tmp_path / "b", 10, examples=20))):
        place = runs(tmp_path / name, optimizer)
        carry_out(run(small, optimizer), digits, place, watch, never)
        ends.append(torch.load(place.path / "weights.pt", weights_only=True))
    assert all(torch.equal(x, ends[1][key]) for key, x in ends[0].items())
    rows = measured(tmp_path / "b", optimizer)
    count = ends and max(row["update"] for row in rows) // 10 + 1
    assert [row["update"] for row in rows] == [10 * k for k in range(count) for _ in "02"]
    assert count > 3
    assert {row["whitened"] for row in rows} == {optimizer != "sgd"}


def test_a_run_that_goes_on_measures_no_point_twice(
    small: Recipe, digits: Splits, tmp_path: Path
) -> None:
    found = []
    for name, steps in (("whole", ()), ("broken", (7, 20))):
        place, watch = runs(tmp_path / name, "sgd"), Conditioning(tmp_path / name, 5, examples=20)
        for count in steps:
            stop = StopAfter(count)
            carry_out(run(small, "sgd"), digits, place, Together(watch, stop), stop)
            file = place.path / "conditioning.jsonl"  # measured before a kill, to be dropped
            later = {**read_rows(file)[-1], "update": 10_000}
            file.write_text(file.read_text() + f"{later}\n".replace("'", '"').replace("False", "0"))
        carry_out(run(small, "sgd"), digits, place, watch, never)
        found.append(measured(tmp_path / name))
    assert found[0] == found[1]


def test_tuning_runs_are_left_alone(small: Recipe, digits: Splits, tmp_path: Path) -> None:
    place = Results(tmp_path).tuning("sgd", 0)
    watch = Conditioning(tmp_path, examples=20)
    carry_out(run(small, "sgd", tuning=True), digits, place, watch, never)
    assert read_conditioning(tmp_path) == []
    with pytest.raises(UsageError, match="run with a Conditioning watch first"):
        write_conditioning(tmp_path)


def test_a_network_that_is_no_longer_finite_is_not_measured(
    small: Recipe, digits: Splits, tmp_path: Path
) -> None:
    training = Training(run(small, "sgd"), digits)
    watch = Conditioning(tmp_path, 5, examples=20)
    watch.begin(training)
    before = measured(tmp_path)
    with torch.no_grad():
        training.model[0].weight.fill_(torch.nan)
    watch.measure(training)
    assert measured(tmp_path) == before != []


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="every must be None or >= 1, got 0"):
        Conditioning(tmp_path, 0)


def made_up() -> list[dict[str, Any]]:
    return [
        {"layer": layer, "optimizer": name, "seed": seed, "update": u, "condition": 10.0**power}
        for layer in ("0", "2")
        for name, power in (("sgd", 4), ("prong", 1))
        for seed, power in ((0, power), (1, power + 2))
        for u in (0, 5, 10)
    ]


def test_the_figure_has_a_panel_for_each_layer_and_a_line_for_each_optimizer() -> None:
    figure = conditioning_figure(made_up())
    assert [ax.get_title() for ax in figure.axes] == ["layer 0", "layer 2"]
    for ax in figure.axes:
        assert ax.get_yscale() == "log"
        assert [list(line.get_xdata()) for line in ax.lines] == [[0, 5, 10]] * 2
        means = [line.get_ydata()[0] for line in ax.lines]
        assert means == [pytest.approx(1e5), pytest.approx(1e2)]  # geometric
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["SGD", "PRONG"]


def test_the_figure_of_a_comparison_is_written(
    small: Recipe, digits: Splits, tmp_path: Path
) -> None:
    watch = Conditioning(tmp_path, 12, examples=30)
    for name in ("sgd", "prong"):
        for seed in (0, 1):
            place = runs(tmp_path, name, seed)
            carry_out(run(small, name, seed), digits, place, watch, never)
    paths = write_conditioning(tmp_path)
    assert [path.name for path in paths] == ["conditioning.pdf", "conditioning.png"]
    assert all(path.stat().st_size > 5000 for path in paths)
    assert len(read_conditioning(tmp_path)) == sum(
        len(read_rows(runs(tmp_path, n, s).path / "conditioning.jsonl"))
        for n in ("sgd", "prong")
        for s in (0, 1)
    )
