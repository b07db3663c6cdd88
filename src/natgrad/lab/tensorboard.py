"""Live figures of training for TensorBoard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from natgrad.lab.running import Row, Silent, Status
from natgrad.lab.training import Run, Training

__all__ = ["TensorBoard"]


class TensorBoard(Silent):
    """Writes the loss, the learning rates and an optimizer's live figures.

    In a training loop of one's own::

        log = TensorBoard("runs/mine")
        for step, (x, y) in enumerate(batches):
            ...
            opt.step()
            log(opt, step, loss=loss.item())
        log.close()

    ``opt.stats()`` is asked where there is one, so that any optimizer will do. In the lab it is a
    watch, and every run gets a folder of its own.

    Args:
        folder: where the event files go.
        every: steps between two entries.
    """

    def __init__(self, folder: Path | str, every: int = 1) -> None:
        self.folder, self.every = Path(folder), every
        self._writer: Any = None

    def __call__(self, optimizer: torch.optim.Optimizer, step: int, **scalars: float) -> None:
        """Write ``scalars``, the learning rates and ``optimizer.stats()``, if it is time."""
        if step % self.every:
            return
        if self._writer is None:
            self._open(self.folder)
        rates = {f"lr/{k}": float(group["lr"]) for k, group in enumerate(optimizer.param_groups)}
        stats = optimizer.stats() if hasattr(optimizer, "stats") else {}
        for name, value in {**scalars, **rates, **stats}.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder)

    # as a watch ---------------------------------------------------------------------------------

    def begin(self, training: Training) -> None:
        """A run begins, or goes on: in a folder of its name."""
        self._open(self.folder / _folder(training.run))

    def advance(self, training: Training, loss: float) -> None:
        """A step was made."""
        share = training.batches.seconds / max(training.seconds, 1e-9)
        self(training.optimizer, training.update, loss=loss, **{"data/fetch_share": share})

    def evaluated(self, training: Training, row: Row) -> None:
        """The curve got a point."""
        for name, value in row.items():
            if isinstance(value, float) and math.isfinite(value) and "_" in name:
                self._writer.add_scalar(f"curve/{name}", value, training.update)

    def end(self, training: Training, status: Status) -> None:
        """The run is over, or interrupted."""
        self.close()


def _folder(run: Run) -> str:
    return str(run).replace(" ", "-").replace("=", "-")
