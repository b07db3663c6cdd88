"""Where our counterpart of a number of the paper is read from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from natgrad.lab.report.crossing import first_crossing
from natgrad.lab.report.read import Results, Run
from natgrad.lab.report.summary import Summary
from natgrad.lab.report.text import deviation

__all__ = ["Ours", "ours_of"]


@dataclass(frozen=True)
class Ours:
    """Mean and sample standard deviation of n seeds; no deviation for a single one.

    Where the optimizer diverged from every seed, or at every point of its grid, the mean is NaN.
    ``by_seed`` is empty where only mean and deviation are known.
    """

    mean: float
    sd: float | None
    n: int
    by_seed: Mapping[str, float] = field(default_factory=dict)

    def paired(self, other: Ours) -> list[float] | None:
        """Differences seed by seed; None where the two are not known from the same two or more."""
        mine, theirs = self.by_seed, other.by_seed
        if len(mine) < 2 or mine.keys() != theirs.keys():
            return None
        return [mine[seed] - theirs[seed] for seed in mine]


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
        return Ours(float(reading["value"]), 0.0, max(1, len(results.seeds)))
    if kind == "cell":
        return _cell(reading, results)
    runs = [run for run in results.runs.get(reading["optimizer"], ()) if run.finished]
    if not runs and _diverged(reading["optimizer"], results):
        return Ours(math.nan, None, len(results.runs.get(reading["optimizer"], ())))
    if kind == "final":
        values = {run.label: run.final(reading["quantity"]) for run in runs}
        if reading["complement"]:
            values = {seed: 100 - value for seed, value in values.items()}
        return _over(values)
    if kind == "steptime":
        others = [run for run in results.runs.get(reading["relative_to"], ()) if run.finished]
        return _over(_ratios(runs, others))
    if kind == "reached" and summary.target is not None:
        loss = summary.target.loss
        places = {run.label: first_crossing(run.rows, loss, reading["axis"]) for run in runs}
        complete = len(runs) == len(results.runs.get(reading["optimizer"], ()))
        return _over(places) if complete and all(map(math.isfinite, places.values())) else None
    return None


def _diverged(optimizer: str, results: Results) -> bool:
    runs = results.runs.get(optimizer, ())
    losses = results.part("tuning_losses").get(optimizer) or []
    nowhere = bool(losses) and all(loss is None for loss in losses)
    return nowhere or (bool(runs) and all(run.status == "diverged" for run in runs))


def _ratios(runs: Sequence[Run], others: Sequence[Run]) -> dict[str, float]:
    """Seconds an epoch over the other's, seed by seed: both took turns within a seed."""
    slow = {run.label: _seconds_per_epoch(run) for run in others}
    pairs = {run.label: (_seconds_per_epoch(run), slow.get(run.label)) for run in runs}
    return {
        seed: mine / other for seed, (mine, other) in pairs.items() if mine is not None and other
    }


def _seconds_per_epoch(run: Run) -> float | None:
    last = run.rows[-1]
    return last.seconds / last.epochs if last.epochs > 0 else None


def _cell(reading: Mapping[str, Any], results: Results) -> Ours | None:
    table = results.tables.get(reading["table"])
    if table is None:
        return None
    value = table.cell(reading["row"], reading["column"])
    if not isinstance(value, (int, float)):
        return None
    sd = table.cell(reading["row"], f"{reading['column']} sd")
    seeds = table.cell(reading["row"], "seeds")
    return Ours(
        float(value),
        float(sd) if isinstance(sd, (int, float)) else None,
        seeds if isinstance(seeds, int) else max(1, len(results.seeds)),
        table.by_seed.get(reading["row"], {}).get(reading["column"], {}),
    )


def _over(values: Mapping[str, float]) -> Ours | None:
    known = {seed: value for seed, value in values.items() if math.isfinite(value)}
    if not known:
        return None
    finite = list(known.values())
    return Ours(statistics.fmean(finite), deviation(finite), len(known), known)
