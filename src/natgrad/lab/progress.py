"""Showing work in progress: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.text import Text

from natgrad.lab.metrics import Metric
from natgrad.lab.running import Row, Status
from natgrad.lab.training import Run, Training

__all__ = ["LiveProgress", "PlainProgress", "clock", "progress_for"]

REFRESH_EVERY_S = 0.1
LINE_EVERY_S = 5.0


class PlainProgress:
    """A line at the end of every run, and one now and then during long ones.

    Args:
        console: where to.
        total: number of runs.
        line_every: seconds between lines during a run.
    """

    def __init__(self, console: Console, total: int, line_every: float = LINE_EVERY_S) -> None:
        self.console, self.total, self.line_every = console, total, line_every
        self.count, self._printed = 0, 0.0
        self._pace = Pace()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def begin(self, training: Training) -> None:
        """A run begins, or goes on."""
        self.count += 1
        self._printed = time.monotonic()
        self._pace = Pace(training)

    def advance(self, training: Training, loss: float) -> None:
        """A step was made."""

    def evaluated(self, training: Training, row: Row) -> None:
        """The curve got a point."""
        if time.monotonic() - self._printed < self.line_every:
            return
        self._printed = time.monotonic()
        left = clock(self._pace.left(training))
        rate = f"{self._pace.rate(training):.0f} steps/s"
        self._line(training.run, f"{_where(training)}, {_figures(training, row)}, {rate}, {left}")

    def end(self, training: Training, status: Status) -> None:
        """The run is over, or interrupted."""
        row = training.rows[-1] if training.rows else {}
        told = "" if status == "finished" else f" {status}"
        figures = f", {_figures(training, row)}" if row else ""
        self._line(training.run, f"{_where(training)}, {training.seconds:.1f} s{figures}{told}")

    def skip(self, run: Run) -> None:
        """A run was over before."""
        self.count += 1

    def say(self, message: str) -> None:
        """Something the user should read."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _line(self, run: Run, text: str) -> None:
        self.say(f"[{self.count:>{len(str(self.total))}}/{self.total}] {run}: {text}")


class LiveProgress:
    """Two bars: the present run with its figures, and all runs.

    Args:
        console: a terminal.
        total: number of runs.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.count = console, total, 0
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            _Figures(),
            console=console,
            refresh_per_second=8,
        )
        self._all: TaskID | None = None
        self._one: TaskID | None = None
        self._pace, self._since, self._shown = Pace(), time.monotonic(), 0.0
        self._done_before = 0
        self._row: Row = {}

    def __enter__(self) -> LiveProgress:
        self.bars.start()
        self._all = self.bars.add_task(f"all {self.total} runs", total=self.total, text="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def begin(self, training: Training) -> None:
        """A run begins, or goes on."""
        self._pace, self._row = Pace(training), {}
        if self._one is not None:
            self.bars.remove_task(self._one)
        self._one = self.bars.add_task(str(training.run), total=1.0, text="")

    def advance(self, training: Training, loss: float) -> None:
        """A step was made."""
        now = time.monotonic()
        if now - self._shown >= REFRESH_EVERY_S:
            self._shown = now
            self._show(training)

    def evaluated(self, training: Training, row: Row) -> None:
        """The curve got a point."""
        self._row = row

    def end(self, training: Training, status: Status) -> None:
        """The run is over, or interrupted."""
        self.count += 1
        self._show(training, finished=True)
        if status != "finished":
            self.say(f"{training.run}: {status} at {_where(training)}")

    def skip(self, run: Run) -> None:
        """A run was over before."""
        self.count += 1
        self._done_before += 1

    def say(self, message: str) -> None:
        """Something the user should read."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _show(self, training: Training, finished: bool = False) -> None:
        assert self._one is not None
        assert self._all is not None
        used = 1.0 if finished else min(training.used, 1.0)
        figures = _figures(training, self._row) if self._row else ""
        rate = f"{self._pace.rate(training):,.0f} steps/s"
        left = clock(0.0 if finished else self._pace.left(training))
        parts = [_where(training), figures, rate, left]
        self.bars.update(self._one, completed=used, text=" · ".join(p for p in parts if p))
        done = self.count + (0.0 if finished else used)
        elapsed, own = time.monotonic() - self._since, done - self._done_before
        rest = clock(elapsed / own * (self.total - done)) if own else ""
        self.bars.update(self._all, completed=done, text=f"{self.count} done · {rest}")


class _Figures(ProgressColumn):
    def render(self, task: Any) -> Text:
        return Text(str(task.fields.get("text", "")))


class Pace:
    """Steps per second and time left of a run, on the wall clock, evaluations included."""

    def __init__(self, training: Training | None = None) -> None:
        self.begin = time.monotonic()
        self.update = training.update if training else 0
        self.used = training.used if training else 0.0

    def rate(self, training: Training) -> float:
        """Steps per second since the run began or went on."""
        return (training.update - self.update) / max(time.monotonic() - self.begin, 1e-9)

    def left(self, training: Training) -> float | None:
        """Seconds until the budget is used up, if the pace is kept."""
        share = training.used - self.used
        if share <= 0:
            return None
        return (time.monotonic() - self.begin) / share * max(1 - training.used, 0.0)


def progress_for(console: Console, total: int) -> LiveProgress | PlainProgress:
    """The display that suits where the output goes."""
    return LiveProgress(console, total) if console.is_terminal else PlainProgress(console, total)


def clock(seconds: float | None) -> str:
    """Time left as a person reads it.

    >>> clock(75), clock(4000), clock(None)
    ('1:15 left', '1:06:40 left', '')
    """
    if seconds is None:
        return ""
    minutes, s = divmod(round(seconds), 60)
    h, m = divmod(minutes, 60)
    return f"{h}:{m:02}:{s:02} left" if h else f"{m}:{s:02} left"


def _where(training: Training) -> str:
    epochs = training.run.budget.epochs
    return f"epoch {training.epoch:.1f}" + (f"/{epochs:g}" if epochs else "")


def _figures(training: Training, row: Mapping[str, Any]) -> str:
    metric: Metric = training.run.recipe.metric
    value = f"{row['validation_metric']:.2f}{' ' if metric.unit else ''}{metric.unit}"
    return f"validation loss {row['validation_loss']:.4g}, {metric.name} {value}"
