"""Files that are written whole or not at all, and locks that a killed process leaves open."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from natgrad.lab.errors import WriteError

__all__ = ["alone", "flush_folder", "remove_drafts", "replace_file", "writing"]


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside the old one, then put it in its place in one move.

    A kill at any moment leaves the old file or the new one; after a power cut too, for the content
    is on the disk before the name is.

    Args:
        path: of the file; its folder is made if missing.
        write: is given the open draft.

    Raises:
        WriteError: the disk is full, or the like; the old file stays.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)


def remove_drafts(folder: Path) -> None:
    """Remove what a kill left of :func:`replace_file` in a folder that nobody else writes to."""
    for draft in folder.glob(".*.tmp"):
        draft.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of a write that fails which file it was, and what to do.

    Raises:
        WriteError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"can't write {path}: {error.strerror or error}. What was saved before is whole: make "
            "room or give permission, and go on with --resume"
        ) from error


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock file; other processes wait. The system opens it when its holder is killed.

    Where there are no such locks (Windows), everybody goes on at once.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file opens the lock
