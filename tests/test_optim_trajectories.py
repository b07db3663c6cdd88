"""Whole runs that must be the same: however the loss is reduced, however the batch is cut up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.damping import TraceRestricted
from tests.brute_force import METHODS, cnn
from tests.networks import mlp, normal, relative

every_method = pytest.mark.parametrize("method", METHODS)
FISHERS = {
    "exact": {"likelihood": Categorical(), "fisher": "exact"},
    "sampled": {"likelihood": Categorical(), "fisher": "sampled"},
    "empirical": {"likelihood": None},
}
NETWORKS = {"mlp": (lambda: mlp(4, 5, 3), (4,)), "cnn": (cnn, (2, 5, 5))}


def batch(k: int, network: str = "mlp", n: int = 64) -> tuple[Tensor, Tensor]:
    x = normal(n, *NETWORKS[network][1], seed=k)
    return x, x.flatten(1)[:, :3].argmax(1)


def run(method: str, fisher: str, parts=None, network: str = "mlp", steps: int = 3, **kwargs):
    """The parameters after some steps; ``parts`` gives each micro-batch and its loss."""
    kwargs = {"lr": 0.1, "damping": 0.01, **FISHERS[fisher], **kwargs}
    net = NETWORKS[network][0]()
    opt = getattr(natgrad, method)(net, **kwargs)
    for k in range(steps):
        opt.zero_grad()
        for loss in (parts or whole)(net, *batch(k, network)):
            loss.backward()
        opt.step()
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def whole(net: nn.Module, x: Tensor, y: Tensor):
    yield F.cross_entropy(net(x), y)


def summed(net: nn.Module, x: Tensor, y: Tensor):
    yield F.cross_entropy(net(x), y, reduction="sum")


def cut(*sizes: int, reduction: str = "mean"):
    """Micro-batches, each loss weighted by its share of the examples."""

    def parts(net: nn.Module, x: Tensor, y: Tensor):
        for h, t in zip(x.split(sizes), y.split(sizes), strict=True):
            share = len(h) / len(x) if reduction == "mean" else 1.0
            yield share * F.cross_entropy(net(h), t, reduction=reduction)

    return parts


def quarters(net: nn.Module, x: Tensor, y: Tensor):
    """As every accumulation loop writes it."""
    for h, t in zip(x.split(16), y.split(16), strict=True):
        yield F.cross_entropy(net(h), t) / 4


@every_method
@pytest.mark.parametrize("fisher", ["exact", "sampled"])
def test_a_summed_loss_with_its_rate_divided_is_the_mean_loss(method, fisher):
    """With a likelihood the curvature does not know of the loss's reduction."""
    mean, total = run(method, fisher), run(method, fisher, summed, lr=0.1 / 64)
    assert relative(total, mean) < 1e-8
    assert relative(run(method, fisher, summed), mean) > 1e-2


@every_method
def test_of_the_empirical_fisher_the_reduction_is_stated(method):
    mean = run(method, "empirical")
    total = run(method, "empirical", summed, lr=0.1 / 64, reduction="sum")
    assert relative(total, mean) < 1e-8
    assert relative(run(method, "empirical", summed, lr=0.1 / 64), mean) > 1e-3


@every_method
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("network", NETWORKS)
def test_four_micro_batches_are_the_batch(method, fisher, network):
    found, expected = (run(method, fisher, parts, network) for parts in (quarters, whole))
    assert relative(found, expected) < 1e-8


@every_method
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("sizes", [(8, 56), (1, 20, 43)], ids=str)
def test_unequal_micro_batches_count_by_their_size(method, fisher, sizes):
    assert relative(run(method, fisher, cut(*sizes)), run(method, fisher)) < 1e-8


@every_method
def test_summed_micro_batches_are_the_summed_batch(method):
    given = {"lr": 0.1 / 64, "reduction": "sum"}
    found = run(method, "empirical", cut(16, 48, reduction="sum"), **given)
    assert relative(found, run(method, "empirical", summed, **given)) < 1e-8


@every_method
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_micro_batches_are_the_batch_with_statistics_now_and_then(method, fisher):
    given = {"stats_every": 2, "refresh_every": 4, "steps": 6}
    found, expected = (run(method, fisher, parts, **given) for parts in (quarters, whole))
    assert relative(found, expected) < 1e-7


@every_method
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_micro_batches_are_the_batch_with_damping_by_the_trace(method, fisher):
    given = {"damping": TraceRestricted(1e-3, "theta"), "network": "cnn"}
    found, expected = (run(method, fisher, parts, **given) for parts in (quarters, whole))
    assert relative(found, expected) < 1e-8


@every_method
def test_one_backward_through_several_passes_is_the_batch_too(method):
    """With a likelihood; of the empirical Fisher these would be views of the same examples."""

    def together(net: nn.Module, x: Tensor, y: Tensor):
        yield torch.stack(list(quarters(net, x, y))).sum()

    assert relative(run(method, "exact", together), run(method, "exact")) < 1e-8
