"""How soon the others reach the training loss that the best first-order method ends with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from natgrad.lab.report.crossing import first_crossing
from natgrad.lab.report.read import Axis, Results, Run
from natgrad.lab.report.tables import Column
from natgrad.lab.report.text import NOTHING, display_name, significant

if TYPE_CHECKING:
    from rich.table import Table

#: whose training loss at the end is the one to reach; Muon and SOAP, matrix methods, among them
FIRST_ORDER = frozenset(
    {"sgd", "sgdm", "sgd_nesterov", "sgd_bn", "adam", "adamw", "rmsprop", "muon", "soap"}
)


@dataclass(frozen=True)
class Arrival:
    """What one optimizer took to the target, medians over seeds; None where most do not arrive."""

    arrived: int
    counted: int
    updates: float | None
    seconds: float | None


@dataclass(frozen=True)
class Race:
    """Who reaches the final training loss of the best first-order method, and when.

    Attributes:
        leader: That method: the lowest median over seeds of the final training loss.
        loss: This median.
        updates: What the leader made in its whole budget, the median.
        seconds: Likewise.
        optimizers: In the order of the results, the leader among them.
        arrivals: Of every other optimizer. The leader has none: half of its own seeds end above
            their median, so that a time to it would be of the others alone.
    """

    title: ClassVar[str] = "To the training loss that the best first-order method ends with"
    leader: str
    loss: float
    updates: float
    seconds: float
    optimizers: tuple[str, ...]
    arrivals: Mapping[str, Arrival]

    def columns(self) -> list[Column]:
        """Return updates and seconds, and how many times fewer than the leader's budget.

        The leader's own row says that it sets the target.
        """
        cells = [self._cells(self.arrivals.get(name)) for name in self.optimizers]
        headings = ("reached", "updates", "times fewer", "seconds", "times sooner")
        return [
            Column(heading, column)
            for heading, column in zip(headings, zip(*cells, strict=True), strict=True)
        ]

    def _cells(self, arrival: Arrival | None) -> tuple[str, ...]:
        if arrival is None:
            return ("the target", *[NOTHING] * 4)
        return (
            f"{arrival.arrived} of {arrival.counted}",
            significant(arrival.updates),
            _times(self.updates, arrival.updates),
            significant(arrival.seconds),
            _times(self.seconds, arrival.seconds),
        )

    def notes(self) -> list[str]:
        """Return what is counted, in words."""
        return [
            f"Target: {display_name(self.leader)}'s final training loss {self.loss:.4g}, the "
            f"lowest of the first-order methods, after {significant(self.updates)} updates and "
            f"{significant(self.seconds)} s; without the penalty, medians over seeds. It sets the "
            "target and is not timed to it.",
            "Reached: where the running minimum of the training loss first crosses it, linear "
            "between evaluations; times fewer and sooner than the whole of that budget.",
        ]

    def table(self) -> Table:
        """Return the figures as a rich table, made for 80 characters."""
        from rich import box
        from rich.table import Table

        table = Table(
            title=self.title, caption="\n".join(self.notes()), caption_justify="left",
            box=box.SIMPLE_HEAD, padding=0, show_edge=False,
        )  # fmt: skip
        table.add_column("optimizer", no_wrap=True)
        columns = self.columns()
        for column in columns:
            table.add_column(column.heading, justify="right", no_wrap=True)
        for row, name in enumerate(self.optimizers):
            table.add_row(display_name(name), *[column.cells[row] for column in columns])
        return table


def race(results: Results) -> Race | None:
    """Return the race to the best first-order method; None where none finished or none competes."""
    finals = _finals(results.runs)
    if not finals or len(results.runs) < 2:
        return None
    leader = min(finals, key=lambda name: finals[name])
    ends = [run.rows[-1] for run in results.runs[leader] if run.finished]
    target = finals[leader]
    return Race(
        leader=leader,
        loss=target,
        updates=statistics.median(row.updates for row in ends),
        seconds=statistics.median(row.seconds for row in ends),
        optimizers=tuple(results.runs),
        arrivals={
            name: _arrival(runs, target) for name, runs in results.runs.items() if name != leader
        },
    )


def _finals(runs: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    found = {}
    for name, group in runs.items():
        losses = [run.final("train_loss") for run in group if run.finished]
        losses = [loss for loss in losses if math.isfinite(loss)]
        if name in FIRST_ORDER and losses:
            found[name] = statistics.median(losses)
    return found


def _arrival(runs: Sequence[Run], target: float) -> Arrival:
    counted = [run for run in runs if run.status in ("finished", "diverged")]
    axes: tuple[Axis, Axis] = ("updates", "seconds")
    places = {
        axis: [
            first_crossing(run.rows, target, axis, "train_loss") if run.finished else math.inf
            for run in counted
        ]
        for axis in axes
    }
    arrived = sum(math.isfinite(place) for place in places["updates"])
    updates, seconds = (_median(places[axis]) for axis in axes)
    return Arrival(arrived, len(counted), updates, seconds)


def _median(values: Sequence[float]) -> float | None:
    median = statistics.median(values) if values else math.inf
    return median if math.isfinite(median) else None


def _times(whole: float, own: float | None) -> str:
    return significant(None if not own else whole / own)
