import zlib
from pathlib import Path

import numpy as np
import pytest

from natgrad.lab.luna.metaimage import MetaImageError, read_header, read_volume

from .files import write_mhd

#: z, y, x = 2, 3, 4: every voxel says where it is
VOXELS = (100 * np.arange(2)[:, None, None] + 10 * np.arange(3)[:, None] + np.arange(4)).astype(
    "<i2"
)


def test_voxels_are_z_y_x_and_the_header_x_y_z(tmp_path: Path) -> None:
    path = write_mhd(tmp_path / "a.mhd", VOXELS, (0.7, 0.8, 2.5), (-10, 20, -300.5))
    volume = read_volume(path)
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels, VOXELS)
    header = volume.header
    assert header.size == (4, 3, 2)
    assert header.to_world([0, 0, 0]).tolist() == [-10, 20, -300.5]
    assert header.to_world([3, 2, 1]) == pytest.approx([-7.9, 21.6, -298.0])
    assert header.to_voxel([-7.9, 21.6, -298.0]) == pytest.approx([3, 2, 1])
    x, y, z = np.round(header.to_voxel([[-7.9, 21.6, -298.0]])[0]).astype(int)
    assert volume.voxels[z, y, x] == 123


def test_flipped_axes(tmp_path: Path) -> None:
    """A few of LUNA16's scans have x and y the other way round."""
    axes = (-1, 0, 0, 0, -1, 0, 0, 0, 1)
    header = read_header(write_mhd(tmp_path / "a.mhd", VOXELS, (2, 3, 1), (100, 50, 7), axes))
    assert header.to_world([1, 2, 1]).tolist() == [98, 44, 8]
    assert header.to_voxel([98, 44, 8]).tolist() == [1, 2, 1]


def test_a_row_of_the_matrix_is_the_direction_of_an_axis(tmp_path: Path) -> None:
    # the array's x runs along the world's y, its y against the world's x, as ITK reads the rows
    axes = (0, 1, 0, -1, 0, 0, 0, 0, 1)
    header = read_header(write_mhd(tmp_path / "a.mhd", VOXELS, (2, 3, 5), (0, 0, 0), axes))
    assert header.to_world([1, 0, 0]).tolist() == [0, 2, 0]
    assert header.to_world([0, 1, 0]).tolist() == [-3, 0, 0]
    places = np.random.default_rng(0).random((5, 3))
    assert header.to_voxel(header.to_world(places)) == pytest.approx(places)


@pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_big_endian(tmp_path: Path, key: str) -> None:
    path = write_mhd(tmp_path / "a.mhd", VOXELS.astype(">i2"), **{key: "True"})
    voxels = read_volume(path).voxels
    assert np.array_equal(voxels, VOXELS)
    assert voxels.dtype.isnative


@pytest.mark.parametrize(("kind", "dtype"), [("MET_FLOAT", "<f4"), ("MET_UCHAR", "u1")])
def test_other_types_of_voxels(tmp_path: Path, kind: str, dtype: str) -> None:
    path = write_mhd(tmp_path / "a.mhd", VOXELS.astype(dtype), kind=kind)
    assert np.array_equal(read_volume(path).voxels, VOXELS.astype(dtype))


def test_compressed_voxels(tmp_path: Path) -> None:
    path = write_mhd(tmp_path / "a.mhd", VOXELS, CompressedData="True", ElementDataFile="a.zraw")
    (tmp_path / "a.zraw").write_bytes(zlib.compress(VOXELS.tobytes()))
    assert np.array_equal(read_volume(path).voxels, VOXELS)
    (tmp_path / "a.zraw").write_bytes(b"nothing of the kind")
    with pytest.raises(MetaImageError, match="damaged"):
        read_volume(path)


def test_missing_and_truncated_voxels(tmp_path: Path) -> None:
    path = write_mhd(tmp_path / "a.mhd", VOXELS)
    path.with_suffix(".raw").write_bytes(VOXELS.tobytes()[:-2])
    with pytest.raises(MetaImageError, match=r"holds 46 bytes.* are 48"):
        read_volume(path)
    path.with_suffix(".raw").unlink()
    with pytest.raises(MetaImageError, match=r"a\.raw, which is not there"):
        read_volume(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"NDims": "2"}, "3 dimensions"),
        ({"BinaryData": "False"}, "text"),
        ({"ElementType": "MET_STRING"}, "MET_STRING is not read"),
        ({"ElementNumberOfChannels": "3"}, "3 channels"),
        ({"ElementDataFile": "LOCAL"}, "LOCAL is not read"),
        ({"ElementSpacing": "1 1"}, 'takes 3 numbers, got "1 1"'),
        ({"ElementSpacing": "1 0 1"}, "positive"),
        ({"DimSize": "4 3 0"}, "positive"),
        ({"DimSize": "4 three 2"}, "takes 3 numbers"),
        ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, "no rotation"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    tmp_path: Path, change: dict[str, str], words: str
) -> None:
    path = write_mhd(tmp_path / "a.mhd", VOXELS, **change)
    with pytest.raises(MetaImageError, match=words):
        read_header(path)


def test_a_file_that_is_not_there_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(MetaImageError, match="can't be read"):
        read_header(tmp_path / "none.mhd")
    (tmp_path / "b.mhd").write_text("just a line")
    with pytest.raises(MetaImageError, match="no MetaImage"):
        read_header(tmp_path / "b.mhd")
    (tmp_path / "c.mhd").write_text("NDims = 3\nElementType = MET_SHORT\n")
    with pytest.raises(MetaImageError, match="has no DimSize"):
        read_header(tmp_path / "c.mhd")
