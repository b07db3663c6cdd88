"""Checkpoints that do not fit: refused by name, and nothing has changed then."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import natgrad
from natgrad import Categorical
from natgrad.damping import Constant
from tests.brute_force import METHODS
from tests.networks import mlp, normal
from tests.test_optim_state import same, through_a_file

every_method = pytest.mark.parametrize("method", METHODS)


def make(method: str, net: nn.Module | None = None, **kwargs):
    net = mlp(4, 6, 3) if net is None else net
    kwargs = {"lr": 0.1, "likelihood": Categorical(), **kwargs}
    return net, getattr(natgrad, method)(net, **kwargs)


def backward(net: nn.Module, k: int) -> None:
    x = normal(8, 4, seed=k)
    F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()


def trained(method: str, net: nn.Module | None = None, **kwargs):
    net, opt = make(method, net, **kwargs)
    for k in range(3):
        opt.zero_grad()
        backward(net, k)
        opt.step()
    return net, opt


def refused(state, net: nn.Module, opt: torch.optim.Optimizer, error, message: str) -> None:
    """The state is refused in these words, even with a batch waiting, and leaves no trace."""
    opt.zero_grad()
    backward(net, 7)
    twin, other = copy.deepcopy((net, opt))
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        q.grad = p.grad.clone()
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(error, match=message):
        opt.load_state_dict(through_a_file(state))
    assert same(opt.state_dict(), before)
    for model, optimizer in ((net, opt), (twin, other)):
        optimizer.step()
        for k in range(8, 10):
            optimizer.zero_grad()
            backward(model, k)
            optimizer.step()
    assert same(net.state_dict(), twin.state_dict())


@every_method
def test_another_model_is_refused_by_the_name_of_a_parameter(method):
    state = trained(method)[1].state_dict()
    message = r"parameter '0.weight' is \[6, 4\] there, \[5, 4\] here"
    refused(state, *trained(method, mlp(4, 5, 3)), RuntimeError, message)


@every_method
def test_a_model_with_a_layer_more_is_refused_by_the_name_of_its_parameter(method):
    state = trained(method)[1].state_dict()
    message = r"parameter '4.weight' is no such parameter there, \[3, 3\] here"
    refused(state, *trained(method, mlp(4, 6, 3, 3)), RuntimeError, message)


@pytest.mark.parametrize("there", METHODS)
@pytest.mark.parametrize("here", METHODS)
def test_another_method_is_refused_by_its_name(there, here):
    if there == here:
        return
    state = trained(there)[1].state_dict()
    saved = "Joint" if there == "ExactNGD" else there
    ours = "exact" if here == "ExactNGD" else here
    message = f"the checkpoint holds the curvature of {saved}, this is {ours}"
    refused(state, *trained(here), RuntimeError, message)


@pytest.mark.parametrize("method", ["KFAC", "TKFAC"])
@pytest.mark.parametrize("damping", [(1e-3, Constant(1e-3)), (Constant(1e-3), 1e-3)], ids=str)
def test_another_kind_of_damping_is_refused_by_layer_and_factor(method, damping):
    state = trained(method, damping=damping[0])[1].state_dict()
    message = r"layer '0' does not fit the checkpoint: (A|G)_\w+ is .*another kind of damping"
    refused(state, *trained(method, damping=damping[1]), RuntimeError, message)


@every_method
def test_momentum_of_another_shape_is_refused_by_the_name_of_its_parameter(method):
    state = copy.deepcopy(trained(method)[1].state_dict())
    state["state"][2]["momentum_buffer"] = torch.zeros(3, 5)
    message = r"momentum_buffer of parameter '2.weight' is \[3, 5\] there, its weight \[3, 6\] here"
    refused(state, *trained(method), RuntimeError, message)


@every_method
def test_a_plain_checkpoint_of_another_model_is_refused_by_the_name_of_its_parameter(method):
    net = mlp(4, 5, 3)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    backward(net, 0)
    sgd.step()
    refused(sgd.state_dict(), *trained(method), RuntimeError, "of parameter '0.weight' is")


@every_method
def test_other_groups_are_refused(method):
    net = mlp(4, 6, 3)
    groups = [{"params": net[2].parameters(), "lr": 0.01}]
    state = trained(method, net, groups=groups)[1].state_dict()
    refused(state, *trained(method), ValueError, "different number of parameter groups")


@pytest.mark.parametrize("method", METHODS[:4])
def test_a_checkpoint_without_the_curvature_of_a_layer_names_it(method):
    net = mlp(4, 6, 3)
    net[0].requires_grad_(False)
    state = trained(method, net)[1].state_dict()
    message = "the checkpoint has no curvature of layer '0'"
    refused(state, *trained(method), RuntimeError, message)


def test_gradients_of_another_size_name_the_layer():
    state = copy.deepcopy(trained("ExactNGD")[1].state_dict())
    parts = state["preconditioner"]["curvature"]["J"]
    last = list(parts)[-1]
    parts[last] = parts[last][:, :-1]
    message = "layer '2' does not fit the checkpoint: it has 20 parameters there and 21 here"
    refused(state, *trained("ExactNGD"), RuntimeError, message)
