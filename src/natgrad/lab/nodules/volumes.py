"""Volumes as data sets for detectors: generated scans, and LUNA16's in overlapping pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from natgrad.lab.cache import write_rows
from natgrad.lab.data import DataSet, Pair, Splits
from natgrad.lab.luna.archive import Archive
from natgrad.lab.luna.matching import Findings
from natgrad.lab.luna.resample import grid_of, resampled
from natgrad.lab.nodules.candidates import STREAMS
from natgrad.lab.nodules.folds import Fold, decoded
from natgrad.lab.nodules.phantom import NAME, Style, phantom

__all__ = [
    "EMPTY_PIECES",
    "Piece",
    "corners",
    "cut",
    "generated_volumes",
    "luna16_volumes",
    "places_in",
    "planned",
    "targets_of",
]

SPACING = (1.0, 1.0, 1.0)  #: mm, of LUNA16's scans
PIECE, OVERLAP = 96, 24  #: voxels along each side of a piece of a scan, and shared with the next
EMPTY_PIECES = 2  #: pieces without a nodule for one with, in training on LUNA16

Places: TypeAlias = NDArray[np.float64]  # [m, 5]: z, y, x, radius (below 0: excluded), number
Corner: TypeAlias = NDArray[np.int64]  # [3]: z, y, x of a piece's first voxel in its scan


@dataclass(frozen=True)
class Piece:
    """A part of a scan, or all of it: what is known of it before its voxels are read.

    Attributes:
        scan: index of the scan.
        corner: ``(z, y, x)`` of the first voxel in the scan.
        places: ``[m, 5]``, those in it: ``(z, y, x, radius)`` in voxels of the piece, radius below
            0 for a finding that counts neither way, and the finding's number in the split.
    """

    scan: int
    corner: Corner
    places: Places

    @property
    def holds_nodule(self) -> bool:
        """Whether the centre of a nodule is in it."""
        return bool((self.places[:, 3] > 0).any())


def generated_volumes(train: int, validation: int, test: int, style: Style) -> DataSet:
    """Generated scans, each a volume: so many in each split."""
    counts = {"train": train, "validation": validation, "test": test}
    split = f"generated scans with seeds of their own: {train} / {validation} / {test}"
    return DataSet(NAME, split, partial(_generated, counts, style))


def _generated(counts: dict[str, int], style: Style, folder: Path | None) -> Splits:
    pairs = []
    for name, count in counts.items():
        scans = [phantom(style, (10 + STREAMS[name], k)) for k in range(count)]
        found, numbered = [], 0
        for k, each in enumerate(scans):
            numbers = numbered + np.arange(len(each.radii))
            places = np.column_stack([each.centres, each.radii, numbers])
            found.append(Piece(k, np.zeros(3, np.int64), places))
            numbered += len(numbers)
        voxels = torch.from_numpy(np.stack([each.voxels for each in scans]))
        pairs.append(Pair(voxels, torch.from_numpy(targets_of(found))))
    return Splits(pairs[0], pairs[1], pairs[2], "computed")


def luna16_volumes(fold: int = 9, scans: int | None = None) -> DataSet:
    """LUNA16's scans at 1 mm in pieces, one subset for the test, the one before for validation.

    Args:
        fold: the subset that is the test set.
        scans: only so many of each subset, the first that hold a nodule; None is all.
    """
    chosen = Fold(fold, scans)
    thinned = f"the pieces that hold a nodule and {EMPTY_PIECES} without for one with"
    split = chosen.words("every piece of their scans", thinned)
    return DataSet("LUNA16", split, partial(_luna16, chosen))


def _luna16(fold: Fold, folder: Path | None) -> Splits:
    return fold.splits(folder, _of_scans, candidates=False)


def _of_scans(archive: Archive, scans: Sequence[str], thinned: bool) -> Pair:
    how = f"pieces of {PIECE}, {OVERLAP} shared, at {SPACING} mm, empty {EMPTY_PIECES * thinned}"
    kind = f"pieces-{'thinned' if thinned else 'all'}"
    fill = partial(_fill, archive, scans, thinned)
    return decoded(archive, scans, kind, how, fill, candidates=False)


def _fill(archive: Archive, scans: Sequence[str], thinned: bool, folder: Path) -> None:
    """Write pieces and targets of some scans, one scan in memory at a time."""
    found = planned(archive, scans, thinned)
    np.save(folder / "targets.npy", targets_of(found))
    voxels = _voxels(archive, scans, found)
    write_rows(folder / "inputs.npy", (len(found), PIECE, PIECE, PIECE), np.uint8, voxels)


def planned(archive: Archive, scans: Sequence[str], thinned: bool) -> list[Piece]:
    """The pieces of some scans, scan by scan, from headers and tables alone.

    Args:
        archive: LUNA16.
        scans: names.
        thinned: whether to leave out most that hold no nodule.
    """
    tables = (archive.annotations.findings(scans), archive.ignored(scans))
    random = np.random.default_rng(0)
    found: list[Piece] = []
    for k, name in enumerate(scans):
        shape, first = grid_of(archive.header(name), SPACING)
        places = np.concatenate(
            [
                _in_voxels(tables[0], k, first, 1, 0),
                _in_voxels(tables[1], k, first, -1, len(tables[0])),
            ]
        )
        mine = [Piece(k, c, places_in(places, c, shape)) for c in corners(shape)]
        found += _thinned(mine, random) if thinned else mine
    return found


def _thinned(found: Sequence[Piece], random: np.random.Generator) -> list[Piece]:
    full = [each for each in found if each.holds_nodule]
    empty = [each for each in found if not each.holds_nodule]
    wanted = min(len(empty), EMPTY_PIECES * max(1, len(full)))
    drawn = random.choice(len(empty), wanted, replace=False)
    return full + [empty[j] for j in drawn]


def _in_voxels(
    findings: Findings, scan: int, first: NDArray[np.float64], sign: int, numbered: int
) -> Places:
    """Findings of a scan in mm, ``(x, y, z)``, as places in voxels of the resampled scan."""
    mine = np.flatnonzero(findings.scan == scan)
    centres = ((findings.centres[mine] - first) / SPACING[::-1])[:, ::-1]
    return np.column_stack([centres, sign * findings.radii[mine] / SPACING[0], numbered + mine])


def _voxels(
    archive: Archive, scans: Sequence[str], found: Sequence[Piece]
) -> Iterator[NDArray[np.uint8]]:
    """The voxels of pieces ``[1, z, y, x]``, in their order."""
    for k, mine in groupby(found, lambda each: each.scan):
        voxels = resampled(archive.volume(scans[k]), SPACING)
        for each in mine:
            yield cut(voxels, each.corner)[None]


def corners(shape: Sequence[int], size: int = PIECE, overlap: int = OVERLAP) -> list[Corner]:
    """Where overlapping cubes begin that cover a scan; one that is too small has one at 0."""
    starts = [_starts(max(n, size), size, size - overlap) for n in shape]
    return [np.array(corner) for corner in product(*starts)]


def places_in(places: Places, corner: Corner, shape: Sequence[int], size: int = PIECE) -> Places:
    """Those whose centre is inside of a cube, in voxels of the cube.

    A centre outside of the scan is in the cubes that are next to it: no nodule gets lost.
    """
    nearest = np.clip(places[:, :3], 0, np.array(shape) - 1)
    inside = ((nearest >= corner - 0.5) & (nearest < corner + size - 0.5)).all(1)
    mine: Places = places[inside] - np.append(corner, [0, 0])
    return mine


def cut(voxels: NDArray[np.uint8], corner: Corner, size: int = PIECE) -> NDArray[np.uint8]:
    """A cube of a scan, filled up with air (0) where the scan is too small."""
    part = voxels[tuple(slice(a, a + size) for a in corner)]
    return np.pad(part, [(0, size - n) for n in part.shape])


def _starts(length: int, size: int, step: int) -> list[int]:
    """Where cubes begin along an axis; the last one ends with it."""
    last = length - size
    return sorted({*range(0, last, step), last})


def targets_of(found: Sequence[Piece]) -> NDArray[np.float32]:
    """Targets ``[n, 1 + m, 5]``, see :mod:`natgrad.lab.nodules.detection`.

    There are as many rows as the fullest volume has findings, one at least.
    """
    rows = max([1, *(len(each.places) for each in found)])
    targets = np.zeros((len(found), 1 + rows, 5), np.float32)
    for row, each in zip(targets, found, strict=True):
        row[0, :4] = [each.scan, *each.corner]
        row[1 : 1 + len(each.places)] = each.places
    return targets
