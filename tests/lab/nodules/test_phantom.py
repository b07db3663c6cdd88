import numpy as np
import pytest
import torch

from natgrad.lab.nodules.phantom import APART, Style, phantom
from natgrad.lab.nodules.shapes import EDGE, Balls, nodule, paint, vessel_tree

STYLE = Style(size=(40, 44, 48), nodules=4.0, vessels=2)


def test_a_ball_fills_its_radius_and_its_rim_is_soft() -> None:
    volume = paint((21, 21, 21), [Balls(np.array([[10.0, 10, 10]]), np.array([4.0]), 0.8)])
    distance = (torch.cartesian_prod(*[torch.arange(21.0)] * 3) - 10).norm(dim=1).view(21, 21, 21)
    expected = 0.8 * torch.sigmoid((4.0 - distance) / EDGE)
    assert torch.allclose(volume, expected, atol=0.02)
    assert volume[10, 10, 14] == pytest.approx(0.4)


def test_where_shapes_meet_the_denser_counts() -> None:
    thin = Balls(np.array([[10.0, 10, 10]]), np.array([4.0]), 0.5)
    dense = Balls(np.array([[10.0, 10, 14]]), np.array([4.0]), 1.0)
    volume = paint((21, 21, 25), [thin, dense])
    assert torch.equal(volume, paint((21, 21, 25), [dense, thin]))
    assert torch.equal(
        volume, torch.maximum(paint((21, 21, 25), [thin]), paint((21, 21, 25), [dense]))
    )


def test_balls_reach_out_of_the_volume_without_wrapping_round() -> None:
    volume = paint((9, 9, 9), [Balls(np.array([[0.0, 0, 0]]), np.array([3.0]), 1.0)])
    assert volume[0, 0, 0] > 0.9
    assert volume[8].max() == volume[:, 8].max() == volume[:, :, 8].max() == 0


def test_a_nodule_is_about_as_large_as_its_radius() -> None:
    random = np.random.default_rng(0)
    balls = nodule(random, np.array([16.0, 16, 16]), 5.0, 1.0, spicules=0)
    volume = float((paint((33, 33, 33), [balls]) > 0.5).sum())
    assert 1.0 <= volume / (4 / 3 * np.pi * 5**3) <= 1.4
    spiked = nodule(random, np.array([16.0, 16, 16]), 5.0, 1.0, spicules=6)
    reach = np.linalg.norm(spiked.centres - 16, axis=1).max()
    assert 5 * 1.2 <= reach <= 5 * 1.9


def test_vessels_are_connected_and_branch() -> None:
    balls, forks = vessel_tree(np.random.default_rng(1), (64, 64, 64), 3.0, generations=2)
    assert len(forks) == 3  # the trunk's end, and those of its two branches
    for fork in forks:
        assert np.linalg.norm(balls.centres - fork, axis=1).min() < 1e-9
    nearest = [
        np.linalg.norm(np.delete(balls.centres, k, 0) - c, axis=1).min()
        for k, c in enumerate(balls.centres[::10])
        for k in [10 * k]
    ]
    assert max(nearest) < balls.radii.max()


def test_equal_seeds_give_equal_scans_and_others_do_not() -> None:
    first, again, other = (phantom(STYLE, (0, k)) for k in (1, 1, 2))
    assert np.array_equal(first.voxels, again.voxels)
    assert np.array_equal(first.centres, again.centres)
    assert not np.array_equal(first.voxels, other.voxels)


def test_the_truth_is_where_the_voxels_are_bright() -> None:
    style = Style(size=(48, 48, 48), nodules=3.0, vessels=0, noise=30.0, radii=(3.0, 5.0))
    scans = [phantom(style, (5, k)) for k in range(6)]
    inside = [scan.voxels[tuple(np.round(c).astype(int))] for scan in scans for c in scan.centres]
    background = np.median([np.median(scan.voxels) for scan in scans])
    assert len(inside) > 6
    assert min(inside) > background + 40
    for scan in scans:
        assert ((scan.centres >= style.margin) & (scan.centres <= 47 - style.margin)).all()


def test_nodules_keep_apart_and_mimics_keep_off_them() -> None:
    for k in range(8):
        scan = phantom(STYLE, (9, k))
        for a in range(len(scan.radii)):
            gaps = (
                np.linalg.norm(scan.centres - scan.centres[a], axis=1) - scan.radii - scan.radii[a]
            )
            assert np.delete(gaps, a).min(initial=np.inf) >= APART
            off = np.linalg.norm(scan.mimics - scan.centres[a], axis=1)
            assert (off > scan.radii[a]).all()


def test_noise_is_as_strong_as_said() -> None:
    quiet, loud = (
        phantom(Style(size=(32, 32, 32), nodules=0, vessels=0, noise=noise), (1,)).voxels.std()
        for noise in (10.0, 60.0)
    )
    assert loud > 2 * quiet
    assert phantom(Style(size=(16, 16, 16), nodules=0, vessels=0), (0,)).centres.shape == (0, 3)
