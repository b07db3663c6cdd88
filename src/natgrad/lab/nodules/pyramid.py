"""A detector of nodules in the spirit of PiaNet (Liu et al. 2020, arXiv 2009.05267).

From that paper: a contracting and expanding path with skip connections, the input added at every
scale of the contracting path (the pyramid), a classifier and a regressor on its features. In place
of its multi-receptive-field blocks there are single 3x3x3 convolutions, and it predicts on one
grid, four voxels apart, a centre and a radius in place of boxes at several scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad.lab.nodules.contextual import Grey

__all__ = ["STRIDE", "PyramidDetector"]

STRIDE = 4  #: voxels between the cells that are predicted
PRIOR = 0.02  #: objectness of every cell at the start, so that the many empty ones do not swamp it


class PyramidDetector(nn.Module):
    """Volumes ``[n, z, y, x]`` of grey values to maps ``[n, 5, z/4, y/4, x/4]``.

    Of every cell: the logit of there being a nodule's centre in it, the centre's offset from the
    middle of the cell (z, y, x; in cells), and the logarithm of the radius in voxels. Every
    convolution but the last two is followed by ReLU, so that SNGD finds the activation of each.

    Args:
        channels: at 1/2, 1/4, 1/8 ... of the resolution, three scales at least.
        grey: mean and standard deviation of the data's grey values.

    Raises:
        ValueError: fewer than three scales.
    """

    def __init__(
        self, channels: Sequence[int] = (32, 64, 64, 64), grey: tuple[float, float] = (0.0, 255.0)
    ) -> None:
        super().__init__()
        if len(channels) < 3:
            raise ValueError(f"the pyramid needs three scales or more, got {tuple(channels)}")
        self.grey = Grey(*grey)
        below = (1, *channels[:-1])
        self.down = nn.ModuleList(
            _convolution(i, o, stride=2) for i, o in zip(below, channels, strict=True)
        )
        self.source = nn.ModuleList(_convolution(1, max(1, o // 2)) for o in channels)
        self.encode = nn.ModuleList(_convolution(o + max(1, o // 2), o) for o in channels)
        up = list(zip(channels[2:], channels[1:], strict=False))
        self.narrow = nn.ModuleList(_convolution(i, o) for i, o in up)
        self.decode = nn.ModuleList(_convolution(2 * o, o) for _, o in up)
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
        self.objectness = nn.Conv3d(channels[1], 1, 1)
        self.place = nn.Conv3d(channels[1], 4, 1)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """The maps."""
        h = image = self.grey(x)
        scales = []
        for down, source, encode in zip(self.down, self.source, self.encode, strict=True):
            image = F.avg_pool3d(image, 2)
            h = encode(torch.cat([down(h), source(image)], 1))
            scales.append(h)
        for k in reversed(range(len(self.narrow))):
            grown = self.narrow[k](self.enlarge(h))
            h = self.decode[k](torch.cat([grown, scales[k + 1]], 1))
        return torch.cat([self.objectness(h), self.place(h)], 1)


def _convolution(i: int, o: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(i, o, 3, stride=stride, padding=1), nn.ReLU())


def _initialise(detector: PyramidDetector) -> None:
    for layer in detector.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    for head in (detector.objectness, detector.place):
        nn.init.normal_(head.weight, std=0.01)
    nn.init.constant_(detector.objectness.bias, -math.log(1 / PRIOR - 1))  # type: ignore[arg-type]
    nn.init.constant_(detector.place.bias[3:], math.log(3.0))  # type: ignore[index]
