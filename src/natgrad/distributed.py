"""The seam to many processes: the only file that knows of ``torch.distributed``.

Without a process group every function here does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist

from natgrad.moments import Moment

__all__ = ["sum_pending", "world_size"]


def world_size() -> int:
    """Number of processes that share the statistics; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_pending(moments: Iterable[Moment]) -> None:
    """Add up what waits in each moment over all processes, before it is committed.

    Sums and row counts are both added, so the mean afterwards is over the rows of all processes,
    whatever each contributed.
    """
    if world_size() == 1:
        return
    for moment in moments:
        if moment.pending is not None and moment.pending_weight is not None:
            dist.all_reduce(moment.pending)
            dist.all_reduce(moment.pending_weight)
