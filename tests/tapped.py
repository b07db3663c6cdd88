"""natgrad's side of a comparison: samples and blocks of a network from one backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from natgrad import Bernoulli, Categorical, Gaussian
from natgrad.blocks import KFAC
from natgrad.damping import Damping
from natgrad.decompose import decompose
from natgrad.layers import views_of
from natgrad.likelihood import Likelihood
from natgrad.sample import Sample
from natgrad.tap import Tap

LIKELIHOODS: dict[str, Likelihood] = {
    "categorical": Categorical(positions="sum"),
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(),
}


def samples(
    net: nn.Module,
    x: Any,
    likelihood: Likelihood | None,
    loss: Callable[[Any], Tensor] = lambda f: f.sum(),
    **kwargs: Any,
) -> dict[str, Sample]:
    """The samples of one forward and backward pass, by layer; exact unless told otherwise."""
    views, _ = views_of(net)
    found: dict[str, Sample] = {}

    def deliver(index: int, sample: Sample) -> None:
        assert views[index].name not in found, "delivered twice"
        found[views[index].name] = sample

    kwargs.setdefault("fisher", "exact")
    tap = Tap(net, views, deliver, likelihood=likelihood, **kwargs)
    loss(net(x)).backward()
    tap.remove()
    return {view.name: found[view.name] for view in views if view.name in found}


def columns(sample: Sample) -> Tensor:
    """``sum_t g a^T`` flattened: ``[c n, o i]``, whose outer products add up to ``n F_l``."""
    return torch.einsum("cnto,nti->cnoi", sample.g, sample.a).flatten(2).flatten(0, 1)


def fisher(found: dict[str, Sample]) -> Tensor:
    """The whole Fisher matrix from paired rows, layer by layer."""
    J = torch.cat([columns(sample) for sample in found.values()], 1)
    return J.mT @ J / next(iter(found.values())).examples


def kfac(
    sample: Sample, damping: float | Damping = 0.0, decay: float = 0.95, **kwargs: Any
) -> KFAC:
    """A K-FAC block that has seen one sample, not yet decomposed."""
    shape = (sample.g.shape[-1], sample.a.shape[-1])
    block = KFAC(shape, damping=damping, decay=decay, dtype=sample.a.dtype, **kwargs)
    block.observe(sample)
    for moment in block.moments():
        moment.commit()
    return block


def decomposed(block: KFAC) -> KFAC:
    """The same block, ready to solve."""
    wanted = block.factors()
    found = decompose(list(wanted.values()))
    assert all(result is not None for result in found)
    block.load(dict(zip(wanted, found, strict=True)))
    return block
