"""The figures of a comparison: losses and metric against epochs, updates and seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from natgrad.lab.report.curves import Curve, curve, drawn, trail
from natgrad.lab.report.read import Axis, Quantity, Results
from natgrad.lab.report.style import (
    INK,
    Look,
    inline_svg,
    literal,
    looks,
    plain_logarithm,
    save_figure,
    styled,
)
from natgrad.lab.report.summary import Summary
from natgrad.lab.report.text import display_name, significant

AXES: tuple[Axis, ...] = ("epochs", "updates", "seconds")
MARKS = 7
LOG_FROM = 8.0
ERRORS_FROM = 1e3  #: a metric that falls over so many sizes is an error
DECADES_LABELLED = 1e3  #: over more of them, powers of ten alone are labelled
DASHES = (0, (4, 2))


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a quantity (with its companion, dashed) against epochs, updates, seconds.

    Attributes:
        quantity: Drawn solid.
        companion: Drawn dashed and hollow.
        axis: What it is drawn against.
    """

    quantity: Quantity
    axis: Axis
    companion: Quantity | None = None


@dataclass(frozen=True)
class Drawing:
    """A panel as it stands on the page."""

    panel: Panel
    svg: str


PANELS: tuple[tuple[Panel, ...], ...] = (
    tuple(Panel("train_loss", axis) for axis in AXES),
    tuple(Panel("validation_loss", axis) for axis in AXES),
    tuple(Panel("test_metric", axis, "train_metric") for axis in AXES),
)
OVERVIEW: tuple[tuple[Panel, ...], ...] = (
    (
        Panel("validation_loss", "updates"),
        Panel("validation_loss", "seconds"),
        Panel("test_metric", "seconds", "train_metric"),
    ),
)
CAPTION = (
    "Lines: mean over the finished seeds; bands: least to greatest seed, interpolated linearly "
    "where seeds are evaluated at different places and ending with the shortest of them. "
    "Dotted: the target. A seed that diverged is drawn thin up to its last finite value, marked "
    "with a cross. Seconds count training steps and what the optimizer prepares."
)


def write_figures(results: Results, summary: Summary, folder: Path) -> list[Path]:
    """Write the figures for papers: all panels, and an overview of three, as PDF and PNG.

    Args:
        results: The results.
        summary: Their summary, for the target.
        folder: Where to write; made if missing.

    Returns:
        The files written.
    """
    paths = []
    with styled():
        for name, grid in {"curves": PANELS, "overview": OVERVIEW}.items():
            paths += save_figure(_sheet(results, summary, grid), folder / name)
    return paths


def page_panels(results: Results, summary: Summary) -> list[Drawing]:
    """Return every panel as inline SVG, in reading order."""
    look = looks(results.optimizers)
    drawings = []
    with styled():
        for number, panel in enumerate(panel for row in PANELS for panel in row):
            figure = Figure(figsize=(3.6, 2.5))
            FigureCanvasAgg(figure)
            # fixed margins: the axes of all panels of the page stand in line
            ax = figure.add_axes((0.155, 0.165, 0.815, 0.805))
            draw_panel(ax, panel, results, summary, look)
            ax.yaxis.set_label_coords(-0.135, 0.5)
            svg = inline_svg(figure, f"f{number}", describe(panel, results))
            drawings.append(Drawing(panel, svg))
    return drawings


def page_legend(results: Results) -> list[tuple[str, str]]:
    """Return what every line stands for: its name, and a piece of it as inline SVG."""
    entries = []
    with styled():
        for number, (name, handle) in enumerate(_handles(results)):
            figure = Figure(figsize=(0.42, 0.16))
            FigureCanvasAgg(figure)
            marker = handle.get_marker()
            handle.set(marker="", xdata=[0.0, 1.0], ydata=[0.5, 0.5])
            figure.add_artist(handle)
            dot = Line2D([0.5], [0.5], color=handle.get_color(), marker=marker, markersize=6)
            figure.add_artist(dot)
            entries.append((name, inline_svg(figure, f"l{number}", "")))
    return entries


def describe(panel: Panel, results: Results) -> str:
    """Say in words what a panel shows, and where its curves end."""
    ends = []
    for name, runs in results.runs.items():
        line = curve(drawn(runs), panel.axis, panel.quantity)
        if line is not None:
            ends.append(
                f"{display_name(name)} {significant(float(line.mean[-1]))} "
                f"at {significant(float(line.x[-1]))} {panel.axis}"
            )
    what = _label(panel.quantity, results)
    tail = f" Curves end at: {'; '.join(ends)}." if ends else ""
    return f"{what[0].upper()}{what[1:]} against {panel.axis}.{tail}"


def _sheet(results: Results, summary: Summary, grid: Sequence[Sequence[Panel]]) -> Figure:
    rows, columns = len(grid), len(grid[0])
    names, handles = zip(*_handles(results), strict=True)
    labels = [literal(name) for name in names]
    abreast = _abreast(labels, 3.3 * columns)
    height = 2.35 * rows + 0.17 + 0.18 * math.ceil(len(labels) / abreast)
    figure = Figure(figsize=(3.3 * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    look = looks(results.optimizers)
    for i, row in enumerate(grid):
        for j, panel in enumerate(row):
            draw_panel(axes[i][j], panel, results, summary, look)
    figure.legend(handles, labels, loc="outside upper center", ncols=abreast)
    return figure


def _abreast(labels: Sequence[str], inches: float) -> int:
    """Return how many columns of a legend fit; matplotlib splits the entries evenly over them."""
    for columns in range(min(len(labels), 8), 1, -1):
        widest = [max(map(len, part)) for part in np.array_split(np.array(labels), columns)]
        if sum(0.58 + 0.072 * length for length in widest) <= inches:
            return columns
    return 1


def _handles(results: Results) -> list[tuple[str, Line2D]]:
    handles = [
        (display_name(name), Line2D([], [], color=style.colour, marker=style.marker))
        for name, style in looks(results.optimizers).items()
    ]
    dashed = Line2D([], [], color=INK, linestyle=DASHES, linewidth=1.1)
    name = results.metric.name
    return [*handles, (f"{name}: test", Line2D([], [], color=INK)), (f"{name}: train", dashed)]


def draw_panel(
    ax: Axes, panel: Panel, results: Results, summary: Summary, look: Mapping[str, Look]
) -> None:
    """Draw a quantity of all optimizers; the axis holds what is drawn solid and dashed."""
    shown: list[Curve] = []
    for number, (name, runs) in enumerate(results.runs.items()):
        if panel.companion is not None:
            dashed = curve(drawn(runs), panel.axis, panel.companion)
            if dashed is not None:
                _companion(ax, dashed, look[name], number)
                shown.append(replace(dashed, low=dashed.mean, high=dashed.mean))
        line = curve(drawn(runs), panel.axis, panel.quantity)
        if line is not None:
            _line(ax, line, look[name], number)
            shown.append(line)
        for run in runs:
            if run.status == "diverged":
                _lost(ax, *trail(run, panel.axis, panel.quantity), look[name])
    _scale(ax, panel, shown, results.metric.unit == "%")
    if panel.quantity == "validation_loss" and summary.target is not None:
        ax.axhline(summary.target.loss, color=INK, linewidth=0.9, linestyle=":", zorder=1)
    ax.set_xlabel(panel.axis)
    ax.set_ylabel(literal(_label(panel.quantity, results, panel.companion)))


def _line(ax: Axes, line: Curve, look: Look, number: int) -> None:
    ax.fill_between(line.x, line.low, line.high, color=look.colour, alpha=0.18, linewidth=0)
    ax.plot(
        line.x,
        line.mean,
        color=look.colour,
        marker=look.marker,
        markevery=_spaced(line, number),
        zorder=3,
    )


def _companion(ax: Axes, line: Curve, look: Look, number: int) -> None:
    ax.plot(
        line.x,
        line.mean,
        color=look.colour,
        linestyle=DASHES,
        linewidth=1.1,
        marker=look.marker,
        markerfacecolor="none",
        markersize=3.5,
        markeredgewidth=0.8,
        markevery=_spaced(line, number + 2),
        zorder=2,
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


def _scale(ax: Axes, panel: Panel, lines: Sequence[Curve], percent: bool) -> None:
    if not lines:
        return
    low = min(float(line.low.min()) for line in lines)
    high = max(float(line.high.max()) for line in lines)
    spread = LOG_FROM if panel.quantity.endswith("_loss") else ERRORS_FROM
    if low > 0 and high / low > spread:
        ax.set_yscale("log")
        plain_logarithm(ax.yaxis, (1.0, 2.0, 5.0) if high / low < DECADES_LABELLED else (1.0,))
        ax.set_ylim(low / 1.15, high * 1.15)
    elif panel.quantity.endswith("_metric"):
        ax.set_ylim(*_late_range(lines, 100.0 if percent else math.inf))


def _late_range(lines: Sequence[Curve], most: float) -> tuple[float, float]:
    # the steep beginning would press all that matters into one line
    late = [line.x >= line.x[0] + 0.25 * (line.x[-1] - line.x[0]) for line in lines]
    low = min(float(line.low[keep].min()) for line, keep in zip(lines, late, strict=True))
    high = max(float(line.high[keep].max()) for line, keep in zip(lines, late, strict=True))
    margin = 0.08 * (high - low) or 1e-3 * max(1.0, math.fabs(high))
    return low - margin, min(high + 2 * margin, most + margin / 2)


def _label(quantity: Quantity, results: Results, companion: Quantity | None = None) -> str:
    part, kind = quantity.split("_")
    if kind == "loss":
        names = {"train": "training loss", "validation": "validation loss", "test": "test loss"}
        return names[part]
    unit = f" [{results.metric.unit}]" if results.metric.unit else ""
    if companion is None:
        return f"{part} {results.metric.name}{unit}"
    return f"{results.metric.name}{unit}"
