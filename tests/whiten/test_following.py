"""Which activation follows a layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from natgrad import Bernoulli, Categorical, Gaussian, Likelihood
from natgrad.whiten import SNGD, Whitened, whiten
from natgrad.whiten.following import following
from tests.whiten.nets import convnet, mlp


def names(net: nn.Module, given=None, likelihood=None) -> dict[str, str]:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, kinds)}
    return {name: f.name for name, f in following(net, layers, given, likelihood).items()}


class Functional(nn.Module):
    """Calls of functions and methods, through shapes, pools, dropout and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.one, self.two, self.three = nn.Linear(8, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.four, self.five = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.leaky_relu(F.max_pool2d(self.norm(self.conv(x)), 2), 0.2)
        x = x.view(x.size(0), -1)
        assert x.shape is not None
        x = F.dropout(torch.tanh(self.one(x)), 0.1, self.training)
        x = self.two(x).sigmoid()
        x = F.gelu(self.three(x), approximate="tanh")
        return F.log_softmax(self.five(self.four(x)), dim=-1)


def test_functions_and_methods_are_found():
    assert names(Functional()) == {
        "conv": "leaky_relu(negative_slope=0.2)", "one": "tanh", "two": "sigmoid",
        "three": "gelu(approximate=tanh)", "four": "identity", "five": "softmax",
    }  # fmt: skip


def test_modules_are_found():
    expected = {"0": "relu", "2": "tanh", "5": "tanh", "7": "identity"}
    assert names(convnet()) == expected


@pytest.mark.parametrize(
    ("likelihood", "name"),
    [(None, "identity"), (Gaussian(), "identity"), (Bernoulli(), "sigmoid"),
     (Categorical(), "softmax")],
)  # fmt: skip
def test_the_last_layer_has_what_the_likelihood_says(likelihood, name):
    assert names(mlp(3, 4, 2), None, likelihood) == {"0": "tanh", "2": name}
    ended = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid())
    assert names(ended, None, likelihood) == {"0": "sigmoid"}


def test_another_likelihood_says_nothing():
    class Other(Likelihood):
        def nll(self, f, targets):
            return f

        def sample(self, f, generator=None):
            return f

    with pytest.raises(ValueError, match="got Other: give the last layer's activation"):
        names(mlp(3, 4, 2), None, Other())


def test_what_is_given_is_taken_by_name_or_pattern():
    net = mlp(3, 4, 4, 2)
    assert names(net, {"2": "elu"}) == {"0": "tanh", "2": "elu", "4": "identity"}
    assert names(net, {"2": "elu", "*": nn.ReLU()}) == {"0": "relu", "2": "elu", "4": "relu"}
    assert names(net, {"*": nn.ReLU(), "2": "elu"}) == {"0": "relu", "2": "elu", "4": "relu"}
    with pytest.raises(ValueError, match="'1' is no layer to whiten; these are 0, 2, 4"):
        names(net, {"1": "relu"})
    with pytest.raises(ValueError, match=r"activations\['0'\]: no activation 'rely'"):
        names(net, {"0": "rely"})


class Branching(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(3, 3), nn.Linear(3, 3), how

    def forward(self, x):
        z = self.a(x)
        if self.how == "two":
            return torch.relu(z) + torch.tanh(z)
        if self.how == "same":
            return self.b(torch.relu(z) + F.relu(self.a(2 * z.relu())))
        if self.how == "asked":
            return self.b(torch.tanh(z.view(z.size(0), z.shape[1])))
        if self.how == "residual":
            return torch.relu(x + z)
        if self.how == "unused":
            return self.b(torch.tanh(z))
        if self.how == "dropped":
            return self.b(x)
        return z if z.sum() > 0 else -z


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("two", r"a: no activation was found: it is followed by relu and by tanh; say what "
                r'follows, e.g. SNGD\(activations=\{"a": "relu"\}\)'),
        ("residual", "a: no activation was found: it is followed by add, which natgrad knows no"),
        ("dropped", "a: no activation was found: nothing uses its output"),
        ("unused", None),
        ("control", r"torch.fx can't trace the model \(TraceError.*\"a\": .*\"b\": \"relu\""),
    ],
)  # fmt: skip
def test_an_activation_that_is_not_found_is_an_error(how, message):
    net = Branching(how)
    if message is None:
        assert names(net) == {"a": "tanh", "b": "identity"}
        return
    with pytest.raises(ValueError, match=message):
        names(net)
    assert names(net, {"a": "tanh", "b": "identity"}) == {"a": "tanh", "b": "identity"}


def test_a_layer_called_twice_needs_one_activation():
    assert names(Branching("same")) == {"a": "relu", "b": "identity"}


def test_asking_for_the_shape_is_no_activation():
    assert names(Branching("asked")) == {"a": "tanh", "b": "identity"}


def test_a_layer_that_is_not_called_is_an_error():
    with pytest.raises(
        ValueError, match="b: no activation was found: the model's forward does not"
    ):
        names(Branching("residual"), {"a": "relu"})


def test_an_error_leaves_the_model_as_it_was():
    net = Branching("residual")
    weight, keys = net.a.weight, list(net.state_dict())
    with pytest.raises(ValueError, match="a: no activation was found"):
        whiten(net, SNGD())
    assert isinstance(net.a, nn.Linear)
    assert net.a.weight is weight
    assert list(net.state_dict()) == keys
    assert net(torch.zeros(2, 3)).shape == (2, 3)


def test_only_layers_that_are_whitened_need_one():
    net = Branching("residual")
    with pytest.raises(ValueError, match="a: no activation"):
        whiten(net, SNGD(), only=lambda name, layer: name == "a")
    whiten(net, SNGD(activations={"a": torch.relu}), only=lambda name, layer: name == "a")
    assert isinstance(net.a, Whitened)
    assert net.a.activation.name == "relu"


class Nested(nn.Linear):
    """A layer in a namespace of its own."""


def test_layers_and_blocks_of_ones_own_are_seen_through():
    block = nn.Sequential(Nested(3, 3), nn.Sequential(nn.Dropout(), nn.SiLU()))
    net = nn.Sequential(block, nn.LayerNorm(3), nn.Linear(3, 2))
    assert names(net) == {"0.0": "silu", "2": "identity"}


class Joining(nn.Module):
    """Two layers whose outputs are joined, by a function of torch or in a list."""

    def __init__(self, join) -> None:
        super().__init__()
        self.join, self.a, self.b, self.end = (
            join,
            nn.Linear(3, 2),
            nn.Linear(3, 2),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        return self.end(torch.tanh(self.join([self.a(x), self.b(x)], 1).flatten(1)))


@pytest.mark.parametrize("join", [torch.cat, torch.concat, torch.concatenate, torch.stack])
def test_layers_whose_outputs_are_joined_share_an_activation(join):
    assert names(Joining(join)) == {"a": "tanh", "b": "tanh", "end": "identity"}
    whitened = Joining(join)
    x, before = torch.randn(5, 3), Joining(join)
    before.load_state_dict(whitened.state_dict())
    whiten(whitened, SNGD())
    assert torch.allclose(whitened.eval()(x), before(x), atol=1e-6)
