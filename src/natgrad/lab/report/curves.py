"""Learning curves over seeds: mean and range on a grid that all seeds share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from natgrad.lab.report.read import Axis, Quantity, Run

Array = npt.NDArray[np.float64]
MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """Mean, least and greatest value of several runs over a shared grid."""

    x: Array
    mean: Array
    low: Array
    high: Array
    runs: int


def curve(runs: Sequence[Run], axis: Axis, quantity: Quantity) -> Curve | None:
    """Return the curve of one optimizer.

    Values are interpolated linearly at the evaluation points of all runs, within the stretch that
    all of them cover (in seconds no two runs end at the same place).

    Args:
        runs: The runs of one optimizer; see `drawn`.
        axis: What to draw against.
        quantity: What to draw.

    Returns:
        The curve, None where fewer than two points are shared.
    """
    traces = [points for run in runs if len((points := trail(run, axis, quantity))[0]) > 1]
    if not traces:
        return None
    start, end = max(x[0] for x, _ in traces), min(x[-1] for x, _ in traces)
    grid = np.unique(np.concatenate([x for x, _ in traces]))
    grid = grid[(grid >= start) & (grid <= end)]
    if len(grid) > MOST_POINTS:
        grid = np.linspace(start, end, MOST_POINTS)
    if len(grid) < 2:
        return None
    values = np.stack([np.interp(grid, x, y) for x, y in traces])
    return Curve(grid, values.mean(0), values.min(0), values.max(0), len(traces))


def trail(run: Run, axis: Axis, quantity: Quantity) -> tuple[Array, Array]:
    """Return the finite points of a single run, to be drawn as they are."""
    pairs = [(row.x(axis), row.y(quantity)) for row in run.rows]
    pairs = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def drawn(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that a curve is made of: the finished ones, else what there is so far."""
    finished = [run for run in runs if run.finished]
    return finished or [run for run in runs if run.status in ("running", "interrupted")]
