"""Every recipe from end to end in its smoke profile: `make smoke`.

Reads the data sets of NATGRAD_DATA where they are there, made-up ones of the same layout elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from natgrad.lab.recipe import Suite, find, names, parts

from .madeup import write_all
from .test_cli import natgrad_command

pytestmark = pytest.mark.smoke
REAL = os.environ.get("NATGRAD_DATA")  # before conftest takes it out of the environment


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
    out = tmp_path / "out"
    words = ("compare", name, "--profile", "smoke", "--no-tune", "--data", data, "--out", out)
    result = natgrad_command(*words)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    assert (out / "report.html").is_file()
    found = find(name)
    for recipe in parts(found):
        folder = out / recipe.name.partition("/")[2] if isinstance(found, Suite) else out
        if f"{recipe.name} is left out" in result.output:  # its data is not among the real ones
            assert REAL
            continue
        about = json.loads((folder / "manifest.json").read_text())
        assert about["status"] == "finished"
        assert about["profile"]["name"] == "smoke"
        assert (folder / "report.html").is_file()
        runs = [json.loads(p.read_text()) for p in folder.glob("runs/*/seed*/run.json")]
        assert len(runs) == len(about["optimizers"]) * len(about["seeds"])
        assert {run["status"] for run in runs} <= {"finished", "diverged"}
        if recipe.study is not None:
            assert list((folder / "study").iterdir())
    shown = natgrad_command("report", out, "--paper")
    assert shown.exit_code == 0, shown.output
