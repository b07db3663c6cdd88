"""Mean and covariance of the rows that whitened layers see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from natgrad import linalg
from natgrad.batches import Batches, call
from natgrad.calls import whole
from natgrad.distributed import sum_pending, world_size
from natgrad.modes import evaluating
from natgrad.moments import Moment
from natgrad.whiten.module import Pair, Whitened
from natgrad.whiten.triangle import gram

__all__ = ["RowMoments", "Statistics", "pooled_mean", "statistics_of", "summed"]

CHUNK = 2**16  #: rows that are taken to float64 at a time


class RowMoments:
    """Count, mean ``[(q,) k]`` and centred second moment ``[(q,) k, k]`` of rows, in float64.

    Chunks are centred on their own mean and merged (Chan, Golub and LeVeque 1983), so nothing
    cancels however far the mean is from zero. Chunks with a number that is not finite don't count.
    """

    def __init__(self) -> None:
        self.count: Tensor | None = None
        self.mean: Tensor
        self.scatter: Tensor  #: sum of the outer products of centred rows

    def add(self, rows: Tensor) -> None:
        """Take in rows ``[(q,) r, k]``."""
        for part in torch.split(rows.detach(), CHUNK, dim=-2):
            if part.shape[-2]:
                self._add(part.to(torch.float64, copy=True))

    def _add(self, x: Tensor) -> None:
        r = x.shape[-2]
        mean = x.mean(-2)
        scatter = gram(x.sub_(mean.unsqueeze(-2)))
        # a number of the rows that is not finite, or too large, shows on the diagonal
        usable = linalg.trace(scatter).isfinite().all()
        if self.count is None:
            self.count = torch.where(usable, r, mean.new_zeros(()))
            self.mean, self.scatter = torch.where(usable, mean, 0), torch.where(usable, scatter, 0)
            return
        n = self.count + r
        delta = mean - self.mean
        across = (delta * (self.count * r / n)).unsqueeze(-2)
        scatter.add_(self.scatter).addcmul_(delta.unsqueeze(-1), across)
        self.mean = torch.where(usable, self.mean + delta * (r / n), self.mean)
        self.scatter = torch.where(usable, scatter, self.scatter)
        self.count = torch.where(usable, n, self.count)

    def _start(self, like: Tensor) -> None:
        zeros = torch.zeros_like(like, dtype=torch.float64)
        self.count, self.mean = zeros.new_zeros(()), zeros
        self.scatter = torch.zeros_like(zeros.unsqueeze(-1) * zeros.unsqueeze(-2))

    @property
    def empty(self) -> bool:
        """Whether no row counted so far."""
        return self.count is None or not bool(self.count > 0)

    def covariance(self) -> Tensor:
        """``E[(x - mean) (x - mean)^T]``, divided by the count (MATH 5.2)."""
        assert self.count is not None
        return self.scatter / self.count

    def second_moment(self) -> Tensor:
        """``E[x x^T]``."""
        return self.covariance() + self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2)

    def pooled(self, like: Tensor) -> RowMoments:
        """The moments of the rows of all processes; without a process group, these.

        Args:
            like: a tensor ``[(q,) k]`` for a process that has seen no row.
        """
        if world_size() == 1:
            return self
        if self.count is None:
            self._start(like)
        assert self.count is not None
        everyone, rows = RowMoments(), int(self.count)
        everyone.mean, everyone.count = _over_processes(self.mean * rows, rows)
        delta = self.mean - everyone.mean
        across = delta.unsqueeze(-1) * delta.unsqueeze(-2) * rows
        scatter, _ = _over_processes(self.scatter + across, rows)
        everyone.scatter = scatter * everyone.count
        return everyone

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name; none before the first row."""
        if self.count is None:
            return {}
        return {"count": self.count, "mean": self.mean, "scatter": self.scatter}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from what was saved."""
        self.count = None
        for name, tensor in state.items():
            setattr(self, name, tensor.to(device, copy=True))


@dataclass(frozen=True)
class Statistics:
    """What a rule makes constants of: rows of a layer's input, and of its output's gradient."""

    inputs: RowMoments
    gradients: RowMoments

    def hear(self, layer: Whitened, h: Tensor, output: Tensor, gradients: bool) -> None:
        """Take in a call of the layer; gradients when they come."""
        self.inputs.add(layer.view.features(h))
        if gradients and output.requires_grad:
            arrived = partial(self._arrived, layer, output.shape)
            whole(output).register_hook(arrived)  # type: ignore[no-untyped-call]

    def _arrived(self, layer: Whitened, shape: torch.Size, grad: Tensor) -> None:
        self.gradients.add(layer.view.output_rows(grad.detach().reshape(shape)).flatten(-3, -2))

    @classmethod
    def none(cls) -> Statistics:
        """Before the first call."""
        return cls(RowMoments(), RowMoments())

    def pooled(self, layer: Whitened) -> Statistics:
        """Those of all processes."""
        (o, k), q = layer.view.channels, layer.view.groups
        inputs = self.inputs.pooled(layer.weight.new_zeros(*q, k))
        if layer.Q is None:
            return Statistics(inputs, self.gradients)
        return Statistics(inputs, self.gradients.pooled(layer.weight.new_zeros(*q, o)))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by name."""
        return {"inputs": self.inputs.state_dict(), "gradients": self.gradients.state_dict()}

    @classmethod
    def loaded(cls, state: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> Statistics:
        """What was saved, on a device."""
        found = cls.none()
        found.inputs.load_state_dict(state["inputs"], device)
        found.gradients.load_state_dict(state["gradients"], device)
        return found


@torch.no_grad()
def statistics_of(
    model: nn.Module,
    layers: Mapping[str, Whitened],
    data: Batches,
    samples: int | None,
    plain: Mapping[str, Pair] | None = None,
) -> dict[str, Statistics]:
    """Input statistics of all layers from one pass in eval mode; nothing of the model changes.

    Args:
        model: with the layers in it.
        layers: by name.
        data: batches of inputs.
        samples: no more examples than these, of all processes together; None is all.
        plain: weight and bias of :meth:`Whitened.plain` of the layers that are to compute with
            these during the pass, without a product with ``P`` for each batch.

    Raises:
        ValueError: there is no batch.
    """
    found, batches = {name: Statistics.none() for name in layers}, 0
    with evaluating(model), _listening(layers, found), _holding(layers, plain or {}):
        for given in _limited(data, samples):
            call(model, given)
            batches += 1
    if not batches:
        raise ValueError("data holds no batch to take statistics from")
    return found


@contextmanager
def _holding(layers: Mapping[str, Whitened], plain: Mapping[str, Pair]) -> Iterator[None]:
    try:
        for name, pair in plain.items():
            layers[name].hold(pair)
        yield
    finally:
        for name in plain:
            layers[name].hold(None)


@contextmanager
def _listening(layers: Mapping[str, Whitened], found: Mapping[str, Statistics]) -> Iterator[None]:
    before = {name: layer.heard for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.heard = partial(found[name].hear, gradients=False)
        yield
    finally:
        for name, layer in layers.items():
            layer.heard = before[name]


def _limited(data: Batches, samples: int | None) -> Iterator[Any]:
    """Batches until ``samples`` examples are through; the last one is cut."""
    left = None if samples is None else ceil(samples / world_size())
    for given, _ in data:
        if left is None:
            yield given
            continue
        parts = _tensors(given)
        size = len(parts[0]) if parts else 0
        yield given if size <= left else _cut(given, size, left)
        left -= size
        if left <= 0:
            return


def _tensors(given: Any) -> list[Tensor]:
    parts = given.values() if isinstance(given, Mapping) else given
    parts = [parts] if isinstance(parts, Tensor) else parts
    return [x for x in parts if isinstance(x, Tensor) and x.ndim]


def _cut(given: Any, size: int, n: int) -> Any:
    """The first ``n`` of ``size`` examples; what has another length is no batch."""

    def cut(x: Any) -> Any:
        return x[:n] if isinstance(x, Tensor) and x.ndim and len(x) == size else x

    if isinstance(given, Mapping):
        return {key: cut(x) for key, x in given.items()}
    return tuple(map(cut, given)) if isinstance(given, tuple) else cut(given)


def _over_processes(total: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The mean over the rows of all processes, given this one's sum, and their number."""
    moment = Moment(*total.shape, decay=0, dtype=total.dtype, device=total.device)
    moment.add(total, rows)
    sum_pending([moment])
    moment.commit()
    return moment.mean(), moment.weight


def pooled_mean(rows: Tensor) -> tuple[Tensor, int]:
    """The mean of rows ``[(q,) r, k]`` over all processes, and the number of rows."""
    if world_size() == 1:
        return rows.mean(-2), rows.shape[-2]
    mean, count = _over_processes(rows.sum(-2), rows.shape[-2])
    return mean, int(count)


def summed(count: int, like: Tensor) -> int:
    """The sum of a count over all processes, whose tensors are on the device of ``like``."""
    if world_size() == 1:
        return count
    _, total = _over_processes(torch.zeros((), dtype=torch.float64, device=like.device), count)
    return int(total)
