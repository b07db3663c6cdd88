"""A small task, and methods whose steps take a known time on a clock of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from natgrad import Categorical
from natgrad.lab.bench import methods, tasks
from natgrad.lab.bench.intervals import Kind, Rhythm
from natgrad.lab.bench.method import Method, Setup, Step
from natgrad.lab.bench.tasks import Task
from natgrad.lab.networks import mlp
from natgrad.lab.optimizers.peers import imported

COSTS: dict[Kind, float] = {"plain": 1.0, "statistics": 3.0, "refresh": 50.0}


def draw(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 5, generator=random), torch.randint(0, 3, (n,), generator=random)


def missing(setup: Setup) -> Step:
    imported("no_such_package.part", "pip install no-such-package")
    raise AssertionError


def crashing(setup: Setup) -> Step:
    def step(x: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("it can't do this\nnor that")

    return step


def diverging(setup: Setup) -> Step:
    return lambda x, y: torch.tensor(torch.nan)


@dataclass
class FakeClock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def costing(self, rhythm: Rhythm, costs: dict[Kind, float]) -> Callable[[Setup], Step]:
        """The start of a method whose steps cost so much by kind."""

        def start(setup: Setup) -> Step:
            steps = iter(range(10_000))

            def step(x: Tensor, y: Tensor) -> Tensor:
                self.now += costs[rhythm.kind(next(steps), setup.interval)]
                return torch.zeros(())

            return step

        return start


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Task:
    """A network that steps in no time, known to the command line as ``small``."""
    made = Task(
        "small", "5-4-3, batch 8", lambda: mlp((5, 4, 3), nn.Tanh), Categorical(), draw,
        batch=8, rounds=1, samples=16, recipe="digits-mlp",
    )  # fmt: skip
    monkeypatch.setitem(tasks.TASKS, "small", made)
    return made


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Names of methods that fail, each in its way."""
    starts = {"missing": missing, "crashing": crashing, "diverging": diverging}
    for name, start in starts.items():
        monkeypatch.setitem(methods.METHODS, name, Method(name, start))
    return tuple(starts)
