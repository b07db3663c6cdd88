"""The figures of a comparison: final values with their spread, and the cost of reaching a target.

Only finished runs enter the final values; diverged runs are counted beside them and never reach
the target; runs that are still going or were interrupted enter neither. "Final" is the last
evaluation: nothing is ever picked on the test set.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from natgrad.lab.report import tables
from natgrad.lab.report.crossing import first_crossing
from natgrad.lab.report.race import Race, race
from natgrad.lab.report.read import Axis, Metric, Quantity, Results, Run, read_results
from natgrad.lab.report.tenths import Tenths, tenths
from natgrad.lab.report.text import deviation, display_name, true_title

if TYPE_CHECKING:
    from rich.table import Table

REFERENCE = "sgd"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n seeds; no deviation for a single one."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Target:
    """The validation loss that every optimizer is timed to.

    Attributes:
        loss: Its value.
        name: What it is, as a noun phrase.
        optimizer: Whose runs set it.
    """

    loss: float
    name: str
    optimizer: str


@dataclass(frozen=True)
class OptimizerSummary:
    """What was measured of one optimizer.

    Attributes:
        optimizer: Its name.
        finished: Number of runs that finished with finite values.
        diverged: Number of runs that diverged.
        unfinished: Number of runs still going, interrupted or not begun.
        final: Value of the last evaluation, over finished runs.
        reached: Number of runs that reached the target.
        to_target: Median over finished and diverged runs of what it took to reach the target, a
            run that did not counted as infinite; None where the median is infinite.
        ms_per_update: Median milliseconds of a training step; None without a finished run.
        times_reference: The same figures divided by those of `sgd`: "updates" and "seconds" to
            target and "ms_per_update".
    """

    optimizer: str
    finished: int
    diverged: int
    unfinished: int
    final: Mapping[Quantity, Spread]
    reached: int
    to_target: Mapping[Axis, float | None]
    ms_per_update: float | None
    times_reference: Mapping[str, float | None]

    @property
    def name(self) -> str:
        """The optimizer's name as the field writes it."""
        return display_name(self.optimizer)

    @property
    def counted(self) -> int:
        """Number of runs that could reach the target: finished or diverged."""
        return self.finished + self.diverged


@dataclass(frozen=True)
class Summary:
    """The figures of a comparison, and the tables they make."""

    title: str
    metric: Metric
    target: Target | None
    entries: tuple[OptimizerSummary, ...]
    status: Literal["finished", "running", "interrupted"] = "finished"
    tenths: Tenths | None = None
    race: Race | None = None

    @property
    def timelines(self) -> list[Tenths | Race]:
        """Who was ahead when, as far as it can be told."""
        return [part for part in (self.tenths, self.race) if part is not None]

    def entry(self, optimizer: str) -> OptimizerSummary | None:
        """Return an optimizer's figures, None where it was not run."""
        return next((entry for entry in self.entries if entry.optimizer == optimizer), None)

    def table(self) -> Table:
        """Return the figures as a table for the terminal."""
        return tables.terminal(self)

    def markdown(self) -> str:
        """Return the figures as a Markdown table with its notes."""
        return tables.markdown(self)

    def rows(self) -> list[dict[str, Any]]:
        """Return the figures as plain values for JSON, one mapping per optimizer."""
        return [tables.plain(self, entry) for entry in self.entries]


def summarize(folder: Path) -> Summary:
    """Summarize a results folder.

    Args:
        folder: A folder written by `natgrad compare` or `natgrad run`.

    Returns:
        Final losses and metrics, and updates, epochs and seconds to the target, per optimizer.

    Raises:
        ResultsError: The folder cannot be read as results.
    """
    return summary_of(read_results(folder))


def summary_of(results: Results) -> Summary:
    """Summarize results that were read before; see `summarize`."""
    target = choose_target(results.runs)
    planned = len(results.seeds)
    entries = tuple(
        _entry(name, runs, target.loss if target else math.nan, planned)
        for name, runs in results.runs.items()
    )
    reference = next((entry for entry in entries if entry.optimizer == REFERENCE), None)
    recipe = results.part("recipe")
    status = results.manifest.get("status")
    return Summary(
        title=true_title(
            str(recipe.get("title") or recipe.get("name") or "Comparison"),
            str(results.part("data").get("name") or ""),
        ),
        metric=results.metric,
        target=target,
        entries=tuple(_relate(entry, reference) for entry in entries),
        status=status if status in ("running", "interrupted") else "finished",
        tenths=tenths(results),
        race=race(results),
    )


def choose_target(runs: Mapping[str, Sequence[Run]]) -> Target | None:
    """Return the target: the median final validation loss of `sgd`.

    With an even number of seeds this is the upper median, a value that was measured, so that more
    than half of the seeds of `sgd` reach it. Without a finished run of `sgd` the target is
    the worst seed of the optimizer with the lowest median; without any finished run there is none.
    """
    finals = {
        name: [run.final("validation_loss") for run in group if run.finished]
        for name, group in runs.items()
    }
    finals = {name: values for name, values in finals.items() if values}
    if REFERENCE in finals:
        loss = statistics.median_high(finals[REFERENCE])
        return Target(loss, f"{display_name(REFERENCE)}'s final validation loss", REFERENCE)
    if not finals:
        return None
    best = min(finals, key=lambda name: statistics.median(finals[name]))
    name = f"the final validation loss of {display_name(best)}'s worst seed"
    return Target(max(finals[best]), name, best)


def _entry(name: str, runs: Sequence[Run], target: float, planned: int) -> OptimizerSummary:
    finished = [run for run in runs if run.finished]
    diverged = [run for run in runs if run.status == "diverged"]
    counted = len(finished) + len(diverged)
    crossings = {
        axis: [first_crossing(run.rows, target, axis) for run in finished]
        + [math.inf] * len(diverged)
        for axis in get_args(Axis)
    }
    final = {quantity: _spread(finished, quantity) for quantity in get_args(Quantity)}
    costs = [cost for cost in map(_ms_per_update, finished) if cost is not None]
    return OptimizerSummary(
        optimizer=name,
        finished=len(finished),
        diverged=len(diverged),
        unfinished=max(len(runs), planned) - counted,
        final={quantity: spread for quantity, spread in final.items() if spread is not None},
        reached=sum(math.isfinite(x) for x in crossings["updates"]),
        to_target={axis: _median(places) for axis, places in crossings.items()},
        ms_per_update=statistics.median(costs) if costs else None,
        times_reference={},
    )


def _relate(entry: OptimizerSummary, reference: OptimizerSummary | None) -> OptimizerSummary:
    if reference is None:
        return entry
    pairs = {
        "updates": (entry.to_target["updates"], reference.to_target["updates"]),
        "seconds": (entry.to_target["seconds"], reference.to_target["seconds"]),
        "ms_per_update": (entry.ms_per_update, reference.ms_per_update),
    }
    ratios = {key: a / b if a is not None and b else None for key, (a, b) in pairs.items()}
    return replace(entry, times_reference=ratios)


def _spread(runs: Sequence[Run], quantity: Quantity) -> Spread | None:
    values = [value for run in runs if math.isfinite(value := run.final(quantity))]
    if not values:
        return None
    return Spread(statistics.fmean(values), deviation(values), len(values))


def _median(values: Sequence[float]) -> float | None:
    median = statistics.median(values) if values else math.inf
    return median if math.isfinite(median) else None


def _ms_per_update(run: Run) -> float | None:
    last = run.rows[-1]
    # an evaluation before the first update is at 0 seconds
    return 1000 * last.seconds / last.updates if last.updates > 0 else None
