"""Each optimizer against its step written out with dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Bernoulli, Categorical, Gaussian
from tests import oracle
from tests.brute_force import METHODS, BruteForce, cnn
from tests.networks import mlp, normal, relative

LIKELIHOODS = {"categorical": Categorical(), "bernoulli": Bernoulli(), "gaussian": Gaussian()}
NETWORKS = {"mlp": (lambda: mlp(4, 5, 3), (4,)), "cnn": (cnn, (2, 5, 5))}
every_method = pytest.mark.parametrize("method", METHODS)
every_network = pytest.mark.parametrize("network", NETWORKS)
every_kind = pytest.mark.parametrize("kind", oracle.KINDS)


def batch(network: str, kind: str, k: int = 0, n: int = 16) -> tuple[Tensor, Tensor]:
    x = normal(n, *NETWORKS[network][1], seed=k)
    return x, oracle.targets(kind, x.new_zeros(n, 3), seed=k)


def pair(method: str, network: str, kind: str, empirical: bool, **rule):
    """Ours and the one written out, from the same start."""
    rule = {"lr": 0.3, "damping": 0.05, "momentum": 0.0, **rule}
    net = NETWORKS[network][0]()
    fisher = {} if empirical else {"likelihood": LIKELIHOODS[kind], "fisher": "exact"}
    expected = BruteForce(method, net, kind, empirical=empirical, **rule)
    if method == "ExactNGD":
        rule.pop("decay", None)
    return net, getattr(natgrad, method)(net, **rule, **fisher), expected


def step(net: nn.Module, opt: torch.optim.Optimizer, kind: str, x: Tensor, y: Tensor) -> None:
    opt.zero_grad()
    oracle.mean_nll(kind, net(x), y).backward()
    opt.step()


def error(net: nn.Module, expected: nn.Module, start: dict[str, Tensor]) -> float:
    """The largest error of a parameter, relative to how far it has gone."""
    pairs = zip(net.named_parameters(), expected.parameters(), strict=True)
    return max(relative(p - start[name], q - start[name]) for (name, p), q in pairs)


@every_method
@every_network
@every_kind
@pytest.mark.parametrize("empirical", [False, True], ids=["exact", "empirical"])
def test_one_step_is_the_damped_inverse_written_out(method, network, kind, empirical):
    net, opt, expected = pair(method, network, kind, empirical)
    start = oracle.parameters(net)
    x, y = batch(network, kind)
    step(net, opt, kind, x, y)
    expected.step(x, y)
    assert error(net, expected.net, start) < 1e-10


@every_method
@every_network
@pytest.mark.parametrize("empirical", [False, True], ids=["exact", "empirical"])
def test_steps_with_momentum_decay_and_averages_are_those_written_out(method, network, empirical):
    rule = {"momentum": 0.9, "weight_decay": 0.1, "decay": 0.8, "lr": 0.1}
    net, opt, expected = pair(method, network, "categorical", empirical, **rule)
    start = oracle.parameters(net)
    for k in range(4):
        x, y = batch(network, "categorical", k)
        step(net, opt, "categorical", x, y)
        expected.step(x, y)
        assert error(net, expected.net, start) < 1e-8


@pytest.mark.parametrize(("one", "other"), [("EKFAC", "KFAC"), ("TEKFAC", "TKFAC")])
def test_the_methods_differ(one, other):
    found = []
    for method in (one, other, "ExactNGD"):
        net, opt, _ = pair(method, "cnn", "categorical", False)
        step(net, opt, "categorical", *batch("cnn", "categorical"))
        found.append(nn.utils.parameters_to_vector(net.parameters()).detach())
    assert relative(found[0], found[1]) > 1e-3
    assert relative(found[0], found[2]) > 1e-3


@pytest.mark.parametrize("method", METHODS[:4])
def test_reduced_positions_are_one_row(method):
    """``mean_t a`` and ``sum_t g``: for the basis of the corrected ones, not their scale."""
    net, _, expected = pair(method, "cnn", "categorical", False)
    opt = getattr(natgrad, method)(
        net, lr=0.3, momentum=0.0, damping=0.05, likelihood=Categorical(), fisher="exact",
        shared="reduce",
    )  # fmt: skip
    factors = expected._factors
    expected._factors = lambda name, a, g: factors(name, a.mean(1, True), g.sum(2, keepdim=True))
    start, y = oracle.parameters(net), batch("cnn", "categorical")[1]
    x = normal(16, 2, 6, 6)  # at 5 x 5 columns of the mean patch are equal, and the basis is free
    step(net, opt, "categorical", x, y)
    expected.step(x, y)
    assert error(net, expected.net, start) < 1e-9
