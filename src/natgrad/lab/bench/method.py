"""An optimizer with the protocol of its training loop, as the benchmark times it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from natgrad.lab.bench.intervals import Interval, Rhythm
from natgrad.lab.bench.tasks import Task

__all__ = ["DAMPING", "LR", "Method", "Setup", "Start", "Step", "looped"]

LR = 1e-5  #: so small that the network stays where it is: no method is timed on a diverged one
DAMPING = 0.1

Step: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Start: TypeAlias = Callable[..., Step]


@dataclass(frozen=True)
class Setup:
    """What a method is started on.

    Attributes:
        task: network and loss.
        model: the method's own copy of the network.
        interval: how often to renew what the method renews.
        device: ``"cpu"`` or ``"cuda"``.
    """

    task: Task
    model: nn.Module
    interval: Interval
    device: str = "cpu"


@dataclass(frozen=True)
class Method:
    """An optimizer with the protocol of its training loop.

    Attributes:
        name: of its row.
        start: makes the function of one step, from a setup and the options: given a batch, it does
            all that a training loop does and returns the loss before the step.
        rhythm: which of its steps renew something.
        ours: whether it is natgrad's.
        package: the distribution it comes from.
        options: given to ``start`` beside the setup.
    """

    name: str
    start: Start
    rhythm: Rhythm = field(default_factory=Rhythm)
    ours: bool = False
    package: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def begin(self, setup: Setup) -> Step:
        """The function of one step."""
        return self.start(setup, **self.options)


def looped(setup: Setup, optimizer: torch.optim.Optimizer) -> Step:
    """The usual loop: forget gradients, forward, backward, step."""
    task, model = setup.task, setup.model

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step
