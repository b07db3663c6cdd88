"""Training loops as users write them, and the optimizers that they are run with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.optim import NaturalGradient
from tests.networks import normal

BLOCKWISE = [natgrad.KFAC, natgrad.EKFAC, natgrad.TKFAC, natgrad.TEKFAC]
METHODS = [*BLOCKWISE, natgrad.ExactNGD]
FISHERS: dict[str, dict[str, Any]] = {
    "given": {"likelihood": Categorical(), "fisher": "exact"},
    "empirical": {"likelihood": None},
}


def named(method: type[NaturalGradient]) -> str:
    return method.__name__


every_method = pytest.mark.parametrize("method", METHODS, ids=named)
every_blockwise = pytest.mark.parametrize("method", BLOCKWISE, ids=named)
every_fisher = pytest.mark.parametrize("fisher", FISHERS.values(), ids=FISHERS)


def data(k: int, n: int = 8) -> tuple[Tensor, Tensor]:
    """The batch of step ``k``."""
    x = normal(n, 4, seed=k)
    return x, x[:, :3].argmax(1)


def backward(model: Callable[[Tensor], Tensor], k: int) -> None:
    x, y = data(k)
    F.cross_entropy(model(x), y).backward()


def train(
    model: Callable[[Tensor], Tensor], opt: torch.optim.Optimizer, steps: Iterable[int]
) -> None:
    for k in steps:
        opt.zero_grad()
        backward(model, k)
        opt.step()


def weights(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def moments(opt: NaturalGradient) -> list[Tensor]:
    """Everything that has been averaged; the gradients of the last batch for the exact one."""
    curvature = opt.preconditioner.curvature
    if isinstance(opt, natgrad.ExactNGD):
        return [curvature.J]
    return [m.mean() for layer in curvature.layers for m in layer.block.moments()]


def waiting(opt: NaturalGradient) -> int:
    """How many tensors wait for the step."""
    return len(list(opt.preconditioner.curvature.waiting()))


def is_natural(opt: NaturalGradient, parameter: nn.Parameter, plain: Tensor) -> bool:
    """Whether the gradient left by the step differs in direction from the plain one."""
    return bool(F.cosine_similarity(parameter.grad.flatten(), plain.flatten(), 0) < 1 - 1e-6)
