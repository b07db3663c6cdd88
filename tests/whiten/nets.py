"""Networks with every kind of layer that can be whitened, and how they are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from natgrad.whiten import Whitened, Whitener
from tests.networks import mlp, normal, relative

__all__ = [
    "CONVS", "attached", "convnet", "dense", "eye", "loss_of", "mlp", "normal", "output",
    "relative", "train",
]  # fmt: skip

CONVS = {
    "1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 7)),
    "2d zeros": (lambda: nn.Conv2d(3, 4, (3, 2), padding=(2, 1), dilation=2), (3, 6, 5)),
    "2d same": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (3, 5, 5)),
    "2d reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 5, 5)),
    "2d circular": (lambda: nn.Conv2d(3, 4, 3, padding=2, padding_mode="circular"), (3, 5, 5)),
    "2d replicate": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"), (3, 5, 5)),
    "2d groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5)),
    "2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 5, 5)),
    "2d no bias": (lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False), (3, 5, 5)),
    "3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (2, 3, 4, 3)),
}


def convnet(seed: int = 0) -> nn.Sequential:
    """A convolution in groups, one without bias, two linear layers; takes ``[n, 4, 5, 5]``."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(inplace=True),
        nn.Conv2d(6, 3, 3, stride=2, padding=1, bias=False), nn.Tanh(), nn.Flatten(),
        nn.Linear(27, 6), nn.Tanh(), nn.Linear(6, 3),
    ).double()  # fmt: skip


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def dense(layer: Whitened) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that the layer stands for."""
    weight, bias = layer.canonical()
    return weight.detach().clone(), bias if bias is None else bias.detach().clone()


def output(net: nn.Module, x: Tensor) -> Tensor:
    """The function, in the mode the network is in."""
    with torch.no_grad():
        return net(x)


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    return ((net(x) - x.flatten(1)[:, :1]) ** 2).mean()


def train(
    net: nn.Module, opt: torch.optim.Optimizer, steps: int, n: int = 8, shape=(4,), first: int = 0
) -> None:
    """Steps on batches that are told by their number alone."""
    dtype = next(net.parameters()).dtype
    for k in range(first, first + steps):
        opt.zero_grad()
        loss_of(net, (normal(n, *shape, seed=k) + 0.5).to(dtype)).backward()
        opt.step()


def attached(whitener: Whitener, opt: torch.optim.Optimizer, **kwargs) -> torch.optim.Optimizer:
    whitener.attach(opt, **kwargs)
    return opt
