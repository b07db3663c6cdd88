"""What a run minimises, and how it is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from natgrad.lab.data import Pair
from natgrad.lab.metrics import Metric
from natgrad.least_squares.residuals import Residuals
from natgrad.likelihood import Likelihood

__all__ = ["Objective", "Supervised", "evaluate", "outputs"]

EVALUATED_AT_ONCE = 2_000
VALUES_AT_ONCE = 2**21  #: of the inputs; fewer examples where these are large


class Objective(Protocol):
    """The loss of a batch, its residuals where it is a sum of squares, and the curve's figures."""

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """The mean loss, differentiable."""
        ...

    def residuals(self, batch: Pair) -> Residuals | None:
        """For optimizers that take residuals; None where the loss is no sum of squares."""
        ...

    def evaluate(self, model: nn.Module, pair: Pair) -> tuple[float, float]:
        """Loss and metric of a split."""
        ...


@dataclass(frozen=True)
class Supervised:
    """Mean negative log-likelihood of the targets given the network's output."""

    likelihood: Likelihood
    metric: Metric

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """See :class:`Objective`."""
        return self.likelihood.nll(model(batch.inputs), batch.targets).mean()

    def residuals(self, batch: Pair) -> Residuals | None:
        """None: optimizers take the likelihood."""
        return None

    def evaluate(self, model: nn.Module, pair: Pair) -> tuple[float, float]:
        """See :class:`Objective`."""
        return evaluate(model, self.likelihood, self.metric, pair)


@torch.no_grad()
def evaluate(
    model: nn.Module, likelihood: Likelihood, metric: Metric, pair: Pair
) -> tuple[float, float]:
    """Mean negative log-likelihood per example (without the penalty) and the metric of a split."""
    values = max(1, math.prod(pair.inputs.shape[1:]))
    size = max(1, min(EVALUATED_AT_ONCE, VALUES_AT_ONCE // values))
    found = outputs(model, pair.inputs, size)
    nll = [
        likelihood.nll(f, y).double().sum()
        for f, y in zip(torch.split(found, size), torch.split(pair.targets, size), strict=True)
    ]
    loss = torch.stack(nll).sum().item() / len(pair)
    return loss, metric.of(found, pair.targets)


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor, at_once: int) -> Tensor:
    """What a network says in eval mode, a few examples at a time, each part moved to its device."""
    device = next((p.device for p in model.parameters()), inputs.device)
    was_training = model.training
    model.eval()
    parts = [model(x.to(device, non_blocking=True)) for x in torch.split(inputs, at_once)]
    model.train(was_training)
    return torch.cat(parts)
