"""Seconds of statistics, decomposition and solve: predicted from shapes against measured.

    python benchmarks/cost_model.py --threads 1
    python benchmarks/cost_model.py --case autoencoder --method KFAC

The machine's rates are measured first (natgrad.machine), then each case is trained for some steps
with statistics and decompositions in all of them. Statistics are the rows made of activations and
gradients, ``observe``, ``rescale`` and ``commit``; the model's own passes and the tap's backward
passes are not in it. The fastest of some steps; CPU seconds with one thread, so that other work
on the core does not count.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad import Categorical, Gaussian, Preconditioner, blocks, tap
from natgrad.clip import Bounds
from natgrad.curvature import Blockwise
from natgrad.flops import Rows, Stages
from natgrad.machine import Machine

STAGES = Stages._fields


class Stopwatch:
    """Exclusive seconds of each stage: a stage within another stops the outer one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.spent = clock, defaultdict(float)
        self.running: list[str] = []
        self.since = 0.0

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        self._stop()
        self.running.append(stage)
        yield
        self._stop()
        self.running.pop()

    def _stop(self) -> None:
        now = self.clock()
        if self.running:
            self.spent[self.running[-1]] += now - self.since
        self.since = now

    def timing(self, owner: Any, name: str, stage: str) -> Any:
        """A patch that times a function of ``owner``."""
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.of(stage):
                return original(*args, **kwargs)

        return mock.patch.object(owner, name, timed)


def dense(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])


def convolution(channels: int, size: int) -> tuple[nn.Module, Tensor]:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10).requires_grad_(False)]
    layer = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(layer, nn.ReLU(), *head), torch.randn(128, channels, size, size)


class Tokens(nn.Module):
    """One linear map at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(256, 1024)
        self.head = nn.Linear(1024, 10).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.map(x).relu().mean(1))


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (dense(784, 80, 80, 80, 10), torch.randn(50, 784)),
    "autoencoder": lambda: (
        dense(784, 1000, 500, 250, 30, 250, 500, 1000, 784), torch.rand(256, 784)
    ),
    "conv 16, 32x32": lambda: convolution(16, 32),
    "conv 64, 8x8": lambda: convolution(64, 8),
    "tokens 256-1024": lambda: (Tokens(), torch.randn(16, 256, 256)),
}  # fmt: skip


def measured(
    case: str, method: str, seconds: float, clock: Callable[[], float]
) -> tuple[Stages, Preconditioner]:
    """Median seconds of each stage."""
    torch.manual_seed(0)
    model, x = CASES[case]()
    regression = case == "autoencoder"
    likelihood = Gaussian() if regression else Categorical()
    pre = Preconditioner(model, getattr(blocks, method), damping=1e-2, likelihood=likelihood)
    watch = Stopwatch(clock)
    patches = [
        watch.timing(tap, "sample_of", "statistics"),
        watch.timing(Blockwise, "observe", "statistics"),
        watch.timing(Blockwise, "commit", "statistics"),
        watch.timing(pre.layers[0].block.__class__, "rescale", "statistics"),
        watch.timing(Blockwise, "refresh", "decomposition"),
        watch.timing(Blockwise, "solve", "solve"),
        watch.timing(Bounds, "write", "solve"),
    ]
    found = []
    for patch in patches:
        patch.start()
    end = time.perf_counter() + seconds
    while len(found) < 7 or time.perf_counter() < end:
        watch.spent.clear()
        model.zero_grad()
        f = model(x)
        loss = F.mse_loss(f, x) if regression else F.cross_entropy(f, f.detach().argmax(-1))
        loss.backward()
        pre.step()
        found.append([watch.spent[stage] for stage in STAGES])
    for patch in patches:
        patch.stop()
    return Stages(*(min(column) for column in zip(*found[2:], strict=True))), pre


def predicted(pre: Preconditioner, machine: Machine) -> Stages:
    costs = (layer.block.cost(layer.rows or Rows()) for layer in pre.layers)
    stages = [machine.stages(cost) for cost in costs]
    return Stages(*(sum(column) for column in zip(*stages, strict=True)))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--seconds", type=float, default=4.0, help="of training for each case")
    arguments.add_argument("--case", choices=list(CASES), action="append")
    arguments.add_argument("--method", action="append")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.threads == 1 else time.perf_counter
    begin = time.perf_counter()
    machine = Machine.measure(clock=clock)
    print(f"{machine}\nmeasured in {time.perf_counter() - begin:.1f} s\n")
    print(f"| case | method | {' | '.join(STAGES)} |\n|---|---|---|---|---|")
    for case in given.case or CASES:
        for method in given.method or ("KFAC", "EKFAC"):
            found, pre = measured(case, method, given.seconds, clock)
            guess = predicted(pre, machine)
            cells = (
                f"{1e3 * p:.2f} / {1e3 * m:.2f} = {p / m:.2f}"
                for p, m in zip(guess, found, strict=True)
            )
            print(f"| {case} | {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
