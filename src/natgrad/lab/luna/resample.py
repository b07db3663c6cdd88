"""Voxels of a scan on a grid of one's own, Hounsfield units as numbers in [0, 1] or in 8 bits.

What is kept and what networks are given, in training as afterwards, are the 8 bits, in steps of 5.5
Hounsfield units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from natgrad.lab.luna.metaimage import Header, Volume

__all__ = ["AIR", "TISSUE", "cube", "grey", "grid_of", "resampled", "windowed"]

Floats = NDArray[np.float64]

AIR, TISSUE = -1000.0, 400.0  #: Hounsfield units that become 0 and 1
LEVELS = 255  #: steps of a grey value in 8 bits, 5.5 Hounsfield units each
SLICES = 8  #: of a whole scan that are resampled at a time


def windowed(hounsfield: ArrayLike) -> NDArray[np.float32]:
    """Hounsfield units clipped to [-1000, 400] and mapped to [0, 1]."""
    clipped = np.clip(np.asarray(hounsfield, np.float32), AIR, TISSUE)
    return ((clipped - AIR) / (TISSUE - AIR)).astype(np.float32)


def grey(window: ArrayLike) -> NDArray[np.uint8]:
    """Windowed values in [0, 1] as whole numbers 0 to 255, the nearest: off by 1/510 at most."""
    return np.round(LEVELS * np.asarray(window)).astype(np.uint8)


def cube(
    volume: Volume, centre: ArrayLike, size: Sequence[int], spacing: Sequence[float]
) -> NDArray[np.float32]:
    """The surroundings of a place, windowed, trilinear between voxels, air outside of the scan.

    Args:
        volume: the scan.
        centre: world coordinates ``(x, y, z)`` in mm; the middle of the cube.
        size: ``(z, y, x)``, voxels of the cube.
        spacing: ``(z, y, x)``, mm between them, along the axes of the world.

    Returns:
        ``[z, y, x]``.
    """
    steps = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)]
    return _sampled(volume, np.asarray(centre, float), steps)


def grid_of(header: Header, spacing: Sequence[float]) -> tuple[tuple[int, int, int], Floats]:
    """The grid of a whole scan with other spacing, along the axes of the world.

    Args:
        header: of the scan.
        spacing: ``(z, y, x)``, mm between the voxels of the grid.

    Returns:
        Voxels ``(z, y, x)``, and the world coordinates ``(x, y, z)`` in mm of the first of them.
    """
    x, y, z = (n - 1.0 for n in header.size)
    corners = header.to_world([[a, b, c] for a in (0, x) for b in (0, y) for c in (0, z)])
    low, high = corners.min(0), corners.max(0)
    extent = (high - low)[::-1]  # x, y, z to z, y, x
    counts = [int(np.floor(e / s + 1e-6)) + 1 for e, s in zip(extent, spacing, strict=True)]
    return (counts[0], counts[1], counts[2]), low


def resampled(volume: Volume, spacing: Sequence[float]) -> NDArray[np.uint8]:
    """A whole scan on the grid of :func:`grid_of`, windowed, in 8 bits: ``[z, y, x]``.

    It is made a few slices at a time: floats of a whole scan would be gigabytes.
    """
    counts, low = grid_of(volume.header, spacing)
    z, y, x = (np.arange(n) * s for n, s in zip(counts, spacing, strict=True))
    found = np.empty(counts, np.uint8)
    for k in range(0, len(z), SLICES):
        found[k : k + SLICES] = grey(_sampled(volume, low, (z[k : k + SLICES], y, x)))
    return found


def _sampled(
    volume: Volume, start: Floats, steps: Sequence[NDArray[np.floating[Any]]]
) -> NDArray[np.float32]:
    """Values on the grid ``start + steps``, ``steps`` for z, y, x."""
    z, y, x = np.meshgrid(*steps, indexing="ij")
    places = volume.header.to_voxel(np.stack([x, y, z], -1) + start)
    low, high = _box(places, volume.header.size)
    part = tuple(slice(a, b + 1) for a, b in zip(low[::-1], high[::-1], strict=True))
    grid = torch.from_numpy(2 * (places - low) / np.maximum(high - low, 1) - 1).float()[None]
    # less air, so that the zeros that torch puts outside of a scan are air
    values = torch.from_numpy(volume.voxels[part].astype(np.float32))[None, None] - AIR
    found = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return windowed(found[0, 0].numpy() + AIR)


def _box(places: Floats, size: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last voxel, ``(x, y, z)``, of the part of a scan that places lie in.

    It is two voxels wide at least, where the scan is: what lies outside of it is then outside of
    the scan.
    """
    last = np.array(size) - 1
    flat = places.reshape(-1, 3)
    low = np.clip(np.floor(flat.min(0)) - 1, 0, np.maximum(last - 1, 0)).astype(np.int64)
    high = np.clip(np.ceil(flat.max(0)) + 1, np.minimum(low + 1, last), last).astype(np.int64)
    return low, high
