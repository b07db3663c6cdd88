"""Shapes of a generated scan as clouds of soft balls: nodules with spicules, branching vessels.

Everything is in voxels, places are ``(z, y, x)``. A ball of radius ``r`` fills a voxel at distance
``d`` to ``sigmoid((r - d) / edge)``: the partial volume at its rim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Balls", "nodule", "paint", "vessel_tree"]

Floats = NDArray[np.float64]

EDGE = 0.45  #: voxels over which a rim is soft
REACH = 2.0  #: voxels beyond the radius up to which a ball is painted
STEP = 0.4  #: radii between balls along a vessel or spicule


@dataclass(frozen=True)
class Balls:
    """Soft balls of one density: ``centres [b, 3]``, ``radii [b]``."""

    centres: Floats
    radii: Floats
    density: float

    def __add__(self, other: Balls) -> Balls:
        return Balls(
            np.concatenate([self.centres, other.centres]),
            np.concatenate([self.radii, other.radii]),
            self.density,
        )


def nodule(
    random: np.random.Generator, centre: Floats, radius: float, density: float, spicules: int
) -> Balls:
    """A ball, a little dented by three more of 0.8 its radius, with spicules that taper outwards.

    Args:
        random: what is drawn from.
        centre: ``[3]``.
        radius: of the ball.
        density: 1 is soft tissue, below 0.6 ground glass.
        spicules: number of them; each reaches 0.4 to 0.9 radii beyond the rim.
    """
    dents = centre + _directions(random, 3) * radius * 0.35
    body = Balls(np.vstack([centre, dents]), radius * np.array([1, 0.8, 0.8, 0.8]), density)
    for direction in _directions(random, spicules):
        along = np.arange(0.7 * radius, radius * random.uniform(1.4, 1.9), STEP)
        thin = np.linspace(1.1, 0.5, len(along))
        body = body + Balls(centre + along[:, None] * direction, thin, density)
    return body


def vessel_tree(
    random: np.random.Generator, size: Sequence[int], radius: float, generations: int
) -> tuple[Balls, Floats]:
    """A winding vessel that enters at a side of the volume and branches, thinner each time.

    Args:
        random: what is drawn from.
        size: ``(z, y, x)``, of the volume.
        radius: of the trunk.
        generations: times that every branch divides in two.

    Returns:
        The vessel, and the places where it branches ``[k, 3]``.
    """
    extent = np.array(size, float)
    start = random.uniform(0, 1, 3) * extent
    side = random.integers(3)
    start[side] = random.choice([0.0, extent[side] - 1])
    inward = extent * random.uniform(0.3, 0.7, 3) - start
    tips = [(start, inward / np.linalg.norm(inward), radius)]
    balls = Balls(np.empty((0, 3)), np.empty(0), 1.0)
    forks: list[Floats] = []
    for generation in range(generations + 1):
        grown = []
        for place, direction, width in tips:
            segment, end, heading = _winding(random, place, direction, width, extent.max() / 3)
            balls = balls + segment
            if generation < generations:
                forks.append(end)
                grown += [(end, each, 0.79 * width) for each in _forked(random, heading)]
        tips = grown
    return balls, np.array(forks).reshape(-1, 3)


def paint(size: Sequence[int], balls: Sequence[Balls]) -> Tensor:
    """Density ``[z, y, x]`` of a volume: at each voxel that of the densest ball there."""
    volume = torch.zeros(int(np.prod(size)))
    for each in balls:
        for centres, radii in _alike(each):
            _paint(volume, size, centres, radii, each.density)
    return volume.view(*size)


def _paint(
    volume: Tensor, size: Sequence[int], centres: Tensor, radii: Tensor, density: float
) -> None:
    """Balls of about the same radius, all at once: each in a box of the same size."""
    reach = float(radii.max()) + REACH
    offsets = torch.arange(-int(np.ceil(reach)), int(np.ceil(reach)) + 1)
    box = torch.cartesian_prod(offsets, offsets, offsets)
    box = box[box.square().sum(1) <= (reach + 0.9) ** 2]  # a centre is up to 0.87 off its voxel
    for some, r in zip(torch.split(centres, 512), torch.split(radii, 512), strict=True):
        voxels = (some.round().long()[:, None] + box).flatten(0, 1)
        inside = ((voxels >= 0) & (voxels < torch.tensor(size))).all(-1)
        voxels, ball = voxels[inside], torch.arange(len(some)).repeat_interleave(len(box))[inside]
        distance = (voxels - some[ball]).square().sum(-1).sqrt()
        filled = density * torch.sigmoid((r[ball] - distance) / EDGE)
        flat = (voxels[:, 0] * size[1] + voxels[:, 1]) * size[2] + voxels[:, 2]
        volume.scatter_reduce_(0, flat, filled, "amax")


def _alike(balls: Balls) -> list[tuple[Tensor, Tensor]]:
    """Balls by radius, rounded up to whole voxels: boxes are no larger than they must be."""
    classes = np.ceil(balls.radii)
    found = []
    for each in np.unique(classes):
        chosen = classes == each
        centres, radii = balls.centres[chosen], balls.radii[chosen]
        found.append((torch.from_numpy(centres).float(), torch.from_numpy(radii).float()))
    return found


def _winding(
    random: np.random.Generator, place: Floats, direction: Floats, width: float, length: float
) -> tuple[Balls, Floats, Floats]:
    """A stretch of vessel, its end, and where it is headed there."""
    step = STEP * width
    count = max(2, int(length * random.uniform(0.6, 1.2) / step))
    bent = direction + np.cumsum(random.normal(0, 0.045 * np.sqrt(step), (count, 3)), 0)
    bent /= np.linalg.norm(bent, axis=1, keepdims=True)
    centres = place + step * np.cumsum(bent, 0)
    radii = width * np.linspace(1.0, 0.85, count)
    return Balls(centres, radii, 1.0), centres[-1], bent[-1]


def _forked(random: np.random.Generator, heading: Floats) -> list[Floats]:
    """Two directions 25 to 45 degrees off, on opposite sides."""
    across = np.cross(heading, _directions(random, 1)[0])
    across /= np.linalg.norm(across)
    angles = np.deg2rad(random.uniform(25, 45, 2)) * (1, -1)
    return [np.cos(a) * heading + np.sin(a) * across for a in angles]


def _directions(random: np.random.Generator, count: int) -> Floats:
    drawn: Floats = random.standard_normal((count, 3))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn
