"""Carrying a run through to its end: curve, checkpoints, and stopping between two steps."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from types import FrameType, TracebackType
from typing import Any, Literal, Protocol, TypeAlias

from natgrad.lab import provenance
from natgrad.lab.checkpoints import Rhythm
from natgrad.lab.data import Splits
from natgrad.lab.folder import RunFolder
from natgrad.lab.optimizers import complete
from natgrad.lab.training import Run, Training, finite

__all__ = [
    "Interruption",
    "Silent",
    "Status",
    "Together",
    "Watch",
    "carry_on",
    "carry_out",
    "is_over",
]

Status: TypeAlias = Literal["running", "finished", "diverged", "interrupted", "pruned"]
Row: TypeAlias = Mapping[str, Any]


class Watch(Protocol):
    """Is told what happens; the progress displays are such."""

    def begin(self, training: Training) -> None:
        """A run begins, or goes on."""

    def advance(self, training: Training, loss: float) -> None:
        """A step was made. Called after every one, so it must be quick."""

    def evaluated(self, training: Training, row: Row) -> None:
        """The curve got a point."""

    def end(self, training: Training, status: Status) -> None:
        """The run is over, or interrupted."""

    def skip(self, run: Run) -> None:
        """A run was over before."""

    def say(self, message: str) -> None:
        """Something the user should read."""


class Silent:
    """A watch that shows nothing."""

    def begin(self, training: Training) -> None:
        """Nothing."""

    def advance(self, training: Training, loss: float) -> None:
        """Nothing."""

    def evaluated(self, training: Training, row: Row) -> None:
        """Nothing."""

    def end(self, training: Training, status: Status) -> None:
        """Nothing."""

    def skip(self, run: Run) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""


class Together:
    """Several watches as one."""

    def __init__(self, *watches: Watch) -> None:
        self.watches = watches

    def begin(self, training: Training) -> None:
        """A run begins, or goes on."""
        for watch in self.watches:
            watch.begin(training)

    def advance(self, training: Training, loss: float) -> None:
        """A step was made."""
        for watch in self.watches:
            watch.advance(training, loss)

    def evaluated(self, training: Training, row: Row) -> None:
        """The curve got a point."""
        for watch in self.watches:
            watch.evaluated(training, row)

    def end(self, training: Training, status: Status) -> None:
        """The run is over, or interrupted."""
        for watch in self.watches:
            watch.end(training, status)

    def skip(self, run: Run) -> None:
        """A run was over before."""
        for watch in self.watches:
            watch.skip(run)

    def say(self, message: str) -> None:
        """Something the user should read."""
        for watch in self.watches:
            watch.say(message)


class Interruption:
    """Turns the first Ctrl-C (or SIGTERM) into a question asked between steps.

    ``with Interruption() as stop: ... if stop(): ...``; a second Ctrl-C acts at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop at the next opportunity."""
        return self.asked

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def is_over(status: Mapping[str, Any]) -> bool:
    """Whether a run's ``run.json`` says that nothing is left to do."""
    return status.get("status") in ("finished", "diverged")


def carry_on(
    run: Run,
    splits: Splits,
    place: RunFolder,
    watch: Watch,
    stop: Callable[[], bool],
    rhythm: Rhythm | None = None,
) -> Status:
    """Carry a run out unless nothing of it is left to do; arguments as for :func:`carry_out`.

    A run that counts and is said to have finished but has no weights is trained again: a kill left
    such in folders of earlier versions.
    """
    status = place.status()
    if is_over(status):
        if run.tuning or status["status"] != "finished" or place.has_weights():
            place.checkpoints.drop()  # a kill may have left them
            watch.skip(run)
            ended: Status = status["status"]
            return ended
        start = "its last checkpoint" if place.checkpoints.found() else "its beginning"
        watch.say(f"{place.path} finished without weights.pt; it is trained again from {start}")
    return carry_out(run, splits, place, watch, stop, rhythm)


def carry_out(
    run: Run,
    splits: Splits,
    place: RunFolder,
    watch: Watch,
    stop: Callable[[], bool],
    rhythm: Rhythm | None = None,
) -> Status:
    """Train a run to the end of its budget, from its checkpoint if there is one.

    Args:
        run: what to train.
        splits: the data.
        place: where its files are.
        watch: is told of every step.
        stop: asked between steps; if it says so, the run is saved and left.
        rhythm: of the checkpoints.

    Returns:
        How the run ended: its budget is used up, its loss is no longer finite, or ``stop``.

    Raises:
        DamagedError: there are checkpoints and none is whole, or an image can't be decoded.
        WriteError: results can't be written; what was saved before is whole.
    """
    checkpoint = place.checkpoints.load(watch.say)
    training = Training(run, splits)
    if checkpoint is not None:
        training.load_state_dict(checkpoint)
    with closing(training.batches):
        return _carried_out(training, place, watch, stop, rhythm or Rhythm())


def _carried_out(
    training: Training,
    place: RunFolder,
    watch: Watch,
    stop: Callable[[], bool],
    rhythm: Rhythm,
) -> Status:
    place.set_rows(training.rows)
    _note(place, training, "running")
    watch.begin(training)
    status = _loop(training, place, watch, stop, rhythm)
    weights: dict[str, str] = {}
    if status == "interrupted":
        place.checkpoints.save(training.state_dict())
    elif status == "finished" and not training.run.tuning:
        with training.averaged():  # what was evaluated
            weights = place.save_weights(training.model.state_dict())
    # only now: whatever a kill leaves, "finished" has its weights
    _note(place, training, status, weights)
    if status != "interrupted":
        place.checkpoints.drop()
    watch.end(training, status)
    return status


def _loop(
    training: Training,
    place: RunFolder,
    watch: Watch,
    stop: Callable[[], bool],
    rhythm: Rhythm,
) -> Status:
    saved = time.monotonic()
    while True:
        over = training.used >= 1
        if training.due(last=over):
            row = training.evaluate()
            if not finite(row):
                return "diverged"
            place.append(row)
            watch.evaluated(training, row)
        if over:
            return "finished"
        if stop():
            return "interrupted"
        since = time.monotonic() - saved
        if rhythm.due(training.update, training.updates_per_epoch, since):
            place.checkpoints.save(training.state_dict())
            saved = time.monotonic()
        loss = training.step()
        if not math.isfinite(loss):
            return "diverged"
        watch.advance(training, loss)


def _note(
    place: RunFolder, training: Training, status: Status, more: Mapping[str, str] | None = None
) -> None:
    run = training.run
    place.set_status(
        {
            "status": status,
            "optimizer": run.optimizer,
            "seed": run.seed,
            "settings": complete(run.optimizer, run.settings),
            "update": training.update,
            "epoch": training.epoch,
            "seconds": training.seconds,
            "fetch_seconds": training.batches.seconds,
            "time": provenance.now(),
            **(more or {}),
        }
    )
