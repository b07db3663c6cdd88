"""The approximations along training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from natgrad.lab.cli import app
from natgrad.lab.data import Splits
from natgrad.lab.inspection import inspect_training, write_inspection
from natgrad.lab.recipe import Recipe

LAYERS, STRUCTURES = 3, 5


def test_snapshots_are_taken_when_asked_for(tiny: Recipe, digits: Splits, tmp_path: Path) -> None:
    told: list[str] = []
    snapshots = inspect_training(
        tiny, "sgd", {"lr": 0.1}, digits, epochs=[0, 0.5, 1], examples=6, damping=1e-3,
        tell=told.append,
    )  # fmt: skip
    assert [each.update for each in snapshots] == [0, 12, 24]
    assert len(told) == 3
    for each in snapshots:
        assert len(each.comparison.rows) == LAYERS * STRUCTURES
        assert each.comparison.examples == 6
        kept = {r.structure: r.trace_ratio for r in each.comparison.rows if r.layer == "2"}
        assert kept["ekfac"] == pytest.approx(1)
        assert kept["tekfac"] == pytest.approx(1)
    first, last = snapshots[0].comparison.rows, snapshots[-1].comparison.rows
    assert [r.error for r in first] != [r.error for r in last]
    page = write_inspection(tmp_path, tiny, "sgd", {"lr": 0.1}, snapshots)
    text = page.read_text()
    assert text.count("## Epoch") == 3
    assert "tekfac" in text
    assert str(Path.home()) not in text
    record = json.loads((tmp_path / "inspection.json").read_text())
    assert [len(s["rows"]) for s in record["snapshots"]] == [LAYERS * STRUCTURES] * 3
    for kind in ("errors", "spectra"):
        for suffix in ("png", "pdf"):
            assert (tmp_path / f"{kind}-2.{suffix}").stat().st_size > 1000


def test_the_command(tmp_path: Path) -> None:
    arguments = ["inspect", "digits-mlp", "--optimizer", "sgd", "--epochs", "0", "--examples", "4"]
    result = CliRunner().invoke(app, [*arguments, "--samples", "3", "--out", str(tmp_path / "o")])
    assert result.exit_code == 0, result.output
    assert "ekfac" in result.output
    assert "sampled, 3 draws" in (tmp_path / "o" / "inspection.md").read_text()


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--epochs", "soon"], "numbers"), (["--optimizer", "sgdd"], "sgd")],
)
def test_wrong_arguments_are_one_line(option: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", "digits-mlp", *option, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert message in result.output
