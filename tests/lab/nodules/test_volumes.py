from pathlib import Path

import numpy as np
import pytest
import torch

from natgrad.lab.errors import DataMissingError
from natgrad.lab.nodules.phantom import Style
from natgrad.lab.nodules.volumes import generated_volumes, luna16_volumes, pieces
from tests.lab.luna.files import write_mhd, write_table


def test_generated_volumes_and_their_nodules() -> None:
    data = generated_volumes(3, 1, 2, Style(size=(16, 24, 32), nodules=2.0, vessels=1))
    splits = data.load(None)
    assert splits.sizes() == {"train": 3, "validation": 1, "test": 2}
    assert splits.train.inputs.shape == (3, 16, 24, 32)
    assert splits.train.inputs.dtype == torch.uint8
    targets = splits.train.targets
    assert targets[:, 0].tolist() == [[k, 0, 0, 0] for k in range(3)]
    places = targets[:, 1:]
    assert ((places[..., 3] == 0) == (places.abs().sum(-1) == 0)).all()
    assert torch.equal(data.load(None).test.inputs, splits.test.inputs)


def test_pieces_cover_a_scan_and_overlap() -> None:
    voxels = np.arange(50 * 8 * 8).reshape(50, 8, 8).astype(np.uint8)
    places = np.array([[20.0, 4, 4, 3], [45.0, 2, 2, -2]])
    found = pieces(voxels, places, size=24, overlap=8)
    assert [first[0] for _, first, _ in found] == [0, 16, 26]
    covered = np.zeros(50, bool)
    for cut, first, mine in found:
        begin = int(first[0])
        covered[begin : begin + 24] = True
        assert cut.shape == (24, 24, 24)
        assert np.array_equal(cut[:, :8, :8], voxels[begin : begin + 24])
        assert (cut[:, 8:] == 0).all()  # filled up with air
        assert {tuple(place + np.append(first, 0)) for place in mine} <= set(map(tuple, places))
    assert covered.all()
    assert [len(mine) for _, _, mine in found] == [1, 1, 1]


@pytest.fixture
def luna(tmp_path: Path) -> Path:
    """Ten scans with flipped axes; one voxel marks the nodule."""
    folder = tmp_path / "luna16"
    annotations = []
    for k in range(10):
        voxels = np.full((20, 30, 30), -900, "<i2")
        voxels[8, 12, 20] = 400
        write_mhd(
            folder / f"subset{k}" / f"s{k}.mhd", voxels, (1, 1, 1), (100, 100, -50),
            (-1, 0, 0, 0, -1, 0, 0, 0, 1),
        )  # fmt: skip
        annotations.append((f"s{k}", 100 - 20, 100 - 12, -50 + 8, 6))
    write_table(folder / "annotations.csv", "diameter_mm", annotations)
    write_table(folder / "annotations_excluded.csv", "diameter_mm", [("s9", 99, 99, -49, 4)])
    return tmp_path


def test_luna16s_scans_in_pieces(luna: Path) -> None:
    splits = luna16_volumes(9).load(luna)
    assert splits.sizes() == {"train": 8, "validation": 1, "test": 1}
    assert splits.test.inputs.shape == (1, 96, 96, 96)
    z, y, x, radius = splits.test.targets[0, 1].tolist()
    assert (z, radius) == (8, 3)
    assert splits.test.inputs[0, int(z), int(y), int(x)] == 255  # the marked voxel, axes flipped
    assert splits.test.targets[0, 2, 3] == -2
    assert splits.train.targets[:, 0, 0].tolist() == list(range(8))
    with pytest.raises(DataMissingError, match="luna16/subset0"):
        luna16_volumes().load(luna / "luna16")
