"""LUNA16's tables: annotations, excluded findings, candidates and lists of scans.

==============================  ==========================================================
annotations.csv                 seriesuid, coordX, coordY, coordZ, diameter_mm
annotations_excluded.csv        the same; a diameter below zero stands for one not measured
candidates.csv, _V2.csv         seriesuid, coordX, coordY, coordZ, class
seriesuids.csv                  one scan a line, no heading
==============================  ==========================================================

Coordinates are world coordinates in mm.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from natgrad.lab.errors import DataMissingError, LabError
from natgrad.lab.luna.matching import Findings

__all__ = ["Places", "TableError", "read_annotations", "read_candidates", "read_scans"]

UNMEASURED_MM = 10.0  #: what the challenge's script takes for a diameter below zero
PLACE = ("seriesuid", "coordX", "coordY", "coordZ")


class TableError(LabError):
    """A table without the columns that LUNA16's has, or with a line that can't be read."""


@dataclass(frozen=True)
class Places:
    """Lines of a table: ``scans [m]`` (names), ``centres [m, 3]`` (x, y, z in mm), ``values [m]``.

    The value is a diameter in mm, or a class.
    """

    scans: tuple[str, ...]
    centres: NDArray[np.float64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scans)

    def of(self, scans: Sequence[str]) -> Places:
        """Those in these scans."""
        wanted = set(scans)
        kept = [k for k, name in enumerate(self.scans) if name in wanted]
        names = tuple(self.scans[k] for k in kept)
        return Places(names, self.centres[kept], self.values[kept])

    def index(self, scans: Sequence[str]) -> NDArray[np.int64]:
        """Where the scan of each line stands among these scans."""
        place = {name: k for k, name in enumerate(scans)}
        return np.array([place[name] for name in self.scans], np.int64)

    def findings(self, scans: Sequence[str]) -> Findings:
        """Those in these scans as findings, the values read as diameters.

        Raises:
            TableError: a diameter of 0; names the scan.
        """
        mine = self.of(scans)
        diameters = np.where(mine.values < 0, UNMEASURED_MM, mine.values)
        for name, diameter in zip(mine.scans, diameters, strict=True):
            if diameter == 0:
                raise TableError(
                    f"scan {name} has a finding of diameter 0 mm; it must be positive, or below "
                    "zero for one that was not measured"
                )
        return Findings(mine.centres, diameters / 2, mine.index(scans))

    def of_some_size(self) -> Places:
        """Those whose diameter is not 0: within a radius of 0 there is no place."""
        kept = np.flatnonzero(self.values != 0)
        names = tuple(self.scans[k] for k in kept)
        return Places(names, self.centres[kept], self.values[kept])


def read_annotations(path: Path) -> Places:
    """Nodules or excluded findings with their diameters.

    Raises:
        DataMissingError: no such file.
        TableError: not a table of LUNA16's.
    """
    return _places(path, "diameter_mm")


def read_candidates(path: Path) -> Places:
    """Candidates with their classes, 1 for a nodule.

    Raises:
        DataMissingError: no such file.
        TableError: not a table of LUNA16's.
    """
    return _places(path, "class")


def read_scans(path: Path) -> list[str]:
    """The names of scans, one a line.

    Raises:
        DataMissingError: no such file.
    """
    lines = (line.strip() for line in _text(path).splitlines())
    return [line for line in lines if line and line != "seriesuid"]


def _places(path: Path, last: str) -> Places:
    rows = csv.DictReader(_text(path).splitlines())
    missing = [name for name in (*PLACE, last) if name not in (rows.fieldnames or ())]
    if missing:
        raise TableError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(rows.fieldnames or ())}"
        )
    scans: list[str] = []
    numbers: list[list[float]] = []
    for row in rows:
        try:
            found = [float(row[name]) for name in (*PLACE[1:], last)]
        except (TypeError, ValueError):
            found = []
        if not found or not all(map(isfinite, found)):
            raise TableError(f"{path}, line {rows.line_num}: not numbers: {row}")
        numbers.append(found)
        scans.append(row["seriesuid"])
    table = np.array(numbers, float).reshape(-1, 4)
    return Places(tuple(scans), table[:, :3], table[:, 3])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataMissingError(f"no {path.name} in {path.parent}") from None
