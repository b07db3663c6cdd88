"""How detectors of nodules are trained and judged.

Targets are places in a volume: ``[n, 1 + m, 5]``, float. The first row of each says which volume it
is: ``(scan, z, y, x, 0)`` with the place of its first voxel in the scan. The others are nodules
``(z, y, x, radius, number)`` in voxels of the volume: radius 0 for none, below 0 for a finding that
counts neither way; the number is the finding's own within the split, nodules and others numbered
together. Volumes of one scan may overlap: a finding may stand in several of them, and what is
detected twice is one detection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from natgrad.lab.data import Pair
from natgrad.lab.luna.froc import Marks, cpm, froc
from natgrad.lab.luna.matching import Findings, match
from natgrad.lab.metrics import Metric
from natgrad.lab.nodules.pyramid import STRIDE
from natgrad.lab.objective import outputs
from natgrad.least_squares.residuals import Residuals

__all__ = [
    "DETECTION_CPM",
    "Detection",
    "Detections",
    "detected",
    "losses",
    "marks_by",
    "marks_in",
    "peaks",
    "suppressed",
]

EVALUATED_AT_ONCE = 8
FOCUS = 2.0  #: exponent of the focal loss
PLACES_WEIGHT = 1.0  #: of the places' loss beside the objectness's
PEAKS = 64  #: highest peaks of a volume that are looked at
LEAST = 1e-4  #: objectness below which nothing is a detection


@dataclass(frozen=True)
class Detections:
    """Peaks: ``scores [k]``, ``centres [k, 3]`` and ``radii [k]`` in voxels of ``scan [k]``."""

    scores: NDArray[np.float64]
    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    scan: NDArray[np.int64]


def losses(maps: Tensor, targets: Tensor) -> Tensor:
    """Loss of each volume ``[n]``.

    The focal loss (Lin et al. 2017, arXiv 1708.02002, without its alpha) of all cells' objectness,
    and smooth L1 of offset and log radius in the cells that hold a nodule's centre; summed over
    cells and divided by the number of nodules, one at least. Other cells whose middle lies within a
    nodule count neither way.

    Args:
        maps: ``[n, 5, *grid]``, see :class:`natgrad.lab.nodules.pyramid.PyramidDetector`.
        targets: ``[n, 1 + m, 5]``.
    """
    truth, counted, place = _on_grid(targets, tuple(maps.shape[2:]))
    logit = maps[:, 0]
    sign = 2 * truth - 1
    nll = F.softplus(-sign * logit)
    focal = torch.sigmoid(-sign * logit).pow(FOCUS) * nll * counted
    off = F.smooth_l1_loss(maps[:, 1:], place, reduction="none").sum(1) * truth
    nodules = truth.flatten(1).sum(1).clamp_min(1)
    return (focal + PLACES_WEIGHT * off).flatten(1).sum(1) / nodules


def _on_grid(targets: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """What each cell should say: objectness, whether it counts, offset and log radius."""
    n, device = len(targets), targets.device
    truth = torch.zeros(n, *grid, device=device)
    place = torch.zeros(n, 4, *grid, device=device)
    axes = [STRIDE * (torch.arange(size, device=device) + 0.5) - 0.5 for size in grid]
    middles = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    centres, radii = targets[:, 1:, :3], targets[:, 1:, 3]
    distance = (middles - centres[:, :, None, None, None]).norm(dim=-1)
    within = (distance < radii.abs()[..., None, None, None]).any(1)
    example, row = torch.nonzero(radii > 0, as_tuple=True)
    cell = (centres[example, row] + 0.5).div(STRIDE, rounding_mode="floor").long()
    limit = torch.tensor(grid, device=device) - 1
    z, y, x = cell.clamp_min(0).minimum(limit).unbind(-1)
    truth[example, z, y, x] = 1
    offset = (centres[example, row] - middles[z, y, x]) / STRIDE
    log_radius = radii[example, row].log()[:, None]
    place[example, :, z, y, x] = torch.cat([offset, log_radius], 1)
    return truth, (truth > 0) | ~within, place


def detected(maps: Tensor, targets: Tensor) -> Detections:
    """The peaks of the objectness, one for each place of a scan.

    Of the :func:`peaks` within the radius of a higher one in the same scan only the higher stays.

    Args:
        maps: ``[n, 5, *grid]``.
        targets: ``[n, 1 + m, 5]``, of which only the first rows are read.
    """
    return suppressed(peaks(maps, targets))


def peaks(maps: Tensor, targets: Tensor) -> Detections:
    """The highest cells of each volume that are as high as all their neighbours.

    Args:
        maps: ``[n, 5, *grid]``.
        targets: ``[n, 1 + m, 5]``, of which only the first rows are read.
    """
    heat = maps[:, 0].sigmoid()
    highest = F.max_pool3d(heat[:, None], 3, stride=1, padding=1)[:, 0]
    peaks = torch.where(heat == highest, heat, 0).flatten(1)
    scores, cells = peaks.topk(min(PEAKS, peaks.shape[1]), dim=1)
    example, rank = torch.nonzero(scores > LEAST, as_tuple=True)
    cell = cells[example, rank]
    z, y, x = (torch.from_numpy(a) for a in np.unravel_index(cell.cpu().numpy(), maps.shape[2:]))
    said = maps[example, 1:, z, y, x].double()
    middle = STRIDE * (torch.stack([z, y, x], -1).to(said) + 0.5) - 0.5
    first = targets[example, 0].double()
    centres = first[:, 1:4] + middle + STRIDE * said[:, :3]
    return Detections(
        scores[example, rank].double().numpy(force=True),
        centres.numpy(force=True),
        said[:, 3].clamp(-1, 4).exp().numpy(force=True),
        first[:, 0].long().numpy(force=True),
    )


def suppressed(found: Detections) -> Detections:
    """Without those whose centre lies within the radius of a higher one in the same scan."""
    kept: list[int] = []
    for scan in np.unique(found.scan):
        here = np.flatnonzero(found.scan == scan)
        here = here[np.argsort(-found.scores[here], kind="stable")]
        while len(here):
            highest, others = here[0], here[1:]
            kept.append(int(highest))
            gaps = np.linalg.norm(found.centres[others] - found.centres[highest], axis=1)
            here = others[gaps >= found.radii[highest]]
    chosen = np.array(kept, np.int64)
    chosen = chosen[np.argsort(-found.scores[chosen], kind="stable")]
    return Detections(
        found.scores[chosen], found.centres[chosen], found.radii[chosen], found.scan[chosen]
    )


def marks_in(maps: Tensor, targets: Tensor) -> Marks:
    """A detector's peaks, matched to the annotated nodules.

    Args:
        maps: ``[n, 5, *grid]``.
        targets: ``[n, 1 + m, 5]``.

    Raises:
        ValueError: no volume holds a nodule.
    """
    return _matched(peaks(maps, targets), targets)


def marks_by(model: nn.Module, pair: Pair) -> Marks:
    """The same of a detector's volumes, a few in memory at a time.

    Args:
        model: the detector.
        pair: volumes ``[n, z, y, x]`` and targets ``[n, 1 + m, 5]``.

    Raises:
        ValueError: no volume holds a nodule.
    """
    found = [peaks(maps, targets) for maps, targets in _said(model, pair)]
    return _matched(_joined(found), pair.targets)


def _said(model: nn.Module, pair: Pair) -> Iterator[tuple[Tensor, Tensor]]:
    """Maps and targets, a few volumes at a time: the maps of a whole split take gigabytes."""
    parts = (torch.split(t, EVALUATED_AT_ONCE) for t in (pair.inputs, pair.targets))
    for inputs, targets in zip(*parts, strict=True):
        maps = outputs(model, inputs, EVALUATED_AT_ONCE)
        yield maps, targets.to(maps.device)


def _joined(found: Sequence[Detections]) -> Detections:
    fields = ("scores", "centres", "radii", "scan")
    return Detections(*(np.concatenate([getattr(each, f) for each in found]) for f in fields))


def _matched(found: Detections, targets: Tensor) -> Marks:
    found = suppressed(found)
    table = targets.double().numpy(force=True)
    names, scan = np.unique(table[:, 0, 0].astype(np.int64), return_inverse=True)
    nodules, excluded = (_findings(table, scan, kind) for kind in (1, -1))
    at = np.searchsorted(names, found.scan)
    return match(found.scores, found.centres, at, nodules, len(names), excluded)


def _findings(table: NDArray[np.float64], scan: NDArray[np.int64], kind: int) -> Findings:
    """Nodules (``kind`` 1) or excluded findings (-1) in the scans, each number once."""
    volume, row = np.nonzero(kind * table[:, 1:, 3] > 0)
    places = table[volume, 1 + row]
    once = np.unique(places[:, 4], return_index=True)[1]
    centres = places[once, :3] + table[volume[once], 0, 1:4]
    return Findings(centres, np.abs(places[once, 3]), scan[volume[once]].astype(np.int64))


def _cpm(maps: Tensor, targets: Tensor) -> float:
    return cpm(froc(marks_in(maps, targets)).at())


#: of the peaks that a detector finds
DETECTION_CPM = Metric("CPM", "", "higher", _cpm)


@dataclass(frozen=True)
class Detection:
    """Mean loss over volumes; the metric is the CPM of the peaks."""

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """See :class:`natgrad.lab.objective.Objective`."""
        return losses(model(batch.inputs), batch.targets).mean()

    def residuals(self, batch: Pair) -> Residuals | None:
        """None: the loss is no sum of squares."""
        return None

    def evaluate(self, model: nn.Module, pair: Pair) -> tuple[float, float]:
        """Mean loss and CPM."""
        total, found = 0.0, []
        for maps, targets in _said(model, pair):
            total += losses(maps, targets).double().sum().item()
            found.append(peaks(maps, targets))
        marks = _matched(_joined(found), pair.targets)
        return total / len(pair), cpm(froc(marks).at())
