"""Loops that fill one batch again: what waits for the step must not change with it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad

FIRST = {
    "linear": lambda: nn.Linear(6, 6),
    "linear without bias": lambda: nn.Linear(6, 6, bias=False),
    "embedding": lambda: nn.Sequential(nn.Embedding(7, 6), nn.Flatten(0, -2)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten()),
}


def batch(first: str) -> Tensor:
    if first == "embedding":
        return torch.randint(1, 7, (8,))
    return torch.randn(8, 2, 3, 3) if first == "convolution" else torch.randn(8, 6)


def trained(method: str, first: str, reused: bool) -> Tensor:
    """Parameters after two steps; the batch is overwritten before each where it is reused."""
    torch.manual_seed(0)
    model = nn.Sequential(FIRST[first](), nn.Tanh(), nn.Linear(6, 3))
    opt = getattr(natgrad, method)(
        model, likelihood=natgrad.Categorical(), lr=0.1, damping=0.1, stats_every=1, refresh_every=1
    )
    for _ in range(2):
        x, y = batch(first), torch.randint(0, 3, (8,))
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if reused:
            x.zero_()
        opt.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("method", ["KFAC", "EKFAC", "TKFAC", "TEKFAC"])
def test_a_batch_may_be_overwritten_between_backward_and_step(method, first):
    assert torch.equal(trained(method, first, reused=True), trained(method, first, reused=False))
