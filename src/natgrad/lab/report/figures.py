"""The figures of a comparison: losses and metric, training and test side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from natgrad.lab.report.limits import TIMES_THE_START
from natgrad.lab.report.panel import Panel, curves, draw_panel, label, limits_of, panels
from natgrad.lab.report.read import Axis, Results
from natgrad.lab.report.style import inline_svg, literal, looks, save_figure, styled
from natgrad.lab.report.summary import Summary
from natgrad.lab.report.text import display_name, listed, significant

AXES: tuple[Axis, ...] = ("epochs", "seconds")
PARTS = ("train", "validation", "test")
PANEL_WIDTH = 2.5  #: inches: four fill the page of a paper at three quarters of the size


@dataclass(frozen=True)
class Drawing:
    """A panel as it stands on the page."""

    panel: Panel
    svg: str


PANELS = tuple(panels(PARTS, kind, axis) for kind in ("loss", "metric") for axis in AXES)
OVERVIEW = tuple(
    panels(("train", "test"), "loss", axis) + panels(("train", "test"), "metric", axis)
    for axis in AXES
)
CAPTION = (
    "Lines: mean over the finished seeds; bands: least to greatest seed. Seeds are averaged at "
    "equal updates, against their mean seconds; where the budget is in seconds, at equal seconds, "
    "or at equal epochs up to the end of the shortest. "
    "A seed that diverged is drawn thin up to its last finite value, marked with a cross. Seconds "
    "count training steps and what the optimizer prepares."
)
TARGET_CAPTION = "The thin grey line in the panels of the validation loss is the target."


def write_figures(results: Results, summary: Summary, folder: Path) -> list[Path]:
    """Write the figures for papers: all panels, and those of training and test, as PDF and PNG.

    Args:
        results: The results.
        summary: Their summary, for the target.
        folder: Where to write; made if missing.

    Returns:
        The files written.
    """
    with styled():
        paths = save_figure(_sheet(results, summary, PANELS), folder / "curves")
    return paths + save_figure(overview(results, summary), folder / "overview")


def overview(results: Results, summary: Summary) -> Figure:
    """Draw loss and metric of training and test side by side, against epochs and seconds."""
    with styled():
        return _sheet(results, summary, OVERVIEW)


def page_panels(results: Results, summary: Summary) -> list[Drawing]:
    """Return every panel as inline SVG, in reading order."""
    look = looks(results.optimizers)
    drawings = []
    with styled():
        shown = _measured(results, PANELS)
        for number, panel in enumerate(panel for row in shown for panel in row):
            figure = Figure(figsize=(3.6, 2.6))
            FigureCanvasAgg(figure)
            # fixed margins: the axes of all panels of the page stand in line
            ax = figure.add_axes((0.115, 0.165, 0.855, 0.725))
            draw_panel(ax, panel, results, summary, look)
            svg = inline_svg(figure, f"f{number}", describe(panel, results))
            drawings.append(Drawing(panel, svg))
    return drawings


def page_legend(results: Results) -> list[tuple[str, str]]:
    """Return what every line stands for: its name, and a piece of it as inline SVG."""
    entries = []
    with styled():
        for number, (name, handle) in enumerate(_handles(results)):
            figure = Figure(figsize=(0.5, 0.16))
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
    for name, line in curves(panel.quantity, panel.axis, results).items():
        ends.append(
            f"{display_name(name)} {significant(float(line.mean[-1]))} "
            f"at {significant(float(line.x[-1]))} {panel.axis}"
        )
    what = label(panel.quantity, results)
    tail = f" Curves end at: {'; '.join(ends)}." if ends else ""
    return f"{what[0].upper()}{what[1:]} against {panel.axis}.{tail}"


def describe_overview(results: Results) -> str:
    """Say in words what the overview shows."""
    rows = _measured(results, OVERVIEW)
    whats = listed([label(panel.quantity, results) for panel in rows[0]])
    axes = listed([row[0].axis for row in rows])
    return f"{whats[0].upper()}{whats[1:]}, from top to bottom against {axes}; {about(results)}"


def caption(results: Results, grid: Sequence[Sequence[Panel]] = PANELS) -> str:
    """Return how curves are made, and which of these panels' curves leave them at the top."""
    return " ".join([CAPTION, *_leaving(results, grid)])


def _leaving(results: Results, grid: Sequence[Sequence[Panel]]) -> list[str]:
    """A sentence for the loss and for the metric of which a curve, or its band, is cut off."""
    gone: dict[str, dict[str, None]] = {}
    for panel in (panel for row in grid for panel in row):
        ends = limits_of(panel, results)
        for name, line in curves(panel.quantity, panel.axis, results).items():
            if ends and float(line.high.max()) > ends.ceiling:
                kind = panel.quantity.partition("_")[2]
                what = "loss" if kind == "loss" else results.metric.name
                gone.setdefault(what, {})[display_name(name)] = None
    return [
        f"In the panels of the {what} {listed([*names])} "
        f"{'goes' if len(names) == 1 else 'go'} beyond the upper end, which is "
        f"{TIMES_THE_START:g} times the greatest value at the start."
        for what, names in gone.items()
    ]


def about(results: Results) -> str:
    """Return what every figure says of itself: the data's name, the profile, the seeds."""
    seeds = len(results.seeds)
    profile = results.part("profile").get("name")
    found = (
        str(results.part("data").get("name") or ""),
        f"{profile} profile" if profile else "",
        f"{seeds} seed{'' if seeds == 1 else 's'}" if seeds else "",
    )
    return ", ".join(part for part in found if part)


def _measured(results: Results, grid: Sequence[Sequence[Panel]]) -> list[list[Panel]]:
    """Leave out the columns of which nothing was measured, unless that is all of them."""
    kept = [[panel for panel in row if curves(panel.quantity, panel.axis, results)] for row in grid]
    even = len({len(row) for row in kept}) == 1 and bool(kept[0])
    return kept if even else [list(row) for row in grid]


def _sheet(results: Results, summary: Summary, whole: Sequence[Sequence[Panel]]) -> Figure:
    grid = _measured(results, whole)
    rows, columns = len(grid), len(grid[0])
    width = PANEL_WIDTH * columns
    names, handles = zip(*_handles(results), strict=True)
    labels = [literal(name) for name in names]
    abreast = _abreast(labels, width)
    height = 2.1 * rows + 0.37 + 0.18 * math.ceil(len(labels) / abreast)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    look = looks(results.optimizers)
    for i, row in enumerate(grid):
        for j, panel in enumerate(row):
            draw_panel(axes[i][j], panel, results, summary, look)
    title = literal(about(results))
    figure.legend(handles, labels, loc="outside upper center", ncols=abreast, title=title)
    return figure


def _abreast(labels: Sequence[str], inches: float) -> int:
    """Return how many columns of a legend fit; matplotlib splits the entries evenly over them."""
    for columns in range(min(len(labels), 8), 1, -1):
        widest = [max(map(len, part)) for part in np.array_split(np.array(labels), columns)]
        if sum(0.66 + 0.072 * length for length in widest) <= inches:
            return columns
    return 1


def _handles(results: Results) -> list[tuple[str, Line2D]]:
    return [
        (
            display_name(name),
            Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.dash),
        )
        for name, style in looks(results.optimizers).items()
    ]
