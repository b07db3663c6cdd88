"""Generated scans: nodules and vessels in noisy lung, with the truth about them.

No image of a patient and no imitation of one: what the networks must tell apart, blobs from tubes
and forks of tubes, at several sizes, densities and levels of noise. Say "generated nodules and
vessels, 3D" of everything that is made with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from natgrad.lab.luna.resample import grey, windowed
from natgrad.lab.nodules.shapes import Balls, nodule, paint, vessel_tree

__all__ = ["NAME", "Phantom", "Style", "phantom"]

NAME = "generated nodules and vessels, 3D"

LUNG, TISSUE = -850.0, 40.0  #: Hounsfield units of density 0 and 1
APART = 4.0  #: voxels at least between the rims of two nodules


@dataclass(frozen=True)
class Style:
    """What generated scans look like.

    Attributes:
        size: ``(z, y, x)``, voxels.
        nodules: mean number of nodules of a scan; drawn from a Poisson distribution.
        vessels: trees of a scan.
        noise: standard deviation of the noise in Hounsfield units, 0.7 to 1.3 times that by scan.
        radii: least and greatest of a nodule, in voxels; log-uniform between.
        margin: voxels at each side without the centre of a nodule.
    """

    size: tuple[int, int, int] = (64, 64, 64)
    nodules: float = 2.0
    vessels: int = 5
    noise: float = 120.0
    radii: tuple[float, float] = (2.0, 5.5)
    margin: int = 6


@dataclass(frozen=True)
class Phantom:
    """One generated scan.

    Attributes:
        voxels: ``[z, y, x]``, uint8: -1000 to 400 HU as 0 to 255.
        centres: ``[m, 3]`` of the nodules, ``(z, y, x)`` in voxels.
        radii: ``[m]``, in voxels.
        mimics: ``[k, 3]``, places on vessels that a detector might take for a nodule: forks first.
    """

    voxels: NDArray[np.uint8]
    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    mimics: NDArray[np.float64]


def phantom(style: Style, seed: Sequence[int]) -> Phantom:
    """A scan; equal seeds give equal scans.

    Args:
        style: what it looks like.
        seed: numbers that name it, such as ``(data set, split, index)``.
    """
    random = np.random.default_rng(seed)
    trees, mimics = _vessels(random, style)
    centres, radii = _places(random, style)
    balls = [*trees, *(_one(random, c, r) for c, r in zip(centres, radii, strict=True))]
    density = paint(style.size, balls)
    hounsfield = LUNG + (TISSUE - LUNG) * density + _noise(random, style)
    voxels = grey(windowed(hounsfield.numpy()))
    return Phantom(voxels, centres, radii, _clear(mimics, centres, radii, style))


def _one(random: np.random.Generator, centre: NDArray[np.float64], radius: float) -> Balls:
    """Two nodules of three are solid, the others ground glass; half of them have spicules."""
    solid = random.random() < 2 / 3
    density = random.uniform(0.75, 1.0) if solid else random.uniform(0.4, 0.6)
    spicules = int(random.integers(3, 9)) if random.random() < 0.5 else 0
    return nodule(random, centre, radius, density, spicules)


def _vessels(random: np.random.Generator, style: Style) -> tuple[list[Balls], NDArray[np.float64]]:
    trees, forks, bends = [], [], []
    for _ in range(style.vessels):
        tree, ends = vessel_tree(random, style.size, random.uniform(1.2, 2.8), generations=2)
        trees.append(tree)
        forks.append(ends)
        bends.append(tree.centres[random.integers(len(tree.centres), size=4)])
    return trees, np.concatenate([*forks, *bends, np.empty((0, 3))])


def _places(
    random: np.random.Generator, style: Style
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres and radii of nodules that keep apart; on a vessel as often as chance has it."""
    low, high = np.log(style.radii)
    centres: list[NDArray[np.float64]] = []
    radii: list[float] = []
    inner = np.array(style.size) - 1.0 - 2 * style.margin
    for _ in range(random.poisson(style.nodules)):
        centre, radius = (
            style.margin + random.random(3) * inner,
            float(np.exp(random.uniform(low, high))),
        )
        gaps = [
            float(np.linalg.norm(centre - c)) - r - radius
            for c, r in zip(centres, radii, strict=True)
        ]
        if min(gaps, default=np.inf) >= APART:
            centres.append(centre)
            radii.append(radius)
    return np.array(centres).reshape(-1, 3), np.array(radii)


def _noise(random: np.random.Generator, style: Style) -> Tensor:
    """Grain over two voxels and a slow drift, in Hounsfield units."""
    sd = style.noise * random.uniform(0.7, 1.3)
    fine = torch.from_numpy(random.standard_normal(style.size, dtype=np.float32))
    grain = F.avg_pool3d(fine[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
    grain = 0.8 * fine + 0.6 * grain / grain.std()
    coarse = torch.from_numpy(random.standard_normal((1, 1, 4, 4, 4), dtype=np.float32))
    drift = F.interpolate(coarse, style.size, mode="trilinear", align_corners=True)[0, 0]
    return sd * grain / grain.std() + 40.0 * drift


def _clear(
    mimics: NDArray[np.float64],
    centres: NDArray[np.float64],
    radii: NDArray[np.float64],
    style: Style,
) -> NDArray[np.float64]:
    """Those inside of the volume and off all nodules."""
    inside = ((mimics >= 0) & (mimics <= np.array(style.size) - 1)).all(1)
    distance = np.linalg.norm(mimics[:, None] - centres[None], axis=-1)
    off = (distance > radii + 2).all(1)
    kept: NDArray[np.float64] = mimics[inside & off]
    return kept
