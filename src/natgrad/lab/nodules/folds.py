"""LUNA16's ten subsets as folds, and what is decoded of them in the cache.

Each subset is the test set once; the one before it is for validation, and the other eight are
trained on. What a subset holds is kept once, whether it serves as test or as validation set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from natgrad.lab.cache import cache_folder, filled
from natgrad.lab.data import Pair, Splits
from natgrad.lab.errors import DataMissingError
from natgrad.lab.images import data_folder
from natgrad.lab.luna.archive import FOLDS, Archive
from natgrad.lab.luna.resample import AIR, TISSUE

__all__ = ["FOLDER", "Fold", "Read", "decoded"]

FOLDER = "luna16"
#: the examples of some scans, all of them or thinned as they are for training
Read: TypeAlias = Callable[[Archive, Sequence[str], bool], Pair]


@dataclass(frozen=True)
class Fold:
    """One fold of the ten.

    Attributes:
        test: the subset that is the test set.
        scans: only so many of each subset, the first that hold a nodule; None is all.
    """

    test: int = 9
    scans: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.test < FOLDS:
            raise ValueError(f"LUNA16's subsets are 0 to {FOLDS - 1}, got {self.test}")

    @property
    def validation(self) -> int:
        """The subset that is for validation."""
        return (self.test - 1) % FOLDS

    def words(self, all_of_them: str, thinned: str) -> str:
        """The rule of the split, in words.

        Args:
            all_of_them: what is there of the subsets for test and validation.
            thinned: what is trained on.
        """
        split = (
            f"subset {self.test} is the test set, subset {self.validation} for validation "
            f"({all_of_them}); training on {thinned} of the other eight"
        )
        if self.scans is None:
            return split
        return f"{split}; of every subset the first {self.scans} scans with a nodule"

    def splits(self, folder: Path | None, read: Read, candidates: bool = True) -> Splits:
        """The three splits.

        Args:
            folder: of the local data sets.
            read: makes or maps the examples of some scans.
            candidates: whether they depend on the list of candidates.

        Raises:
            DataMissingError: LUNA16 is not there, or there is no nodule in a split.
        """
        archive = _opened(folder, "candidates_V2.csv" if candidates else None)
        rest = [k for k in range(FOLDS) if k not in (self.test, self.validation)]
        train, validation, test = (
            [name for k in subsets for name in self._scans(archive, k)]
            for subsets in (rest, [self.validation], [self.test])
        )
        for scans in (train, validation, test):
            _refuse_without_nodule(archive, scans)
        digest = archive.checksum([*train, *validation, *test], candidates)
        return Splits(
            read(archive, train, True),
            read(archive, validation, False),
            read(archive, test, False),
            f"LUNA16, .mhd files, sha256 of tables and headers {digest}",
        )

    def _scans(self, archive: Archive, subset: int) -> list[str]:
        scans = archive.fold(subset)
        if self.scans is None:
            return scans
        holding = set(archive.annotations.scans)
        return [name for name in scans if name in holding][: self.scans]


def decoded(
    archive: Archive,
    scans: Sequence[str],
    kind: str,
    how: str,
    fill: Callable[[Path], object],
    candidates: bool = True,
) -> Pair:
    """Examples of some scans, mapped from the cache, where they are decoded once.

    Args:
        archive: LUNA16.
        scans: names.
        kind: what the entry is called in the cache.
        how: whatever the examples depend on beside files and scans, constants among it.
        fill: writes ``inputs.npy`` and ``targets.npy`` into a folder.
        candidates: whether they depend on the list of candidates.

    Raises:
        DataMissingError: a table or scan is not there.
        WriteError: the cache can't be written.
    """
    about = f"{how}; {AIR:g} to {TISSUE:g} HU in 8 bits; {archive.checksum(scans, candidates)}"
    key = hashlib.sha256(about.encode()).hexdigest()[:16]
    arrays = filled(cache_folder() / FOLDER / f"{kind}-{key}", fill)
    return Pair(torch.from_numpy(arrays["inputs"]), torch.from_numpy(arrays["targets"]))


def _opened(folder: Path | None, candidates: str | None) -> Archive:
    local = data_folder(folder)
    tables = " and ".join(filter(None, ("annotations.csv", candidates)))
    if local is None or not (local / FOLDER).is_dir():
        raise DataMissingError(
            "LUNA16 is read from local files: expected luna16/subset0 ... subset9 with its .mhd "
            f"and {tables} in the folder named by --data or NATGRAD_DATA"
        )
    return Archive(local / FOLDER)


def _refuse_without_nodule(archive: Archive, scans: Sequence[str]) -> None:
    """Sensitivity is a share of annotated nodules."""
    if not set(scans) & set(archive.annotations.scans):
        named = ", ".join(scans[:3]) + (f" and {len(scans) - 3} more" if len(scans) > 3 else "")
        raise DataMissingError(
            f"no nodule is annotated in scan {named or 'of the subset: there is none with one'}, "
            f"so there is no sensitivity; {archive.folder / 'annotations.csv'} has none of them"
        )
