"""Whether a worker on this machine is alive: by its number and the time it started."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["alive", "here", "me"]

STATE, START = 0, 19  #: fields of /proc/<pid>/stat after the name


def here() -> str | None:
    """This machine since it started, and this container; None where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        numbers = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    return hashlib.sha256(f"{boot} {numbers}".encode()).hexdigest()[:16]


def me() -> list[str | int | None]:
    """What tells this process from every other."""
    return [here(), os.getpid(), _start(os.getpid())]


def alive(process: list[str | int | None]) -> bool | None:
    """Whether a process lives; None for one that is not on this machine."""
    machine, number, start = process
    if machine is None or machine != here() or not isinstance(number, int):
        return None
    return _start(number) == start


def _start(number: int) -> str | None:
    """When a process started, in ticks of the machine; None for one that is gone."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[STATE] in "ZX" else fields[START]
