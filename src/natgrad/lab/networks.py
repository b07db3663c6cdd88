"""The networks of the experiments, as plain ``nn.Sequential``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

__all__ = ["autoencoder", "mlp"]


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Fully connected layers with an activation between them, in torch's default initialisation.

    Args:
        sizes: units of every layer, input and output included.
        activation: makes a new activation module.

    >>> [type(layer).__name__ for layer in mlp((64, 32, 10))]
    ['Linear', 'ReLU', 'Linear']
    """
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), activation()]
    return nn.Sequential(*layers[:-1])


def autoencoder(
    encoder: Sequence[int], activation: Callable[[], nn.Module] = nn.Tanh
) -> nn.Sequential:
    """An encoder and its mirror image, with a linear code layer and linear outputs (logits).

    Weights are drawn from the normal distribution of Glorot & Bengio (2010), biases are zero.

    Args:
        encoder: units from the input to the code, ``(784, 1000, 500, 250, 30)``.
        activation: makes a new activation module.
    """
    halves = (encoder, tuple(reversed(encoder)))
    model = nn.Sequential(*(layer for sizes in halves for layer in mlp(sizes, activation)))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model
