from pathlib import Path

import numpy as np
import pytest
import torch

from natgrad.lab.errors import DataMissingError
from natgrad.lab.nodules.detection import losses, marks_in
from natgrad.lab.nodules.phantom import Style
from natgrad.lab.nodules.volumes import corners, cut, generated_volumes, luna16_volumes, places_in
from tests.lab.luna.files import write_mhd, write_table


def test_generated_volumes_and_their_nodules() -> None:
    data = generated_volumes(3, 1, 2, Style(size=(16, 24, 32), nodules=2.0, vessels=1))
    splits = data.load(None)
    assert splits.sizes() == {"train": 3, "validation": 1, "test": 2}
    assert splits.train.inputs.shape == (3, 16, 24, 32)
    assert splits.train.inputs.dtype == torch.uint8
    targets = splits.train.targets
    assert targets[:, 0].tolist() == [[k, 0, 0, 0, 0] for k in range(3)]
    places = targets[:, 1:]
    assert ((places[..., 3] == 0) == (places.abs().sum(-1) == 0)).all()
    numbers = places[places[..., 3] > 0][:, 4].tolist()
    assert numbers == list(range(len(numbers)))
    assert torch.equal(data.load(None).test.inputs, splits.test.inputs)


def test_pieces_cover_a_scan_and_overlap() -> None:
    voxels = np.arange(50 * 8 * 8).reshape(50, 8, 8).astype(np.uint8)
    places = np.array([[20.0, 4, 4, 3, 0], [45.0, 2, 2, -2, 1]])
    found = corners(voxels.shape, size=24, overlap=8)
    assert [first[0] for first in found] == [0, 16, 26]
    covered, counts = np.zeros(50, bool), []
    for first in found:
        begin = int(first[0])
        covered[begin : begin + 24] = True
        part = cut(voxels, first, size=24)
        assert part.shape == (24, 24, 24)
        assert np.array_equal(part[:, :8, :8], voxels[begin : begin + 24])
        assert (part[:, 8:] == 0).all()  # filled up with air
        mine = places_in(places, first, voxels.shape, size=24)
        assert {tuple(p + np.append(first, [0, 0])) for p in mine} <= set(map(tuple, places))
        counts.append(len(mine))
    assert covered.all()
    assert counts == [1, 1, 1]


def test_a_centre_just_outside_of_the_scan_is_in_the_piece_beside_it() -> None:
    places = np.array([[49.8, 4, 4, 3, 0], [20, -0.7, 4, 3, 1]])
    shape = (50, 8, 8)
    inside = [places_in(places, c, shape, size=24)[:, 4] for c in corners(shape, 24, 8)]
    assert [numbers.tolist() for numbers in inside] == [[1], [1], [0]]


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
    z, y, x, radius, number = splits.test.targets[0, 1].tolist()
    assert (z, radius, number) == (8, 3, 0)
    assert splits.test.inputs[0, int(z), int(y), int(x)] == 255  # the marked voxel, axes flipped
    assert splits.test.targets[0, 2, 3:].tolist() == [-2, 1]
    assert splits.train.targets[:, 0, 0].tolist() == list(range(8))
    with pytest.raises(DataMissingError, match="luna16/subset0"):
        luna16_volumes().load(luna / "luna16")


def test_as_many_findings_in_a_piece_as_there_are(luna: Path) -> None:
    """On a quarter of LUNA16's scans a piece has more than 16 excluded findings."""
    random = np.random.default_rng(0)
    folder = luna / "luna16"
    places = random.uniform([71, 71, -50], [99, 99, -31], (60, 3)).round(2).tolist()
    rows = [("s9", *place, -1) for place in places]
    write_table(folder / "annotations_excluded.csv", "diameter_mm", [*rows, *rows])
    test = luna16_volumes(9).load(luna).test
    assert test.targets.shape == (1, 1 + 1 + 60, 5)  # every one once, and the nodule
    excluded = test.targets[0, 2:]
    assert excluded[:, 3].tolist() == [-5] * 60
    assert len(excluded[:, 4].unique()) == 60
    maps = torch.zeros(1, 5, 24, 24, 24)
    assert marks_in(maps, test.targets).nodules == 1
    assert losses(maps, test.targets).isfinite().all()


def test_a_split_without_a_nodule_is_refused_with_its_scans(luna: Path) -> None:
    path = luna / "luna16" / "annotations.csv"
    path.write_text("".join(x for x in path.read_text().splitlines(True) if "s8" not in x))
    with pytest.raises(DataMissingError, match="no nodule is annotated in scan s8"):
        luna16_volumes(9).load(luna)
    with pytest.raises(DataMissingError, match="none with one"):
        luna16_volumes(9, scans=1).load(luna)


def test_there_are_ten_folds() -> None:
    with pytest.raises(ValueError, match="0 to 9, got 10"):
        luna16_volumes(10)
