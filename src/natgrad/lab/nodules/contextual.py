"""Multi-level contextual 3D ConvNets (Dou et al. 2017, IEEE TBME 64(7)) without normalization.

Three networks look at 20x20x6, 30x30x10 and 40x40x26 voxels round a candidate. They share nothing:
each has a loss of its own, and their probabilities are fused by a weighted sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

__all__ = ["FUSION", "LEVELS", "Grey", "Level", "MultiLevel", "fused", "planar"]

CHANNELS = 64  #: of every convolution at full width
#: weights of the three networks' probabilities, from the narrowest field to the widest
FUSION = (0.3, 0.4, 0.3)


@dataclass(frozen=True)
class Level:
    """One network.

    Attributes:
        field: what it sees, ``(z, y, x)`` voxels.
        kernels: of its convolutions, none of them padded.
        pool: of the maximum after the first convolution; ones for none.
        hidden: units of its hidden dense layer at full width.
    """

    field: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    pool: tuple[int, ...]
    hidden: int

    @property
    def left(self) -> tuple[int, ...]:
        """Positions that are left after the convolutions."""
        size = [n - k + 1 for n, k in zip(self.field, self.kernels[0], strict=True)]
        size = [n // p for n, p in zip(size, self.pool, strict=True)]
        for kernel in self.kernels[1:]:
            size = [n - k + 1 for n, k in zip(size, kernel, strict=True)]
        return tuple(size)


#: Archi-1, Archi-2 and Archi-3 of the paper's tables
LEVELS = (
    Level((6, 20, 20), ((3, 5, 5), (3, 5, 5), (1, 5, 5)), (1, 1, 1), 150),
    Level((10, 30, 30), ((3, 5, 5), (3, 5, 5), (3, 5, 5)), (1, 2, 2), 250),
    Level((26, 40, 40), ((3, 5, 5), (3, 5, 5), (3, 5, 5)), (2, 2, 2), 250),
)


def planar(levels: Sequence[Level] = LEVELS) -> tuple[Level, ...]:
    """The same networks in the axial plane, for slices instead of volumes."""
    return tuple(
        Level(level.field[1:], tuple(k[1:] for k in level.kernels), level.pool[1:], level.hidden)
        for level in levels
    )


class Grey(nn.Module):
    """Grey values 0 to 255 less ``mean``, divided by ``sd``.

    Args:
        mean: of the training data's grey values.
        sd: their standard deviation.
    """

    def __init__(self, mean: float, sd: float) -> None:
        super().__init__()
        self.mean, self.sd = mean, sd

    def forward(self, x: Tensor) -> Tensor:
        """``[n, *space]``, any type, to floats ``[n, 1, *space]``."""
        return ((x.float() - self.mean) / self.sd).unsqueeze(1)


class MultiLevel(nn.Module):
    """Three networks over fields of different size, ``[n, *space]`` to logits ``[n, 3, 2]``.

    The first dense layer of each is written as the convolution that it is, with a kernel over all
    positions that are left: the same map, but one that SNGD whitens by channel. Flattened, its up
    to 51,200 inputs would ask for the root of a matrix of that size.

    Args:
        levels: the networks; :func:`planar` gives their 2D form.
        width: factor of all widths; 1 is the paper's.
        grey: mean and standard deviation of the data's grey values.
        size: of what is put in; each network sees the middle of it. None is the widest field.

    Raises:
        ValueError: a width that leaves no channel, or inputs smaller than a field.
    """

    def __init__(
        self,
        levels: Sequence[Level] = LEVELS,
        width: float = 1.0,
        grey: tuple[float, float] = (0.0, 255.0),
        size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if round(width * CHANNELS) < 1:
            raise ValueError(f"width {width:g} leaves none of {CHANNELS} channels")
        self.cuts = [_central(level.field, size or levels[-1].field) for level in levels]
        self.grey = Grey(*grey)
        self.levels = nn.ModuleList(_network(level, width) for level in levels)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of no nodule and nodule, for each level."""
        h = self.grey(x)
        logits = [
            network(h[(..., *cut)]) for network, cut in zip(self.levels, self.cuts, strict=True)
        ]
        return torch.stack(logits, 1)


def fused(logits: Tensor, weights: Sequence[float] = FUSION) -> Tensor:
    """Probability of a nodule ``[n]`` from logits ``[n, 3, 2]``: the levels' weighted sum."""
    shares = torch.tensor(weights, dtype=logits.dtype, device=logits.device)
    return logits.softmax(-1)[..., 1] @ shares


def _network(level: Level, width: float) -> nn.Sequential:
    Conv: type[nn.Conv2d | nn.Conv3d] = (nn.Conv2d, nn.Conv3d)[len(level.field) - 2]
    Pool: type[nn.MaxPool2d | nn.MaxPool3d] = (nn.MaxPool2d, nn.MaxPool3d)[len(level.field) - 2]
    channels, hidden = round(width * CHANNELS), max(2, round(width * level.hidden))
    layers: list[nn.Module] = []
    for k, kernel in enumerate(level.kernels):
        layers += [Conv(channels if k else 1, channels, kernel), nn.ReLU()]  # type: ignore[arg-type]
        if k == 0 and prod(level.pool) > 1:
            layers.append(Pool(level.pool))
    layers += [Conv(channels, hidden, level.left), nn.ReLU(), nn.Flatten(), nn.Linear(hidden, 2)]  # type: ignore[arg-type]
    network = nn.Sequential(*layers)
    _initialise(network)
    return network


def _initialise(network: nn.Sequential) -> None:
    """He et al. 2015: no norm is there to keep variances from growing or fading."""
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    nn.init.normal_(network[-1].weight, std=0.01)  # type: ignore[arg-type]  # both classes alike


def _central(field: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    if len(field) != len(size) or any(f > n for f, n in zip(field, size, strict=True)):
        raise ValueError(f"inputs of {tuple(size)} do not hold a field of {tuple(field)}")
    starts = [(n - f) // 2 for f, n in zip(field, size, strict=True)]
    return tuple(slice(a, a + f) for a, f in zip(starts, field, strict=True))
