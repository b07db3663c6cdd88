"""The FROC figures of several optimizers, as a table and as a drawing, train beside test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from natgrad.lab.luna.bootstrap import Score, mean_curve, score
from natgrad.lab.luna.froc import OPERATING_POINTS, Curve, Marks, cpm, froc
from natgrad.lab.report.style import INK, Look, literal, looks, styled
from natgrad.lab.report.text import deviation, display_name
from natgrad.lab.tables import Table

__all__ = ["CAPTION", "FROC", "POINTS", "TEST", "Judged", "drawing", "figures", "judged", "table"]

FROC = "froc"
TEST = "test"  #: the column with what a paper gives
#: the operating points as the tables name them
POINTS = ("1/8", "1/4", "1/2", "1", "2", "4", "8")
CAPTION = (
    "FROC curves on the test set (solid) and on what was trained on (dashed), means over seeds; "
    "bands between the ends of bootstrap intervals (95 %) on the test set."
)
BySeed: TypeAlias = Mapping[str, Mapping[str, Mapping[str, float]]]
_TRAIN: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1, "markerfacecolor": "none"}


@dataclass(frozen=True)
class Judged:
    """What the networks of one optimizer reach.

    Attributes:
        train: of each seed the CPM and the seven sensitivities on the training set.
        test: the same on the test set.
        curve: on the training set, the mean over seeds.
        score: on the test set, with intervals.
    """

    train: Mapping[int, Sequence[float]]
    test: Mapping[int, Sequence[float]]
    curve: Curve
    score: Score


def figures(curve: Curve) -> list[float]:
    """The CPM and the seven sensitivities of a curve."""
    values = curve.at()
    return [cpm(values), *values.tolist()]


def judged(
    train: Mapping[int, Sequence[Marks]], test: Mapping[int, Marks], resamples: int
) -> Judged:
    """Score the networks of one optimizer.

    Args:
        train: of each seed the marks on its training sets, one a fold.
        test: of each seed the marks on the test set, of the same scans for all.
        resamples: of the bootstrap.
    """
    curves = {seed: mean_curve([froc(each) for each in marks]) for seed, marks in train.items()}
    return Judged(
        {seed: figures(curve) for seed, curve in curves.items()},
        {seed: figures(froc(marks)) for seed, marks in test.items()},
        mean_curve(list(curves.values())),
        score(*test.values(), resamples=resamples),
    )


def table(
    found: Mapping[str, Judged],
    diverged: Mapping[str, Sequence[int]],
    resamples: int,
    notes: Sequence[str],
) -> Table:
    """The CPM and each sensitivity of every optimizer, on the training and on the test set.

    Args:
        found: by optimizer.
        diverged: the seeds of each from which there is no network; NaN seed by seed.
        resamples: of the bootstrap.
        notes: sentences to stand beneath it beside how it was counted.
    """
    counted = (
        "Means over seeds, sd is their sample standard deviation; low and high are the ends of the "
        f"95 % bootstrap interval of the test figure, {resamples} resamples of its scans."
    )
    return Table(
        "CPM, and sensitivity at so many false positives per scan",
        ("optimizer", "train", TEST, f"{TEST} sd", "low", "high", "seeds"),
        [row for name, each in found.items() for row in _rows(name, each)],
        " ".join([counted, *(note for note in (*notes, _lost(found, diverged)) if note)]),
        _by_seed(found, diverged),
    )


def _lost(found: Mapping[str, Judged], diverged: Mapping[str, Sequence[int]]) -> str:
    """Which seeds are not among the means, in words."""
    parts = []
    for name, seeds in diverged.items():
        count = len(seeds) + (len(found[name].test) if name in found else 0)
        if seeds:
            parts.append(f"{display_name(name)} diverged from {len(seeds)} of {count} seeds")
    return f"{'; '.join(parts)}: these have no curve." if parts else ""


def _headings(optimizer: str) -> list[str]:
    return [f"{display_name(optimizer)}, {heading}" for heading in ("CPM", *POINTS)]


def _rows(optimizer: str, found: Judged) -> list[list[Any]]:
    train, test = np.array(list(found.train.values())), np.array(list(found.test.values()))
    intervals = (found.score.cpm, *found.score.sensitivities)
    return [
        [
            heading,
            float(train[:, k].mean()),
            intervals[k].value,
            deviation(test[:, k].tolist()),
            intervals[k].low,
            intervals[k].high,
            len(test),
        ]
        for k, heading in enumerate(_headings(optimizer))
    ]


def _by_seed(found: Mapping[str, Judged], diverged: Mapping[str, Sequence[int]]) -> BySeed:
    """The CPM and each sensitivity on the test set, seed by seed; NaN where it diverged."""
    by_seed: dict[str, dict[str, dict[str, float]]] = {}
    for name in dict.fromkeys([*found, *diverged]):
        test = found[name].test if name in found else {}
        lost = {str(seed): math.nan for seed in diverged.get(name, ())}
        for k, heading in enumerate(_headings(name)):
            known = {str(seed): values[k] for seed, values in test.items()}
            if known or lost:
                by_seed[heading] = {TEST: {**known, **lost}}
    return by_seed


def drawing(found: Mapping[str, Judged]) -> Figure:
    """FROC curves over the operating points, train beside test, bands of the test's intervals."""
    look = looks(list(found))
    with styled():
        figure = Figure(figsize=(5.0, 3.7), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, each in found.items():
            _draw(axes, name, each, look[name])
        axes.set_xscale("log", base=2)
        axes.set_xticks(OPERATING_POINTS, POINTS)
        axes.set(xlabel="false positives per scan", ylabel="sensitivity", ylim=(None, 1.01))
        handles, _ = axes.get_legend_handles_labels()
        dashed = Line2D([], [], color=INK, label="dashed: train", **_TRAIN)
        # above: curves and bands leave no corner of the panel free
        figure.legend(handles=[*handles, dashed], loc="outside upper left", ncols=2, handlelength=2)
    return figure


def _draw(axes: Axes, name: str, found: Judged, look: Look) -> None:
    test = found.score
    low, high = ([getattr(i, end) for i in test.sensitivities] for end in ("low", "high"))
    axes.fill_between(OPERATING_POINTS, low, high, color=look.colour, alpha=0.15, lw=0)
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker}
    axes.plot(OPERATING_POINTS, found.curve.at(), **style, **_TRAIN)
    values = [i.value for i in test.sensitivities]
    label = literal(f"{display_name(name)}, CPM {test.cpm.value:.3f}")
    axes.plot(OPERATING_POINTS, values, **style, label=label)
