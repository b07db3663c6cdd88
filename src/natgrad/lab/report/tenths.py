"""The training loss at every tenth of a budget in seconds: who was ahead, and when."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from natgrad.lab.report.curves import trail
from natgrad.lab.report.read import Results, Run
from natgrad.lab.report.tables import Column
from natgrad.lab.report.text import display_name, fixed, listed, significant

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Tenths:
    """Training losses at ten places of a budget in seconds.

    Attributes:
        seconds: The places, the last of which is the end of the budget.
        optimizers: In the order of the results.
        losses: By optimizer and place: the median over finished and diverged runs, where a run
            that has diverged counts as infinite; None where the median is infinite or nothing ran.
    """

    title: ClassVar[str] = "Training loss at every tenth of the budget"
    seconds: tuple[float, ...]
    optimizers: tuple[str, ...]
    losses: tuple[tuple[float | None, ...], ...]

    def best(self, place: int) -> int | None:
        """Return which optimizer has the lowest loss at a place, None where none has a loss."""
        column = [row[place] for row in self.losses]
        known = [(loss, index) for index, loss in enumerate(column) if loss is not None]
        return min(known)[1] if known else None

    def columns(self) -> list[Column]:
        """Return one column for each place, its lowest loss marked as the best."""
        columns = []
        for place, seconds in enumerate(self.seconds):
            best = self.best(place)
            cells = tuple(fixed(row[place], 2) for row in self.losses)
            marked = frozenset({best} if best is not None and len(self.losses) > 1 else ())
            columns.append(Column(f"{significant(seconds)} s", cells, marked))
        return columns

    def winners(self) -> str:
        """Say in one sentence who had the lowest loss at which tenths.

        >>> Tenths((1.0, 2.0, 3.0), ("sgd", "adam"), ((3.0, 2.0, 1.0), (2.0, 3.0, 3.0))).winners()
        'Lowest: Adam at tenth 1; SGD at tenths 2 to 3.'
        """
        best = [self.best(place) for place in range(len(self.seconds))]
        parts = []
        for index in dict.fromkeys(b for b in best if b is not None):
            places = [place + 1 for place, b in enumerate(best) if b == index]
            plural = "s" if len(places) > 1 else ""
            name = display_name(self.optimizers[index])
            parts.append(f"{name} at tenth{plural} {listed(_stretches(places))}")
        return f"Lowest: {'; '.join(parts)}." if parts else ""

    def notes(self) -> list[str]:
        """Return the sentences that say who won and how the figures were counted."""
        counted = (
            "At every tenth: training loss without the penalty, linear between evaluations; median "
            "over seeds, a seed that diverged counted as infinite."
        )
        return [line for line in (self.winners(), counted) if line]

    def table(self) -> Table:
        """Return the losses as a rich table, made for 80 characters."""
        from rich import box
        from rich.table import Table

        table = Table(
            title=self.title,
            caption="\n".join(self.notes()),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=0,
            show_edge=False,
        )
        columns = self.columns()
        table.add_column("optimizer", no_wrap=True)
        for column in columns:
            table.add_column(column.heading, justify="right", no_wrap=True)
        for i, name in enumerate(self.optimizers):
            cells = [f"[bold]{c.cells[i]}[/bold]" if i in c.best else c.cells[i] for c in columns]
            table.add_row(display_name(name), *cells)
        return table


def tenths(results: Results) -> Tenths | None:
    """Return the training losses at every tenth of the budget, None if that is not in seconds."""
    budget = results.part("budget").get("seconds")
    if not isinstance(budget, (int, float)) or budget <= 0:
        return None
    places = tuple(budget * k / 10 for k in range(1, 11))
    losses = tuple(
        tuple(_median([loss_at(run, place) for run in _counted(runs)]) for place in places)
        for runs in results.runs.values()
    )
    return Tenths(places, tuple(results.runs), losses)


def loss_at(run: Run, seconds: float) -> float:
    """Return a run's training loss after so many seconds, linear between evaluations.

    Before its first evaluation, which is that of the initial weights, the loss is that one's; a
    diverged run has an infinite loss after its last.
    """
    x, y = trail(run, "seconds", "train_loss")
    if len(x) == 0 or (seconds > x[-1] and not run.finished):
        return math.inf
    return float(np.interp(seconds, x, y))


def _counted(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.status in ("finished", "diverged")]


def _median(values: Sequence[float]) -> float | None:
    median = statistics.median(values) if values else math.inf
    return median if math.isfinite(median) else None


def _stretches(places: Sequence[int]) -> list[str]:
    """Whole numbers in order, those that follow each other as one stretch."""
    found = []
    for _, group in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
        stretch = [place for _, place in group]
        first, last = stretch[0], stretch[-1]
        found.append(f"{first}" if first == last else f"{first} to {last}")
    return found
