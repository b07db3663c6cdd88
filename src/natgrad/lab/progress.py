"""Showing work in progress: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from natgrad.lab.metrics import Metric
from natgrad.lab.running import Row, Status
from natgrad.lab.training import Run, Training

__all__ = ["LiveProgress", "PlainProgress", "clock", "progress_for"]

BAR_WIDTH = 20
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
    """Three lines that stay in place: the run with its pace, its figures, all runs.

    Args:
        console: a terminal.
        total: number of runs.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.count = console, total, 0
        self._training: Training | None = None
        self._row: Row = {}
        self._pace, self._since, self._skipped = Pace(), time.monotonic(), 0
        self._live = Live(
            console=console, get_renderable=self._lines, refresh_per_second=8, transient=True
        )

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def begin(self, training: Training) -> None:
        """A run begins, or goes on."""
        self._training, self._pace, self._row = training, Pace(training), {}

    def advance(self, training: Training, loss: float) -> None:
        """A step was made; the display looks at the run by itself, from its own thread."""

    def evaluated(self, training: Training, row: Row) -> None:
        """The curve got a point."""
        self._row = row

    def end(self, training: Training, status: Status) -> None:
        """The run is over, or interrupted."""
        self.count, self._training = self.count + 1, None
        if status != "finished":
            self.say(f"{training.run}: {status} at {_where(training)}")

    def skip(self, run: Run) -> None:
        """A run was over before."""
        self.count += 1
        self._skipped += 1

    def say(self, message: str) -> None:
        """Something the user should read."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _lines(self) -> Group:
        training, row = self._training, self._row
        used = min(training.used, 1.0) if training else 0.0
        lines = Table.grid(padding=(0, 1))
        lines.add_column()
        lines.add_column(no_wrap=True, overflow="ellipsis")
        title = ""
        if training:
            rate = f"{self._pace.rate(training):,.0f} steps/s"
            left = clock(self._pace.left(training))
            title = " · ".join(filter(None, (str(training.run), rate, left)))
            figures = [_where(training), *([_figures(training, row)] if row else [])]
            lines.add_row(ProgressBar(1.0, used, BAR_WIDTH), Text(" · ".join(figures)))
        done = self.count + used
        elapsed, own = time.monotonic() - self._since, done - self._skipped
        rest = clock(elapsed / own * (self.total - done)) if own else ""
        text = " · ".join(filter(None, (f"{self.count} of {self.total} runs", rest)))
        lines.add_row(ProgressBar(self.total, done, BAR_WIDTH), Text(text))
        return Group(Text(title, no_wrap=True, overflow="ellipsis"), lines)


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
