"""Where results come from: versions, machine, revision, command. Nothing that names a person."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import natgrad

__all__ = ["command", "git", "machine", "now", "versions"]

PACKAGES = ("numpy", "scikit-learn", "datasets", "optuna", "typer")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "natgrad": natgrad.__version__,
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The processor, its cores, torch's threads, memory in GiB, and the system."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def git() -> dict[str, Any]:
    """Revision of the checkout natgrad runs from, and whether files in it were changed."""
    here = Path(natgrad.__file__).parent
    if _git(here, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"revision": None, "dirty": None}
    changed = _git(here, "status", "--porcelain")
    return {
        "revision": _git(here, "rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
    }


def command() -> str:
    """The command line as typed, the home folder written as ``~``."""
    home = str(Path.home())
    typed = shlex.join(["natgrad", *sys.argv[1:]])
    return typed.replace(home, "~") if len(home) > 1 else typed


def now() -> str:
    """UTC time to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
