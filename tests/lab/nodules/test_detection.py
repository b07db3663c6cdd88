import math

import numpy as np
import pytest
import torch
from torch import nn

from natgrad.lab.data import Pair
from natgrad.lab.luna.froc import cpm, froc
from natgrad.lab.nodules.detection import (
    Detection,
    Detections,
    detected,
    losses,
    marks_by,
    marks_in,
    suppressed,
)

GRID = (3, 4, 5)


def target(scan: float, first: list[float], *places: list[float]) -> torch.Tensor:
    """Places without a number get one by scan."""
    numbered = [p if len(p) == 5 else [*p, 10 * scan + k] for k, p in enumerate(places)]
    rows = [[scan, *first, 0], *numbered]
    return torch.tensor(rows + [[0.0] * 5] * (5 - len(rows)))


def empty_maps(count: int = 1) -> torch.Tensor:
    maps = torch.zeros(count, 5, *GRID)
    maps[:, 0] = -12.0
    return maps


def say(maps: torch.Tensor, volume: int, place: list[float], logit: float, radius: float) -> None:
    """Put a detection at a place in voxels of the volume, with the offset that it takes."""
    cell = [int((p + 0.5) // 4) for p in place]
    middle = [4 * (c + 0.5) - 0.5 for c in cell]
    z, y, x = cell
    maps[volume, 0, z, y, x] = logit
    offset = [(p - m) / 4 for p, m in zip(place, middle, strict=True)]
    maps[volume, 1:, z, y, x] = torch.tensor([*offset, math.log(radius)])


def test_saying_the_truth_costs_nothing_and_anything_else_does() -> None:
    targets = target(0, [0, 0, 0], [5.2, 6.1, 9.7, 3.0])[None]
    maps = empty_maps()
    say(maps, 0, [5.2, 6.1, 9.7], 12.0, 3.0)
    right = losses(maps, targets).item()
    assert right == pytest.approx(0, abs=1e-6)
    for change in ((0, -12.0), (1, 1.0), (4, 0.0)):
        wrong = maps.clone()
        wrong[0, change[0], 1, 1, 2] = change[1]
        assert losses(wrong, targets).item() > 0.1


# one cell holds the nodule, with logit 0: p = 1/2, (1 - p)^2 (-log p) = .25 log 2; the place is
# off by one cell in z: smooth L1 = 1 - .5 = .5; radius right. All other 59 cells have logit 0 too,
# those whose middle lies within the nodule left out: p^2 (-log(1 - p)) = .25 log 2 each.
def test_the_loss_by_hand() -> None:
    # the centre is the middle of cell (1, 1, 2), (5.5, 5.5, 9.5); 4 voxels to the next cells
    targets = target(0, [0, 0, 0], [5.5, 5.5, 9.5, 4.5])[None]
    maps = torch.zeros(1, 5, *GRID)
    maps[0, 1, 1, 1, 2] = 1.0
    maps[0, 4, 1, 1, 2] = math.log(4.5)
    neighbours = 6  # at 4 voxels, within the radius of 4.5; diagonal ones are at 5.7
    expected = (60 - neighbours) * 0.25 * math.log(2) + 0.5
    assert losses(maps, targets).item() == pytest.approx(expected, rel=1e-5)


def test_excluded_findings_count_neither_way_in_training() -> None:
    maps = torch.zeros(1, 5, *GRID)
    none = losses(maps, target(0, [0, 0, 0])[None]).item()
    excluded = losses(maps, target(0, [0, 0, 0], [5.5, 5.5, 9.5, -4.5])[None]).item()
    assert none - excluded == pytest.approx(7 * 0.25 * math.log(2), rel=1e-5)


def test_losses_are_of_each_volume() -> None:
    targets = torch.stack([target(0, [0, 0, 0]), target(0, [0, 0, 0], [5.5, 5.5, 9.5, 2.0])])
    maps = torch.randn(2, 5, *GRID, generator=torch.Generator().manual_seed(0))
    both = losses(maps, targets)
    each = [losses(maps[k : k + 1], targets[k : k + 1]).item() for k in range(2)]
    assert both.tolist() == pytest.approx(each)


def test_peaks_are_found_where_they_are_said_to_be() -> None:
    maps = empty_maps()
    say(maps, 0, [5.2, 6.1, 9.7], 2.0, 3.0)
    found = detected(maps, target(3, [10, 20, 30])[None])
    assert found.centres[0] == pytest.approx([15.2, 26.1, 39.7], abs=1e-4)
    assert found.scores[0] == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert found.radii[0] == pytest.approx(3.0, rel=1e-5)
    assert found.scan.tolist() == [3]


def test_of_places_within_a_radius_only_the_highest_stays() -> None:
    centres = np.array([[0.0, 0, 0], [2, 0, 0], [9, 0, 0], [1, 0, 0]])
    scores = np.array([0.5, 0.9, 0.8, 0.7])
    kept = suppressed(Detections(scores, centres, np.full(4, 3.0), np.array([0, 0, 0, 1])))
    assert kept.scores.tolist() == [0.9, 0.8, 0.7]
    assert kept.scan.tolist() == [0, 0, 1]


def test_overlapping_volumes_of_a_scan_find_a_nodule_once() -> None:
    # the nodule at (8, 6, 10) of scan 4 lies in both volumes, the second of which begins at z = 4
    targets = torch.stack(
        [target(4, [0, 0, 0], [8, 6, 10, 3]), target(4, [4, 0, 0], [4, 6, 10, 3])]
    )
    maps = empty_maps(2)
    say(maps, 0, [8.0, 6.0, 10.0], 1.0, 3.0)
    say(maps, 1, [4.2, 6.0, 10.0], 2.0, 3.0)
    marks = marks_in(maps, targets)
    assert marks.nodules == marks.scans == 1
    assert marks.scores.tolist() == [pytest.approx(1 / (1 + math.exp(-2.0)))]


def test_every_scan_counts_and_excluded_findings_do_not() -> None:
    targets = torch.stack(
        [
            target(0, [0, 0, 0], [5, 5, 5, 3]),
            target(1, [0, 0, 0]),
            target(2, [0, 0, 0], [5, 5, 5, -3]),
        ]
    )
    maps = empty_maps(3)
    say(maps, 1, [5, 5, 5], 1.0, 3.0)  # a false positive
    say(maps, 2, [5, 5, 5], 1.0, 3.0)  # on an excluded finding
    marks = marks_in(maps, targets)
    assert marks.scans == 3
    assert marks.nodule.tolist() == [True, False]
    assert marks.scores[0] == -np.inf


def test_a_nodule_in_two_volumes_is_one_whatever_float32_makes_of_its_place() -> None:
    # 90.025 and 18.025 are no numbers of float32: rounding to hundredths would tell them apart
    places = [np.float32(90.025 - first) for first in (0.0, 72.0)]
    assert round(float(places[0]), 2) != round(float(places[1]) + 72, 2)
    targets = torch.stack(
        [
            target(0, [first, 0, 0], [float(place), 5, 5, 3, 7])
            for first, place in zip((0.0, 72.0), places, strict=True)
        ]
    )
    assert marks_in(empty_maps(2), targets).nodules == 1
    equal = torch.stack([target(0, [0, 0, 0], [5, 5, 5, 3, 0], [5, 5, 5, 3, 1])])
    assert marks_in(empty_maps(1), equal).nodules == 2  # the script counts every line


def test_suppression_is_that_of_one_by_one() -> None:
    random = np.random.default_rng(0)
    found = Detections(
        random.random(300), random.uniform(0, 20, (300, 3)), random.uniform(1, 4, 300),
        random.integers(0, 3, 300),
    )  # fmt: skip
    kept: list[int] = []
    for k in np.argsort(-found.scores):
        mine = [j for j in kept if found.scan[j] == found.scan[k]]
        gaps = np.linalg.norm(found.centres[mine] - found.centres[k], axis=1)
        if not (gaps < found.radii[mine]).any():
            kept.append(int(k))
    assert suppressed(found).scores.tolist() == found.scores[kept].tolist()


class Says(nn.Module):
    def __init__(self, maps: torch.Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.maps[x]


def test_loss_and_cpm_of_a_split() -> None:
    targets = torch.stack([target(k, [0, 0, 0], [5.2, 6.1, 9.7, 3.0]) for k in range(12)])
    maps = empty_maps(12)
    for k in range(9):
        say(maps, k, [5.2, 6.1, 9.7], 1.0, 3.0)
    pair = Pair(torch.arange(12), targets)
    loss, figure = Detection().evaluate(Says(maps), pair)
    assert loss == pytest.approx(Detection().loss(Says(maps), pair).item(), rel=1e-6)
    assert figure == cpm(froc(marks_in(maps, targets)).at()) == 0.75
    assert Detection().residuals(pair) is None
    by_model = marks_by(Says(maps), pair)  # a few volumes at a time
    assert by_model.scores.tolist() == marks_in(maps, targets).scores.tolist()
