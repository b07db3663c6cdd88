"""Sweeps from end to end, in this process and in forked ones."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from natgrad.lab.checkpoints import Rhythm
from natgrad.lab.comparison import settled
from natgrad.lab.data import Splits
from natgrad.lab.errors import UsageError
from natgrad.lab.folder import RunFolder
from natgrad.lab.running import Silent, carry_out
from natgrad.lab.sweep.outcome import note_outcome
from natgrad.lab.sweep.plan import Search, Sweep
from natgrad.lab.sweep.report import best_rows, write_sweep
from natgrad.lab.sweep.work import Worker
from natgrad.lab.training import Training
from tests.lab.forking import NEEDS_FORK, ended, forked, wait_until
from tests.lab.test_running import StopAfter, never

from .conftest import SPACE

Make = Callable[..., Worker]


def outcome(record: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """What must not depend on who did it, and how often it was killed."""
    (search,) = record["searches"]
    trials = [{k: v for k, v in t.items() if k != "seconds"} for t in search["trials"]]
    return trials, record["runs"]


def test_a_sweep_from_end_to_end(
    worker: Make, sweep: Sweep, digits: Splits, tmp_path: Path
) -> None:
    one = worker()
    counts: list[int] = []
    one.done = counts.append
    assert one.carry_through() == "finished"
    assert (counts[0], counts[-1]) == (0, sweep.total())
    record = note_outcome(one)
    (search,) = record["searches"]
    assert [t["place"] for t in search["trials"]] == list(range(6))
    for trial in search["trials"]:
        assert SPACE["lr"].holds(trial["settings"]["lr"])
        assert SPACE["momentum"].holds(trial["settings"]["momentum"])
    best = search["trials"][search["best"]]
    assert best["validation_loss"] == min(t["validation_loss"] for t in search["trials"])
    # a trial is the run that the lab would make of these settings
    place = RunFolder(tmp_path / "same")
    carry_out(sweep.plan.trial("sgd", best["settings"]), digits, place, Silent(), never)
    assert best["validation_loss"] == settled(place.rows())
    assert best["curve"] == [row["validation_loss"] for row in place.rows()]
    # the best, from every seed, where the report of a comparison finds it
    assert [(r["optimizer"], r["seed"]) for r in record["runs"]] == [("sgd", 0), ("sgd", 1)]
    rows = one.results.run("sgd", 1).rows()
    assert rows[-1]["settings"]["lr"] == best["settings"]["lr"]
    assert rows[-1]["test_loss"] == record["runs"][1]["test_loss"]
    assert (one.results.path / "runs" / "sgd" / "seed0" / "weights.pt").is_file()
    assert one.results.manifest()["tuned"]["sgd"]["lr"] == best["settings"]["lr"]
    page = write_sweep(one.results.path, record).read_text()
    assert "train loss | test loss | train accuracy [%] | test accuracy [%]" in page
    for figure in ("sensitivity-sgd", "interaction-sgd"):
        assert f"figures/{figure}.png" in page
        assert (one.results.path / "figures" / f"{figure}.pdf").is_file()


def test_one_worker_draws_the_same_settings_every_time(worker: Make, tmp_path: Path) -> None:
    found = []
    for number in range(2):
        one = worker(url=f"sqlite:///{tmp_path / f'{number}.db'}")
        one.carry_through()
        found.append(outcome(note_outcome(one))[0])
    assert found[0] == found[1]
    other = worker(dataclasses.replace(one.sweep, seed=1, name="seed1"))
    other.carry_through()
    assert outcome(note_outcome(other))[0] != found[0]


@NEEDS_FORK
def test_two_workers_share_the_trials(worker: Make, sweep: Sweep) -> None:
    children = [forked(lambda: worker().carry_through()) for _ in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    one = worker()
    assert one.carry_through() == "finished"  # nothing is left
    record = note_outcome(one)
    assert len(record["searches"][0]["trials"]) == 6
    states = [t.state.name for t in one.searches["sgd"].study.get_trials()]
    assert states.count("COMPLETE") == 6
    assert len(record["runs"]) == 2
    folders = sorted(path.name for path in (one.results.path / "trials" / "sgd").iterdir())
    assert len(folders) == 6


@NEEDS_FORK
def test_killed_in_the_middle_and_resumed_it_ends_alike(worker: Make, tmp_path: Path) -> None:
    whole = worker(url=f"sqlite:///{tmp_path / 'whole.db'}")
    whole.carry_through()
    expected = outcome(note_outcome(whole))

    class Dies(Silent):
        """Is killed in the middle of its third trial, which was saved before."""

        def __init__(self) -> None:
            self.left = 2 * 24 + 15

        def advance(self, training: Training, loss: float) -> None:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)

    child = forked(lambda: worker(watch=Dies(), rhythm=Rhythm(steps=5)).carry_through())
    assert ended(child) == -signal.SIGKILL
    steps = 0

    class Counts(Silent):
        def advance(self, training: Training, loss: float) -> None:
            nonlocal steps
            steps += 1

    one = worker(watch=Counts())
    assert one.carry_through() == "finished"
    assert outcome(note_outcome(one)) == expected
    assert steps == (6 + 2) * 24 - 2 * 24 - 10  # ten steps of the third came from its checkpoint


def test_interrupted_and_resumed(worker: Make, tmp_path: Path) -> None:
    whole = worker(url=f"sqlite:///{tmp_path / 'whole.db'}")
    whole.carry_through()
    for steps in (30, 40):
        stop = StopAfter(steps)
        assert worker(watch=stop, stop=stop).carry_through() == "interrupted"
    one = worker()
    assert one.carry_through() == "finished"
    assert outcome(note_outcome(one)) == outcome(note_outcome(whole))


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_trials_that_fall_behind_are_pruned(worker: Make, sweep: Sweep, pruner: str) -> None:
    points = tuple({"lr": lr} for lr in (0.1, 0.08, 0.12, 0.09, 0.11, 1e-5, 2e-5))
    recipe = dataclasses.replace(sweep.plan.recipe, evaluations_per_epoch=8)
    plan = dataclasses.replace(sweep.plan, recipe=recipe, seeds=(0,))
    pruned = Sweep("pruned", plan, (Search("sgd", points),), pruner)  # type: ignore[arg-type]
    one = worker(pruned)
    assert one.carry_through() == "finished"
    trials = note_outcome(one)["searches"][0]["trials"]
    assert {t["ended"] for t in trials[:5]} <= {"finished", "pruned"}
    assert [t["ended"] for t in trials[5:]] == ["pruned", "pruned"]
    assert all(2 < len(t["curve"]) < 9 for t in trials[5:])
    place = next((one.results.path / "trials" / "sgd").iterdir()).parent / "5"
    assert json.loads((place / "run.json").read_text())["status"] == "pruned"
    assert not list(place.glob("checkpoint*"))
    (row,) = best_rows(note_outcome(one))[1:]
    assert "pruned" in row[2]


def test_a_grid_is_tried_point_by_point_and_divergence_recorded(
    worker: Make, sweep: Sweep, digits: Splits
) -> None:
    points = ({"lr": 0.1, "momentum": 0.5}, {"lr": 1e12}, {"lr": 0.02, "momentum": 0.9})
    plan = dataclasses.replace(sweep.plan, seeds=(0,))
    one = worker(Sweep("grid", plan, (Search("sgd", points),), "none"))
    assert one.carry_through() == "finished"
    record = note_outcome(one)
    trials = record["searches"][0]["trials"]
    assert [t["settings"] for t in trials] == list(points)
    assert [t["ended"] for t in trials] == ["finished", "diverged", "finished"]
    page = write_sweep(one.results.path, record).read_text()
    assert "2 finished, 1 diverged" in page


def test_the_recipes_own_settings_come_first(worker: Make, sweep: Sweep) -> None:
    first = {"lr": 0.1, "momentum": 0.9}
    search = dataclasses.replace(sweep.searches[0], first=first, draws=2)
    one = worker(dataclasses.replace(sweep, name="first", searches=(search,)))
    one.carry_through()
    assert note_outcome(one)["searches"][0]["trials"][0]["settings"] == first


def test_a_storage_with_other_conditions_is_refused(worker: Make, sweep: Sweep) -> None:
    worker()
    other = dataclasses.replace(sweep, seed=7)
    with pytest.raises(UsageError, match="give this one another --name"):
        worker(other)
    worker(dataclasses.replace(other, name="other"))


@NEEDS_FORK
def test_a_second_worker_waits_for_the_first(worker: Make, tmp_path: Path) -> None:
    """Nothing is queued any more, but a trial is running: its worker may yet die."""
    sign = tmp_path / "last"

    class Hangs(Silent):
        def __init__(self) -> None:
            self.left = 6 * 24 - 3

        def advance(self, training: Training, loss: float) -> None:
            self.left -= 1
            if not self.left:
                sign.touch()
                signal.pause()

    child = forked(lambda: worker(watch=Hangs()).carry_through())
    wait_until(sign.exists)
    waited = 0

    def stop() -> bool:
        nonlocal waited
        waited += 1
        if waited == 3:
            os.kill(child, signal.SIGKILL)
            ended(child)
        return False

    one = worker(stop=stop)
    assert one.carry_through() == "finished"
    assert waited > 3
    assert len(note_outcome(one)["searches"][0]["trials"]) == 6
