"""Convolutional networks for small colour images: residual, VGG-like, and the PRONG paper's kind.

They take standardized images; :func:`of_pixels` puts what makes them of bytes in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from natgrad.lab.augmentation import centre_crop

__all__ = ["Channels", "Pixels", "of_pixels", "resnet20", "vgg", "vgg16bn"]

fx.wrap("centre_crop")  # what follows a layer is found by tracing, which can't look at shapes

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


@dataclass(frozen=True)
class Channels:
    """Mean and standard deviation of the pixels in [0, 1] of a training set, by channel."""

    mean: tuple[float, float, float]
    sd: tuple[float, float, float]


CIFAR10_CHANNELS = Channels((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_CHANNELS = Channels((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
SVHN_CHANNELS = Channels((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
IMAGENET_CHANNELS = Channels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Pixels(nn.Module):
    """``(x / 255 - mean) / sd`` of bytes ``x [n, 3, h, w]``, in the middle of larger images.

    Crops of a training batch are of the network's size already; whole images, which evaluation and
    statistics see, are cropped in the centre.

    Args:
        channels: mean and standard deviation of each channel.
        size: height and width that the network takes; None takes images as they are.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: Channels, size: int | None = None) -> None:
        super().__init__()
        mean, sd = (torch.tensor(each).view(3, 1, 1) for each in (channels.mean, channels.sd))
        self.size = size
        self.register_buffer("scale", 1 / (255 * sd), persistent=False)
        self.register_buffer("shift", mean / sd, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Floating point images, contiguous whatever the order of the bytes."""
        if self.size is not None:
            x = centre_crop(x, self.size)
        whole = x.to(self.scale.dtype, memory_format=torch.contiguous_format)
        return whole * self.scale - self.shift

    def extra_repr(self) -> str:
        """The size."""
        return "" if self.size is None else f"size={self.size}"


def of_pixels(
    network: Callable[[], nn.Sequential], channels: Channels, size: int | None = None
) -> nn.Sequential:
    """A network that takes bytes: :class:`Pixels` in front of its layers."""
    return nn.Sequential(Pixels(channels, size), *network())


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


def vgg(layout: Sequence[int], hidden: int, size: int = 24, classes: int = 10) -> nn.Sequential:
    """Plain 3x3 convolutions with biases and without normalization, two dense layers on top.

    Weights are drawn from He's normal distribution (arXiv 1502.01852), biases are zero: without
    normalization deep plain networks don't begin to learn from torch's own.

    Args:
        layout: channels of the convolutions, 0 for pooling.
        hidden: units of the dense hidden layer.
        size: height and width of the images.
        classes: number of classes.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in layout:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            size //= 2
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
    dense = [nn.Linear(channels * size**2, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    model = nn.Sequential(*layers, nn.Flatten(), *dense)
    he_normal_(model)
    return model


def he_normal_(model: nn.Module) -> None:
    """Draw all weights but the last layer's from He's normal distribution; biases become zero."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    nn.init.xavier_normal_(layers[-1].weight)


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


def _convolution(i: int, o: int, size: int = 3, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(i, o, size, stride=stride, padding=size // 2, bias=False)
    return convolution, nn.BatchNorm2d(o)
