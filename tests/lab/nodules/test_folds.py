"""What is decoded of LUNA16 is decoded once, a scan at a time, and whole or not there."""

from __future__ import annotations

import dataclasses
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from natgrad.lab.cache import cache_folder, check, entries
from natgrad.lab.data import DataSet, Splits
from natgrad.lab.luna.archive import Archive
from natgrad.lab.luna.resample import cube, grid_of
from natgrad.lab.nodules import candidates, volumes
from natgrad.lab.nodules.candidates import CUBE, luna16
from natgrad.lab.nodules.volumes import luna16_volumes
from tests.lab.forking import NEEDS_FORK, forked, kill, wait_until
from tests.lab.luna.files import write_mhd, write_table

SETS = pytest.mark.parametrize("make", [luna16, luna16_volumes])


@pytest.fixture
def luna(tmp_path: Path) -> Path:
    """Ten subsets of two scans; a nodule and two candidates in each scan."""
    folder = tmp_path / "luna16"
    random = np.random.default_rng(0)
    nodules, listed = [], []
    for k in range(20):
        name = f"s{k:02}"
        voxels = random.integers(-1000, 400, (14, 20, 20)).astype("<i2")
        write_mhd(folder / f"subset{k // 2}" / f"{name}.mhd", voxels, (1.5, 1.5, 2), (0, 0, 0))
        nodules.append((name, 15, 15, 14, 8))
        listed += [(name, 15, 15, 15, 1), (name, 25.2, 3.3, 20.1, 0)]
    write_table(folder / "annotations.csv", "diameter_mm", nodules)
    write_table(folder / "annotations_excluded.csv", "diameter_mm", [("s19", 25, 3, 20, -1)])
    write_table(folder / "candidates.csv", "class", listed)
    return tmp_path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scans whose voxels are read."""
    scans: list[str] = []
    volume = Archive.volume
    monkeypatch.setattr(Archive, "volume", lambda self, s: scans.append(s) or volume(self, s))
    return scans


def assert_equal(first: Splits, again: Splits) -> None:
    assert first.source == again.source
    for split in ("train", "validation", "test"):
        one, other = getattr(first, split), getattr(again, split)
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)


@SETS
def test_a_second_start_decodes_nothing(make: type, luna: Path, read: list[str]) -> None:
    first = make(9).load(luna)
    assert sorted(read) == [f"s{k:02}" for k in range(20)]  # each scan once
    read.clear()
    assert_equal(first, make(9).load(luna))
    assert read == []
    assert all(check(place) == [] for place in entries(cache_folder()))
    assert len(entries(cache_folder())) == 3


@SETS
def test_a_subset_is_decoded_once_for_test_and_validation(
    make: type, luna: Path, read: list[str]
) -> None:
    make(8).load(luna)
    read.clear()
    make(9).load(luna)  # the test set of fold 8 is for validation here
    assert set(read) == {f"s{k:02}" for k in range(20)} - {"s16", "s17"}


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@SETS
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("annotations.csv", "s19,15,15,14,8", "s19,15,15,14,9"),
        ("annotations_excluded.csv", "s19,25,3,20,-1", "s19,25,3,20,7"),
        ("subset9/s19.mhd", "ElementSpacing = 1.5 1.5 2", "ElementSpacing = 1.5 1.5 2.5"),
    ],
)
def test_other_tables_and_headers_are_decoded_anew(
    make: type, file: str, old: str, new: str, luna: Path, read: list[str]
) -> None:
    before = make(9).load(luna)
    read.clear()
    replaced(luna / "luna16" / file, old, new)
    after = make(9).load(luna)
    assert {"s18", "s19"} <= set(read)
    assert before.source != after.source


def test_the_list_of_candidates_counts_where_it_is_read(luna: Path, read: list[str]) -> None:
    luna16(9).load(luna)
    luna16_volumes(9).load(luna)
    read.clear()
    replaced(luna / "luna16" / "candidates.csv", "s19,25.2,", "s19,25.4,")
    luna16_volumes(9).load(luna)
    assert read == []
    luna16(9).load(luna)
    assert len(read) == 20


@pytest.mark.parametrize(
    ("make", "module", "constant", "value"),
    [
        (luna16, candidates, "SPACING", (1.0, 1.0, 1.0)),
        (luna16, candidates, "NEGATIVES", 1.0),
        (luna16_volumes, volumes, "SPACING", (2.0, 2.0, 2.0)),
        (luna16_volumes, volumes, "EMPTY_PIECES", 1),
    ],
)
def test_what_else_decides_is_part_of_the_key(
    make: type, module: object, constant: str, value: object, luna: Path, read: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make(9).load(luna)
    read.clear()
    monkeypatch.setattr(module, constant, value)
    make(9).load(luna)
    assert read


def test_cubes_are_the_direct_ones_but_for_the_last_bit(luna: Path) -> None:
    test = luna16(9).load(luna).test
    archive = Archive(luna / "luna16")
    places = [(15, 15, 15), (25.2, 3.3, 20.1)]
    for row, (name, place) in enumerate((s, p) for s in ("s18", "s19") for p in places):
        direct = cube(archive.volume(name), place, CUBE, candidates.SPACING)
        kept = test.inputs[row].numpy() / 255
        assert np.abs(kept - direct).max() <= 0.5 / 255 + 1e-6  # 2.7 HU
    assert test.targets[:, :3].tolist() == [[1, 0, 0], [0, -1, 0], [1, 1, 1], [0, -2, 1]]


def test_pieces_are_the_direct_ones_but_for_the_last_bit(luna: Path) -> None:
    test = luna16_volumes(9).load(luna).test
    volume = Archive(luna / "luna16").volume("s19")
    shape, first = grid_of(volume.header, volumes.SPACING)
    middle = first + (np.array(shape)[::-1] - 1) / 2
    direct = cube(volume, middle, shape, volumes.SPACING)
    kept = test.inputs[1].numpy()[tuple(map(slice, shape))] / 255
    assert np.abs(kept - direct).max() <= 0.5 / 255 + 1e-5


@NEEDS_FORK
@SETS
def test_a_kill_while_scans_are_decoded_leaves_nothing_that_looks_whole(
    make: type, luna: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign, volume = tmp_path / "at-the-last", Archive.volume

    def stuck(self: Archive, scan: str) -> object:
        if scan == "s19":  # the last of all: only the test set is not whole
            sign.touch()
            time.sleep(60)
        return volume(self, scan)

    with monkeypatch.context() as patched:
        patched.setattr(Archive, "volume", stuck)
        child = forked(lambda: make(9).load(luna))
        wait_until(sign.exists)
        kill(child)
    assert len(entries(cache_folder())) == 2
    after = make(9).load(luna)
    monkeypatch.setenv("NATGRAD_CACHE", str(tmp_path / "another"))
    assert_equal(after, make(9).load(luna))


@SETS
def test_memory_is_bounded_by_a_scan(make: type, luna: Path) -> None:
    """Decoding twenty scans takes no more of it than decoding few, and far less than is kept."""
    peaks = {}
    for scans in (1, None):
        data: DataSet = make(9, scans)
        tracemalloc.start()
        splits = data.load(luna)
        peaks[scans] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        kept = splits.train.inputs.numel()
        assert isinstance(splits, Splits)
        assert dataclasses.is_dataclass(splits)
    assert peaks[None] < 1.5 * peaks[1]
    if make is luna16_volumes:
        assert peaks[None] < kept / 2
