"""The installed command in a process of its own: interrupted, killed, resumed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from natgrad.lab import carrying, cli
from natgrad.lab.checkpoints import Checkpoints, Rhythm
from natgrad.lab.comparison import Plan, compare
from natgrad.lab.data import Splits
from natgrad.lab.folder import Results, RunFolder
from natgrad.lab.recipe import Recipe, load
from natgrad.lab.running import Silent, carry_out, is_over
from natgrad.lab.training import Budget, Run, Training

from .forking import NEEDS_FORK, ended, forked, kill, wait_until
from .test_running import assert_alike, never

COMMAND = (
    sys.executable, "-m", "natgrad", "compare", "digits-mlp", "--optimizers", "sgd,kfac",
    "--seeds", "1", "--no-tune", "--epochs",
)  # fmt: skip
PATIENCE_S = 120


def start(out: Path, epochs: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, epochs, "--out", str(out), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_rows(path: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.01)
    pytest.fail(f"no {count} rows in {path}")


def outcome(out: Path) -> list[list[dict[str, Any]]]:
    found = []
    for optimizer in ("sgd", "kfac"):
        run = out / "runs" / optimizer / "seed0"
        assert json.loads((run / "run.json").read_text())["status"] == "finished"
        rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
        found.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    return found


def test_interrupted_and_killed_then_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = "30"
    out = tmp_path / "out"
    process = start(out, epochs)
    wait_for_rows(out / "runs" / "sgd" / "seed0" / "rows.jsonl", 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Go on with:" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"

    process = start(out, epochs, "--resume")
    wait_for_rows(out / "runs" / "kfac" / "seed0" / "rows.jsonl", 3)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    assert json.loads((out / "manifest.json").read_text())["status"] == "running"

    monkeypatch.setattr(carrying, "print_report", lambda folder: None)
    words = [*COMMAND[3:], epochs, "--out", str(out), "--resume"]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    whole = Results(tmp_path / "whole")
    recipe = load("digits-mlp")
    settings = {name: recipe.settings[name] for name in ("sgd", "kfac")}
    plan = Plan(recipe, ("sgd", "kfac"), (0,), Budget(epochs=float(epochs)), settings)
    compare(plan, recipe.data.load(None), whole, Silent(), never)
    assert outcome(out) == outcome(whole.path)


@NEEDS_FORK
@pytest.mark.parametrize("optimizer", ["sgd", "kfac", "prong"])
def test_killed_at_random_moments_it_ends_alike_and_loses_at_most_an_interval(
    tiny: Recipe, digits: Splits, tmp_path: Path, optimizer: str
) -> None:
    moments, every = random.Random(optimizer), 3
    recipe = dataclasses.replace(tiny, evaluations_per_epoch=4)
    settings = {"lr": 0.01} if optimizer == "prong" else recipe.settings[optimizer]
    run = Run(recipe, optimizer, settings, 0, Budget(epochs=3))
    place, progress = RunFolder(tmp_path / "broken"), tmp_path / "progress"

    class Notes(Silent):
        def advance(self, training: Training, loss: float) -> None:
            with progress.open("a") as file:
                file.write(f"{training.update}\n")

    reached = 0
    for _ in range(4):
        child = forked(lambda: carry_out(run, digits, place, Notes(), never, Rhythm(steps=every)))
        wait_until(lambda reached=reached: last_step(progress) > reached)
        time.sleep(moments.uniform(0, 0.05))
        kill(child)
        if is_over(place.status()):
            break
        state = place.checkpoints.load(print)
        reached = last_step(progress)
        assert reached - every <= (state["update"] if state else 0) <= reached
    if not is_over(place.status()):
        assert carry_out(run, digits, place, Silent(), never) == "finished"
    whole = RunFolder(tmp_path / "whole")
    carry_out(run, digits, whole, Silent(), never)
    assert_alike(place, whole)
    assert not list(place.path.glob(".checkpoint*")) + list(place.path.glob("checkpoint*"))


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: type, name: str) -> None:
    setattr(owner, name, die)


def after(owner: type, name: str) -> None:
    whole = getattr(owner, name)
    setattr(owner, name, lambda *arguments: (whole(*arguments), die()))


def within_the_weights() -> None:
    """The draft is written and not yet in its place."""
    save = RunFolder.save_weights
    begun = lambda place, state: (setattr(os, "fsync", die), save(place, state))  # noqa: E731
    setattr(RunFolder, "save_weights", begun)  # noqa: B010


ENDS: dict[str, Callable[[], None]] = {
    "before the weights": lambda: before(RunFolder, "save_weights"),
    "within the weights": within_the_weights,
    "between weights and status": lambda: after(RunFolder, "save_weights"),
    "between status and the end of checkpoints": lambda: before(Checkpoints, "drop"),
}


@NEEDS_FORK
@pytest.mark.parametrize("end", ENDS)
def test_killed_while_it_ends_a_resumed_run_has_all_an_unbroken_one_has(
    tiny: Recipe, digits: Splits, tmp_path: Path, end: str
) -> None:
    plan = Plan(tiny, ("kfac",), (0,), Budget(epochs=1), {"kfac": tiny.settings["kfac"]})
    broken, whole = Results(tmp_path / "broken"), Results(tmp_path / "whole")

    def killed() -> None:
        ENDS[end]()
        compare(plan, digits, broken, Silent(), never, Rhythm(steps=5))

    assert ended(forked(killed)) == -signal.SIGKILL
    place, expected = broken.run("kfac", 0), whole.run("kfac", 0)
    assert place.checkpoints.found()
    assert place.has_weights() or not is_over(place.status())
    assert compare(plan, digits, broken, Silent(), never) == "finished"
    compare(plan, digits, whole, Silent(), never)
    assert_alike(place, expected)
    assert names(place) == names(expected)


def names(place: RunFolder) -> list[str]:
    return sorted(path.name for path in place.path.iterdir())


def last_step(progress: Path) -> int:
    lines = progress.read_text().split("\n")[:-1] if progress.exists() else []
    return int(lines[-1]) if lines else 0
