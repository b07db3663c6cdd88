from pathlib import Path

import numpy as np
import pytest

from natgrad.lab.luna.metaimage import Volume, read_volume
from natgrad.lab.luna.resample import cube, resampled, windowed

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


def test_outside_of_the_scan_is_air(tmp_path: Path) -> None:
    found = cube(ramp(tmp_path), (500, 500, 500), (2, 2, 2), (1, 1, 1))
    assert found.tolist() == np.zeros((2, 2, 2)).tolist()


def test_a_whole_scan_at_another_spacing(tmp_path: Path) -> None:
    volume = ramp(tmp_path, (-1, 0, 0, 0, 1, 0, 0, 0, 1))
    voxels, first = resampled(volume, (1.0, 1.0, 1.0))
    # 11 x 0.5 mm, 9 x 0.5 mm and 5 x 2 mm between first and last voxel
    assert voxels.shape == (11, 5, 6)
    assert first == pytest.approx([-1 - 5.5, 2, -6])
    expected = -500 + (first + np.array([3, 2, 7])) @ np.array([10, 20, 30])
    assert voxels[7, 2, 3] == pytest.approx(float(windowed(expected)), abs=1e-5)
