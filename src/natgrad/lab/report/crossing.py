"""Where a curve first reaches a value, and its value at a place."""

from __future__ import annotations

import math
from collections.abc import Sequence

from natgrad.lab.report.read import Axis, Quantity, Row


def first_crossing(
    rows: Sequence[Row], target: float, axis: Axis, quantity: Quantity = "validation_loss"
) -> float:
    """Return where the running minimum of a loss first reaches the target.

    Linear between the two evaluations around the crossing; evaluations without a finite loss are
    left out.

    Args:
        rows: Evaluations in order.
        target: The loss to reach.
        axis: The unit of the answer.
        quantity: Which loss.

    Returns:
        The place on the axis, infinity where the target is not reached.
    """
    before: tuple[float, float] | None = None
    for row in rows:
        x, loss = row.x(axis), row.y(quantity)
        if not math.isfinite(loss):
            continue
        if loss <= target:
            if before is None or before[1] == loss:
                return x
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (x - before[0])
        before = (x, loss if before is None else min(before[1], loss))
    return math.inf


def value_at(rows: Sequence[Row], place: float, axis: Axis, quantity: Quantity) -> float:
    """Return a curve's value at a place, linear between the two evaluations around it.

    Evaluations without a finite value are left out.

    Args:
        rows: Evaluations in order.
        place: On the axis.
        axis: Its unit.
        quantity: Which curve.

    Returns:
        The value; NaN before the first evaluation and after the last one.
    """
    before: tuple[float, float] | None = None
    for row in rows:
        x, y = row.x(axis), row.y(quantity)
        if not math.isfinite(y):
            continue
        if math.isclose(x, place):
            return y
        if x > place:
            if before is None:
                return math.nan
            share = (place - before[0]) / (x - before[0])
            return before[1] + share * (y - before[1])
        before = (x, y)
    return math.nan
