"""Networks that optimizers are timed on: residual, plain convolutional, causal attention.

The transformer is made of linear layers, without ``nn.MultiheadAttention``, which some peers crash
on and others leave alone: every method has the same matrices to precondition.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Transformer", "resnet20", "vgg16bn"]

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def resnet20(classes: int = 10, widths: Sequence[int] = (16, 32, 64)) -> nn.Sequential:
    """ResNet-20 for 32x32 images (He et al. 2015, arXiv 1512.03385, Section 4.2).

    Three stages of three residual blocks; shortcuts that change the shape are 1x1 convolutions.

    Args:
        classes: number of classes.
        widths: channels of the stages; all but the first halve the resolution.
    """
    layers: list[nn.Module] = [*_convolution(3, widths[0]), nn.ReLU()]
    for stage, (i, o) in enumerate(pairwise((widths[0], *widths))):
        layers.append(_Residual(i, o, stride=1 if stage == 0 else 2))
        layers += [_Residual(o, o), _Residual(o, o)]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(*layers, *pooled)


def vgg16bn(classes: int = 10, layout: Sequence[int] = VGG16) -> nn.Sequential:
    """VGG16 with batch normalization for 32x32 images: 13 convolutions and one linear classifier.

    Simonyan & Zisserman 2014 (arXiv 1409.1556), configuration D, as it is used for CIFAR.

    Args:
        classes: number of classes.
        layout: channels of the convolutions, 0 for pooling.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in layout:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [*_convolution(channels, width), nn.ReLU()]
        channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


class Transformer(nn.Module):
    """A causal transformer: ``[n, t]`` indices to ``[n, t, characters]`` logits.

    Pre-norm blocks, as GPT-2 has them (Radford et al. 2019), of linear layers alone.

    Args:
        characters: size of the alphabet.
        length: the longest sequence.
        width: of the embeddings.
        heads: of each attention.
        depth: number of blocks.
    """

    def __init__(
        self, characters: int, length: int, width: int = 256, heads: int = 4, depth: int = 6
    ) -> None:
        super().__init__()
        self.character = nn.Embedding(characters, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next character at every position."""
        positions = torch.arange(x.shape[1], device=x.device).expand_as(x)
        h = self.character(x) + self.position(positions)
        logits: Tensor = self.head(self.norm(self.blocks(h)))
        return logits


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.straight = nn.Sequential(
            *_convolution(i, o, stride=stride), nn.ReLU(), *_convolution(o, o)
        )
        same = i == o and stride == 1
        short = nn.Identity() if same else nn.Sequential(*_convolution(i, o, 1, stride))
        self.short = short

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.straight(x) + self.short(x))


class _Block(nn.Module):
    """Attention and a two-layer network, each added to what comes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        split = self.qkv(self.norm(x)).view(n, t, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).reshape(n, t, width))
        added: Tensor = x + self.network(x)
        return added


def _convolution(i: int, o: int, size: int = 3, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(i, o, size, stride=stride, padding=size // 2, bias=False)
    return convolution, nn.BatchNorm2d(o)
