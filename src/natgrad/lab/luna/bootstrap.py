"""Confidence intervals of a FROC curve: scans are drawn anew, with all that is in them.

As in LUNA16's evaluation script: 1,000 resamples of as many scans as there are, with replacement;
percentiles of the sensitivities, here of the CPM too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natgrad.lab.luna.froc import (
    OPERATING_POINTS,
    Curve,
    Marks,
    cpm,
    froc,
    thresholds,
    weighted_curve,
)

__all__ = ["Interval", "Score", "mean_curve", "score"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Score:
    """What LUNA16 publishes of a system.

    Attributes:
        sensitivities: at the seven operating points.
        cpm: their mean.
        curve: the whole FROC curve.
        level: of the intervals.
    """

    sensitivities: tuple[Interval, ...]
    cpm: Interval
    curve: Curve
    level: float


def score(*systems: Marks, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Score:
    """Sensitivities at the operating points and the CPM, each with a bootstrap interval.

    A resample without a nodule has no sensitivity and is drawn again. Of several systems, such as
    one network trained from several seeds, the figures are means, and the intervals are of these:
    every resample is of the same scans for all.

    Args:
        systems: what each said of the same scans.
        resamples: of the scans.
        seed: of the resampling; equal seeds give equal intervals.
        level: probability mass of the intervals, the rest cut off evenly at both ends.

    Raises:
        ValueError: no system, no resample, a level outside (0, 1), or systems with other nodules.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be >= 1, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    _refuse_unlike(systems)
    curve = mean_curve([froc(each) for each in systems])
    drawn = np.mean([_resampled(each, resamples, seed) for each in systems], axis=0)
    drawn = np.column_stack([drawn, drawn.mean(1)])
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    values = np.mean([froc(each).at() for each in systems], axis=0)
    intervals = [
        Interval(float(v), float(lo), float(hi))
        for v, lo, hi in zip([*values, cpm(values)], low, high, strict=True)
    ]
    return Score(tuple(intervals[:-1]), intervals[-1], curve, level)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of sensitivities at equal rates: the curve itself where there is only one."""
    if len(curves) == 1:
        return curves[0]
    rates = np.unique(np.concatenate([each.rates for each in curves]))
    return Curve(rates, np.mean([each.at(rates) for each in curves], axis=0))


def _refuse_unlike(systems: Sequence[Marks]) -> None:
    if not systems:
        raise ValueError("there is no system to score")
    held = {(each.scans, tuple(_held(each))) for each in systems}
    if len(held) > 1:
        raise ValueError("systems that are scored together must be of the same scans and nodules")


def _held(marks: Marks) -> NDArray[np.int64]:
    """Nodules of each scan."""
    return np.bincount(marks.scan[marks.nodule], minlength=marks.scans)


def _resampled(marks: Marks, resamples: int, seed: int) -> Floats:
    """Sensitivities ``[resamples, 7]`` of scans drawn with replacement.

    Scores are sorted once: a resample only changes how often each scan's marks count.
    """
    order, ends = thresholds(marks.scores)
    nodule, scan = marks.nodule[order], marks.scan[order]
    holding = _held(marks)
    random = np.random.default_rng(seed)
    even = np.full(marks.scans, 1 / marks.scans)
    found = np.empty((resamples, len(OPERATING_POINTS)))
    for row in found:
        times = random.multinomial(marks.scans, even)
        while not times @ holding:
            times = random.multinomial(marks.scans, even)
        row[:] = weighted_curve(times[scan].astype(float), nodule, ends, marks.scans).at()
    return found
