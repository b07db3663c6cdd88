"""A run that is stopped or killed ends as one that was left alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from natgrad.lab.checkpoints import Rhythm
from natgrad.lab.data import Splits
from natgrad.lab.folder import RunFolder
from natgrad.lab.recipe import Recipe
from natgrad.lab.running import Interruption, Silent, carry_on, carry_out, is_over
from natgrad.lab.training import Budget, Run, Training

from .conftest import buildable


class StopAfter(Silent):
    """Asks to stop, or is killed, after so many steps in this process."""

    def __init__(self, steps: int, killed: bool = False) -> None:
        self.left, self.killed = steps, killed

    def advance(self, training: Training, loss: float) -> None:
        self.left -= 1
        if self.left == 0 and self.killed:
            raise KeyboardInterrupt

    def __call__(self) -> bool:
        return self.left <= 0


def never() -> bool:
    return False


def weights(place: RunFolder) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(place.path / "weights.pt", weights_only=True)
    return found


def timeless(place: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in place.rows()]


def assert_alike(one: RunFolder, other: RunFolder) -> None:
    assert timeless(one) == timeless(other)
    for p, q in zip(weights(one).values(), weights(other).values(), strict=True):
        assert torch.equal(p, q)


@pytest.fixture
def whole(tiny: Recipe, digits: Splits, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """A run of 2.5 epochs and a folder with its outcome."""
    run = Run(tiny, getattr(request, "param", "kfac"), {}, 0, Budget(epochs=2.5))
    place = RunFolder(tmp_path / "whole")
    assert carry_out(run, digits, place, Silent(), never) == "finished"
    return run, place


QUICK = buildable("exactngd")  # its steps take a second here


@pytest.mark.parametrize("whole", QUICK, indirect=True)
def test_stopped_twice_and_resumed_is_bit_exact(whole: Any, digits: Splits, tmp_path: Path) -> None:
    run, expected = whole
    place = RunFolder(tmp_path / "broken")
    for steps in (17, 20):  # in the middle of the first epoch, then of the second
        stop = StopAfter(steps)
        assert carry_out(run, digits, place, stop, stop) == "interrupted"
        assert place.status()["status"] == "interrupted"
    assert place.status()["update"] == 37
    assert carry_out(run, digits, place, Silent(), never) == "finished"
    assert_alike(place, expected)


@pytest.mark.parametrize("steps", [10, 24, 40])
def test_killed_and_resumed_is_bit_exact(
    whole: Any, digits: Splits, tmp_path: Path, steps: int
) -> None:
    run, expected = whole
    place = RunFolder(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        carry_out(
            run, digits, place, StopAfter(steps, killed=True), never, rhythm=Rhythm(seconds=0)
        )
    assert place.status()["status"] == "running"
    with (place.path / "rows.jsonl").open("a") as file:
        file.write('{"epoch": 1.0, "upda')  # the line that the kill cut off
    assert carry_out(run, digits, place, Silent(), never) == "finished"
    assert_alike(place, expected)


def test_a_finished_run_leaves_weights_and_no_checkpoint(whole: Any) -> None:
    run, place = whole
    assert place.checkpoints.load(print) is None
    assert is_over(place.status())
    model = run.recipe.network()
    model.load_state_dict(weights(place))
    rows = place.rows()
    assert [row["epoch"] for row in rows] == [0, 1, 2, 2.5]


class Heard(Silent):
    """Remembers what was said, and which updates were made."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.updates: list[int] = []

    def advance(self, training: Training, loss: float) -> None:
        self.updates.append(training.update)

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.parametrize("saved", [True, False])
def test_a_finished_run_without_weights_is_trained_again(
    whole: Any, digits: Splits, tmp_path: Path, saved: bool
) -> None:
    run, expected = whole
    place, stop, heard = RunFolder(tmp_path / "old"), StopAfter(30), Heard()
    carry_out(run, digits, place, stop, stop)
    place.set_status({**place.status(), "status": "finished"})
    if not saved:
        place.checkpoints.drop()
    assert carry_on(run, digits, place, heard, never) == "finished"
    assert_alike(place, expected)
    assert heard.updates[0] == (31 if saved else 1)
    start = "its last checkpoint" if saved else "its beginning"
    assert heard.said == [
        f"{place.path} finished without weights.pt; it is trained again from {start}"
    ]


def test_what_is_over_is_left_alone(whole: Any, tiny: Recipe, digits: Splits) -> None:
    run, place = whole
    heard, trial = Heard(), RunFolder(place.path / "trial")
    assert carry_on(run, digits, place, heard, never) == "finished"
    tuning = Run(tiny, "sgd", {}, 0, Budget(epochs=1), tuning=True)
    carry_out(tuning, digits, trial, Silent(), never)
    assert carry_on(tuning, digits, trial, heard, never) == "finished"
    assert not heard.updates
    assert not heard.said


def test_a_tuning_run_keeps_no_weights(tiny: Recipe, digits: Splits, tmp_path: Path) -> None:
    place = RunFolder(tmp_path)
    run = Run(tiny, "sgd", {}, 0, Budget(epochs=1), tuning=True)
    carry_out(run, digits, place, Silent(), never)
    assert not (tmp_path / "weights.pt").exists()
    assert not any("test" in key for row in place.rows() for key in row)


def test_divergence_ends_a_run_and_is_recorded(
    tiny: Recipe, digits: Splits, tmp_path: Path
) -> None:
    place = RunFolder(tmp_path)
    run = Run(tiny, "sgd", {"lr": 1e12}, 0, Budget(epochs=2))
    assert carry_out(run, digits, place, Silent(), never) == "diverged"
    assert place.status()["status"] == "diverged"
    assert is_over(place.status())
    assert len(place.rows()) == 1
    assert not (tmp_path / "weights.pt").exists()


def test_a_budget_in_seconds_counts_steps_only(
    tiny: Recipe, digits: Splits, tmp_path: Path
) -> None:
    place = RunFolder(tmp_path)
    run = Run(tiny, "sgd", {}, 0, Budget(seconds=0.05))
    assert carry_out(run, digits, place, Silent(), never) == "finished"
    rows = place.rows()
    assert rows[-1]["seconds"] >= 0.05
    assert all(row["seconds"] < 0.05 for row in rows[:-1])


@pytest.fixture
def heeding_sigint() -> Iterator[None]:
    """A background job inherits a SIGINT that is ignored."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("heeding_sigint")
def test_the_first_signal_asks_the_second_acts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
