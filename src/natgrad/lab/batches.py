"""The batches of a run: which examples, in which order, and how long making them takes."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from natgrad.lab.augmentation import Augmentation, randomness
from natgrad.lab.data import Pair
from natgrad.lab.devices import Compute

__all__ = ["Batches", "data_order"]


class Batches:
    """Batches of a seed, each a function of the number of updates before it, augmented ones too.

    Nothing is kept that a resumed run would have to restore, but the time.

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
        self.seconds = 0.0  #: that fetching took so far
        self._order: tuple[int, Tensor] | None = None

    def take(self, update: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the batch after so many updates, on the clock."""
        begin = time.perf_counter()
        epoch, index = divmod(update, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = data_order(len(self.pair), self.seed, epoch)
            self._order = epoch, order.to(self.pair.inputs.device)
        rows = self._order[1][index * self.size : (index + 1) * self.size]
        x = self.compute.gather(self.pair.inputs, rows)
        same = self.pair.targets is self.pair.inputs
        y = x if same else self.compute.gather(self.pair.targets, rows)
        if self.augmentation is not None:
            x = self.augmentation(x, randomness(self.seed, update))
        self.seconds += time.perf_counter() - begin
        return x, y


def data_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the training examples in one epoch: a function of seed and epoch alone."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count))
