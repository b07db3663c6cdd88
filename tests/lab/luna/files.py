"""Made-up files of LUNA16's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

HEADING = "seriesuid,coordX,coordY,coordZ"


def write_mhd(
    path: Path,
    voxels: np.ndarray,
    spacing: Sequence[float] = (1, 1, 1),
    origin: Sequence[float] = (0, 0, 0),
    axes: Sequence[float] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
    kind: str = "MET_SHORT",
    **more: str,
) -> Path:
    """A header as SimpleITK writes it for LUNA16, and the voxels ``[z, y, x]`` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _joined(axes),
        "Offset": _joined(origin),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": _joined(spacing),
        "DimSize": _joined(voxels.shape[::-1]),
        "ElementType": kind,
        "ElementDataFile": path.with_suffix(".raw").name,
    }
    last = more.pop("ElementDataFile", fields.pop("ElementDataFile"))
    lines = [f"{key} = {value}" for key, value in {**fields, **more}.items()]
    path.write_text("\n".join([*lines, f"ElementDataFile = {last}"]) + "\n")
    path.with_suffix(".raw").write_bytes(voxels.tobytes())
    return path


def write_table(
    path: Path, last: str, rows: Sequence[tuple[str, float, float, float, float]]
) -> None:
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join([f"{HEADING},{last}", *lines]) + "\n")


def _joined(numbers: Sequence[float]) -> str:
    return " ".join(f"{x:g}" for x in numbers)
