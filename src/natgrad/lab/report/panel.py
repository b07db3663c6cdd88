"""One pair of axes: a loss or metric of all optimizers against epochs or seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from natgrad.lab.report.curves import Curve, curve, drawn, trail
from natgrad.lab.report.limits import Limits, limits
from natgrad.lab.report.read import Axis, Quantity, Results
from natgrad.lab.report.style import INK, Look, literal, plain_logarithm
from natgrad.lab.report.summary import Summary

__all__ = ["Panel", "curves", "draw_panel", "label", "limits_of", "panels"]

MARKS = 7
DECADES_LABELLED = 1e3  #: over more of them, powers of ten alone are labelled


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a quantity against epochs, updates or seconds.

    Attributes:
        quantity: What is drawn.
        axis: What it is drawn against.
        beside: Quantities drawn to the same scale in the panels next to it.
    """

    quantity: Quantity
    axis: Axis
    beside: tuple[Quantity, ...] = ()


def panels(parts: Sequence[str], kind: str, axis: Axis) -> tuple[Panel, ...]:
    """A row of panels: the loss or metric of these parts of the data, to one scale."""
    quantities: tuple[Quantity, ...] = tuple(f"{part}_{kind}" for part in parts)  # type: ignore
    return tuple(Panel(quantity, axis, quantities) for quantity in quantities)


def draw_panel(
    ax: Axes, panel: Panel, results: Results, summary: Summary, look: Mapping[str, Look]
) -> None:
    """Draw a quantity of all optimizers; the axis holds what is drawn beside it, too."""
    lines = curves(panel.quantity, panel.axis, results)
    ends = limits_of(panel, results)
    seen = ends.drawable if ends else math.inf
    for number, (name, runs) in enumerate(results.runs.items()):
        if name in lines:
            _line(ax, lines[name].below(seen), look[name], number)
        for run in runs:
            if run.status == "diverged":
                x, y = trail(run, panel.axis, panel.quantity)
                _lost(ax, x, np.minimum(y, seen), look[name])
    if ends:
        _scale(ax, ends)
    if panel.quantity == "validation_loss" and summary.target is not None:
        ax.axhline(summary.target.loss, color=INK, linewidth=0.8, alpha=0.5, zorder=1)
    ax.set_xlabel(_along(panel.axis, results))
    ax.set_title(literal(label(panel.quantity, results)), loc="left")


def curves(quantity: Quantity, axis: Axis, results: Results) -> dict[str, Curve]:
    """Return the curves of a quantity by optimizer, of those that have one."""
    found = {name: curve(drawn(runs), axis, quantity) for name, runs in results.runs.items()}
    return {name: line for name, line in found.items() if line is not None}


def _line(ax: Axes, line: Curve, look: Look, number: int) -> None:
    ax.fill_between(line.x, line.low, line.high, color=look.colour, alpha=0.18, linewidth=0)
    ax.plot(
        line.x,
        line.mean,
        color=look.colour,
        marker=look.marker,
        linestyle=look.dash,
        markevery=_spaced(line, number),
        zorder=3,
    )


def _lost(ax: Axes, x: np.ndarray, y: np.ndarray, look: Look) -> None:
    if len(x):
        ax.plot(x, y, color=look.colour, linewidth=0.8, alpha=0.8, scaley=False)
        ax.plot(x[-1:], y[-1:], color=look.colour, marker="x", markersize=6, scaley=False)


def _spaced(line: Curve, number: int) -> list[int]:
    # markers stand evenly along x, shifted per optimizer so that they don't hide each other
    places = np.linspace(line.x[0], line.x[-1], MARKS + 1)[:-1]
    step = (line.x[-1] - line.x[0]) / MARKS
    shifted = places + step * ((number % 4 + 0.5) / 4)
    return sorted({int(np.abs(line.x - place).argmin()) for place in shifted})


def limits_of(panel: Panel, results: Results) -> Limits | None:
    """Return where a panel's axis ends, with what is drawn beside it; None where nothing is."""
    scaled = [
        line
        for quantity in (panel.quantity, *panel.beside)
        for line in curves(quantity, panel.axis, results).values()
    ]
    loss = panel.quantity.endswith("_loss")
    most = 100.0 if results.metric.unit == "%" else math.inf
    falls = loss or results.metric.better == "lower"
    return limits(scaled, loss, falls, math.inf if loss else most) if scaled else None


def _scale(ax: Axes, ends: Limits) -> None:
    if ends.log:
        ax.set_yscale("log")
        few = ends.high / ends.low < DECADES_LABELLED
        plain_logarithm(ax.yaxis, (1.0, 2.0, 5.0) if few else (1.0,))
    ax.set_ylim(ends.low, ends.high)


def _along(axis: Axis, results: Results) -> str:
    """The label of an axis: epochs with the updates in each, where that is one number for all."""
    lasts = [run.rows[-1] for runs in results.runs.values() for run in runs if run.rows]
    each = {round(row.updates / row.epochs) for row in lasts if row.epochs > 0}
    if axis != "epochs" or len(each) != 1:
        return axis
    return f"epochs of {each.pop()} updates"


def label(quantity: Quantity, results: Results) -> str:
    """Return what a quantity is called, with its unit."""
    part, kind = quantity.split("_")
    name = "training" if part == "train" else part
    if kind == "loss":
        return f"{name} loss"
    unit = f" [{results.metric.unit}]" if results.metric.unit else ""
    return f"{name} {results.metric.name}{unit}"
