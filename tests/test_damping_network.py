"""Damping of one's own, damping over all layers, and bounds on the whole step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.damping import Constant, Factored, LayerDamping, TraceRestricted
from tests import oracle
from tests.brute_force import METHODS, cnn
from tests.networks import mlp, normal, relative

BLOCKWISE = METHODS[:4]


class ByTrace:
    """``ridge`` only: a tenth of the mean eigenvalue."""

    def ridge(self, trace: Tensor, dim: int) -> Tensor:
        return 0.1 * trace / dim


class ByFactors:
    """``ridges`` only, with the value that exact blocks need."""

    value = 0.01

    def ridges(self, trace_A: Tensor, trace_G: Tensor, d: int, m: int) -> tuple[Tensor, Tensor]:
        return trace_A / d, trace_G / m


class FirstAlone(ByTrace):
    """``across``: the first layer damped by the others' traces, and its step halved."""

    def across(self, layers):
        total = torch.stack([layer.trace for layer in layers]).sum()
        first = LayerDamping(total, 0.5)
        return [first, *(LayerDamping(0.01) for _ in layers[1:])]


def train(net: nn.Module, opt: torch.optim.Optimizer, steps: range, shape=(2, 5, 5)) -> None:
    for k in steps:
        x = normal(12, *shape, seed=k)
        opt.zero_grad()
        oracle.mean_nll("categorical", net(x), oracle.targets("categorical", net(x), k)).backward()
        opt.step()


def make(method: str, net: nn.Module, damping, **kwargs):
    kwargs = {"momentum": 0.0, "likelihood": Categorical(), "fisher": "exact", **kwargs}
    return getattr(natgrad, method)(net, lr=0.1, damping=damping, **kwargs)


def vector(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def run(method: str, damping, make_net=cnn, steps: int = 1, **kwargs) -> Tensor:
    net = make_net()
    train(net, make(method, net, damping, **kwargs), range(steps))
    return vector(net)


@pytest.mark.parametrize("method", METHODS)
def test_a_rule_with_ridge_is_asked_for_the_trace_and_size_of_each_block(method):
    asked, net = [], cnn()

    class Asked(ByTrace):
        def ridge(self, trace, dim):
            asked.append(dim)
            return super().ridge(trace, dim)

    opt = make(method, net, Asked())
    train(net, opt, range(1))
    sizes = {40, 32, 27}
    assert set(asked) == ({sum(sizes)} if method == "ExactNGD" else sizes)
    name = "model" if method == "ExactNGD" else "5"
    found = opt.stats()[f"{name}/damping"]
    constant = run(method, Constant(found)) if method == "ExactNGD" else None
    if constant is not None:
        assert relative(vector(net), constant) < 1e-9


@pytest.mark.parametrize("method", ["KFAC", "TKFAC"])
def test_a_rule_with_ridges_damps_the_factors(method):
    """Ridges equal to ``pi``-balanced ones give Martens and Grosse's step."""

    class Balanced:
        value = 0.02

        def ridges(self, trace_A, trace_G, d, m):
            pi = ((trace_A / d) / (trace_G / m)).sqrt()
            return pi * 0.02**0.5, 0.02**0.5 / pi

    assert relative(run(method, Balanced()), run(method, Factored(0.02))) < 1e-12
    assert relative(run(method, ByFactors()), run(method, Factored(0.02))) > 1e-4


@pytest.mark.parametrize("method", ["EKFAC", "TEKFAC"])
def test_a_rule_with_ridges_alone_is_refused_where_eigenvalues_are_damped(method):
    with pytest.raises(TypeError, match=r"needs a number or an object with ridge.*got ByFactors"):
        make(method, cnn(), ByFactors())


def test_the_exact_gradient_takes_the_value_of_a_rule_for_factors_and_refuses_one_without():
    assert torch.equal(run("ExactNGD", ByFactors()), run("ExactNGD", Constant(0.01)))

    class Nameless:
        ridges = ByFactors.ridges

    with pytest.raises(TypeError, match=r"Nameless damps factors only.*\.value"):
        make("ExactNGD", cnn(), Nameless())


@pytest.mark.parametrize("method", BLOCKWISE)
def test_a_rule_over_all_layers_decides_the_damping_and_the_scale_of_each(method):
    net = cnn()
    opt = make(method, net, FirstAlone())
    train(net, opt, range(1))
    first, *others = opt.preconditioner.layers
    traces = [float(layer.block.trace()) for layer in opt.preconditioner.layers]
    assert float(first.block.ridge()) == pytest.approx(sum(traces))
    assert [float(layer.block.ridge()) for layer in others] == [0.01, 0.01]
    assert first.scale == 0.5
    start = vector(cnn())
    n = sum(p.numel() for p in net[0].parameters())
    alone = run(method, Constant(sum(traces)))
    assert relative((vector(net) - start)[:n], 0.5 * (alone - start)[:n]) < 1e-9


@pytest.mark.parametrize("method", BLOCKWISE)
def test_a_rule_over_all_layers_that_gives_none_leaves_each_its_own(method):
    class Silent(ByTrace):
        def across(self, layers):
            return None

    assert torch.equal(run(method, Silent()), run(method, ByTrace()))


def test_a_rule_over_all_layers_must_give_one_damping_for_each():
    class Short(ByTrace):
        def across(self, layers):
            return [LayerDamping(0.1)]

    with pytest.raises(ValueError, match=r"Short.across gave 1 dampings for 3 layers"):
        run("EKFAC", Short())


@pytest.mark.parametrize("method", BLOCKWISE)
@pytest.mark.parametrize("fc_scale", ["paper", "theta", "as_damping"])
def test_once_the_convolutions_are_frozen_the_head_is_damped_by_itself(method, fc_scale):
    nets, damping = (cnn(), cnn()), TraceRestricted(1e-4, fc_scale)
    read, own = make(method, nets[0], damping, decay=0.0), None
    train(nets[0], read, range(2))
    nets[1].load_state_dict(nets[0].state_dict())
    for net in nets:
        net[:3].requires_grad_(False)
    own = make(method, nets[1], TraceRestricted(1e-4), decay=0.0)
    for k in range(2, 4):
        train(nets[0], read, range(k, k + 1))
        train(nets[1], own, range(k, k + 1))
    assert relative(vector(nets[0]), vector(nets[1])) < 1e-9
    assert not torch.equal(vector(nets[0]), vector(cnn()))


@pytest.mark.parametrize("method", METHODS)
def test_max_norm_bounds_the_length_of_the_whole_step(method):
    start = vector(cnn())
    free = run(method, 1e-3) - start
    for bound in (0.01, 0.1 * float(free.norm()), 1e6):
        found = run(method, 1e-3, max_norm=bound) - start
        assert relative(found, free * min(1.0, bound / float(free.norm()))) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_kl_clip_bounds_the_length_in_the_metric(method):
    net = cnn()
    x = normal(12, 2, 5, 5, seed=0)
    oracle.mean_nll("categorical", net(x), oracle.targets("categorical", net(x), 0)).backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    start = vector(cnn())
    free = run(method, 1e-3) - start
    size = 0.1 * float(-free @ gradient)
    for kappa in (1e-5, 0.3 * size, 1e6):
        found = run(method, 1e-3, kl_clip=kappa) - start
        assert relative(found, free * min(1.0, (kappa / size) ** 0.5)) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_of_two_bounds_the_tighter_one_holds(method):
    start = vector(cnn())
    found = {
        name: run(method, 1e-3, **bounds) - start
        for name, bounds in {
            "kl": {"kl_clip": 1e-5}, "norm": {"max_norm": 1e-4},
            "both": {"kl_clip": 1e-5, "max_norm": 1e-4},
        }.items()
    }  # fmt: skip
    tighter = min(found["kl"], found["norm"], key=lambda step: float(step.norm()))
    assert relative(found["both"], tighter) < 1e-9


@pytest.mark.parametrize("bound", [{"kl_clip": 1e-5}, {"max_norm": 1e-3}], ids=str)
def test_bounds_hold_for_fused_gradients_too(bound):
    assert relative(_mlp_run(True, bound), _mlp_run(False, bound)) < 1e-9
    assert relative(_mlp_run(True, bound), _mlp_run(True, {})) > 1e-4


def _mlp_run(fused: bool, bound: dict) -> Tensor:
    net = mlp(4, 5, 3)
    opt = make("KFAC", net, 1e-3, refresh_every=3, fused=fused, **bound)
    train(net, opt, range(5), shape=(4,))
    return vector(net)


def test_max_norm_counts_each_group_with_its_own_rate():
    net = cnn()
    twin = copy.deepcopy(net)
    head = [{"params": net[5].parameters(), "lr": 0.01}]
    opt = make("EKFAC", net, 1e-3, max_norm=1e-3, groups=head)
    train(net, opt, range(1))
    assert float((vector(net) - vector(twin)).norm()) == pytest.approx(1e-3)
