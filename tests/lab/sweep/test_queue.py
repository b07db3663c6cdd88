"""Every place of a search is done once, whoever comes when, and whoever dies."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import Trial, TrialState

from natgrad.lab.sweep import process
from natgrad.lab.sweep.process import alive, here, me
from natgrad.lab.sweep.queue import ATTEMPTS, PROCESS, Queue, Stopped
from natgrad.lab.sweep.storage import open_storage
from tests.lab.forking import NEEDS_FORK, ended, forked, kill, wait_until

PLACES = 24
TOLD_APART = pytest.mark.skipif(here() is None, reason="the system does not tell its processes")


def opened(folder: Path, silent: float = 60, places: int = PLACES) -> Queue:
    storage = open_storage(f"sqlite:///{folder / 'queue.db'}")
    study = optuna.create_study(storage=storage, study_name="one", load_if_exists=True)
    return Queue(study, places, lambda place: {"x": float(place)}, silent)


def drain(queue: Queue, folder: Path, slow: float = 0.0) -> None:
    def work(trial: Trial, place: int) -> float:
        x = trial.suggest_float("x", 0, PLACES)
        with (folder / "done.txt").open("a") as file:
            file.write(f"{place} {x:g} {os.getpid()}\n")
        time.sleep(slow)
        return x

    while True:
        queue.refresh()
        if not queue.take(work):
            if queue.over():
                return
            time.sleep(0.02)


def done(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "done.txt").read_text().splitlines()]


@NEEDS_FORK
def test_workers_that_start_together_never_do_a_place_twice(tmp_path: Path) -> None:
    children = [forked(lambda: drain(opened(tmp_path), tmp_path)) for _ in range(4)]
    assert [ended(child) for child in children] == [0] * 4
    lines = done(tmp_path)
    assert Counter(int(place) for place, *_ in lines) == Counter(range(PLACES))
    assert all(float(x) == int(place) for place, x, _ in lines)
    assert len({pid for *_, pid in lines}) > 1
    assert list(opened(tmp_path).ended()) == list(range(PLACES))


def test_a_transaction_on_sqlite_holds_the_file_from_its_first_read(tmp_path: Path) -> None:
    """As optuna leaves it, two workers could read "waiting" before either writes "running"."""
    url = f"sqlite:///{tmp_path / 'one.db'}"
    with open_storage(url).engine.begin() as connection:
        connection.exec_driver_sql("SELECT * FROM trials")
        other = sqlite3.connect(tmp_path / "one.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


@NEEDS_FORK
@TOLD_APART
def test_a_killed_worker_is_noticed_at_once_and_its_place_done_again(tmp_path: Path) -> None:
    child = forked(lambda: drain(opened(tmp_path), tmp_path, slow=60))
    wait_until(lambda: (tmp_path / "done.txt").exists() and bool(done(tmp_path)))
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    queue = opened(tmp_path)
    queue.refresh()
    (lost,) = queue.study.get_trials(states=(TrialState.FAIL,))
    (again,) = [t for t in queue.study.get_trials() if t.user_attrs.get("after") == lost.number]
    assert again.user_attrs["place"] == lost.user_attrs["place"]
    drain(queue, tmp_path)
    assert list(queue.ended()) == list(range(PLACES))


@NEEDS_FORK
def test_kills_at_random_moments(tmp_path: Path) -> None:
    moments = random.Random(0)
    for _ in range(4):
        child = forked(lambda: drain(opened(tmp_path, silent=0.1), tmp_path, slow=0.01))
        time.sleep(moments.uniform(0.02, 0.4))
        kill(child)
    queue = opened(tmp_path, silent=0.1)
    drain(queue, tmp_path)
    assert list(queue.ended()) == list(range(PLACES))


def test_a_worker_elsewhere_that_is_silent_loses_its_trial(tmp_path: Path) -> None:
    queue = opened(tmp_path, places=1)

    def freeze(trial: Trial, place: int) -> float:
        trial.set_user_attr(PROCESS, ["another machine", 1, "0"])
        engine = queue.study._storage._backend.engine  # type: ignore[attr-defined]

        def silenced() -> bool:
            with engine.begin() as connection:
                change = "UPDATE trial_heartbeats SET heartbeat = '2000-01-01'"
                return connection.exec_driver_sql(change).rowcount == 1

        wait_until(silenced)
        drain(opened(tmp_path, places=1), tmp_path)
        return 1.0

    queue.refresh()
    assert queue.take(freeze)  # it comes back, and finds its trial given away
    assert [t.state.name for t in queue.study.get_trials()] == ["FAIL", "COMPLETE"]
    assert queue.ended()[0].value == 0.0
    assert queue.over()


def test_a_worker_that_died_before_it_said_who_it_is(tmp_path: Path) -> None:
    queue = opened(tmp_path, silent=0.05, places=1)
    queue.refresh()
    queue.study._pop_waiting_trial_id()  # claimed, and dead
    queue.refresh()
    assert not queue.study.get_trials(states=(TrialState.FAIL,))
    time.sleep(0.1)
    drain(queue, tmp_path)
    assert queue.over()


def test_the_queue_filled_twice_at_the_same_moment(tmp_path: Path) -> None:
    queue = opened(tmp_path, places=3)
    queue.refresh()
    for place in range(3):
        queue._queue(place, [])
    nobodys = optuna.create_trial(state=TrialState.WAITING)  # two asked for the last one
    queue.study.add_trial(nobodys)
    drain(queue, tmp_path)
    assert len(done(tmp_path)) == 3
    assert list(queue.ended()) == [0, 1, 2]


def test_a_place_that_fails_every_time_is_given_up(tmp_path: Path) -> None:
    queue = opened(tmp_path, places=2)
    failing = 0

    def work(trial: Trial, place: int) -> float:
        nonlocal failing
        if place == 0:
            failing += 1
            raise MemoryError
        return 1.0

    while not queue.over():
        queue.refresh()
        try:
            queue.take(work)
        except MemoryError:
            continue
    assert failing == ATTEMPTS
    assert list(queue.ended()) == [1]


def test_an_error_in_a_trial_is_not_taken_for_a_lost_one(tmp_path: Path) -> None:
    queue = opened(tmp_path, places=1)

    def wrong(trial: Trial, place: int) -> float:
        raise ValueError("shapes do not fit")

    queue.refresh()
    with pytest.raises(ValueError, match="shapes do not fit"):
        queue.take(wrong)


def test_interruptions_are_no_failures(tmp_path: Path) -> None:
    queue = opened(tmp_path, places=1)

    def stopped(trial: Trial, place: int) -> float:
        trial.suggest_float("x", 0, PLACES)
        raise Stopped

    for _ in range(ATTEMPTS + 2):
        queue.refresh()
        with pytest.raises(Stopped):
            queue.take(stopped)
    drain(queue, tmp_path)
    assert [t.value for t in queue.ended().values()] == [0.0]


@NEEDS_FORK
@TOLD_APART
def test_processes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert alive(me()) is True
    machine, number, start = me()
    assert alive([machine, number, "0"]) is False  # the number was given to another process
    assert alive(["another machine", number, start]) is None
    child = forked(lambda: None)
    wait_until(lambda: process._start(child) is None)  # dead, though its parent has not asked
    assert alive([machine, child, start]) is False
    ended(child)
