"""How the validation loss depends on each setting, over all trials of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from natgrad.lab.report.style import COLOURS, INK, literal, plain_logarithm
from natgrad.lab.report.text import display_name

__all__ = ["best_trial", "interaction", "sensitivity", "varied"]

WIDE = 8.0  #: values of a positive setting over so many sizes are drawn in the logarithm
FEWEST = 6  #: points that a contour can be drawn through
BLOWN_UP = 2.0  #: times the loss before training
SHADES = "cividis"  #: even in grey, and for the colour-blind
BLUE, RED = COLOURS[0], COLOURS[1]


def varied(search: Mapping[str, Any]) -> list[str]:
    """The settings of which more than one value was tried, in order."""
    keys = dict.fromkeys(key for trial in search["trials"] for key in trial["settings"])
    return [key for key in keys if len({repr(v) for v in _values(search, key)}) > 1]


def sensitivity(search: Mapping[str, Any]) -> Figure:
    """The validation loss of every trial against each setting, one panel each.

    Filled: trained to the end; hollow: pruned, where it was left; cross on the upper edge:
    diverged, or ended above twice the loss before training; ring: the best.
    """
    keys = varied(search) or list(dict.fromkeys(k for t in search["trials"] for k in t["settings"]))
    figure = Figure(figsize=(0.6 + 2.9 * len(keys), 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    for ax, key in zip(axes, keys, strict=True):
        _panel(ax, search, key)
    axes[0].set_ylabel("validation loss")
    figure.suptitle(display_name(search["optimizer"]), fontsize=9)
    handles = [
        Line2D([], [], color=BLUE, marker="o", linestyle="", label="finished"),
        Line2D([], [], color=BLUE, marker="o", linestyle="", mfc="none", label="pruned"),
        Line2D([], [], color=RED, marker="x", linestyle="", label="diverged or blown up"),
        Line2D([], [], color=INK, marker="o", ms=9, linestyle="", mfc="none", label="best"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def interaction(search: Mapping[str, Any]) -> Figure | None:
    """Two settings: contours of the validation loss. More: parallel coordinates. One: nothing."""
    keys, done = varied(search), _finished(search)
    numeric = [key for key in keys if _numeric(_values(search, key))]
    if len(keys) == 2 and len(numeric) == 2 and _spread_out(done, numeric):
        return _contours(search, numeric)
    return _parallel(search, keys) if len(keys) > 1 and done else None


def _panel(ax: Axes, search: Mapping[str, Any], key: str) -> None:
    place = _places(search, key)
    losses = [t["validation_loss"] for t in _finished(search)]
    ax.set_xlabel(literal(key))
    _axis(ax, search, key)
    if losses and _logarithmic(losses):
        ax.set_yscale("log")
        plain_logarithm(ax.yaxis)
    for trial in search["trials"]:
        if key not in trial["settings"]:
            continue
        x = place[repr(trial["settings"][key])]
        if not _sane(trial):
            ax.plot([x], [0.98], color=RED, marker="x", transform=ax.get_xaxis_transform())
            continue
        face = BLUE if trial["ended"] == "finished" else "none"
        ax.plot([x], [trial["validation_loss"]], color=BLUE, marker="o", mfc=face)
    best = best_trial(search)
    if best is not None and key in best["settings"]:
        x = place[repr(best["settings"][key])]
        ax.plot([x], [best["validation_loss"]], color=INK, marker="o", ms=9, mfc="none")


def _contours(search: Mapping[str, Any], keys: Sequence[str]) -> Figure:
    done = _finished(search)
    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    z = np.array([t["validation_loss"] for t in done])
    # in the logarithm where a setting is drawn so: contours are straight between trials there
    where = [[_position(search, key, t["settings"][key]) for t in done] for key in keys]
    norm = _norm(z)
    levels = np.geomspace(z.min(), z.max(), 12) if isinstance(norm, LogNorm) else 12
    filled = ax.tricontourf(where[0], where[1], z, levels, norm=norm, cmap=SHADES)
    ax.plot(*where, color=INK, marker=".", linestyle="", ms=4)
    best = best_trial(search)
    if best is not None:
        ring = [[_position(search, key, best["settings"][key])] for key in keys]
        ax.plot(*ring, color=RED, marker="o", ms=9, mfc="none")
    ax.margins(0.04)
    ax.set(xlabel=literal(keys[0]), ylabel=literal(keys[1]))
    for axis, key in ((ax.xaxis, keys[0]), (ax.yaxis, keys[1])):
        if _logarithmic(_values(search, key)):
            ticks = _round_values(_values(search, key))
            axis.set_ticks(np.log10(ticks), [f"{tick:g}" for tick in ticks])
    _bar(figure, ax, filled)
    ax.set_title(f"{display_name(search['optimizer'])}: finished trials; ring: best", fontsize=9)
    return figure


def _parallel(search: Mapping[str, Any], keys: Sequence[str]) -> Figure:
    done = sorted(_finished(search), key=lambda t: -t["validation_loss"])
    figure = Figure(figsize=(1.2 + 1.5 * len(keys), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    norm = _norm(np.array([t["validation_loss"] for t in done]))
    shades = colormaps[SHADES]
    heights = {key: _heights(search, key) for key in keys}
    for number, trial in enumerate(done):
        y = [heights[key].get(repr(trial["settings"].get(key)), math.nan) for key in keys]
        last = number == len(done) - 1  # the best, drawn on top
        colour = RED if last else shades(norm(trial["validation_loss"]))
        ax.plot(range(len(keys)), y, color=colour, linewidth=2.4 if last else 1.1, marker="o", ms=3)
    ax.set_xticks(range(len(keys)), [literal(key) for key in keys])
    ax.set_yticks([])
    ax.set_xlim(-0.35, len(keys) - 0.65)
    ax.set_ylim(-0.12, 1.12)
    ax.spines["left"].set_visible(False)
    for x, key in enumerate(keys):
        ordered = sorted(heights[key].items(), key=lambda entry: entry[1])
        values = {repr(value): value for value in _values(search, key)}
        for (low, height), shift in ((ordered[0], -0.08), (ordered[-1], 0.08)):
            ax.text(x, height + shift, literal(_short(values[low])), ha="center", va="center")
    scalar = ScalarMappable(norm, SHADES)
    _bar(figure, ax, scalar)
    ax.set_title(f"{display_name(search['optimizer'])}: finished trials; thick: best", fontsize=9)
    return figure


def _bar(figure: Figure, ax: Axes, drawn: ScalarMappable) -> None:
    bar = figure.colorbar(drawn, ax=ax, label="validation loss")
    if isinstance(drawn.norm, LogNorm) and not isinstance(drawn, ContourSet):
        plain_logarithm(bar.ax.yaxis)
    else:
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        bar.ax.yaxis.set_minor_formatter(lambda value, _: "")


def _position(search: Mapping[str, Any], key: str, value: float) -> float:
    return math.log10(value) if _logarithmic(_values(search, key)) else float(value)


def _round_values(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten among the values; powers alone over many of them."""
    low, high = min(values), max(values)
    subs = (1, 2, 5) if high / low < 300 else (1,)
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [sub * 10.0**ten for ten in tens for sub in subs if low <= sub * 10.0**ten <= high]


def _norm(z: np.ndarray) -> Normalize:
    low, high = float(z.min()), float(z.max())
    if low > 0 and high / low > 2:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1e-12)


def _axis(ax: Axes, search: Mapping[str, Any], key: str) -> None:
    values = _values(search, key)
    if not _numeric(values):
        names = list(dict.fromkeys(_short(v) for v in values))
        ax.set_xticks(range(len(names)), [literal(name) for name in names])
    elif _logarithmic(values):
        ax.set_xscale("log")
        plain_logarithm(ax.xaxis, (1.0,) if max(values) / min(values) > 100 else (1.0, 2.0, 5.0))


def _places(search: Mapping[str, Any], key: str) -> dict[str, float]:
    """Where a value stands on its axis: itself, or its number where values are names."""
    values = {repr(value): value for value in _values(search, key)}
    if _numeric(list(values.values())):
        return {name: float(value) for name, value in values.items()}
    return {name: float(number) for number, name in enumerate(values)}


def _heights(search: Mapping[str, Any], key: str) -> dict[str, float]:
    """The same between 0 and 1."""
    places = _places(search, key)
    scaled = _scaled(search, key, np.array(list(places.values())))
    return dict(zip(places, scaled.tolist(), strict=True))


def _scaled(search: Mapping[str, Any], key: str, x: np.ndarray) -> np.ndarray:
    values = _values(search, key)
    logarithmic = _numeric(values) and _logarithmic(values)
    every = np.array(list(_places(search, key).values()))
    every, x = (np.log(every), np.log(x)) if logarithmic else (every, x)
    span = every.max() - every.min()
    scaled: np.ndarray = (x - every.min()) / span if span else np.zeros_like(x)
    return scaled


def _values(search: Mapping[str, Any], key: str) -> list[Any]:
    return [t["settings"][key] for t in search["trials"] if key in t["settings"]]


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _logarithmic(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > WIDE


def _finished(search: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [trial for trial in search["trials"] if trial["ended"] == "finished" and _sane(trial)]


def _sane(trial: Mapping[str, Any]) -> bool:
    """Whether a trial's loss is worth an axis: a few that blew up would flatten all others."""
    loss, curve = trial["validation_loss"], trial["curve"]
    if trial["ended"] == "diverged" or loss is None:
        return False
    return not curve or bool(loss <= BLOWN_UP * max(curve[0], 0.0))


def best_trial(search: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The trial whose settings were taken; None where none came to its end."""
    return next((t for t in search["trials"] if t["place"] == search["best"]), None)


def _spread_out(done: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> bool:
    """Whether a surface goes through the trials: enough of them, not on one line."""
    if len(done) < FEWEST or not all(key in t["settings"] for t in done for key in keys):
        return False
    points = np.array([[math.log(abs(t["settings"][k]) + 1e-30) for k in keys] for t in done])
    return bool(np.linalg.matrix_rank(points - points.mean(0), tol=1e-9) == len(keys))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
