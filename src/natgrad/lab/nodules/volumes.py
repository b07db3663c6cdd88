"""Volumes as data sets for detectors: generated scans, and LUNA16's in overlapping pieces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from natgrad.lab.data import DataSet, Pair, Splits
from natgrad.lab.errors import DataMissingError
from natgrad.lab.images import data_folder
from natgrad.lab.luna.archive import FOLDS, Archive
from natgrad.lab.luna.matching import Findings
from natgrad.lab.luna.resample import resampled
from natgrad.lab.nodules.candidates import STREAMS
from natgrad.lab.nodules.phantom import NAME, Style, phantom

__all__ = ["generated_volumes", "luna16_volumes", "pieces"]

ROWS = 16  #: places that a volume's targets have room for
SPACING = (1.0, 1.0, 1.0)  #: mm, of LUNA16's scans
PIECE, OVERLAP = 96, 24  #: voxels along each side of a piece of a scan, and shared with the next
EMPTY_PIECES = 2  #: pieces without a nodule for one with, in training on LUNA16

Places = NDArray[np.float64]  # [m, 4]: z, y, x, radius (below 0: excluded)


def generated_volumes(train: int, validation: int, test: int, style: Style) -> DataSet:
    """Generated scans, each a volume: so many in each split."""
    counts = {"train": train, "validation": validation, "test": test}
    split = f"generated scans with seeds of their own: {train} / {validation} / {test}"
    return DataSet(NAME, split, partial(_generated, counts, style))


def _generated(counts: dict[str, int], style: Style, folder: Path | None) -> Splits:
    pairs = []
    for name, count in counts.items():
        scans = [phantom(style, (10 + STREAMS[name], k)) for k in range(count)]
        found = [
            (each.voxels, k, np.zeros(3), np.column_stack([each.centres, each.radii]))
            for k, each in enumerate(scans)
        ]
        pairs.append(_pair(found))
    return Splits(pairs[0], pairs[1], pairs[2], "computed")


def luna16_volumes(fold: int = 9, scans: int | None = None) -> DataSet:
    """LUNA16's scans at 1 mm in pieces, one subset for the test, the one before for validation.

    Args:
        fold: the subset that is the test set.
        scans: only so many of each subset; None is all.
    """
    before = (fold - 1) % FOLDS
    split = (
        f"subset {fold} is the test set, subset {before} for validation (every piece of their "
        f"scans); training on the pieces of the other eight that hold a nodule and {EMPTY_PIECES} "
        "without for one with"
    )
    if scans is not None:
        split = f"{split}; of every subset the first {scans} scans"
    return DataSet("LUNA16", split, partial(_luna16, fold, before, scans))


def _luna16(fold: int, before: int, scans: int | None, folder: Path | None) -> Splits:
    local = data_folder(folder)
    if local is None or not (local / "luna16").is_dir():
        raise DataMissingError(
            "LUNA16 is read from local files: expected luna16/subset0 ... subset9 with its .mhd "
            "and annotations.csv in the folder named by --data or NATGRAD_DATA"
        )
    archive = Archive(local / "luna16")
    rest = [k for k in range(FOLDS) if k not in (fold, before)]
    trained = [name for k in rest for name in archive.fold(k)[:scans]]
    parts = (
        (trained, True),
        (archive.fold(before)[:scans], False),
        (archive.fold(fold)[:scans], False),
    )
    pairs = [_pair(_of_scans(archive, scans, thinned)) for scans, thinned in parts]
    return Splits(pairs[0], pairs[1], pairs[2], "LUNA16, .mhd files")


Piece = tuple[NDArray[np.uint8], int, Places, Places]


def _of_scans(archive: Archive, scans: Sequence[str], thinned: bool) -> list[Piece]:
    random = np.random.default_rng(0)
    found: list[Piece] = []
    for k, name in enumerate(scans):
        voxels, first = resampled(archive.volume(name), SPACING)
        places = [
            _in_voxels(table.findings([name]), first, sign)
            for table, sign in ((archive.annotations, 1), (archive.excluded, -1))
        ]
        grey = np.round(255 * voxels).astype(np.uint8)
        cut = [(p, k, o, q) for p, o, q in pieces(grey, np.concatenate(places))]
        if thinned:
            full = [each for each in cut if (each[3][:, 3] > 0).any()]
            empty = [each for each in cut if not (each[3][:, 3] > 0).any()]
            wanted = min(len(empty), EMPTY_PIECES * max(1, len(full)))
            drawn = random.choice(len(empty), wanted, replace=False)
            cut = full + [empty[j] for j in drawn]
        found += cut
    return found


def _in_voxels(findings: Findings, first: NDArray[np.float64], sign: int) -> Places:
    """Findings in mm, ``(x, y, z)``, as places in voxels of the resampled scan."""
    centres = ((findings.centres - first) / SPACING[::-1])[:, ::-1]
    return np.column_stack([centres, sign * findings.radii / SPACING[0]])


def pieces(
    voxels: NDArray[np.uint8], places: Places, size: int = PIECE, overlap: int = OVERLAP
) -> list[tuple[NDArray[np.uint8], Places, Places]]:
    """Overlapping cubes that cover a scan, with the places whose centre is inside of each.

    A scan that is too small is filled up with air (0).

    Returns:
        Voxels, place of the first one in the scan ``[3]``, and places in voxels of the piece.
    """
    short = [max(0, size - n) for n in voxels.shape]
    if any(short):
        voxels = np.pad(voxels, [(0, s) for s in short])
    starts = [_starts(n, size, size - overlap) for n in voxels.shape]
    found = []
    for corner in product(*starts):
        first = np.array(corner, float)
        inside = ((places[:, :3] >= first - 0.5) & (places[:, :3] < first + size - 0.5)).all(1)
        cut = voxels[tuple(slice(a, a + size) for a in corner)]
        mine = places[inside] - np.append(first, 0)
        found.append((cut, first, mine))
    return found


def _starts(length: int, size: int, step: int) -> list[int]:
    """Where cubes begin along an axis; the last one ends with it."""
    last = length - size
    return sorted({*range(0, last, step), last})


def _pair(found: Sequence[Piece]) -> Pair:
    """Voxels ``[n, z, y, x]`` and targets ``[n, 1 + m, 4]``."""
    targets = torch.zeros(len(found), 1 + ROWS, 4)
    for row, (_, scan, first, places) in zip(targets, found, strict=True):
        if len(places) > ROWS:
            raise ValueError(f"a volume has {len(places)} findings, there is room for {ROWS}")
        row[0] = torch.tensor([scan, *first])
        row[1 : 1 + len(places)] = torch.from_numpy(places)
    voxels = np.stack([each[0] for each in found])
    return Pair(torch.from_numpy(voxels), targets)
