"""LUNA16's folder: ten subsets of scans, which are the folds, and the tables beside them.

DIR/subset0/<seriesuid>.mhd, .raw ... DIR/subset9/
DIR/annotations.csv  DIR/candidates_V2.csv (or candidates.csv)
DIR/annotations_excluded.csv (also looked for in DIR/evaluationScript/annotations)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from natgrad.lab.errors import DataMissingError
from natgrad.lab.luna.matching import Findings, nearest
from natgrad.lab.luna.metaimage import Header, Volume, read_header, read_volume
from natgrad.lab.luna.resample import cube, grey
from natgrad.lab.luna.tables import Places, read_annotations, read_candidates

__all__ = ["FOLDS", "Archive", "Candidates"]

FOLDS = 10
ANNOTATIONS, EXCLUDED = "annotations.csv", "annotations_excluded.csv"


@dataclass(frozen=True)
class Candidates:
    """Candidates of some scans, scan by scan, and what is known of them.

    Attributes:
        centres: ``[c, 3]``, world coordinates ``(x, y, z)`` in mm.
        nodule: ``[c]``, which of the annotated nodules each hits (the nearest), else -1.
        scan: ``[c]``, index into ``scans``, rising.
        scans: names.
        missed_in: the scan of every annotated nodule that no candidate hits.
        ignored: ``[c]``, whether a candidate hits an excluded finding and no nodule.
    """

    centres: NDArray[np.float64]
    nodule: NDArray[np.int64]
    scan: NDArray[np.int64]
    scans: tuple[str, ...]
    missed_in: NDArray[np.int64]
    ignored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.scan)


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
        return read_volume(self._file(scan))

    def header(self, scan: str) -> Header:
        """Where the voxels of a scan lie, and how many there are.

        Raises:
            DataMissingError: it is in none of the subsets.
            MetaImageError: it can't be read.
        """
        return read_header(self._file(scan))

    def _file(self, scan: str) -> Path:
        if scan not in self.files:
            raise DataMissingError(f"no scan {scan} in the subsets of {self.folder}")
        return self.files[scan]

    @cached_property
    def annotations(self) -> Places:
        """All annotated nodules."""
        return read_annotations(self.folder / ANNOTATIONS)

    @cached_property
    def excluded(self) -> Places:
        """All findings that count neither way; none where the table is missing."""
        path = self._excluded
        return read_annotations(path) if path else Places((), np.empty((0, 3)), np.empty(0))

    @property
    def _excluded(self) -> Path | None:
        places = (self.folder, self.folder / "evaluationScript" / "annotations")
        return next((p / EXCLUDED for p in places if (p / EXCLUDED).is_file()), None)

    @cached_property
    def candidates(self) -> Places:
        """All candidates, of the second list if it is there."""
        return read_candidates(self._candidates)

    @property
    def _candidates(self) -> Path:
        second = self.folder / "candidates_V2.csv"
        return second if second.is_file() else self.folder / "candidates.csv"

    def checksum(self, scans: Sequence[str], candidates: bool = True) -> str:
        """The first 16 digits of the sha256 of the tables and the headers of some scans.

        The voxels count by the size of their files: a data set of 120 GB is not read to know
        whether it is the same.

        Args:
            scans: names; their order counts.
            candidates: whether the list of candidates is among the tables.

        Raises:
            DataMissingError: a table or a scan is not there.
            MetaImageError: a header can't be read.
        """
        digest = hashlib.sha256()
        tables = [self.folder / ANNOTATIONS, self._excluded]
        for table in (*tables, self._candidates if candidates else None):
            digest.update(b"none" if table is None else _table(table))
        for scan in scans:
            voxels = self.header(scan).voxels
            size = voxels.stat().st_size if voxels.is_file() else 0
            digest.update(f"{scan} {size} ".encode() + self._file(scan).read_bytes())
        return digest.hexdigest()[:16]

    def ignored(self, scans: Sequence[str]) -> Findings:
        """The excluded findings in these scans, those within others left out.

        Several readers annotated most of them. Together they cover what all of them cover, so the
        same marks are ignored; those of diameter 0 cover nothing.
        """
        return self.excluded.of_some_size().findings(scans).outermost()

    def listed(
        self, scans: Sequence[str], negatives: float | None = None, seed: int = 0
    ) -> Candidates:
        """The candidates of some scans.

        Args:
            scans: names.
            negatives: at most so many candidates without a nodule for one with, drawn at random;
                None keeps all (for what is scored, all must be kept).
            seed: of that draw.
        """
        places, nodules = self.candidates.of(scans), self.annotations.findings(scans)
        scan = places.index(scans)
        order = np.argsort(scan, kind="stable")
        centres, scan = places.centres[order], scan[order]
        nodule = nearest(centres, scan, nodules)
        ignored = (nodule < 0) & (nearest(centres, scan, self.ignored(scans)) >= 0)
        kept = _thinned(nodule, negatives, seed)
        lost = np.setdiff1d(np.arange(len(nodules)), nodule)
        return Candidates(
            centres[kept], nodule[kept], scan[kept], tuple(scans), nodules.scan[lost], ignored[kept]
        )

    def cubes(
        self, found: Candidates, size: Sequence[int], spacing: Sequence[float]
    ) -> Iterator[NDArray[np.uint8]]:
        """Cubes round candidates, cut scan by scan: one scan is in memory at a time.

        Args:
            found: the candidates.
            size: ``(z, y, x)``, voxels of a cube.
            spacing: ``(z, y, x)``, mm between them.

        Yields:
            ``[k, z, y, x]``, those of the next scan that has any.
        """
        for k in np.unique(found.scan):
            volume = self.volume(found.scans[k])
            centres = found.centres[found.scan == k]
            yield np.stack([grey(cube(volume, centre, size, spacing)) for centre in centres])


def _table(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataMissingError(f"no {path.name} in {path.parent}") from None


def _thinned(nodule: NDArray[np.int64], negatives: float | None, seed: int) -> NDArray[np.int64]:
    """Indices of the candidates that are kept, in order."""
    false = np.flatnonzero(nodule < 0)
    wanted = len(false) if negatives is None else round(negatives * (nodule >= 0).sum())
    if wanted < len(false):
        false = np.random.default_rng(seed).choice(false, wanted, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(nodule >= 0), false]))
