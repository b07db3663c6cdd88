"""Candidates as data sets: cubes or patches, and what must be known of each to score them.

Inputs are grey values 0 to 255, uint8; targets ``[n, 6]``, int64, have these columns:

=======  ========================================================================================
LABEL    1 for a nodule, 0 for none
NODULE   which nodule of the split it is, -1 for none, -2 if it counts neither way
SCAN     index of the scan; -1 where scans are not known
LOST     annotated nodules of this scan that no candidate hits
EMPTY    scans of the split without any candidate
UNSEEN   annotated nodules in these scans: no classifier finds them, so they count as missed
=======  ========================================================================================

They travel with each row, so that a part of a split can be scored as well as the whole.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from natgrad.lab.cache import Arrays, cache_folder, kept, write_rows
from natgrad.lab.data import DataSet, Pair, Splits
from natgrad.lab.errors import DataMissingError
from natgrad.lab.images import checksum, data_folder
from natgrad.lab.luna.archive import Archive
from natgrad.lab.nodules.contextual import LEVELS
from natgrad.lab.nodules.folds import Fold, decoded
from natgrad.lab.nodules.phantom import NAME, Phantom, Style, phantom

__all__ = [
    "EMPTY",
    "LABEL",
    "LOST",
    "NEGATIVES",
    "NODULE",
    "SCAN",
    "UNSEEN",
    "generated",
    "luna16",
    "patches",
]

COLUMNS = LABEL, NODULE, SCAN, LOST, EMPTY, UNSEEN = range(6)
NO_NODULE, IGNORED, UNKNOWN = -1, -2, -1

CUBE = LEVELS[-1].field  #: (z, y, x): what the widest network sees
SPACING = (1.25, 0.7, 0.7)  #: mm between the voxels of LUNA16's cubes, as its scans have on average
NEGATIVES = 10.0  #: candidates without a nodule for one with, in training on LUNA16

#: random numbers of the generated splits
STREAMS = {"train": 1, "validation": 2, "test": 3}
FOUND = 0.97  #: share of generated nodules that have a candidate, about that of LUNA16's list


def generated(train: int, validation: int, test: int, style: Style | None = None) -> DataSet:
    """Candidates cut from generated scans: so many scans in each split."""
    size = tuple(n + c for n, c in zip((48, 48, 48), CUBE, strict=True))
    margin = max(CUBE) // 2
    shown = style or Style(size=(size[0], size[1], size[2]), nodules=1.5, vessels=6, margin=margin)
    counts = {"train": train, "validation": validation, "test": test}
    split = f"generated scans with seeds of their own: {train} / {validation} / {test}"
    return DataSet(NAME, split, partial(_generated, counts, shown))


def _generated(counts: dict[str, int], style: Style, folder: Path | None) -> Splits:
    pairs = []
    for name, count in counts.items():
        scans = (phantom(style, (STREAMS[name], k)) for k in range(count))
        pairs.append(_cut(list(scans), STREAMS[name]))
    return Splits(pairs[0], pairs[1], pairs[2], "computed")


def _cut(scans: Sequence[Phantom], stream: int) -> Pair:
    """Cubes round one or two places on most nodules, and round every mimic."""
    random = np.random.default_rng((stream, 0, 7))
    cubes: list[NDArray[np.uint8]] = []
    rows: list[tuple[int, int, int, int]] = []
    numbered = 0
    for scan, each in enumerate(scans):
        hits = [(random.random() < FOUND) * int(random.integers(1, 3)) for _ in each.radii]
        lost = hits.count(0)
        for k, times in enumerate(hits):
            for _ in range(times):
                off = random.uniform(-0.4, 0.4, 3) * each.radii[k]
                cubes.append(_surroundings(each.voxels, each.centres[k] + off))
                rows.append((1, numbered + k, scan, lost))
        for place in each.mimics:
            if _holds(each.voxels, place):
                cubes.append(_surroundings(each.voxels, place))
                rows.append((0, NO_NODULE, scan, lost))
        numbered += len(each.radii)
    table = np.array(rows, np.int64).reshape(-1, 4)
    empty = np.setdiff1d(np.arange(len(scans)), table[:, SCAN])
    unseen = sum(len(scans[k].radii) for k in empty)
    return _pair(np.stack(cubes), table, len(empty), unseen)


def _holds(voxels: NDArray[np.uint8], centre: NDArray[np.float64]) -> bool:
    start = np.round(centre).astype(int) - np.array(CUBE) // 2
    return bool((start >= 0).all() and (start + CUBE <= voxels.shape).all())


def _surroundings(voxels: NDArray[np.uint8], centre: NDArray[np.float64]) -> NDArray[np.uint8]:
    inner = np.array(voxels.shape) - CUBE
    start = np.clip(np.round(centre).astype(int) - np.array(CUBE) // 2, 0, inner)
    return voxels[tuple(slice(a, a + n) for a, n in zip(start, CUBE, strict=True))]


def luna16(fold: int = 9, scans: int | None = None) -> DataSet:
    """LUNA16's candidates with the given subset for the test and the one before for validation.

    Args:
        fold: the subset that is the test set.
        scans: only so many of each subset, the first that hold a nodule; None is all.
    """
    chosen = Fold(fold, scans)
    thinned = f"{NEGATIVES:g} candidates without a nodule for one with"
    split = chosen.words("all their candidates", thinned)
    return DataSet("LUNA16", split, partial(_luna16, chosen))


def _luna16(fold: Fold, folder: Path | None) -> Splits:
    return fold.splits(folder, _of_scans)


def _of_scans(archive: Archive, scans: Sequence[str], thinned: bool) -> Pair:
    negatives = NEGATIVES if thinned else None
    how = f"cubes {CUBE} at {SPACING} mm, negatives {negatives}, {len(COLUMNS)} columns"
    kind = f"candidates-{'thinned' if thinned else 'all'}"
    return decoded(archive, scans, kind, how, partial(_fill, archive, scans, negatives))


def _fill(archive: Archive, scans: Sequence[str], negatives: float | None, folder: Path) -> None:
    """Write cubes and targets of some scans, one scan in memory at a time.

    Raises:
        DataMissingError: no candidate lies in any of the scans.
    """
    found = archive.listed(scans, negatives)
    if not len(found):
        raise DataMissingError(f"the list of candidates has none in scan {', '.join(scans[:3])}")
    lost = np.bincount(found.missed_in, minlength=len(scans))
    empty = np.setdiff1d(np.arange(len(scans)), found.scan)
    nodule = np.where(found.ignored, IGNORED, found.nodule)
    rows = np.column_stack([found.nodule >= 0, nodule, found.scan, lost[found.scan]])
    np.save(folder / "targets.npy", _targets(rows, len(empty), int(lost[empty].sum())))
    cubes = archive.cubes(found, CUBE, SPACING)
    write_rows(folder / "inputs.npy", (len(found), *CUBE), np.uint8, cubes)


PATCHES = "luna16-patches-2d"
#: candidate numbers: the list goes scan by scan, and those between are left out (data set's notes)
TRAINED_BELOW, VALIDATED_FROM, TOP = 345_500, 348_500, 1_000_000


def patches() -> DataSet:
    """Real axial crops round LUNA16's candidates; of which scan each is, is not known."""
    split = (
        "by candidate number, as the list goes scan by scan: below 345,500 for training, from "
        "348,500 to 439,351 for validation, from 442,352 the test set"
    )
    return DataSet("LUNA16 candidate patches (2D, JPEG)", split, _patches)


def _patches(folder: Path | None) -> Splits:
    local = data_folder(folder)
    place = None if local is None else local / PATCHES
    if place is None or not (place / "train.parquet").is_file():
        raise DataMissingError(
            f"the patches are read from local files: expected {PATCHES}/train.parquet and "
            "test.parquet with columns img {bytes, path} and label in the folder named by --data "
            "or NATGRAD_DATA"
        )
    files = {name: place / f"{name}.parquet" for name in ("train", "test")}
    digests = {name: checksum([file]) for name, file in files.items()}

    def numbered(name: str, numbers: range) -> Pair:
        key = f"{name}-{digests[name]}-{numbers.start}-{numbers.stop}"
        entry = cache_folder() / PATCHES / key
        arrays = kept(entry, lambda: _decoded(files[name], numbers))
        return _unscanned(arrays["images"], arrays["labels"])

    return Splits(
        numbered("train", range(TRAINED_BELOW)),
        numbered("train", range(VALIDATED_FROM, TOP)),
        numbered("test", range(TOP)),
        "; ".join(f"{PATCHES}/{name} parquet, sha256 {digests[name]}" for name in files),
    )


def _decoded(path: Path, numbers: range) -> Arrays:
    """Patches ``[n, y, x]`` and labels of the candidates whose numbers are among those given.

    A candidate's number stands in the name of its file.
    """
    import pyarrow.parquet as pq  # type: ignore[import-untyped]
    from PIL import Image

    table = pq.read_table(path, columns=["img", "label"])
    rows = table["img"].to_pylist()
    found = [int(re.findall(r"\d+", Path(row["path"]).stem)[0]) in numbers for row in rows]
    images = [
        np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("L"))
        for row, chosen in zip(rows, found, strict=True)
        if chosen
    ]
    return {"images": np.stack(images), "labels": table["label"].to_numpy()[found]}


def _unscanned(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Pair:
    nodule = np.where(labels == 1, np.arange(len(labels)), NO_NODULE)
    unknown = np.full(len(labels), UNKNOWN)
    return _pair(images, np.column_stack([labels, nodule, unknown, 0 * labels]), 0, 0)


def _pair(images: NDArray[np.uint8], rows: NDArray[np.int64], empty: int, unseen: int) -> Pair:
    targets: Tensor = torch.from_numpy(_targets(rows, empty, unseen))
    return Pair(torch.from_numpy(np.ascontiguousarray(images)), targets)


def _targets(rows: NDArray[np.int64], empty: int, unseen: int) -> NDArray[np.int64]:
    of_split = np.broadcast_to([empty, unseen], (len(rows), 2))
    return np.column_stack([rows, of_split]).astype(np.int64)
