"""Confidence intervals of a FROC curve: scans are drawn anew, with all that is in them.

As in LUNA16's evaluation script: 1,000 resamples of as many scans as there are, with replacement;
percentiles of the sensitivities, here of the CPM too.
"""

from __future__ import annotations

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

__all__ = ["Interval", "Score", "score"]

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


def score(marks: Marks, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Score:
    """Sensitivities at the operating points and the CPM, each with a bootstrap interval.

    A resample without a nodule has no sensitivity and is drawn again.

    Args:
        marks: what a system said.
        resamples: of the scans.
        seed: of the resampling; equal seeds give equal intervals.
        level: probability mass of the intervals, the rest cut off evenly at both ends.

    Raises:
        ValueError: no resample, or a level outside (0, 1).
    """
    if resamples < 1:
        raise ValueError(f"resamples must be >= 1, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    curve = froc(marks)
    drawn = _resampled(marks, resamples, seed)
    drawn = np.column_stack([drawn, drawn.mean(1)])
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    values = curve.at()
    intervals = [
        Interval(float(v), float(lo), float(hi))
        for v, lo, hi in zip([*values, cpm(values)], low, high, strict=True)
    ]
    return Score(tuple(intervals[:-1]), intervals[-1], curve, level)


def _resampled(marks: Marks, resamples: int, seed: int) -> Floats:
    """Sensitivities ``[resamples, 7]`` of scans drawn with replacement.

    Scores are sorted once: a resample only changes how often each scan's marks count.
    """
    order, ends = thresholds(marks.scores)
    nodule, scan = marks.nodule[order], marks.scan[order]
    holding = np.bincount(marks.scan[marks.nodule], minlength=marks.scans)
    random = np.random.default_rng(seed)
    even = np.full(marks.scans, 1 / marks.scans)
    found = np.empty((resamples, len(OPERATING_POINTS)))
    for row in found:
        times = random.multinomial(marks.scans, even)
        while not times @ holding:
            times = random.multinomial(marks.scans, even)
        row[:] = weighted_curve(times[scan].astype(float), nodule, ends, marks.scans).at()
    return found
