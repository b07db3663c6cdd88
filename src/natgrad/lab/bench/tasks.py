"""What optimizers are timed on: networks with random batches of realistic size and scale.

The time of a step does not depend on what the pixels show, so that no data set is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from natgrad.lab.bench.networks import Transformer
from natgrad.lab.errors import unknown
from natgrad.lab.image_networks import resnet20, vgg16bn
from natgrad.lab.networks import autoencoder, mlp
from natgrad.lab.text import CHARACTERS
from natgrad.likelihood import Bernoulli, Categorical, Likelihood

__all__ = ["TASKS", "Task", "task"]

BATCHES = 8  #: different ones; steps go through them again and again
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """A network, its loss, and where batches come from.

    Attributes:
        name: as the command line takes it.
        about: network and batch in words.
        network: makes the network.
        likelihood: its mean negative log-likelihood is the loss.
        draw: makes so many examples from a generator.
        batch: examples in a batch.
        rounds: periods measured by default; fewer where steps are slow.
        together: methods that take turns at a time; None is all. Fewer where they would not fit
            into memory.
        samples: examples that whitened networks are refitted with.
        sequences: whether an example has a target at each of many positions.
        recipe: what is trained for ``--to-loss``.
    """

    name: str
    about: str
    network: Callable[[], nn.Module]
    likelihood: Likelihood
    draw: Draw
    batch: int
    rounds: int
    together: int | None = None
    samples: int = 1000
    sequences: bool = False
    recipe: str | None = None

    def model(self, device: str = "cpu", seed: int = 0) -> nn.Module:
        """The network, the same for every method."""
        torch.manual_seed(seed)
        return self.network().to(device)

    def batches(self, device: str = "cpu", seed: int = 0) -> list[tuple[Tensor, Tensor]]:
        """The batches that every method sees, in this order."""
        random = torch.Generator().manual_seed(seed)
        drawn = [self.draw(self.batch, random) for _ in range(BATCHES)]
        return [(x.to(device), y.to(device)) for x, y in drawn]

    def inputs(self, device: str = "cpu", seed: int = 1) -> Tensor:
        """The inputs that whitened networks take their statistics from."""
        random = torch.Generator().manual_seed(seed)
        return self.draw(self.samples, random)[0].to(device)

    def loss(self, f: Tensor, y: Tensor) -> Tensor:
        """The mean negative log-likelihood."""
        return self.likelihood.nll(f, y).mean()


def _digits(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of 784 pixels in [0, 1], four fifths of them black as in MNIST, and a class."""
    return _pixels(n, random), torch.randint(0, 10, (n,), generator=random)


def _reconstructed(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    pixels = _pixels(n, random)
    return pixels, pixels


def _pixels(n: int, random: torch.Generator) -> Tensor:
    ink = torch.rand(n, 784, generator=random)
    return ink * (torch.rand(n, 784, generator=random) < 0.2)


def _images(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Standardized 3x32x32 images and a class."""
    images = torch.randn(n, 3, 32, 32, generator=random)
    return images, torch.randint(0, 10, (n,), generator=random)


def _text(length: int, n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences of characters, and the same one character later."""
    drawn = torch.randint(0, len(CHARACTERS), (n, length + 1), generator=random)
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


TASKS = {
    task.name: task
    for task in (
        Task(
            "mlp", "784-80-80-80-10, ReLU, batch 50", partial(mlp, (784, 80, 80, 80, 10)),
            Categorical(), _digits, batch=50, rounds=40, recipe="mnist-mlp",
        ),
        Task(
            "autoencoder", "784-1000-500-250-30 mirrored, tanh, batch 256",
            partial(autoencoder, (784, 1000, 500, 250, 30)),
            Bernoulli(), _reconstructed, batch=256, rounds=4, recipe="autoencoder",
        ),
        Task(
            "resnet20", "ResNet-20 on 3x32x32, batch 128", resnet20,
            Categorical(), _images, batch=128, rounds=4,
        ),
        Task(
            "vgg16bn", "VGG16 with batch normalization on 3x32x32, batch 128", vgg16bn,
            Categorical(), _images, batch=128, rounds=1, together=2,
        ),
        Task(
            "transformer", "6 causal layers of width 256, batch 32 x 128 characters",
            partial(Transformer, len(CHARACTERS), 128),
            Categorical(), partial(_text, 128), batch=32, rounds=2,
            together=6, samples=128, sequences=True,
        ),
    )
}  # fmt: skip


def task(name: str) -> Task:
    """The task of that name.

    Raises:
        UsageError: there is none; names those there are.
    """
    if name not in TASKS:
        raise unknown("task", name, list(TASKS))
    return TASKS[name]
