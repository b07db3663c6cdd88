"""Activations: slopes, readings, and what they are called."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from natgrad.layers.activations import (
    IDENTITY,
    KNOWN,
    Activation,
    activation_of_call,
    activation_of_module,
    as_activation,
    lets_through,
)
from tests.networks import normal

Z = 2 * normal(50, 4)

SLOPES = {
    "sigmoid": lambda z: z.sigmoid() * (1 - z.sigmoid()),
    "tanh": lambda z: z.cosh() ** -2,
    "relu": lambda z: (z > 0).double(),
    "leaky_relu": lambda z: torch.where(z > 0, torch.ones_like(z), 0.01),
    "elu": lambda z: torch.where(z > 0, 1.0, z.exp()),
    "silu": lambda z: z.sigmoid() * (1 + z * (1 - z.sigmoid())),
    "gelu": lambda z: (1 + (z / 2**0.5).erf()) / 2 + z * (-z * z / 2).exp() / (2 * torch.pi) ** 0.5,
    "softplus": lambda z: z.sigmoid(),
    "identity": torch.ones_like,
    "softmax": lambda z: z.softmax(-1) * (1 - z.softmax(-1)),
}


@pytest.mark.parametrize("name", SLOPES)
def test_the_slope_is_the_derivative(name):
    slope = SLOPES[name](Z)
    two_valued = name in ("sigmoid", "tanh", "softmax")
    usual = slope if two_valued else slope.square()
    for f in (KNOWN[name], pickle.loads(pickle.dumps(KNOWN[name]))):
        assert torch.allclose(f.slope(Z), slope, rtol=1e-10, atol=1e-12)
        assert torch.allclose(f.nu(Z), usual, rtol=1e-10, atol=1e-12)
        assert torch.allclose(f.nu(Z, "bernoulli"), slope, rtol=1e-10, atol=1e-12)
        assert torch.allclose(f.nu(Z, "gaussian"), slope.square(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_activation_has_a_slope(name):
    slope = KNOWN[name].slope(Z.clone().requires_grad_())
    assert slope.shape == Z.shape
    assert slope.isfinite().all()
    assert not slope.requires_grad
    with torch.no_grad():
        assert torch.equal(KNOWN[name].slope(Z), slope)


def test_for_relu_both_readings_are_the_same():
    assert torch.equal(KNOWN["relu"].nu(Z, "bernoulli"), KNOWN["relu"].nu(Z, "gaussian"))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.ReLU(inplace=True), "relu"), (nn.LeakyReLU(0.2), "leaky_relu(negative_slope=0.2)"),
        (nn.ELU(2.0, inplace=True), "elu(alpha=2.0)"), (nn.Sigmoid(), "sigmoid"),
        (nn.LogSoftmax(1), "softmax"), (nn.Softmax(-1), "softmax"), (nn.Tanh(), "tanh"),
    ],
)  # fmt: skip
def test_a_module_is_known_with_its_settings(module, name):
    z, f = Z.clone(), activation_of_module(module)
    assert f.name == name
    slope = f.slope(z)
    assert torch.equal(z, Z)
    if "leaky" in name:
        assert set(slope.flatten().tolist()) == {1.0, 0.2}
    if "elu(alpha" in name:
        assert torch.allclose(slope[Z < 0], 2 * Z[Z < 0].exp())
    assert f.reading == ("gaussian" if "elu" in name or "relu" in name else "bernoulli")


def test_what_is_no_activation_is_none():
    assert activation_of_module(nn.Linear(2, 2)) is None
    assert activation_of_module(nn.RReLU()) is None
    assert activation_of_call("matmul") is None
    assert activation_of_call("identity") is None


def test_a_module_of_the_model_is_followed_into_its_copies():
    prelu = nn.PReLU(4, init=0.5).double()
    f = activation_of_module(prelu)
    both = copy.deepcopy({"module": prelu, "activation": f})
    assert both["activation"].function is both["module"]
    with torch.no_grad():
        prelu.weight.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert torch.equal(f.slope(-Z.abs()), prelu.weight.detach().expand(50, 4))


def test_calls_are_known_by_name_and_arguments():
    assert activation_of_call("relu_").name == "relu"
    assert activation_of_call("relu", (), {"inplace": True}).name == "relu"
    assert activation_of_call("log_softmax", (1,), {}).name == "softmax"
    leaky = activation_of_call("leaky_relu", (0.2,))
    assert leaky.name == "leaky_relu(0.2)"
    assert set(leaky.slope(Z).flatten().tolist()) == {1.0, 0.2}
    assert activation_of_call("gelu", (), {"approximate": "tanh"}).name == "gelu(approximate=tanh)"


def cube(z):
    return z**3


def test_what_the_user_gives():
    assert as_activation("tanh") is KNOWN["tanh"]
    assert as_activation(torch.tanh) is KNOWN["tanh"]
    assert as_activation(F.relu) is KNOWN["relu"]
    assert as_activation(IDENTITY) is IDENTITY
    assert as_activation(nn.Tanh()).name == "tanh"
    own = as_activation(cube)
    assert (own.name, own.reading) == ("cube", "gaussian")
    assert torch.allclose(own.slope(Z), 3 * Z**2)
    assert torch.equal(as_activation(nn.Identity()).slope(Z), torch.ones_like(Z))
    relu_in_name_only = lambda z: 2 * z  # noqa: E731
    relu_in_name_only.__name__ = "relu"
    assert torch.equal(as_activation(relu_in_name_only).slope(Z), torch.full_like(Z, 2.0))
    with pytest.raises(ValueError, match="no activation 'rely'; known are celu, elu"):
        as_activation("rely")
    with pytest.raises(TypeError, match="a name, a module or a function, got int"):
        as_activation(3)


def test_the_slope_leaves_the_users_graph_alone():
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x) or x, lambda x: x):
        KNOWN["tanh"].slope(Z)
    assert seen == []


def test_what_lets_through():
    passing = (nn.Dropout(), nn.Flatten(), nn.MaxPool2d(2), nn.BatchNorm1d(3), nn.Identity())
    assert all(map(lets_through, passing))
    assert all(map(lets_through, ("view", "flatten", "max_pool2d", "squeeze_", "dropout")))
    assert not any(map(lets_through, (nn.Linear(2, 2), nn.ReLU(), "add", "relu")))


def test_two_of_the_same_name_are_still_two():
    assert Activation("a", cube) != Activation("a", cube)
