"""A network of Inception modules without normalization, which an optimizer may put in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from natgrad.lab.image_networks import he_normal_

__all__ = ["Inception", "inception"]

#: channels of the modules of Szegedy et al. 2014, Table 1: 1x1; 3x3 reduced, 3x3; 5x5 reduced, 5x5;
#: projected pool; a zero row halves the resolution
GOOGLENET = (
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (0,),
    (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), (0,),
    (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
)  # fmt: skip
STEM = (64, 192)


class Inception(nn.Module):
    """Four paths over the same input, their channels side by side (Szegedy et al. 2014, Fig. 2b).

    1x1; 1x1 then 3x3; 1x1 then two 3x3 in the place of 5x5 (Ioffe & Szegedy 2015, Section 4.2.1);
    3x3 max pooling then 1x1. Every convolution has a bias and a ReLU.

    Args:
        channels: of the input.
        widths: of the 1x1; of the reduction and the 3x3; of the reduction and the 5x5; of the
            projection.
    """

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        one, reduced3, three, reduced5, five, pooled = widths
        self.paths = nn.ModuleList(
            [
                _convolution(channels, one, 1),
                nn.Sequential(
                    _convolution(channels, reduced3, 1), _convolution(reduced3, three, 3)
                ),
                nn.Sequential(
                    _convolution(channels, reduced5, 1),
                    _convolution(reduced5, five, 3),
                    _convolution(five, five, 3),
                ),
                nn.Sequential(nn.MaxPool2d(3, 1, padding=1), _convolution(channels, pooled, 1)),
            ]
        )
        self.channels = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        """``[n, channels, h, w]`` to ``[n, sum of the paths' widths, h, w]``."""
        return torch.cat([path(x) for path in self.paths], dim=1)


def inception(
    classes: int,
    width: float = 1.0,
    small: bool = False,
    layout: Sequence[Sequence[int]] = GOOGLENET,
) -> nn.Sequential:
    """GoogLeNet without its auxiliary classifiers, with two 3x3 for each 5x5.

    Args:
        classes: number of classes.
        width: factor of all channels.
        small: for 64x64 images: a 3x3 stem of stride 1 and one pooling, in the place of the 7x7
            convolution of stride 2 and two poolings for 224x224.
        layout: of the modules, a row of zeros for pooling.
    """
    first, second = (_scaled(each, width) for each in STEM)
    stem = [_convolution(3, first, 3)] if small else [_convolution(3, first, 7, 2), _halved()]
    layers: list[nn.Module] = [
        *stem, _convolution(first, first, 1), _convolution(first, second, 3), _halved(),
    ]  # fmt: skip
    channels = second
    for widths in layout:
        if not any(widths):
            layers.append(_halved())
            continue
        module = Inception(channels, [_scaled(each, width) for each in widths])
        layers.append(module)
        channels = module.channels
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    model = nn.Sequential(*layers, *pooled)
    he_normal_(model)
    return model


def _convolution(i: int, o: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, size, stride=stride, padding=size // 2), nn.ReLU())


def _halved() -> nn.Module:
    return nn.MaxPool2d(3, 2, padding=1)


def _scaled(channels: int, width: float) -> int:
    return max(4, round(channels * width))
