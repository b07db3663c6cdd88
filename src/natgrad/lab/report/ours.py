"""Where our counterpart of a number of the paper is read from."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from natgrad.lab.report.crossing import first_crossing, value_at
from natgrad.lab.report.read import Axis, Results, Run
from natgrad.lab.report.summary import Summary
from natgrad.lab.report.text import deviation, with_spread
from natgrad.lab.tables import Table

__all__ = ["Ours", "ours_of"]


@dataclass(frozen=True)
class Ours:
    """A figure of ours over seeds.

    Attributes:
        mean: over the seeds that have a finite figure; NaN if none has.
        sd: sample standard deviation of these; None of fewer than two, or where it is not known.
        n: seeds that were run to an end, those without a finite figure among them; None where
            nothing says how many, and of a bound.
        by_seed: the figure of each: infinite where it did not reach its target, NaN where it
            diverged. Empty where only mean and deviation are known.
        least: what the figure is at least, of seeds whose runs ended before the target: their
            whole budget.
        arrived: seeds that reached the target; None where there is nothing to reach.
    """

    mean: float
    sd: float | None
    n: int | None
    by_seed: Mapping[str, float] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    arrived: int | None = None

    @property
    def diverged(self) -> int:
        """Number of seeds that diverged."""
        return sum(map(math.isnan, self.by_seed.values()))

    @property
    def missing(self) -> int:
        """Number of seeds without a finite figure."""
        if self.by_seed:
            return sum(not math.isfinite(figure) for figure in self.by_seed.values())
        return (self.n or 0) - self.arrived if self.arrived is not None else 0

    def at_least(self) -> Ours:
        """With the budget in place of what was not reached within it."""
        if not self.least:
            return self
        return _over({seed: self.least.get(seed, x) for seed, x in self.by_seed.items()}) or self

    def written(self, places: int, unit: str = "") -> str:
        """Mean and spread with so many decimals, and what became of the seeds they leave out."""
        if self.diverged and self.diverged == self.n:
            return "diverged"
        parts = []
        if not math.isnan(self.mean):
            parts.append(f"{with_spread(self.mean, self.sd, places)} {unit}".strip())
        if self.arrived is not None:
            parts.append(f"reached {self.arrived} of {self.n}")
        if self.diverged:
            parts.append(f"{self.diverged} of {self.n} diverged")
        return ", ".join(parts)


def ours_of(reading: Mapping[str, Any], results: Results, summary: Summary) -> Ours | None:
    """Read a figure from results; None where it was not measured.

    Args:
        reading: As the manifest has it: the fields of a reading of `natgrad.lab.paper`, with its
            kind.
        results: Where from.
        summary: Of these, for the target.
    """
    kind = reading["kind"]
    if kind == "bound":
        return Ours(float(reading["value"]), 0.0, None)
    if kind == "cell":
        return _cell(reading, results)
    if kind == "steptime":
        return _over(_ratios(reading["optimizer"], reading["relative_to"], results))
    if kind in ("final", "at"):
        runs = _ended(reading["optimizer"], results)
        values = {seed: _value(reading, run) for seed, run in runs.items()}
        return _over({seed: value for seed, value in values.items() if value is not None})
    if summary.target is None:
        return None
    loss, axis = summary.target.loss, reading["axis"]
    mine = _reached(_ended(reading["optimizer"], results), loss, axis)
    if kind == "reached" or mine is None:
        return mine
    return _fewer(mine, _reached(_ended(reading["than"], results), loss, axis))


def _ended(optimizer: str, results: Results) -> dict[str, Run]:
    """Runs that finished or diverged, by seed: all of them where the whole grid diverged."""
    runs = results.runs.get(optimizer, ())
    losses = results.part("tuning_losses").get(optimizer) or []
    if not runs and losses and all(loss is None for loss in losses):
        runs = tuple(Run(optimizer, f"seed{k}", {}, "diverged", ()) for k in results.seeds)
    return {run.label: run for run in runs if run.status in ("finished", "diverged")}


def _value(reading: Mapping[str, Any], run: Run) -> float | None:
    """The end of a curve or a point of it: NaN where it diverged, None if it is not there."""
    if reading["kind"] == "at":
        value = value_at(run.rows, reading["value"], reading["axis"], reading["quantity"])
    else:
        value = run.final(reading["quantity"]) if run.finished else math.nan
    if math.isnan(value) and run.finished:
        return None
    return 100 - value if reading["complement"] else value


def _ratios(optimizer: str, relative_to: str, results: Results) -> dict[str, float]:
    """Seconds an epoch over the other's, seed by seed: both took turns within a seed."""
    mine, theirs = (
        {run.label: _seconds_per_epoch(run) for run in results.runs.get(name, ()) if run.finished}
        for name in (optimizer, relative_to)
    )
    pairs = {seed: (own, theirs.get(seed)) for seed, own in mine.items()}
    return {seed: own / other for seed, (own, other) in pairs.items() if own is not None and other}


def _seconds_per_epoch(run: Run) -> float | None:
    last = run.rows[-1]
    return last.seconds / last.epochs if last.epochs > 0 else None


def _reached(runs: Mapping[str, Run], loss: float, axis: Axis) -> Ours | None:
    """What it took to a loss; a run that ended before it took its whole budget at least."""
    places = {
        seed: first_crossing(run.rows, loss, axis) if run.finished else math.inf
        for seed, run in runs.items()
    }
    least = {
        seed: runs[seed].rows[-1].x(axis)
        for seed, place in places.items()
        if math.isinf(place) and runs[seed].finished
    }
    return _over(places, least, arrived=sum(map(math.isfinite, places.values())))


def _fewer(mine: Ours, theirs: Ours | None) -> Ours | None:
    """How many times what I took the other one did, at least: 0 where I never arrive."""
    others = theirs.at_least().by_seed if theirs is not None else {}
    taken = {seed: own for seed, own in mine.by_seed.items() if seed in others}
    ratios = {
        seed: 0.0 if math.isinf(own) else others[seed] / own if own else math.inf
        for seed, own in taken.items()
    }
    return _over(ratios, arrived=sum(map(math.isfinite, taken.values())))


def _cell(reading: Mapping[str, Any], results: Results) -> Ours | None:
    """A cell of a table of the study with what stands beside it."""
    table = results.tables.get(reading["table"])
    if table is None:
        return None
    row, column = reading["row"], reading["column"]
    value, sd = (_known(table.cell(row, name)) for name in (column, f"{column} sd"))
    by_seed = table.by_seed.get(row, {}).get(column, {})
    arrived, n = _arrivals(table, row, column)
    if n is None:
        lost = any(map(math.isinf, by_seed.values()))
        arrived = sum(map(math.isfinite, by_seed.values())) if lost else None
        n = len(by_seed) or _count(table.cell(row, "seeds"))
    elif len(by_seed) != n:  # those that arrived alone
        by_seed = {} if arrived else dict.fromkeys(map(str, range(n)), math.inf)
    if value is None and not by_seed:
        return None
    mean = math.nan if value is None else float(value)
    return Ours(mean, sd, n, by_seed, arrived=arrived)


def _known(cell: Any) -> float | None:
    return cell if isinstance(cell, (int, float)) else None


def _count(cell: Any) -> int | None:
    return cell if isinstance(cell, int) else None


def _arrivals(table: Table, row: str, column: str) -> tuple[int | None, int | None]:
    """How many seeds of how many reached what is timed in a column, by ``"2 of 3"`` beside it."""
    found = re.fullmatch(r"(\d+) of (\d+)", str(table.cell(row, "reached")))
    if found is None or f"{column} sd" not in table.columns:
        return None, None
    return int(found[1]), int(found[2])


def _over(
    by_seed: Mapping[str, float],
    least: Mapping[str, float] | None = None,
    arrived: int | None = None,
) -> Ours | None:
    if not by_seed:
        return None
    finite = [figure for figure in by_seed.values() if math.isfinite(figure)]
    mean = statistics.fmean(finite) if finite else math.nan
    return Ours(mean, deviation(finite), len(by_seed), by_seed, least or {}, arrived)
