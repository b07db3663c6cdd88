"""Peak memory of a few steps, each method in a process of its own.

    python -m natgrad.lab.bench.memory mlp kfac cpu 2

prints ``{"mib": ...}``: the peak while steps of every kind are made, above what the process held
once network and batches were there.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from natgrad.lab.bench.intervals import Interval
from natgrad.lab.bench.method import Method, Setup
from natgrad.lab.bench.methods import method
from natgrad.lab.bench.tasks import Task, task
from natgrad.lab.bench.turns import first_line

__all__ = ["peak_of", "used_by"]

STEPS, OFTEN = 3, Interval(1, 2)  #: statistics and decompositions from the start, and once again
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def used_by(task: Task, method: Method, device: str, threads: int) -> dict[str, Any]:
    """The peak of a method on a task, measured in a new process.

    Returns:
        ``{"mib": ...}``, or ``{"problem": ...}`` with what went wrong in one line.
    """
    words = [sys.executable, "-m", __name__, task.name, method.name, device, str(threads)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    with suppress(ValueError, IndexError):
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    if done.returncode < 0:
        return {"problem": f"the process was killed (signal {-done.returncode})"}
    said = done.stderr.strip().splitlines()
    return {"problem": said[-1] if said else f"exit code {done.returncode}"}


def peak_of(task: Task, method: Method, device: str) -> float:
    """The peak of a few steps in this process, in MiB above what is held before the first."""
    _wake(device)
    model, batches = task.model(device), task.batches(device)
    gc.collect()
    before = _restart(device)
    step = method.begin(Setup(task, model, OFTEN, device))
    for k in range(STEPS):
        step(*batches[k])
    return (_peak(device) - before) / 2**20


def _wake(device: str) -> None:
    """Let torch load at first use what is no method's: library code and buffers."""
    layer = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64 * 36, 64)).to(device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(16, 3, 8, 8, device=device)).sum().backward()
    optimizer.step()
    matrix = torch.eye(64, device=device)
    for decompose in (torch.cholesky_inverse, torch.inverse, torch.svd):
        decompose(matrix)


def _restart(device: str) -> int:
    """Forget the peak so far; what is held now, in bytes."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(OSError):
        CLEAR.write_text("5", encoding="ascii")  # resets the high-water mark, on Linux
    return _peak(device)


def _peak(device: str) -> int:
    """The largest amount of memory held so far, in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):  # of this program; ru_maxrss holds its parent's too
                return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def main(arguments: list[str]) -> None:
    """Measure what the command line names, and print it as JSON."""
    on, name, device, threads = arguments
    torch.set_num_threads(int(threads))
    found: dict[str, Any]
    try:
        found = {"mib": peak_of(task(on), method(name), device)}
    except Exception as error:
        found = {"problem": first_line(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
