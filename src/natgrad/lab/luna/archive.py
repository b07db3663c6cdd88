"""LUNA16's folder: ten subsets of scans, which are the folds, and the tables beside them.

DIR/subset0/<seriesuid>.mhd, .raw ... DIR/subset9/
DIR/annotations.csv  DIR/candidates_V2.csv (or candidates.csv)
DIR/annotations_excluded.csv (also looked for in DIR/evaluationScript/annotations)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from natgrad.lab.errors import DataMissingError
from natgrad.lab.luna.matching import Findings
from natgrad.lab.luna.metaimage import Volume, read_volume
from natgrad.lab.luna.resample import cube
from natgrad.lab.luna.tables import Places, read_annotations, read_candidates

__all__ = ["Archive", "Candidates"]

FOLDS = 10


@dataclass(frozen=True)
class Candidates:
    """Candidates of some scans, cut out, and what is known of them.

    Attributes:
        cubes: ``[c, z, y, x]`` in [0, 1].
        nodule: ``[c]``, which of the annotated nodules each hits (the nearest), else -1.
        scan: ``[c]``, index into ``scans``.
        scans: names.
        missed_in: the scan of every annotated nodule that no candidate hits.
        ignored: ``[c]``, whether a candidate hits an excluded finding and no nodule.
    """

    cubes: NDArray[np.float32]
    nodule: NDArray[np.int64]
    scan: NDArray[np.int64]
    scans: tuple[str, ...]
    missed_in: NDArray[np.int64]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True)
class Archive:
    """LUNA16 as it is downloaded.

    Args:
        folder: that holds the subsets and tables.
    """

    folder: Path

    @cached_property
    def files(self) -> dict[str, Path]:
        """The header file of every scan there is, by name."""
        return {path.stem: path for k in range(FOLDS) for path in self._subset(k)}

    def fold(self, k: int) -> list[str]:
        """The scans of subset ``k``.

        Raises:
            DataMissingError: the subset is not there.
        """
        found = [path.stem for path in self._subset(k)]
        if not found:
            raise DataMissingError(
                f"no scans in {self.folder / f'subset{k}'}: LUNA16's subset{k}.zip belongs there, "
                "unpacked (.mhd and .raw)"
            )
        return found

    def _subset(self, k: int) -> list[Path]:
        return sorted((self.folder / f"subset{k}").glob("*.mhd"))

    def volume(self, scan: str) -> Volume:
        """A scan.

        Raises:
            DataMissingError: it is in none of the subsets.
            MetaImageError: it can't be read.
        """
        if scan not in self.files:
            raise DataMissingError(f"no scan {scan} in the subsets of {self.folder}")
        return read_volume(self.files[scan])

    @cached_property
    def annotations(self) -> Places:
        """All annotated nodules."""
        return read_annotations(self.folder / "annotations.csv")

    @cached_property
    def excluded(self) -> Places:
        """All findings that count neither way; none where the table is missing."""
        name = "annotations_excluded.csv"
        places = (self.folder / name, self.folder / "evaluationScript" / "annotations" / name)
        path = next((path for path in places if path.is_file()), None)
        return read_annotations(path) if path else Places((), np.empty((0, 3)), np.empty(0))

    @cached_property
    def candidates(self) -> Places:
        """All candidates, of the second list if it is there."""
        second = self.folder / "candidates_V2.csv"
        return read_candidates(second if second.is_file() else self.folder / "candidates.csv")

    def cut(
        self,
        scans: Sequence[str],
        size: Sequence[int],
        spacing: Sequence[float],
        negatives: float | None = None,
        seed: int = 0,
    ) -> Candidates:
        """Cubes round the candidates of some scans.

        Args:
            scans: names.
            size: ``(z, y, x)``, voxels of a cube.
            spacing: ``(z, y, x)``, mm between them.
            negatives: at most so many candidates without a nodule for one with, drawn at random;
                None keeps all (for what is scored, all must be kept).
            seed: of that draw.
        """
        places, nodules = self.candidates.of(scans), self.annotations.findings(scans)
        scan = places.index(scans)
        nodule = _nearest(places.centres, scan, nodules)
        ignored = (nodule < 0) & (
            _nearest(places.centres, scan, self.excluded.findings(scans)) >= 0
        )
        kept = _thinned(nodule, negatives, seed)
        lost = np.setdiff1d(np.arange(len(nodules)), nodule)
        cubes = np.empty((len(kept), *size), np.float32)
        for k, volume in self._volumes(scans, scan[kept]):
            for row in np.flatnonzero(scan[kept] == k):
                cubes[row] = cube(volume, places.centres[kept[row]], size, spacing)
        return Candidates(
            cubes, nodule[kept], scan[kept], tuple(scans), nodules.scan[lost], ignored[kept]
        )

    def _volumes(
        self, scans: Sequence[str], wanted: NDArray[np.int64]
    ) -> Iterator[tuple[int, Volume]]:
        """The scans that have candidates, read one after the other."""
        for k in np.unique(wanted):
            yield int(k), self.volume(scans[k])


def _nearest(
    centres: NDArray[np.float64], scan: NDArray[np.int64], findings: Findings
) -> NDArray[np.int64]:
    """Of each place the nearest finding whose radius it lies within, -1 if there is none."""
    best, found = np.full(len(centres), np.inf), np.full(len(centres), -1)
    for k in range(len(findings)):
        here = np.flatnonzero(scan == findings.scan[k])
        squared = np.square(centres[here] - findings.centres[k]).sum(-1)
        near = (squared < findings.radii[k] ** 2) & (squared < best[here])
        best[here[near]], found[here[near]] = squared[near], k
    return found


def _thinned(nodule: NDArray[np.int64], negatives: float | None, seed: int) -> NDArray[np.int64]:
    """Indices of the candidates that are kept, in order."""
    false = np.flatnonzero(nodule < 0)
    wanted = len(false) if negatives is None else round(negatives * (nodule >= 0).sum())
    if wanted < len(false):
        false = np.random.default_rng(seed).choice(false, wanted, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(nodule >= 0), false]))
