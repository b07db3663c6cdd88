"""Checkpoints that are cut off, damaged, or meet a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from natgrad.lab import files
from natgrad.lab.checkpoints import Checkpoints, Rhythm
from natgrad.lab.errors import DamagedError, WriteError


def state(update: int) -> dict[str, Any]:
    return {"update": update, "weights": torch.full((50,), float(update))}


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    """Three were saved, of which the last two are kept."""
    checkpoints = Checkpoints(tmp_path)
    for update in (10, 200, 3000):
        checkpoints.save(state(update))
    return checkpoints


def loaded(checkpoints: Checkpoints) -> tuple[int, list[str]]:
    said: list[str] = []
    found = checkpoints.load(said.append)
    assert found is not None
    assert torch.equal(found["weights"], state(found["update"])["weights"])
    return found["update"], said


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """One bit in the middle of the tensor's bytes, which torch would load without a word."""
    content = bytearray(path.read_bytes())
    place = content.index(state(3000)["weights"].numpy().tobytes()[:40]) + 17
    content[place] ^= 0x10
    path.write_bytes(bytes(content))
    assert torch.load(path, weights_only=True)["update"] == 3000


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_the_last_two_are_kept_under_their_checksums(saved: Checkpoints) -> None:
    names = [path.name for path in saved.found()]
    assert [name.split("-")[1] for name in names] == ["0000003000", "0000000200"]
    assert len(list(saved.folder.iterdir())) == 2
    assert loaded(saved) == (3000, [])


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_newest_one_is_passed_over_with_a_message(
    saved: Checkpoints, damage: Any
) -> None:
    damage(saved.found()[0])
    update, said = loaded(saved)
    assert update == 200
    assert len(said) == 1
    assert "checkpoint-0000003000" in said[0]
    assert "going on from the checkpoint before it" in said[0]
    saved.save(state(250))  # the damaged one must not take the place of a whole one
    assert loaded(saved) == (250, [])
    assert [path.name.split("-")[1] for path in saved.found()] == ["0000000250", "0000000200"]


def test_a_damaged_older_one_does_not_matter(saved: Checkpoints) -> None:
    truncate(saved.found()[1])
    assert loaded(saved) == (3000, [])


def test_both_damaged_is_an_error_that_says_what_to_do(saved: Checkpoints) -> None:
    for path in saved.found():
        truncate(path)
    with pytest.raises(DamagedError, match="put one back from a backup, or delete them") as caught:
        saved.load(print)
    assert all(path.name in str(caught.value) for path in saved.found())
    assert len(saved.found()) == 2  # nothing was thrown away


def test_none_at_all_is_no_error(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "absent").load(print) is None


def test_a_full_disk_leaves_the_earlier_ones(
    saved: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(WriteError, match=r"No space left on device.*--resume"):
        saved.save(state(4000))
    monkeypatch.undo()
    assert loaded(saved) == (3000, [])
    assert not list(saved.folder.glob(".*"))  # the draft went too


def test_a_draft_that_a_kill_left_is_removed(saved: Checkpoints) -> None:
    draft = saved.folder / ".checkpoint-0000004000-aa.pt.17.tmp"
    draft.write_bytes(b"half of it")
    assert loaded(saved) == (3000, [])
    assert not draft.exists()


def test_a_run_that_is_over_drops_all(saved: Checkpoints) -> None:
    truncate(saved.found()[0])
    loaded(saved)
    saved.drop()
    assert not list(saved.folder.iterdir())


def test_the_rhythm() -> None:
    every, epochs = Rhythm(steps=7, seconds=2), Rhythm(seconds=2)
    assert [u for u in range(30) if every.due(u, 100, since=0)] == [7, 14, 21, 28]
    assert [u for u in range(30) if every.due(u, 10, since=3)] == [7, 10, 14, 20, 21, 28]
    assert [u for u in range(30) if epochs.due(u, 10, since=3)] == [10, 20]
    assert not any(epochs.due(u, 10, since=1) for u in range(30))
