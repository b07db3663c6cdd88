"""``natgrad sweep`` as a user calls it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from natgrad.lab.errors import UsageError
from natgrad.lab.recipe import find
from natgrad.lab.sweep import carrying
from natgrad.lab.sweep.storage import open_storage, without_password
from tests.lab.forking import wait_until
from tests.lab.test_cli import natgrad_command, refused

TINY = ("sweep", "digits-mlp", "--optimizer", "sgd", "--seeds", "1", "--epochs", "1")


@pytest.fixture
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "print_report", lambda folder: None)


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return found


def test_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("COLUMNS", "160")
    result = natgrad_command(*TINY, "--trials", "3", "--out", out)
    assert result.exit_code == 0, result.output
    assert "3 finished" in result.output
    assert str(out / "sweep.md") in result.output.replace("\n", "")
    assert (out / "report.html").is_file()
    about = json.loads((out / "manifest.json").read_text())
    assert about["status"] == "finished"
    assert about["sweep"]["searches"][0]["draws"] == 3
    assert "3 draws (TPE) from the stated space" in about["tuning_rule"]
    assert "storage" not in about
    assert (out / "sweep.db").is_file()
    monkeypatch.setattr(carrying, "print_report", lambda folder: None)
    again = natgrad_command("sweep", "digits-mlp", "--out", out, "--resume")
    assert again.exit_code == 0, again.output


@pytest.mark.usefixtures("_no_report")
def test_the_grid_and_several_optimizers(tmp_path: Path) -> None:
    words = ("--optimizers", "sgd,adam", "--search", "grid", "--prune", "halving")
    result = natgrad_command(*TINY, *words, "--epochs", "0.2", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    searches = record(tmp_path / "out")["searches"]
    assert [s["optimizer"] for s in searches] == ["sgd", "adam"]
    assert [len(s["trials"]) for s in searches] == [9, 9]


@pytest.mark.usefixtures("_no_report")
def test_another_storage_and_two_folders(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    words = (*TINY, "--vary", "lr=0.01..0.3", "--trials", "2", "--storage", url)
    for name in ("one", "two"):  # the second finds all of it done, and reports the same
        result = natgrad_command(*words, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert not (tmp_path / name / "sweep.db").exists()
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert one["searches"] == two["searches"]
    assert one["runs"] == two["runs"]
    rows = [(tmp_path / n / "runs/sgd/seed0/rows.jsonl").read_text() for n in ("one", "two")]
    assert rows[0] == rows[1]
    said = refused(2, *words[:-3], "3", "--storage", url, "--out", tmp_path / "three")
    assert "another --name" in said


@pytest.mark.usefixtures("_no_report")
def test_a_variant_in_a_profile(made_up: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--optimizer", "sgd[momentum=0.5]", "--vary", "lr=0.01..0.3", "--trials", "2")
    result = natgrad_command(
        "sweep", "made-up/studied", "--profile", "smoke", *words, "--out", out,
        "--precision", "bf16", "--checkpoint-every", "3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    about = json.loads((out / "manifest.json").read_text())
    assert about["recipe"]["name"] == about["sweep"]["name"] == "made-up/studied"
    assert about["profile"]["name"] == "smoke"
    assert about["budget"]["epochs"] == 0.5
    assert about["tuned"]["sgd[momentum=0.5]"]["momentum"] == 0.5
    assert about["compute"]["precision"] == "bf16"
    page = (out / "sweep.md").read_text()
    assert "Profile smoke: epochs: 0.5 instead of 1" in page
    again = natgrad_command("sweep", "made-up/studied", "--out", out, "--resume")
    assert again.exit_code == 0, again.output
    other = ("sweep", "made-up/studied", *words, "--profile", "cpu", "--out", out, "--resume")
    assert "can't resume: profile was" in refused(2, *other)


def test_a_sweep_is_of_one_experiment_that_compares_optimizers(
    made_up: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "name one of them: made-up/plain" in refused(2, "sweep", made_up)
    variants = find(made_up).variants  # type: ignore[union-attr]
    alone = dataclasses.replace(variants["studied"], optimizers=())
    monkeypatch.setitem(variants, "studied", alone)  # type: ignore[arg-type]
    said = refused(2, "sweep", "made-up/studied")
    assert "compares no optimizers: name some with --optimizer" in said


@pytest.mark.usefixtures("_no_report")
def test_two_processes_on_this_machine(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = natgrad_command(*TINY, "--trials", "4", "--workers", "2", "--out", out)
    assert result.exit_code == 0, result.output
    assert len(record(out)["searches"][0]["trials"]) == 4
    assert len(list((out / "trials" / "sgd").iterdir())) == 4


@pytest.mark.usefixtures("_no_report")
def test_killed_and_resumed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--vary", "lr=0.01..0.3", "--trials", "3", "--no-prune", "--epochs", "40"]
    process = subprocess.Popen(
        [sys.executable, "-m", "natgrad", *TINY[:-2], *words, "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    second = out / "trials" / "sgd" / "1" / "rows.jsonl"
    wait_until(lambda: second.exists() and second.read_text().count("\n") > 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((out / "manifest.json").read_text())["status"] == "running"
    result = natgrad_command("sweep", "digits-mlp", "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert [t["place"] for t in record(out)["searches"][0]["trials"]] == [0, 1, 2]
    folders = {path.name for path in (out / "trials" / "sgd").iterdir()}
    assert len(folders) == 4  # one trial was taken up by another


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--optimizer", "sdg"), 'did you mean "sgd"'),
        (("--search", "random"), "takes grid or space"),
        (("--search", "grid", "--trials", "5"), "the grid of sgd has 9 points"),
        (("--vary", "rate=1..2"), "no setting of sgd"),
        (("--vary", "lr=2..1"), "goes up"),
        (("--prune", "medium"), 'did you mean "median"'),
        (("--prune", "median", "--no-prune"), "not both"),
        (("--storage", "nonsense"), "--storage takes"),
        (("--storage", "nosuchdb://host/name"), "--storage"),
        (("--resume",), "needs --out"),
        (("--resume", "--out", "absent"), "nothing to resume"),
        (("--device", "cuda:99"), "--device cuda:99"),
        (("--optimizer", "ekfac"), "no tuning grid for ekfac"),
        (("--optimizer", "ekfac", "--search", "space"), "states no search space for ekfac"),
    ],
)
def test_wrong_words(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(2, *TINY, *words)
    assert message.startswith("natgrad: ")
    assert said in message
    assert not (tmp_path / "runs").exists()


def test_a_storage_that_can_not_be_reached(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'absent' / 'sweep.db'}"
    message = refused(1, *TINY, "--storage", url, "--out", tmp_path / "out")
    assert "can't open the storage" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_no_report")
def test_resume_with_other_words_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (*TINY, "--trials", "1", "--epochs", "0.2", "--out", out)
    natgrad_command(*words)
    assert "not empty; add --resume" in refused(2, *words)
    said = refused(2, *TINY, "--trials", "2", "--epochs", "0.2", "--out", out, "--resume")
    assert "can't resume: tuning_rule was" in said
    assert "holds digits-mlp" in refused(2, "sweep", "mnist-mlp", "--out", out, "--resume")


def test_all_diverged_has_its_own_code(tmp_path: Path) -> None:
    words = ("--vary", "lr=1e12..1e13", "--trials", "2", "--out", tmp_path / "out")
    message = refused(5, *TINY, *words)
    assert "no trial came to its end" in message
    assert "diverged" in (tmp_path / "out" / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("postgresql+psycopg://me@host/name", "psycopg", "'psycopg[binary]'"),
        ("postgresql+psycopg2://me@host/name", "psycopg2", "psycopg2-binary"),
        ("mysql://me@host/name", "MySQLdb", "mysqlclient"),
        ("mysql+pymysql://me@host/name", "pymysql", "pymysql"),
    ],
)
def test_a_missing_driver_is_named(
    url: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(UsageError, match=re.escape(f"pip install {package}")):
        open_storage(url)


def test_passwords_are_not_shown() -> None:
    url = "postgresql://me:secret@host/name"
    assert "secret" not in without_password(url)
    with pytest.raises(Exception, match=r"driver|can't open") as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)
