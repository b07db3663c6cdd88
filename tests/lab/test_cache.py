"""The cache of decoded data: whole or not there, for any number of processes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from natgrad.lab import cache
from natgrad.lab.cache import Arrays, check, entries, filled, kept, write_rows
from natgrad.lab.errors import WriteError

from .forking import NEEDS_FORK, forked, kill, wait_until


def arrays() -> Arrays:
    random = np.random.default_rng(0)
    return {
        "images": random.integers(0, 256, (500, 28, 28), dtype=np.uint8),
        "labels": np.arange(500),
    }


def forbidden() -> Arrays:
    pytest.fail("made again")


def assert_right(found: Arrays) -> None:
    for name, expected in arrays().items():
        np.testing.assert_array_equal(found[name], expected)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    found = tmp_path / "set" / "train"
    assert_right(kept(found, arrays))
    return found


def test_arrays_are_made_once_and_mapped(place: Path) -> None:
    found = kept(place, forbidden)
    assert_right(found)
    assert isinstance(found["images"], np.memmap)
    assert entries(place.parent.parent) == [place]
    assert check(place) == []


def test_a_change_in_memory_never_reaches_the_file(place: Path) -> None:
    kept(place, forbidden)["images"][:] = 0
    assert_right(kept(place, forbidden))
    assert check(place) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(path: Path) -> None:
    """The same size, other content, as a disk does it that loses a sector."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, overwrite, Path.unlink])
@pytest.mark.parametrize("name", ["images.npy", "entry.json"])
def test_what_is_damaged_is_made_anew(place: Path, name: str, damage: object) -> None:
    damage(place / name)  # type: ignore[operator]
    assert_right(kept(place, arrays))
    assert_right(kept(place, forbidden))
    assert check(place) == []


def test_one_bit_that_the_samples_miss_is_found_by_reading_all(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SAMPLE_BYTES", 16)
    made = kept(place.with_name("sparse"), arrays)
    del made
    path = place.with_name("sparse") / "images.npy"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 + 700] ^= 1
    path.write_bytes(bytes(content))
    kept(path.parent, forbidden)  # opened: no sample lies there
    assert check(path.parent) == ["images.npy"]


def test_those_that_start_together_wait_for_the_first(tmp_path: Path) -> None:
    made: list[int] = []

    def slow() -> Arrays:
        made.append(os.getpid())
        time.sleep(0.2)
        return arrays()

    found: list[Arrays] = []
    threads = [
        threading.Thread(target=lambda: found.append(kept(tmp_path / "train", slow)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    for each in found:
        assert_right(each)


@NEEDS_FORK
def test_a_kill_while_it_is_made_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    place, sign = tmp_path / "train", tmp_path / "writing"

    def endless() -> Arrays:
        sign.touch()
        time.sleep(60)
        return arrays()

    child = forked(lambda: kept(place, endless))
    wait_until(sign.exists)
    kill(child)
    assert_right(kept(place, arrays))
    assert_right(kept(place, forbidden))


def test_a_failed_write_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert_right(kept(tmp_path / "train", arrays))
    assert not (tmp_path / "train").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["train.lock"]


def fill(folder: Path) -> None:
    """The same arrays, the images 200 at a time."""
    images, labels = arrays()["images"], arrays()["labels"]
    parts = (images[k : k + 200] for k in range(0, 500, 200))
    write_rows(folder / "images.npy", images.shape, np.uint8, parts)
    np.save(folder / "labels.npy", labels)


def test_an_entry_filled_part_by_part_is_like_any_other(tmp_path: Path) -> None:
    place = tmp_path / "set" / "train"
    assert_right(filled(place, fill))
    assert_right(filled(place, lambda _: pytest.fail("filled again")))
    assert_right(kept(place, forbidden))
    assert check(place) == []
    cut(place / "images.npy")
    assert_right(filled(place, fill))


@NEEDS_FORK
def test_a_kill_while_an_entry_is_filled_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    place, sign = tmp_path / "train", tmp_path / "writing"

    def endless(folder: Path) -> None:
        fill(folder)  # every byte is there when it is killed
        sign.touch()
        time.sleep(60)

    child = forked(lambda: filled(place, endless))
    wait_until(sign.exists)
    kill(child)
    assert entries(tmp_path) == []
    assert not place.exists()
    assert list(tmp_path.glob(".train.*/images.npy"))
    assert_right(filled(place, fill))
    assert list(tmp_path.glob(".train.*")) == []  # nor does it take room for ever


def test_a_cache_that_cant_be_filled_says_what_to_do(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match=r"No space left on device.*NATGRAD_CACHE"):
        filled(tmp_path / "train", full)
    assert [path.name for path in tmp_path.iterdir()] == ["train.lock"]


def test_rows_must_fit_the_array_they_are_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    with pytest.raises(ValueError, match="takes 3 rows, got 2"):
        write_rows(path, (3, 4), np.uint8, [np.zeros((2, 4), np.uint8)])
    with pytest.raises(ValueError, match=r"\[k, 4\] of uint8, got \[2, 5\] of uint8"):
        write_rows(path, (2, 4), np.uint8, [np.zeros((2, 5), np.uint8)])
    with pytest.raises(ValueError, match="of float64"):
        write_rows(path, (2, 4), np.uint8, [np.zeros((2, 4))])
