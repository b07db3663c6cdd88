"""``torch.compile`` of the model: the trajectory of the model as it is, or a word on what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import natgrad
from natgrad import Categorical
from tests.loop.loops import backward, every_blockwise, every_fisher, every_method, train, weights
from tests.networks import mlp, relative

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own
BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
            pytest.mark.filterwarnings("ignore"),
        ],
    ),
]
ORDERS = ["optimizer first", "compiled first", "of the compiled module", "in place"]


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(
    order: str, net: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer], backend: str
) -> tuple[nn.Module, torch.optim.Optimizer]:
    if order == "in place":
        net.compile(backend=backend)
        return net, make(net)
    opt = make(net) if order == "optimizer first" else None
    call = torch.compile(net, backend=backend)
    return call, opt or make(call if order == "of the compiled module" else net)


def assert_same(method, backend: str = "eager", order: str = ORDERS[0], **kwargs) -> None:
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    call, opt = compiled(order, net, lambda m: method(m, lr=0.05, damping=0.1, **kwargs), backend)
    train(call, opt, range(5))
    train(twin, method(twin, lr=0.05, damping=0.1, **kwargs), range(5))
    if backend == "inductor" or kwargs.get("fused"):
        assert relative(weights(net), weights(twin)) < 1e-10
    else:
        assert torch.equal(weights(net), weights(twin))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS)
@every_fisher
def test_the_trajectory_is_that_of_the_model_as_it_is(backend, order, fisher):
    assert_same(natgrad.TEKFAC, backend, order, **fisher)


@every_method
@every_fisher
def test_with_every_method(method, fisher):
    assert_same(method, **fisher)


@pytest.mark.parametrize("backend", BACKENDS)
@every_fisher
def test_fused_and_on_a_schedule(backend, fisher):
    assert_same(natgrad.KFAC, backend, fused=True, stats_every=2, refresh_every=4, **fisher)


@every_blockwise
def test_freezing_and_unfreezing_are_seen_through_it(method):
    nets = []
    for compiles in (False, True):
        net = mlp(4, 6, 5, 3)
        opt = method(net, lr=0.05, damping=0.1, likelihood=Categorical())
        call = torch.compile(net, backend="eager") if compiles else net
        for k in range(6):
            net[2].requires_grad_(k % 3 != 1)
            train(call, opt, [k])
        nets.append(weights(net))
    assert torch.equal(*nets)


def test_evaluation_and_another_batch_size_leave_it_right():
    nets = []
    for compiles in (False, True):
        net = mlp(4, 6, 3)
        opt = natgrad.EKFAC(net, lr=0.05, damping=0.1, likelihood=Categorical())
        call = torch.compile(net, backend="eager") if compiles else net
        for k in range(4):
            net.eval()
            with torch.no_grad():
                call(torch.ones(3, 4).double())
            net.train()
            opt.zero_grad()
            x = torch.ones(5 + k, 4).double().cumsum(0) / 5
            F.cross_entropy(call(x), torch.arange(5 + k) % 3).backward()
            opt.step()
        nets.append(weights(net))
    assert torch.equal(*nets)


@pytest.mark.parametrize("of_compiled", [False, True])
@every_fisher
def test_a_model_that_ran_compiled_before_its_optimizer_was_made_says_what_to_do(
    of_compiled, fisher
):
    net = mlp(4, 6, 3)
    call = torch.compile(net, backend="eager")
    backward(call, 0)
    opt = natgrad.TEKFAC(call if of_compiled else net, lr=0.1, **fisher)
    with pytest.raises(RuntimeError, match=r"make the optimizer first, or call torch.compiler.res"):
        train(call, opt, [0])
    torch.compiler.reset()
    twin = mlp(4, 6, 3)
    train(call, opt, range(1, 4))
    train(twin, natgrad.TEKFAC(twin, lr=0.1, **fisher), range(1, 4))
    assert torch.equal(weights(net), weights(twin))


@every_fisher
def test_a_part_that_ran_compiled_before_is_named(fisher):
    net = nn.Sequential(mlp(4, 6), nn.Tanh(), mlp(6, 3))
    part = torch.compile(net[0], backend="eager")
    backward(lambda x: net[1:](part(x)), 0)
    net[0] = part
    opt = natgrad.KFAC(net, lr=0.1, **fisher)
    with pytest.warns(RuntimeWarning, match="'0._orig_mod.0': a gradient but no statistics"):
        train(net, opt, [0])
    train(net, opt, [1])  # said once


def test_running_it_for_evaluation_before_is_no_obstacle():
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    call = torch.compile(net, backend="eager")
    with torch.no_grad():
        call.eval()(torch.ones(3, 4).double())
    call.train()
    train(call, natgrad.KFAC(net, lr=0.1), range(3))
    train(twin, natgrad.KFAC(twin, lr=0.1), range(3))
    assert torch.equal(weights(net), weights(twin))


def test_a_graph_in_one_piece_is_refused_by_torch_and_says_why():
    net = mlp(4, 3)
    opt = natgrad.KFAC(net, lr=0.1)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="natgrad listens to layers"):
        train(torch.compile(net, backend="eager", fullgraph=True), opt, [0])
