from pathlib import Path

import numpy as np
import pytest

from natgrad.lab.luna.metaimage import Volume, read_volume
from natgrad.lab.luna.resample import cube, grey, grid_of, resampled, windowed

from .files import write_mhd


def ramp(tmp_path: Path, axes: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)) -> Volume:
    """Hounsfield units -500 + 10 x + 20 y + 30 z in mm of the world, 0.5 x 0.5 x 2 mm voxels."""
    z, y, x = np.meshgrid(np.arange(6), np.arange(10), np.arange(12), indexing="ij")
    header = read_volume(
        write_mhd(tmp_path / "h.mhd", np.zeros((6, 10, 12), "<f4"), (0.5, 0.5, 2), (-1, 2, -6),
                  axes, "MET_FLOAT")
    ).header  # fmt: skip
    world = header.to_world(np.stack([x, y, z], -1))
    return Volume((-500 + world @ np.array([10, 20, 30])).astype(np.float32), header)


def test_hounsfield_units_are_clipped_and_mapped() -> None:
    assert windowed([-3000, -1000, -300, 400, 3000]).tolist() == [0, 0, 0.5, 1, 1]
    assert windowed([0]).dtype == np.float32


@pytest.mark.parametrize(
    "axes",
    [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 1, 0, -1, 0, 0, 0, 0, 1)],
)
def test_a_cube_is_cut_in_the_world_whatever_the_axes(
    tmp_path: Path, axes: tuple[float, ...]
) -> None:
    volume = ramp(tmp_path, axes)
    centre = volume.header.to_world([5.5, 4.5, 2.5])
    found = cube(volume, centre, (3, 2, 4), (1.0, 0.7, 0.6))
    assert found.shape == (3, 2, 4)
    z, y, x = np.meshgrid((-1, 0, 1), (-0.35, 0.35), (-0.9, -0.3, 0.3, 0.9), indexing="ij")
    expected = -500 + (centre + np.stack([x, y, z], -1)) @ np.array([10, 20, 30])
    assert found == pytest.approx(windowed(expected), abs=1e-5)


@pytest.mark.parametrize("place", [(500, 500, 500), (-1.6, 2, -6), (-1, 7.1, -6)])
def test_outside_of_the_scan_is_air(tmp_path: Path, place: tuple[float, ...]) -> None:
    found = cube(ramp(tmp_path), place, (2, 2, 1), (0.01, 0.01, 0.01))
    assert found.tolist() == np.zeros((2, 2, 1)).tolist()


def test_half_a_voxel_out_is_half_air(tmp_path: Path) -> None:
    volume = ramp(tmp_path)
    found = cube(volume, volume.header.to_world([11.5, 4, 2]), (1, 1, 1), (1, 1, 1))
    assert found.item() == pytest.approx(float(windowed((volume.voxels[2, 4, 11] - 1000) / 2)))


def test_a_whole_scan_at_another_spacing(tmp_path: Path) -> None:
    volume = ramp(tmp_path, (-1, 0, 0, 0, 1, 0, 0, 0, 1))
    shape, first = grid_of(volume.header, (1.0, 1.0, 1.0))
    # 11 x 0.5 mm, 9 x 0.5 mm and 5 x 2 mm between first and last voxel
    assert shape == (11, 5, 6)
    assert first == pytest.approx([-1 - 5.5, 2, -6])
    voxels = resampled(volume, (1.0, 1.0, 1.0))
    assert voxels.shape == shape
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    expected = windowed(-500 + (first + np.stack([x, y, z], -1)) @ np.array([10, 20, 30]))
    assert voxels / 255 == pytest.approx(expected, abs=0.5 / 255 + 1e-4)


def test_grey_values_are_the_nearest_of_256() -> None:
    assert grey([0, 0.5, 1, 1.4 / 255, 1.6 / 255]).tolist() == [0, 128, 255, 1, 2]
    assert grey([0.3]).dtype == np.uint8
