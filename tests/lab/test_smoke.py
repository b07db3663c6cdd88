"""Every recipe from end to end in its smoke profile: `make smoke`.

Reads the data sets of NATGRAD_DATA where they are there, made-up ones of the same layout elsewhere.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from natgrad.lab.folder import Results
from natgrad.lab.recipe import Recipe, Suite, find, names, parts

from .madeup import write_all
from .test_cli import natgrad_command

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(1800)]  # which only a hang takes
REAL = os.environ.get("NATGRAD_DATA")  # before conftest takes it out of the environment
#: tuned as well: grids of first-order and natural-gradient methods, and of whitened networks
TUNED = ("digits-mlp", "prong-conditioning")
#: of a recipe with its report: a minute of two cores. In processor time, which waiting for a core
#: or a disk does not lengthen
LIMIT_S = 120.0
#: ten comparisons with ten reports: twice as long
TEN_FOLD = ("sngd-nodules-folds", "sngd-detection-folds")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_all(tmp_path_factory.mktemp("data"))
    for real in Path(REAL).iterdir() if REAL else ():  # made up is what is not there
        madeup = folder / real.name
        if madeup.is_dir():
            shutil.rmtree(madeup)
        madeup.symlink_to(real)
    return folder


@pytest.mark.parametrize("name", names())
def test_smoke(name: str, data: Path, tmp_path: Path) -> None:
    out, begin = tmp_path / "out", time.process_time()
    tuning = () if name in TUNED else ("--no-tune",)
    words = ("compare", name, "--profile", "smoke", *tuning, "--data", data, "--out", out)
    result = natgrad_command(*words)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    assert (out / "report.html").is_file()
    found = find(name)
    for recipe in parts(found):
        folder = out / recipe.name.partition("/")[2] if isinstance(found, Suite) else out
        if f"{recipe.name} is left out" in result.output:  # its data is not among the real ones
            assert REAL
            continue
        check(recipe.profiled("smoke"), Results(folder), tuned=name in TUNED)
    shown = natgrad_command("report", out, "--paper")
    assert shown.exit_code == 0, shown.output
    took, allowed = time.process_time() - begin, LIMIT_S * (2 if name in TEN_FOLD else 1)
    assert took < allowed, f"{name} took {took:.0f} s of processor time, {allowed:.0f} allowed"


def check(recipe: Recipe, results: Results, tuned: bool) -> None:
    """Everything there, every run at its end."""
    about = results.manifest()
    assert about["status"] == "finished"
    assert about["profile"]["name"] == "smoke"
    assert (results.path / "report.html").is_file()
    for optimizer in about["optimizers"]:
        for seed in about["seeds"]:
            ended = results.run(optimizer, seed).status()["status"]
            assert ended == "finished", f"{recipe.name} {optimizer} seed {seed}: {ended}"
    if tuned:
        check_tuning(recipe, about)
    if recipe.study is not None:
        assert list((results.path / "study").iterdir())


def check_tuning(recipe: Recipe, about: dict[str, Any]) -> None:
    """Every point of every grid was tried, and one that came to its end was taken."""
    assert list(about["tuning_losses"]) == about["optimizers"]
    for optimizer, losses in about["tuning_losses"].items():
        grid = recipe.grid(optimizer)
        assert len(losses) == len(grid) > 1
        finite = [loss for loss in losses if loss is not None]
        assert finite
        assert all(map(math.isfinite, finite))
        best = grid[losses.index(min(finite))]
        assert best.items() <= about["tuned"][optimizer].items()
