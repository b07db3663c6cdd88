"""The networks of the experiments, made of stock layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["CharacterModel", "autoencoder", "cnn", "mlp"]


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


def cnn(widths: Sequence[int] = (16, 32, 64), classes: int = 10) -> nn.Sequential:
    """3x3 convolutions, each with batch normalization and ReLU, pooled into a linear classifier.

    Args:
        widths: channels of the convolutions; all but the first halve the resolution.
        classes: number of classes.
    """
    layers: list[nn.Module] = []
    for stage, (i, o) in enumerate(pairwise((3, *widths))):
        stride = 1 if stage == 0 else 2
        convolution = nn.Conv2d(i, o, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(o), nn.ReLU()]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(*layers, *pooled)


class CharacterModel(nn.Module):
    """A causal transformer over characters: ``[n, t]`` indices to ``[n, t, characters]`` logits.

    Args:
        characters: size of the alphabet.
        length: the longest sequence.
        width: of the embeddings.
        heads: of each attention.
        depth: number of ``nn.TransformerEncoderLayer``.
    """

    def __init__(
        self, characters: int, length: int, width: int = 64, heads: int = 4, depth: int = 2
    ) -> None:
        super().__init__()
        self.character = nn.Embedding(characters, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next character at every position."""
        t = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(t, device=x.device)
        h = self.character(x) + self.position(torch.arange(t, device=x.device).expand_as(x))
        for block in self.blocks:
            h = block(h, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(self.norm(h))
        return logits
