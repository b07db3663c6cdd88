"""The FROC curve and the CPM as LUNA16 defines them (Setio et al. 2017, arXiv 1612.08012).

A system marks places in scans and gives each a score. At a threshold, sensitivity is the share of
annotated nodules with a mark at least that high, against false positives per scan. Sensitivities
at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan are read off the curve; their mean is the
competition performance metric (CPM). Rules as in the challenge's evaluation script
(noduleCADEvaluationLUNA16.py):

* several marks on one nodule count once, with the highest score (:mod:`natgrad.lab.luna.matching`);
* marks on excluded findings count neither way;
* every scan counts, whether anything was marked in it or not;
* marks of equal score enter together; between the points of the curve, and so between thresholds,
  sensitivity is linear in the rate of false positives; beyond its last point it stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["OPERATING_POINTS", "Curve", "Marks", "cpm", "froc", "thresholds", "weighted_curve"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: false positives per scan at which LUNA16 reads the sensitivity
OPERATING_POINTS: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

#: the score of a nodule that nothing marks
MISSED = -np.inf


@dataclass(frozen=True)
class Marks:
    """What a system said about scans: one entry per annotated nodule, one per false positive.

    Attributes:
        scores: ``[k]``; of a nodule the highest among its marks, ``-inf`` if it has none.
        nodule: ``[k]``, True for nodules, False for false positives.
        scan: ``[k]``, index of the scan, below ``scans``.
        scans: number of scans, those without any entry included.

    Raises:
        ValueError: arrays of different lengths, no scan, no nodule, an index that is no scan's, a
            score that is no number, or an infinite one of a false positive.
    """

    scores: Floats
    nodule: NDArray[np.bool_]
    scan: Ints
    scans: int

    def __post_init__(self) -> None:
        shapes = {np.shape(each) for each in (self.scores, self.nodule, self.scan)}
        if len(shapes) > 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"scores, nodule and scan must be equally long vectors, got {shapes}")
        if self.scans < 1:
            raise ValueError(f"false positives per scan need a scan, got {self.scans} scans")
        if not self.nodule.any():
            raise ValueError("sensitivity is a share of annotated nodules, and there is none")
        if self.scan.min() < 0 or self.scan.max() >= self.scans:
            raise ValueError(
                f"scan indices must lie in 0..{self.scans - 1}, "
                f"got {self.scan.min()}..{self.scan.max()}"
            )
        if not np.isfinite(self.scores[~self.nodule]).all() or np.isnan(self.scores).any():
            raise ValueError("scores must be numbers, and those of false positives finite")

    @property
    def nodules(self) -> int:
        """Number of annotated nodules, missed ones included."""
        return int(self.nodule.sum())


@dataclass(frozen=True)
class Curve:
    """A FROC curve: from no mark at all to every one, thresholds falling.

    Attributes:
        rates: ``[p]``, false positives per scan, rising from 0.
        sensitivities: ``[p]``, share of nodules, rising from 0.
    """

    rates: Floats
    sensitivities: Floats

    def at(self, rates: Sequence[float] | Floats = OPERATING_POINTS) -> Floats:
        """Sensitivities at so many false positives per scan, linear between points.

        Where the curve rises steeply at one rate its highest point counts, beyond its last point
        the last sensitivity, both as in the challenge's script.
        """
        found: Floats = np.interp(np.asarray(rates, float), self.rates, self.sensitivities)
        return found


def froc(marks: Marks) -> Curve:
    """The FROC curve of a system.

    >>> marks = Marks(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), np.zeros(3, int), 2)
    >>> froc(marks).at([0.25, 0.5])
    array([0.5, 1. ])
    """
    order, ends = thresholds(marks.scores)
    weights = np.ones(len(marks.scores))
    return weighted_curve(weights[order], marks.nodule[order], ends, marks.scans)


def cpm(sensitivities: ArrayLike) -> float:
    """The mean of the sensitivities at the seven operating points.

    >>> round(cpm([0.677, 0.834, 0.927, 0.967, 0.979, 0.980, 0.981]), 3)
    0.906

    Raises:
        ValueError: not seven numbers in [0, 1].
    """
    values = np.asarray(sensitivities, float)
    if values.shape != (len(OPERATING_POINTS),):
        raise ValueError(f"the CPM is of {len(OPERATING_POINTS)} sensitivities, got {values.shape}")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"sensitivities lie in [0, 1], got {values.tolist()}")
    return float(values.mean())


def thresholds(scores: Floats) -> tuple[Ints, Ints]:
    """The order of falling scores, and the last place of each score in it; missed ones are none."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    counted = int((falling > MISSED).sum())
    last = np.flatnonzero(np.diff(falling[:counted]))  # where the next one is lower
    ends = np.append(last, counted - 1) if counted else last
    return order, ends.astype(np.int64)


def weighted_curve(weights: Floats, nodule: NDArray[np.bool_], ends: Ints, scans: int) -> Curve:
    """The curve of marks in falling order, each counted so many times."""
    found = np.cumsum(np.where(nodule, weights, 0.0))
    false = np.cumsum(np.where(nodule, 0.0, weights))
    rates = np.concatenate([[0.0], false[ends] / scans])
    return Curve(rates, np.concatenate([[0.0], found[ends] / found[-1]]))
