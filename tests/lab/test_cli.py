"""The command line as a user calls it, in this process."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import natgrad
from natgrad.lab import carrying, cli, files
from natgrad.lab.cache import cache_folder
from natgrad.lab.checkpoints import Checkpoints
from natgrad.lab.data import MNIST
from natgrad.lab.errors import (
    EXIT_CODES,
    DamagedError,
    DataMissingError,
    DivergedError,
    LabError,
    UsageError,
    WriteError,
)

TINY = ("compare", "digits-mlp", "--optimizers", "sgd,kfac", "--seeds", "2", "--epochs", "1")


@pytest.fixture
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests are not about the page, which takes seconds to draw."""
    monkeypatch.setattr(carrying, "print_report", lambda folder: None)


def natgrad_command(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def refused(code: int, *words: str | Path) -> str:
    """The message of a command that must fail with one clear line."""
    result = natgrad_command(*words)
    assert result.exit_code == code, result.output
    assert not isinstance(result.exception, (LookupError, TypeError, ValueError))
    assert "Traceback" not in result.output
    return result.stderr


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def test_version_and_list() -> None:
    assert natgrad_command("--version").output == f"natgrad {natgrad.__version__}\n"
    shown = natgrad_command("list").output
    for text in ("digits-mlp", "mnist-mlp", "autoencoder", "MNIST"):
        assert text in shown


def test_a_comparison_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = natgrad_command(*TINY, "--out", out)
    assert result.exit_code == 0, result.output
    assert "KFAC" in result.output
    page = re.search(r"report: (.+\.html)", result.output)
    assert page
    assert Path(page[1]).is_file()
    about = manifest(out)
    assert about["status"] == "finished"
    assert set(about["tuned"]) == {"sgd", "kfac"}
    assert about["seeds"] == [0, 1]
    assert about["budget"] == {"epochs": 1, "seconds": None}
    assert about["recipe"]["parameters"] == 8970
    assert {len(grid) for grid in about["grids"].values()} == {9}
    assert str(Path.home()) not in json.dumps({**about, "command": ""})
    for optimizer in ("sgd", "kfac"):
        for seed in (0, 1):
            run = out / "runs" / optimizer / f"seed{seed}"
            assert len((run / "rows.jsonl").read_text().splitlines()) == 3
            assert json.loads((run / "run.json").read_text())["status"] == "finished"
    again = natgrad_command("report", out)
    assert again.exit_code == 0, again.output
    assert "KFAC" in again.output


@pytest.mark.usefixtures("_no_report")
def test_a_single_run_with_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--optimizer", "kfac", "--seed", "3", "--set", "lr=0.02", "--set", "damping=0.2")
    result = natgrad_command("run", "digits-mlp", *words, "--epochs", "1", "--out", out)
    assert result.exit_code == 0, result.output
    tuned = manifest(out)["tuned"]["kfac"]
    assert (tuned["lr"], tuned["damping"]) == (0.02, 0.2)
    assert (out / "runs" / "kfac" / "seed3" / "weights.pt").is_file()
    resumed = natgrad_command("run", "digits-mlp", "--out", out, "--resume")
    assert resumed.exit_code == 0, resumed.output


@pytest.mark.usefixtures("_no_report")
def test_without_out_a_new_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("compare", "digits-mlp", "--optimizers", "sgd", "--no-tune", "--seconds", "0.01")
    assert natgrad_command(*words, "--seeds", "1").exit_code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-mlp-")
    assert manifest(folder)["grids"] == {}


@pytest.mark.usefixtures("_no_report")
def test_defaults_are_compared_without_tuning(tmp_path: Path) -> None:
    names = ("--optimizers", "kfac_defaults,tekfac_defaults", "--seeds", "1", "--epochs", "0.2")
    result = natgrad_command("compare", "digits-mlp", *names, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert manifest(tmp_path / "out")["settings"].keys() == {"kfac_defaults", "tekfac_defaults"}
    assert not (tmp_path / "out" / "tuning").exists()


@pytest.mark.usefixtures("_no_report")
def test_resume_takes_the_plan_from_the_folder_and_refuses_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("compare", "digits-mlp", "--optimizers", "sgd", "--seeds", "1", "--no-tune")
    assert natgrad_command(*words, "--epochs", "1", "--out", out).exit_code == 0
    assert natgrad_command("compare", "digits-mlp", "--out", out, "--resume").exit_code == 0
    said = refused(2, *words, "--epochs", "2", "--out", out, "--resume")
    assert "budget was {'epochs': 1" in said
    assert "holds digits-mlp" in refused(2, "compare", "mnist-mlp", "--out", out, "--resume")
    assert "not empty; add --resume" in refused(2, *words, "--epochs", "1", "--out", out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "digit-mlp"), 'did you mean "digits-mlp"'),
        (("compare", "digits-mlp", "--optimizers", "sgd,kfca"), 'did you mean "kfac"'),
        (("compare", "digits-mlp", "--optimizers", ","), "names none"),
        (("run", "digits-mlp", "--optimizer", "newton"), "There are: sgd"),
        (("run", "digits-mlp", "--set", "lr"), "key=value"),
        (("run", "digits-mlp", "--set", "lr=x"), "takes a number"),
        (("run", "digits-mlp", "--set", "rate=1"), "no setting of kfac"),
        (("run", "digits-mlp", "--set", "lr=-1"), "kfac: lr must be"),
        (("run", "digits-mlp", "--epochs", "1", "--seconds", "1"), "either"),
        (("run", "digits-mlp", "--epochs", "-1"), "must be positive"),
        (("run", "digits-mlp", "--resume"), "needs --out"),
        (("run", "digits-mlp", "--device", "tpu"), "cpu, cuda, cuda:N or auto"),
        (("run", "digits-mlp", "--precision", "bf61"), 'did you mean "bf16"'),
        (("run", "poisson-pinn", "--precision", "bf16"), "this one is in float64"),
        (("run", "digits-mlp", "--resume", "--out", "absent"), "nothing to resume"),
    ],
)
def test_wrong_words(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(2, *words)
    assert message.startswith("natgrad: ")
    assert said in message
    assert not (tmp_path / "runs").exists()


def test_missing_data_has_its_own_code(tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = refused(3, "run", "mnist-mlp", "--data", tmp_path, "--out", out)
    assert "mnist/train.parquet" in message
    assert not out.exists()


@pytest.mark.usefixtures("_no_report")
def test_mnist_from_local_files(mnist_folder: Path, tmp_path: Path) -> None:
    words = ("compare", "mnist-mlp", "--optimizers", "sgd", "--seeds", "1", "--no-tune")
    out = tmp_path / "out"
    result = natgrad_command(*words, "--epochs", "1", "--data", mnist_folder, "--out", out)
    assert result.exit_code == 0, result.output
    data = manifest(out)["data"]
    assert data["sizes"] == {"train": 50, "validation": 10, "test": 12}
    assert str(tmp_path) not in json.dumps(data)


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refused(6, "run", "digits-mlp", "--out", tmp_path / "file" / "out")
    assert "can't write results" in message


def test_a_report_of_nothing(tmp_path: Path) -> None:
    assert refused(1, "report", tmp_path / "absent").startswith("natgrad: ")


def test_the_exit_codes_stand_in_the_help_and_in_the_guide() -> None:
    shown = " ".join(natgrad_command("--help").output.replace("\u2502", " ").split())
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "running.md").read_text()
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in shown
        assert f"| {code} | {meaning} |" in guide
    kinds = (LabError, UsageError, DataMissingError, DamagedError, DivergedError, WriteError)
    assert [kind.exit_code for kind in kinds] == [1, 2, 3, 4, 5, 6]


def test_divergence_has_its_own_code(tmp_path: Path) -> None:
    words = ("--optimizer", "sgd", "--set", "lr=1e12", "--epochs", "1", "--out", tmp_path / "out")
    message = refused(5, "run", "digits-mlp", *words)
    assert "no run came to its end with finite figures" in message
    assert manifest(tmp_path / "out")["status"] == "finished"


@pytest.mark.usefixtures("_no_report")
def test_damaged_checkpoints_have_their_own_code(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("run", "digits-mlp", "--optimizer", "sgd", "--epochs", "1", "--out", out)
    assert natgrad_command(*words).exit_code == 0
    place = out / "runs" / "sgd" / "seed0"
    status = json.loads((place / "run.json").read_text())
    (place / "run.json").write_text(json.dumps({**status, "status": "running"}))
    for update in (10, 20):
        (place / f"checkpoint-00000000{update}-0123456789abcdef.pt").write_bytes(b"cut off")
    message = refused(4, "run", "digits-mlp", "--out", out, "--resume")
    assert "neither of checkpoint-0000000020" in message
    assert "delete them to start this run again" in message


@pytest.mark.usefixtures("_no_report")
def test_a_full_disk_has_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    words = ("run", "digits-mlp", "--optimizer", "sgd", "--epochs", "2", "--out", out)
    saves: list[int] = []

    def full(self: Checkpoints, state: dict[str, Any]) -> None:
        saves.append(state["update"])
        if len(saves) == 3:
            monkeypatch.setattr(files.os, "fsync", fails)
        save(self, state)

    def fails(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save, fsync = Checkpoints.save, os.fsync
    monkeypatch.setattr(Checkpoints, "save", full)
    message = refused(6, *words, "--checkpoint-every", "10")
    assert "No space left on device" in message
    assert saves == [10, 20, 30]
    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(files.os, "fsync", fsync)
    resumed = natgrad_command("run", "digits-mlp", "--out", out, "--resume")
    assert resumed.exit_code == 0, resumed.output
    whole = tmp_path / "whole"
    assert natgrad_command(*words[:-1], whole).exit_code == 0
    rows = [(each / "runs/sgd/seed0/rows.jsonl").read_text().splitlines() for each in (out, whole)]
    assert [timeless(line) for line in rows[0]] == [timeless(line) for line in rows[1]]


def timeless(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key != "seconds"}


@pytest.mark.usefixtures("_no_report")
def test_precision_stands_in_the_manifest_and_can_not_change(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("run", "digits-mlp", "--optimizer", "sgd", "--epochs", "1", "--out", out)
    assert natgrad_command(*words, "--precision", "bf16").exit_code == 0
    assert manifest(out)["compute"] == {"device": "cpu", "precision": "bf16"}
    assert natgrad_command("run", "digits-mlp", "--out", out, "--resume").exit_code == 0
    said = refused(2, *words, "--precision", "float32", "--resume")
    assert "compute was {'device': 'cpu', 'precision': 'bf16'}" in said


def test_what_the_cache_holds(mnist_folder: Path) -> None:
    MNIST.load(mnist_folder)
    listed = natgrad_command("cache", "--verify").output.splitlines()
    assert len(listed) == 4  # pixels and inputs of both splits
    assert all(line.startswith("mnist/") and line.endswith("MiB, whole") for line in listed)
    path = max(cache_folder().rglob("inputs.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert "made anew when needed: mnist/" in refused(4, "cache", "--verify")
    assert len(natgrad_command("cache", "--clear").output.splitlines()) == 3
    assert natgrad_command("cache").output == ""
