"""The batches of a run: which examples, in which order, and how long making them takes."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from natgrad.lab.ahead import Ahead
from natgrad.lab.augmentation import Augmentation, randomness
from natgrad.lab.data import Pair
from natgrad.lab.decoded import FileImages, decoders
from natgrad.lab.devices import Compute

__all__ = ["Batches", "data_order"]


class Batches:
    """Batches of a seed, each a function of the number of updates before it, augmented ones too.

    Nothing is kept that a resumed run would have to restore, but the time. Images in files are
    decoded one batch ahead, in threads that last until :meth:`close`, or as long as the batches.

    Args:
        pair: the training examples.
        size: examples in a batch; the last of an epoch may be smaller.
        seed: of the order.
        compute: where batches are wanted.
        augmentation: of the inputs, drawn anew for every batch.
    """

    def __init__(
        self,
        pair: Pair,
        size: int,
        seed: int,
        compute: Compute,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.pair, self.size, self.seed, self.compute = pair, size, seed, compute
        self.augmentation = augmentation
        self.per_epoch = math.ceil(len(pair) / size)
        self.seconds = 0.0  #: that steps waited for their batches so far
        self._order: tuple[int, Tensor] | None = None
        self._inputs, self._ahead, self._decoders = pair.inputs, None, None
        if isinstance(pair.inputs, FileImages):
            self._ahead, self._decoders = Ahead[tuple[Tensor, Tensor]](), decoders()
            self._inputs = pair.inputs.decoded_by(self._decoders)

    def take(self, update: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the batch after so many updates, on the clock."""
        begin = time.perf_counter()
        batch = self.made(update) if self._ahead is None else self._ahead.take(update, self.made)
        self.seconds += time.perf_counter() - begin
        return batch

    def made(self, update: int) -> tuple[Tensor, Tensor]:
        """The same off the clock, here and now: a function of the number of updates alone."""
        epoch, index = divmod(update, self.per_epoch)
        rows = self._ordered(epoch)[index * self.size : (index + 1) * self.size]
        x = self.compute.gather(self._inputs, rows)
        same = self.pair.targets is self.pair.inputs
        y = x if same else self.compute.gather(self.pair.targets, rows)
        if self.augmentation is not None:
            x = self.augmentation(x, randomness(self.seed, update))
        return x, y

    def _ordered(self, epoch: int) -> Tensor:
        known = self._order
        if known is None or known[0] != epoch:
            order = data_order(len(self.pair), self.seed, epoch)
            known = self._order = epoch, order.to(self.pair.inputs.device)
        return known[1]

    def close(self) -> None:
        """End the threads: no batch is taken any more."""
        if self._ahead is not None and self._decoders is not None:
            self._ahead.close()
            self._decoders.shutdown()


def data_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the training examples in one epoch: a function of seed and epoch alone."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count))
