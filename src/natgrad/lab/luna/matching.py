"""Which marks hit which nodule: a mark hits a finding when it lies within its radius.

As in LUNA16's evaluation script: of a scan's marks only the highest count, up to 100; distances are
strictly below the radius; a mark may hit several nodules; marks on excluded findings are ignored
unless they hit a nodule too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from natgrad.lab.luna.froc import MISSED, Floats, Ints, Marks

__all__ = ["ByScan", "Findings", "match", "nearest", "reduce_candidates", "submitted"]

MOST = 100  #: marks in one scan that the challenge's script takes


@dataclass(frozen=True)
class Findings:
    """Places in scans.

    Attributes:
        centres: ``[m, d]``, in any unit (LUNA16: world coordinates in mm).
        radii: ``[m]``, in the same unit.
        scan: ``[m]``, index of the scan.

    Raises:
        ValueError: arrays that don't fit together, or a radius that is not positive.
    """

    centres: Floats
    radii: Floats
    scan: Ints

    def __post_init__(self) -> None:
        count = len(self.centres)
        if self.centres.ndim != 2 or self.radii.shape != (count,) or self.scan.shape != (count,):
            raise ValueError(
                "findings are centres [m, d], radii [m] and scan [m], got "
                f"{self.centres.shape}, {self.radii.shape}, {self.scan.shape}"
            )
        if not (self.radii > 0).all():
            raise ValueError("a finding's radius must be positive")

    def __len__(self) -> int:
        return len(self.centres)

    def outermost(self) -> Findings:
        """Those that do not lie whole within another one: ``|c - c'| + r <= r'``; equal ones once.

        What they cover together stays the same to the last point, so it makes no difference to
        which marks lie on any of them: for excluded findings, which several readers annotated.
        """
        kept: list[int] = []
        for here in _groups(self.scan):
            largest_first = here[np.argsort(-self.radii[here], kind="stable")]
            mine: list[int] = []
            for k in largest_first:
                gaps = np.linalg.norm(self.centres[mine] - self.centres[k], axis=1)
                if not (gaps + self.radii[k] <= self.radii[mine]).any():
                    mine.append(int(k))
            kept += mine
        chosen = np.array(sorted(kept), np.int64)
        return Findings(self.centres[chosen], self.radii[chosen], self.scan[chosen])

    @classmethod
    def none(cls, dimensions: int = 3) -> Findings:
        """No finding at all."""
        return cls(np.empty((0, dimensions)), np.empty(0), np.empty(0, np.int64))


def match(
    scores: Floats,
    centres: Floats,
    scan: Ints,
    nodules: Findings,
    scans: int,
    excluded: Findings | None = None,
) -> Marks:
    """The marks of a system, matched to the annotated nodules.

    Args:
        scores: ``[c]``, the higher the more suspicious.
        centres: ``[c, d]``, where the marks lie, in the unit of the findings.
        scan: ``[c]``, index of the scan of each.
        nodules: what is to be found.
        scans: number of scans.
        excluded: findings that count neither way (LUNA16's annotations_excluded.csv).

    Raises:
        ValueError: arrays that don't fit together, or what :class:`Marks` refuses.
    """
    if not (len(scores) == len(centres) == len(scan)):
        raise ValueError(
            f"scores, centres and scan must be equally long, got {len(scores)}, {len(centres)}, "
            f"{len(scan)}"
        )
    kept = submitted(scores, scan)
    scores, centres, scan = scores[kept], centres[kept], scan[kept]
    by_scan = ByScan(scan, centres)
    best, used = np.full(len(nodules), MISSED), np.zeros(len(scores), bool)
    for k in range(len(nodules)):
        hits = by_scan.hits(nodules, k)
        used[hits] = True
        if len(hits):
            best[k] = scores[hits].max()
    ignored = Findings.none(centres.shape[1]) if excluded is None else excluded
    for k in range(len(ignored)):
        used[by_scan.hits(ignored, k)] = True
    return _together(best, nodules.scan, scores[~used], scan[~used], scans)


def submitted(scores: Floats, scan: Ints, most: int = MOST) -> NDArray[np.bool_]:
    """Which marks the challenge's script takes: of a scan with more, those above the next one.

    So where the hundredth is as high as the one after it, all marks as high as these are left out.

    Args:
        scores: ``[c]``.
        scan: ``[c]``, index of the scan of each.
        most: that count in one scan.

    >>> submitted(np.array([0.9, 0.5, 0.5, 0.1]), np.zeros(4, int), most=2).tolist()
    [True, False, False, False]
    """
    kept = np.ones(len(scores), bool)
    for here in _groups(scan):
        if len(here) > most:
            kept[here] = scores[here] > np.sort(scores[here])[-1 - most]
    return kept


def reduce_candidates(
    scores: Floats, nodule: Ints, scan: Ints, scans: int, missed_in: Ints | None = None
) -> Marks:
    """Marks at given candidates, of which it is known what they are (false-positive reduction).

    Args:
        scores: ``[c]``; ``-inf`` for one on a nodule that is not marked.
        nodule: ``[c]``, a number for each nodule that candidates hit, negative for no nodule.
        scan: ``[c]``, index of the scan of each.
        scans: number of scans.
        missed_in: the scan of every annotated nodule that no candidate hits: even a perfect
            classifier misses it.
    """
    if not (scores.shape == nodule.shape == scan.shape):
        raise ValueError(
            f"scores, nodule and scan must be equally long vectors, got {scores.shape}, "
            f"{nodule.shape}, {scan.shape}"
        )
    hit = nodule >= 0
    names, first, which = np.unique(nodule[hit], return_index=True, return_inverse=True)
    best = np.full(len(names), MISSED)
    np.maximum.at(best, which, scores[hit])
    where = scan[hit][first]
    if not np.array_equal(where[which], scan[hit]):
        raise ValueError("one nodule has candidates in two scans: number nodules across scans")
    lost = np.empty(0, np.int64) if missed_in is None else missed_in
    best = np.concatenate([best, np.full(len(lost), MISSED)])
    return _together(best, np.concatenate([where, lost]), scores[~hit], scan[~hit], scans)


def _together(best: Floats, where: Ints, false: Floats, at: Ints, scans: int) -> Marks:
    return Marks(
        np.concatenate([best, false]).astype(np.float64),
        np.concatenate([np.ones(len(best), bool), np.zeros(len(false), bool)]),
        np.concatenate([where, at]).astype(np.int64),
        scans,
    )


def nearest(centres: Floats, scan: Ints, findings: Findings) -> Ints:
    """Of each place the nearest finding whose radius it lies within, -1 if there is none: ``[c]``.

    Args:
        centres: ``[c, d]``, in the unit of the findings.
        scan: ``[c]``, index of the scan of each.
        findings: of which the indices are.
    """
    by_scan = ByScan(scan, centres)
    best, found = np.full(len(centres), np.inf), np.full(len(centres), -1, np.int64)
    for k in range(len(findings)):
        hits = by_scan.hits(findings, k)
        squared = np.square(centres[hits] - findings.centres[k]).sum(-1)
        nearer = squared < best[hits]
        best[hits[nearer]], found[hits[nearer]] = squared[nearer], k
    return found


def _groups(scan: Ints) -> list[NDArray[np.intp]]:
    """The indices of what belongs to each scan, in order."""
    order = np.argsort(scan, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(scan[order])) + 1) if len(scan) else []


@dataclass
class ByScan:
    """Marks sorted by scan, so that a finding is compared with those of its own scan only."""

    scan: Ints
    centres: Floats
    order: NDArray[np.intp] = field(init=False)
    sorted: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.order = np.argsort(self.scan, kind="stable")
        self.sorted = self.scan[self.order]

    def hits(self, findings: Findings, k: int) -> NDArray[np.intp]:
        """The marks within the radius of finding ``k``."""
        start, stop = np.searchsorted(self.sorted, [findings.scan[k], findings.scan[k] + 1])
        here = self.order[start:stop]
        squared = np.square(self.centres[here] - findings.centres[k]).sum(-1)
        near: NDArray[np.intp] = here[squared < findings.radii[k] ** 2]
        return near
