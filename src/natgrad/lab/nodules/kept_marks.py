"""The marks of trained networks, kept beside a study's tables.

```
DIR/study/marks/<optimizer>-seed<k>.npz      {train, test} x {scores, nodule, scan, scans}
```
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from natgrad.lab.errors import DamagedError
from natgrad.lab.files import replace_file
from natgrad.lab.luna.froc import Marks
from natgrad.lab.tables import StudyFolder

__all__ = ["keep_marks", "kept_marks", "pooled"]

PARTS = ("train", "test")
FIELDS = ("scores", "nodule", "scan", "scans")


def keep_marks(folder: StudyFolder, optimizer: str, seed: int, train: Marks, test: Marks) -> None:
    """Write or replace what the network of one run marked.

    Raises:
        WriteError: the disk is full, or the like.
    """
    arrays: dict[str, Any] = {
        f"{part}_{name}": np.asarray(getattr(marks, name))
        for part, marks in zip(PARTS, (train, test), strict=True)
        for name in FIELDS
    }
    replace_file(_path(folder, optimizer, seed), lambda file: np.savez_compressed(file, **arrays))


def kept_marks(folder: StudyFolder, optimizer: str, seed: int) -> tuple[Marks, Marks] | None:
    """The marks on the training and on the test set; None where none were kept.

    Raises:
        DamagedError: the file is not what was written.
    """
    path = _path(folder, optimizer, seed)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            train, test = (
                Marks(
                    arrays[f"{part}_scores"],
                    arrays[f"{part}_nodule"],
                    arrays[f"{part}_scan"],
                    int(arrays[f"{part}_scans"]),
                )
                for part in PARTS
            )
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedError(
            f"{path} is damaged: {error}. Remove it and go on with that fold's --resume"
        ) from error
    return train, test


def pooled(folds: Sequence[Marks]) -> Marks:
    """The marks of several folds as those of one system: each in scans that no other has.

    Raises:
        ValueError: no fold.
    """
    if not folds:
        raise ValueError("there is no fold to pool")
    first = np.cumsum([0, *(each.scans for each in folds)])
    return Marks(
        np.concatenate([each.scores for each in folds]),
        np.concatenate([each.nodule for each in folds]),
        np.concatenate([each.scan + k for each, k in zip(folds, first[:-1], strict=True)]),
        int(first[-1]),
    )


def _path(folder: StudyFolder, optimizer: str, seed: int) -> Path:
    return folder.path / "marks" / f"{optimizer}-seed{seed}.npz"
