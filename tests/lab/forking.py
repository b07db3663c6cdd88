"""Processes that a test forks, to be killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
import torch

#: autograd's threads for GPUs do not survive a fork
NEEDS_FORK = pytest.mark.skipif(
    not hasattr(os, "fork") or torch.cuda.is_available(), reason="torch can't be forked here"
)
PATIENCE_S = 200.0


def forked(work: Callable[[], object]) -> int:
    """A process that does this and nothing else; its exit code is 0 where it came to the end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            torch.set_num_threads(1)  # the parent's threads are not here
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Its exit code, the number of the signal that killed it as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    ended(child)


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
