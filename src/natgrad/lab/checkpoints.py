"""The checkpoints of a run: the last two, each under the checksum of its content.

``checkpoint-<update>-<first 16 digits of the sha256>.pt`` is an ordinary file of ``torch.save``.
The checksum stands in the name so that content and checksum appear in one move: there is no moment
at which one is there without the other.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from natgrad.lab.errors import DamagedError
from natgrad.lab.files import remove_drafts, replace_file

__all__ = ["Checkpoints", "Rhythm", "digest_of", "serialised"]

KEPT = 2
DIGITS = 16
EVERY_S = 2.0


@dataclass(frozen=True)
class Rhythm:
    """When a run is saved: at multiples of ``steps``, and at ends of epochs ``seconds`` apart.

    Attributes:
        steps: a checkpoint at every multiple; None leaves the ends of epochs alone.
        seconds: that must lie between a checkpoint and the next one at the end of an epoch.
    """

    steps: int | None = None
    seconds: float = EVERY_S

    def due(self, update: int, updates_per_epoch: int, since: float) -> bool:
        """Whether to save after ``update`` steps, ``since`` seconds after the last time."""
        if not update:
            return False
        if self.steps and update % self.steps == 0:
            return True
        return update % updates_per_epoch == 0 and since >= self.seconds


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in the folder of a run."""

    folder: Path

    def save(self, state: Mapping[str, Any]) -> None:
        """Add one, then remove all but the last two.

        Args:
            state: tensors and plain values; ``state["update"]`` is the number of steps so far.

        Raises:
            WriteError: the disk is full, or the like; the earlier ones stay.
        """
        content = serialised(state)
        name = f"checkpoint-{state['update']:010}-{digest_of(content)}.pt"
        replace_file(self.folder / name, lambda file: file.write(content))
        for old in self.found()[KEPT:]:
            old.unlink(missing_ok=True)

    def load(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest that is whole, None where there is none at all.

        Drafts in the folder that a kill cut off are removed.

        Args:
            say: is told of a damaged one that is passed over.

        Raises:
            DamagedError: there are some and none is whole.
        """
        remove_drafts(self.folder)
        found = self.found()
        states = ((path, _read(path)) for path in found)
        whole = next(((path, state) for path, state in states if state is not None), None)
        if whole is None:
            if found:
                raise DamagedError(
                    f"no checkpoint in {self.folder} is whole, neither of "
                    f"{' and '.join(path.name for path in found)}: put one back from a backup, or "
                    "delete them to start this run again"
                )
            return None
        for path in found[: found.index(whole[0])]:
            say(f"{path} is damaged; going on from the checkpoint before it")
            path.rename(path.with_suffix(".damaged"))
        return whole[1]

    def found(self) -> list[Path]:
        """Those there are, the newest first."""
        return sorted(self.folder.glob("checkpoint-*.pt"), reverse=True)

    def drop(self) -> None:
        """Remove them: the run is over."""
        for path in self.folder.glob("checkpoint-*"):
            path.unlink(missing_ok=True)


def serialised(state: Mapping[str, Any]) -> bytes:
    """What ``torch.save`` makes of a state."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    return content.getvalue()


def digest_of(content: bytes) -> str:
    """The first 16 digits of the sha256 of a file's content."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _read(path: Path) -> dict[str, Any] | None:
    """The state, None if the file is not what was written."""
    try:
        content = path.read_bytes()
    except OSError:  # a bad sector
        return None
    if digest_of(content) != path.stem.rpartition("-")[2]:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state
