"""Voxels of a scan on a grid of one's own, and Hounsfield units as numbers in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from natgrad.lab.luna.metaimage import Volume

__all__ = ["AIR", "TISSUE", "cube", "resampled", "windowed"]

AIR, TISSUE = -1000.0, 400.0  #: Hounsfield units that become 0 and 1


def windowed(hounsfield: ArrayLike) -> NDArray[np.float32]:
    """Hounsfield units clipped to [-1000, 400] and mapped to [0, 1]."""
    clipped = np.clip(np.asarray(hounsfield, np.float32), AIR, TISSUE)
    return ((clipped - AIR) / (TISSUE - AIR)).astype(np.float32)


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


def resampled(
    volume: Volume, spacing: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A whole scan with other spacing, windowed, along the axes of the world.

    Returns:
        Voxels ``[z, y, x]``, and the world coordinates ``(x, y, z)`` of the first of them.
    """
    header = volume.header
    x, y, z = (n - 1.0 for n in header.size)
    corners = header.to_world([[a, b, c] for a in (0, x) for b in (0, y) for c in (0, z)])
    low, high = corners.min(0), corners.max(0)
    extent = (high - low)[::-1]  # x, y, z to z, y, x
    counts = [int(np.floor(e / s + 1e-6)) + 1 for e, s in zip(extent, spacing, strict=True)]
    steps = [np.arange(n) * s for n, s in zip(counts, spacing, strict=True)]
    return _sampled(volume, low, steps), low


def _sampled(
    volume: Volume, start: NDArray[np.float64], steps: Sequence[NDArray[np.floating[Any]]]
) -> NDArray[np.float32]:
    """Values on the grid ``start + steps``, ``steps`` for z, y, x."""
    z, y, x = np.meshgrid(*steps, indexing="ij")
    places = volume.header.to_voxel(np.stack([x, y, z], -1) + start)
    last = np.maximum(np.array(volume.header.size) - 1.0, 1.0)
    grid = torch.from_numpy(2 * places / last - 1).float()[None]
    # less air, so that the zeros that torch puts outside of a scan are air
    values = torch.from_numpy(np.asarray(volume.voxels, np.float32))[None, None] - AIR
    found = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return windowed(found[0, 0].numpy() + AIR)
