"""Learning curves over seeds: mean and range at equal updates, else at equal places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from natgrad.lab.report.read import Axis, Quantity, Run

Array = npt.NDArray[np.float64]
MOST_POINTS = 400
UPDATE, PLACE, VALUE = range(3)  #: columns of a trace


@dataclass(frozen=True)
class Curve:
    """Mean, least and greatest value of several runs, at the mean of their places on the axis."""

    x: Array
    mean: Array
    low: Array
    high: Array
    runs: int

    def below(self, most: float) -> Curve:
        """Return the curve with what is greater than a value drawn at that."""
        mean, low, high = (np.minimum(each, most) for each in (self.mean, self.low, self.high))
        return replace(self, mean=mean, low=low, high=high)


def curve(runs: Sequence[Run], axis: Axis, quantity: Quantity) -> Curve | None:
    """Return the curve of one optimizer.

    Runs that begin and end at the same updates are averaged at equal updates, their places on the
    axis like their values: against seconds, too, the curve begins and ends with the mean of what
    the runs began and ended with. Other runs, whose budget is in seconds, are averaged at equal
    places of the axis. In seconds a run has the value of its initial weights until its first
    evaluation, and keeps that of its last, once it is finished; in epochs and updates the curve
    ends with the shortest run. Between evaluations values are linear.

    Args:
        runs: The runs of one optimizer; see `drawn`.
        axis: What to draw against.
        quantity: What to draw.

    Returns:
        The curve, None where fewer than two points are shared.
    """
    traces = [trace for run in runs if len(trace := _trace(run, axis, quantity)) > 1]
    if not traces:
        return None
    finished = all(run.finished for run in runs)
    if not finished:  # as far as all of them have got
        reached = min(trace[-1, UPDATE] for trace in traces)
        traces = [trace[trace[:, UPDATE] <= reached] for trace in traces]
    if _alike(traces):
        grid = _grid(traces, UPDATE)
        places = _at(grid, traces, UPDATE, PLACE).mean(0)
        return _over_runs(places, _at(grid, traces, UPDATE, VALUE)) if len(grid) > 1 else None
    grid = _grid(traces, PLACE, *_stretch(traces, axis, finished))
    return _over_runs(grid, _at(grid, traces, PLACE, VALUE)) if len(grid) > 1 else None


def _trace(run: Run, axis: Axis, quantity: Quantity) -> Array:
    """The finite points of a run: updates, place on the axis and value of each."""
    rows = [(row.updates, row.x(axis), row.y(quantity)) for row in run.rows]
    array = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return array[np.isfinite(array).all(1)]


def _stretch(traces: Sequence[Array], axis: Axis, finished: bool) -> tuple[float, float]:
    first = [float(trace[0, PLACE]) for trace in traces]
    last = [float(trace[-1, PLACE]) for trace in traces]
    if axis != "seconds":
        return max(first), min(last)
    return min(first), max(last) if finished else min(last)


def _alike(traces: Sequence[Array]) -> bool:
    return len({(trace[0, UPDATE], trace[-1, UPDATE]) for trace in traces}) == 1


def _grid(
    traces: Sequence[Array], by: int, start: float = -math.inf, end: float = math.inf
) -> Array:
    grid = np.unique(np.concatenate([trace[:, by] for trace in traces]))
    grid = grid[(grid >= start) & (grid <= end)]
    return grid if len(grid) <= MOST_POINTS else np.linspace(grid[0], grid[-1], MOST_POINTS)


def _at(grid: Array, traces: Sequence[Array], by: int, what: int) -> Array:
    return np.stack([np.interp(grid, trace[:, by], trace[:, what]) for trace in traces])


def _over_runs(x: Array, values: Array) -> Curve:
    return Curve(x, values.mean(0), values.min(0), values.max(0), len(values))


def trail(run: Run, axis: Axis, quantity: Quantity) -> tuple[Array, Array]:
    """Return the finite points of a single run, to be drawn as they are."""
    trace = _trace(run, axis, quantity)
    return trace[:, PLACE], trace[:, VALUE]


def drawn(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that a curve is made of: the finished ones, else what there is so far."""
    finished = [run for run in runs if run.finished]
    return finished or [run for run in runs if run.status in ("running", "interrupted")]
