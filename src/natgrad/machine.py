"""How fast a machine is, and so how long what was counted takes."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import exp, log
from typing import TypeAlias

import torch
from torch import Tensor

from natgrad import linalg
from natgrad.blocks import KFAC
from natgrad.flops import (
    DECOMPOSITIONS,
    Cost,
    Kind,
    Rows,
    Stages,
    Work,
    eigh,
    inverse,
    product,
    warm,
)
from natgrad.sample import Sample

__all__ = ["H100", "Machine", "Rates", "rate_at"]

Rates: TypeAlias = tuple[tuple[float, float], ...]  #: (size, rate), ascending in size
Clock: TypeAlias = Callable[[], float]

TALL = 4096  #: rows of the products that are measured
WIDTHS = (5, 17, 65, 257, 1025)  #: shortest sides of products: odd, as with a column for the bias
DECOMPOSED = (2, 17, 65, 257, 785)  #: widths of decompositions
STEPS = 31  #: of a small block, for the overhead
NUMBERS = (2**12, 2**18, 2**21, 2**24)  #: sizes of passes


@dataclass(frozen=True)
class Machine:
    """Rates by size, between which it is interpolated (straight lines on doubly logarithmic paper).

    A product or pass takes ``calls overhead + max(flops / rate, bytes / bandwidth)``: whichever of
    arithmetic and memory is the bottleneck (the roofline); and what it writes to memory just taken
    from the system takes its own time beside that. Outside of the measured sizes the rate is that
    of the nearest.

    Args:
        name: for messages.
        products: flop per second of matrix products, by their shortest side.
        inverses: of Cholesky inverses, by width.
        eighs: of symmetric eigendecompositions, by width.
        bandwidth: bytes per second of elementwise passes, by the bytes of one tensor.
        overhead: seconds of each kernel, with the Python around it.
        gathered: numbers per second that change their order, as patches do; None is bandwidth.
        fresh: bytes per second at which memory is taken, by the bytes of one tensor; None is at
            once, as from a pool.
        model: flop per second of the model's own products, where these run in another dtype than
            the statistics; None takes ``products``.
        warms: of steps of orthogonal iteration in place of ``eighs``; None takes their rates.
    """

    name: str
    products: Rates
    inverses: Rates
    eighs: Rates
    bandwidth: Rates
    overhead: float
    gathered: float | None = None
    fresh: Rates | None = None
    model: Rates | None = None
    warms: Rates | None = None

    def seconds(self, work: Iterable[Work], itemsize: int = 4) -> float:
        """Of operations one after another."""
        return sum(self._seconds(each, itemsize, self._rates(each.kind)) for each in work)

    def model_seconds(self, work: Iterable[Work], itemsize: int = 4) -> float:
        """Of the model's own products."""
        rates = self.products if self.model is None else self.model
        return sum(self._seconds(each, itemsize, rates) for each in work)

    def stages(self, cost: Cost) -> Stages:
        """Seconds of each stage."""
        return Stages(*(self.seconds(stage, cost.itemsize) for stage in cost[:3]))

    def _rates(self, kind: Kind) -> Rates:
        if kind == "inverse":
            return self.inverses
        if kind == "warm":
            return self.warms or self.eighs
        return self.eighs if kind == "eigh" else self.products

    def _seconds(self, work: Work, itemsize: int, rates: Rates) -> float:
        arithmetic = work.flops / rate_at(rates, work.size) if work.flops else 0.0
        if work.kind in DECOMPOSITIONS:  # their own traffic is in their rate
            return work.calls * self.overhead + arithmetic
        single = itemsize * (work.words / 3 if work.kind == "product" else work.size)
        traffic = itemsize * work.words / rate_at(self.bandwidth, single)
        if work.kind == "gather" and self.gathered is not None:
            traffic = work.size / self.gathered
        busy = max(arithmetic, traffic) + self._taking(itemsize * work.fresh, work.calls)
        return work.calls * self.overhead + busy

    def _taking(self, size: float, calls: float) -> float:
        """Seconds to take so much memory."""
        if not size or self.fresh is None:
            return 0.0
        return size / rate_at(self.fresh, size / calls)

    @staticmethod
    def measure(
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        clock: Clock = time.perf_counter,
        repeats: int = 5,
    ) -> Machine:
        """Measure a device, in about three seconds; the fastest of the repeats counts.

        Args:
            device: what to measure.
            dtype: of the statistics.
            clock: seconds; ``time.process_time`` where one thread shares its core with others.
            repeats: of each measurement.
        """
        bench = _Bench(torch.device(device), dtype, clock, repeats)
        return Machine(
            f"{bench.device.type}, measured",
            products=tuple((d, bench.product(d)) for d in WIDTHS),
            inverses=tuple((d, bench.inverse(d)) for d in DECOMPOSED),
            eighs=tuple((d, bench.eigh(d)) for d in DECOMPOSED),
            bandwidth=tuple(bench.bandwidth(numbers) for numbers in NUMBERS),
            overhead=bench.overhead(),
            gathered=bench.gathered(),
            fresh=tuple(bench.fresh(numbers) for numbers in NUMBERS),
            warms=tuple((d, bench.warm(d)) for d in DECOMPOSED),
        )


@dataclass(frozen=True)
class _Bench:
    """Rates of single operations: the fastest of a few calls, after one that does not count."""

    device: torch.device
    dtype: torch.dtype
    clock: Clock
    repeats: int

    def product(self, d: int) -> float:
        """Flop per second."""
        a = self._normal(TALL, d)
        return product(d, TALL, d).flops / self._seconds(lambda: a.mT @ a)

    def inverse(self, d: int) -> float:
        """Flop per second."""
        M = self._positive(d)
        return inverse(d).flops / self._seconds(lambda: linalg.inverse(M))

    def eigh(self, d: int) -> float:
        """Flop per second."""
        M = self._positive(d)
        return eigh(d).flops / self._seconds(lambda: linalg.eigh(M))

    def warm(self, d: int) -> float:
        """Flop per second."""
        M = self._positive(d)
        U = torch.eye(d, dtype=self.dtype, device=self.device).unsqueeze(0)
        return warm(d).flops / self._seconds(lambda: linalg.eigh_from(M, U))

    def bandwidth(self, numbers: int) -> tuple[float, float]:
        """Bytes of a tensor, and bytes per second of a pass in place."""
        x = torch.ones(numbers, dtype=self.dtype, device=self.device)
        y = torch.ones_like(x)
        return x.nbytes, 3 * x.nbytes / self._seconds(lambda: x.mul_(y))

    def fresh(self, numbers: int) -> tuple[float, float]:
        """Bytes of a tensor, and how many per second come when it is new."""
        x = torch.ones(numbers, dtype=self.dtype, device=self.device)
        again = self._seconds(lambda: x.fill_(1))
        anew = self._seconds(lambda: torch.empty_like(x).fill_(1))
        return x.nbytes, x.nbytes / max(anew - again, 0.01 * again)

    def gathered(self) -> float:
        """Numbers per second of patches, 3 x 3, from 16 channels of 32 x 32 pixels."""
        h = self._normal(8, 16, 34, 34)
        patches = h.unfold(2, 3, 1).unfold(3, 3, 1).movedim(1, 3)
        rows = torch.empty(patches.shape, dtype=self.dtype, device=self.device)
        return rows.numel() / self._seconds(lambda: rows.copy_(patches))

    def overhead(self) -> float:
        """Seconds of a counted kernel where the matrices are too small to matter."""
        block = KFAC((4, 4), damping=1e-3, dtype=self.dtype, device=self.device)
        sample = Sample(self._normal(4, 1, 4), self._normal(1, 4, 1, 4))
        M = self._normal(4, 4)

        def step() -> None:
            block.observe(sample)
            for moment in block.moments():
                moment.commit()
            block.solve(M)

        step()
        cost = block.cost(Rows(4))
        calls = sum(work.calls for work in (*cost.statistics[2:], *cost.solve[:2]))
        sweep, found = torch.ones(NUMBERS[2], device=self.device), []
        for _ in range(STEPS):
            sweep.add_(1)  # caches are cold, as they are between two layers
            found.append(self._once(step))
        return sorted(found)[STEPS // 2] / calls

    def _positive(self, d: int) -> Tensor:
        a = self._normal(2 * d, d)
        return linalg.add_ridge(a.mT @ a / d, 0.1).unsqueeze(0)

    def _normal(self, *shape: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

    def _seconds(self, run: Callable[[], object]) -> float:
        found = [self._once(run) for _ in range(self.repeats + 1)]
        return max(min(found[1:]), 1e-9)

    def _once(self, run: Callable[[], object]) -> float:
        self._wait()
        start = self.clock()
        run()
        self._wait()
        return self.clock() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def rate_at(rates: Rates, size: float) -> float:
    """Interpolated on logarithmic scales; the nearest outside of them.

    Example:
        >>> round(rate_at(((1, 10), (100, 1000)), 10))
        100
    """
    above = bisect_left([known for known, _ in rates], size)
    if above == 0:
        return rates[0][1]
    if above == len(rates):
        return rates[-1][1]
    (low, slow), (high, fast) = rates[above - 1], rates[above]
    part = log(size / low) / log(high / low)
    return exp((1 - part) * log(slow) + part * log(fast))


#: An NVIDIA H100 (SXM), on paper. Products: half of the published peaks, 67 TFLOP/s float32
#: (torch's default, without TF32) for the statistics and 989 TFLOP/s dense bfloat16 (40 %) for the
#: model, from 512 on; memory: 85 % of 3.35 TB/s. The rates of decompositions are assumptions, of
#: the order of what dense GPU libraries reach, and everything that rests on them is to be read so.
H100 = Machine(
    "H100, on paper",
    products=((16, 2e12), (128, 15e12), (512, 33e12)),
    inverses=((64, 2e9), (1024, 1e12), (4096, 8e12), (16384, 20e12)),
    eighs=((64, 1e9), (1024, 2.5e11), (4096, 1e12), (16384, 3e12)),
    bandwidth=((1e5, 3e11), (1e7, 2.8e12)),
    overhead=5e-6,
    model=((128, 1e14), (1024, 4e14)),
)
