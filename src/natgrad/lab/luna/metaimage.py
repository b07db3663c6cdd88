"""MetaImage, the format of LUNA16's scans: a text header ``.mhd`` and the voxels in ``.raw``.

Written here because the usual reader, SimpleITK, is a binary wheel of 50 MB for what is a dozen
lines of text and an array; the fields that LUNA16's files use are read, everything else is refused
by name. Format: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from natgrad.lab.errors import LabError

__all__ = ["Header", "MetaImageError", "Volume", "read_header", "read_volume"]

Floats = NDArray[np.float64]

TYPES: Mapping[str, str] = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
#: other names of the same fields, as the format's documentation has them
ALIASES: Mapping[str, str] = {
    "Origin": "Offset", "Position": "Offset", "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix", "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}  # fmt: skip


class MetaImageError(LabError):
    """A file that is no MetaImage of the kind that LUNA16 uses; says what is wrong with it."""


@dataclass(frozen=True)
class Header:
    """What a ``.mhd`` says.

    Attributes:
        size: ``(x, y, z)``, voxels.
        spacing: ``[3]``, mm between voxels along each axis of the array.
        origin: ``[3]``, world coordinates ``(x, y, z)`` of voxel ``(0, 0, 0)`` in mm.
        axes: ``[3, 3]``, row ``k`` the direction in the world of the array's axis ``k``.
        dtype: of the voxels in the file.
        compressed: whether the voxels are compressed with zlib.
        voxels: the file that holds them.
    """

    size: tuple[int, int, int]
    spacing: Floats
    origin: Floats
    axes: Floats
    dtype: np.dtype[np.generic]
    compressed: bool
    voxels: Path

    def to_voxel(self, world: ArrayLike) -> Floats:
        """World coordinates ``[..., 3]`` as ``(x, y, z)``, in mm, as voxel indices."""
        along: Floats = (np.asarray(world, float) - self.origin) @ np.linalg.inv(self.axes)
        return along / self.spacing

    def to_world(self, voxel: ArrayLike) -> Floats:
        """Voxel indices ``(x, y, z)``, ``[..., 3]``, as world coordinates in mm."""
        along: Floats = np.asarray(voxel, float) * self.spacing
        return along @ self.axes + self.origin


@dataclass(frozen=True)
class Volume:
    """A scan: ``voxels [z, y, x]`` and where they lie."""

    voxels: NDArray[np.generic]
    header: Header


def read_header(path: Path) -> Header:
    """Read a ``.mhd``.

    Raises:
        MetaImageError: not there, no MetaImage, or one of a kind that is not read.
    """
    fields = _fields(path)
    size = tuple(int(x) for x in _numbers(path, fields, "DimSize", 3))
    if min(size) < 1:
        raise MetaImageError(f"{path}: DimSize must be positive, got {fields['DimSize']}")
    kind = _field(path, fields, "ElementType")
    if kind not in TYPES:
        raise MetaImageError(f"{path}: ElementType {kind} is not read; {', '.join(TYPES)} are")
    order = ">" if _flag(fields, "BinaryDataByteOrderMSB") else "<"
    spacing = _numbers(path, fields, "ElementSpacing", 3)
    if not (spacing > 0).all():
        raise MetaImageError(f"{path}: ElementSpacing must be positive, got {spacing.tolist()}")
    axes = _numbers(path, fields, "TransformMatrix", 9, "1 0 0 0 1 0 0 0 1").reshape(3, 3)
    if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-4):
        raise MetaImageError(f"{path}: TransformMatrix is no rotation: {axes.tolist()}")
    return Header(
        size=(size[0], size[1], size[2]),
        spacing=spacing,
        origin=_numbers(path, fields, "Offset", 3, "0 0 0"),
        axes=axes,
        dtype=np.dtype(order + TYPES[kind]),
        compressed=_flag(fields, "CompressedData"),
        voxels=path.parent / _file(path, fields),
    )


def read_volume(path: Path) -> Volume:
    """Read a scan: header and voxels.

    Raises:
        MetaImageError: what :func:`read_header` refuses, or voxels that are missing or too few.
    """
    header = read_header(path)
    if not header.voxels.is_file():
        raise MetaImageError(f"{path} keeps its voxels in {header.voxels}, which is not there")
    try:
        data = header.voxels.read_bytes()
    except OSError as error:
        raise MetaImageError(f"{header.voxels} can't be read: {error.strerror}") from error
    if header.compressed:
        try:
            data = zlib.decompress(data)
        except zlib.error as error:
            raise MetaImageError(f"{header.voxels} is damaged: {error}") from error
    wanted = prod(header.size) * header.dtype.itemsize
    if len(data) != wanted:
        raise MetaImageError(
            f"{header.voxels} holds {len(data)} bytes; {header.size} voxels of "
            f"{header.dtype} are {wanted}"
        )
    voxels = np.frombuffer(data, header.dtype).reshape(header.size[::-1])
    return Volume(voxels.astype(header.dtype.newbyteorder("=")), header)


def _fields(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise MetaImageError(f"{path} can't be read: {error.strerror}") from error
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals:
            fields[ALIASES.get(key, key)] = value
    if fields.get("NDims") != "3":
        raise MetaImageError(f"{path} is no MetaImage in 3 dimensions: NDims {fields.get('NDims')}")
    if not _flag(fields, "BinaryData", default=True):
        raise MetaImageError(f"{path}: voxels written as text (BinaryData = False) are not read")
    channels = fields.get("ElementNumberOfChannels", "1")
    if channels != "1":
        raise MetaImageError(f"{path}: voxels of {channels} channels are not read")
    return fields


def _field(path: Path, fields: Mapping[str, str], name: str, default: str | None = None) -> str:
    found = fields.get(name, default)
    if found is None:
        raise MetaImageError(f"{path} has no {name}")
    return found


def _numbers(
    path: Path, fields: Mapping[str, str], name: str, count: int, default: str | None = None
) -> Floats:
    text = _field(path, fields, name, default)
    try:
        found = np.array([float(x) for x in text.split()])
    except ValueError:
        found = np.empty(0)
    if len(found) != count or not np.isfinite(found).all():
        raise MetaImageError(f'{path}: {name} takes {count} numbers, got "{text}"')
    return found


def _flag(fields: Mapping[str, str], name: str, default: bool = False) -> bool:
    return fields.get(name, str(default)).lower() in ("true", "1")


def _file(path: Path, fields: Mapping[str, str]) -> str:
    name = _field(path, fields, "ElementDataFile")
    if name.split()[0] in ("LOCAL", "LIST") or "%" in name:
        raise MetaImageError(f"{path}: ElementDataFile = {name} is not read, a file of its own is")
    return name
