"""whiten and fold: what is replaced, what is left, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import natgrad
from natgrad.whiten import PRONG, Whitened, fold, whiten
from tests.whiten.nets import convnet, mlp, normal, output, relative, train

X = normal(20, 4)


class Nested(nn.Module):
    """Layers in a list, in a dict, under two names, and one that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.ModuleList([nn.Linear(4, 4), nn.ModuleDict({"in": nn.Linear(4, 4)})])
        self.alias = self.items[0]
        self.head = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))

    def forward(self, x):
        return self.head(self.items[1]["in"](self.alias(self.items[0](x).tanh())).tanh())


def whitened_names(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, Whitened)]


def test_layers_are_replaced_inside_any_nesting_and_come_back_the_same_objects():
    net = Nested().double()
    modules = dict(net.named_modules(remove_duplicate=False))
    parameters = dict(net.named_parameters())
    keys, before = list(net.state_dict()), output(net, X)
    whitener = whiten(net, PRONG(), X)
    assert whitened_names(net) == ["items.0", "items.1.in", "head.1"] == list(whitener.layers)
    assert net.alias is net.items[0]
    assert all(p is parameters[name] for name, p in net.named_parameters())
    assert relative(output(net, X), before) < 1e-12
    assert fold(net) is net
    assert dict(net.named_modules(remove_duplicate=False)) == modules
    assert all(p is parameters[name] for name, p in net.named_parameters())
    assert list(net.state_dict()) == keys
    assert relative(output(net, X), before) < 1e-12


def test_folding_leaves_no_trace():
    net, plain = convnet(), convnet()
    x = normal(20, 4, 5, 5)
    whitener = whiten(net, PRONG(), x)
    opt = torch.optim.SGD(net.parameters(), lr=1e-3)
    whitener.attach(opt)
    train(net, opt, 2, shape=(4, 5, 5))
    fold(net)
    for one, other in zip(net.modules(), plain.modules(), strict=True):
        assert vars(one).keys() == vars(other).keys()
        for name, value in vars(one).items():
            if name not in ("_parameters", "_modules"):
                assert value == vars(other)[name]
        assert one._parameters.keys() == other._parameters.keys()


def test_folding_what_is_not_whitened_does_nothing():
    net = convnet()
    before = copy.deepcopy(net.state_dict())
    assert fold(net) is net
    assert all(torch.equal(x, before[key]) for key, x in net.state_dict().items())


def test_the_mode_is_that_of_the_model():
    net = mlp(4, 5, 3).eval()
    whiten(net, PRONG(), X)
    assert not any(m.training for m in net.modules())
    net.train()
    fold(net)
    assert all(m.training for m in net.modules())


def test_an_optimizer_made_before_trains_the_whitened_network():
    net = mlp(4, 5, 3)
    opt = torch.optim.SGD(net.parameters(), lr=1e-2)
    whiten(net, PRONG(), X).attach(opt)
    before = output(net, X)
    train(net, opt, 3)
    assert relative(output(net, X), before) > 1e-3


def test_without_data_the_layers_begin_as_they_were():
    net = mlp(4, 5, 3)
    state, before = net.state_dict(), output(net, X)
    whiten(net, PRONG())
    assert all(torch.equal(net.state_dict()[key], x) for key, x in state.items())
    assert relative(output(net, X), before) < 1e-15


def test_only_some_layers():
    net = mlp(4, 5, 5, 3)
    whiten(net, PRONG(), X, only=lambda name, module: name != "2" and module.out_features == 5)
    assert whitened_names(net) == ["0"]


def test_batches_that_hold_more_than_inputs():
    net, y = mlp(4, 5, 3), torch.zeros(20)
    data = [[X[:10], y[:10]], [X[10:], y[10:]]]
    whiten(net, PRONG(), data, batch_to_input=lambda batch: batch[0])
    assert torch.allclose(net[0].c, X.mean(0))


# what is left alone ------------------------------------------------------------------------------


def test_what_has_no_whitened_form_keeps_its_function():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
            self.up = nn.ConvTranspose1d(4, 4, 2)
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight, self.two.bias = self.one.weight, self.one.bias
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight
            self.last = nn.Linear(7, 2)

        def forward(self, x):
            h = self.encoder(self.embed(x))
            h = self.two(self.one(self.up(h.mT).mT).tanh())
            return self.last(self.head(h))

    net = Model().double()
    x = torch.randint(0, 7, (9, 5))
    for mode in (True, False):
        net.train(mode)
        before = output(net, x)
        whiten(net, PRONG(), x)
        assert whitened_names(net) == ["last"]
        assert relative(output(net, x), before) < 1e-12
        fold(net)


def test_a_layer_with_more_of_its_own_is_left_alone():
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.register_buffer("seen", torch.zeros(()))

    net = nn.Sequential(Scaled(), nn.Linear(4, 2)).double()
    whiten(net, PRONG(), X)
    assert whitened_names(net) == ["1"]


# what is refused ---------------------------------------------------------------------------------


def test_nothing_to_whiten_is_refused_with_every_reason():
    tied = nn.Linear(4, 4)
    twin = nn.Linear(4, 4)
    twin.weight, twin.bias = tied.weight, tied.bias
    frozen = nn.Linear(4, 4).requires_grad_(False)
    own = nn.Linear(4, 4)
    own.register_buffer("extra", torch.zeros(1))
    encoder = nn.TransformerEncoderLayer(4, 2, 8)
    net = nn.Sequential(tied, twin, frozen, own, nn.LayerNorm(4), encoder, nn.Linear(4, 2))
    with pytest.raises(
        ValueError, match="natgrad found no layer to whiten in the model; "
    ) as error:
        whiten(net, PRONG(), only=lambda name, module: False)
    for reason in (
        "0: shares its parameters with 1", "2: frozen (requires_grad=False)",
        "3: has parameters, buffers or modules of its own beside weight and bias",
        "4: no whitened form of LayerNorm", "5.self_attn.q: no whitened form of MultiheadAttention",
        "5.linear1: nn.TransformerEncoderLayer reads its weight without calling it",
        "6: left out by only=",
    ):  # fmt: skip
        assert reason in str(error.value)


def test_a_layer_by_itself_can_not_be_replaced():
    with pytest.raises(ValueError, match=r"a Linear by itself.*wrap it in nn\.Sequential"):
        whiten(nn.Linear(3, 2), PRONG())
    net = mlp(4, 3)
    whiten(net, PRONG())
    with pytest.raises(ValueError, match="fold takes the model that holds the whitened layer"):
        fold(net[0])


def test_whitening_twice_is_refused():
    net = mlp(4, 5, 3)
    whiten(net, PRONG(), only=lambda name, _: name == "0")
    with pytest.raises(ValueError, match=r"whitened already \(0\): fold it first"):
        whiten(net, PRONG())
    fold(net)
    whiten(net, PRONG())


def test_data_that_can_be_gone_through_once_is_refused():
    net = mlp(4, 3)
    with pytest.raises(ValueError, match="one-shot iterator, but whiten, which refits"):
        whiten(net, PRONG(), iter([X]))
    assert isinstance(net[0], nn.Linear)


@pytest.mark.parametrize("fault", ["shape", "no batch", "rule"])
def test_an_error_leaves_the_model_as_it_was(fault, monkeypatch):
    net = mlp(4, 5, 3)
    modules, parameters = list(net.modules()), list(net.parameters())
    state, before = copy.deepcopy(net.state_dict()), output(net, X)
    data = {"shape": normal(5, 7), "no batch": []}.get(fault, X)
    if fault == "rule":
        planned, calls = Whitened.planned, []

        def second_fails(self, new, plain=None):
            calls.append(self)
            if len(calls) > 1:
                raise RuntimeError("no memory")
            return planned(self, new, plain)

        monkeypatch.setattr(Whitened, "planned", second_fails)
    with pytest.raises((RuntimeError, ValueError)):
        whiten(net, PRONG(), data)
    assert list(net.modules()) == modules
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(torch.equal(x, state[key]) for key, x in net.state_dict().items())
    assert torch.equal(output(net, X), before)


def test_an_error_while_folding_leaves_the_model_as_it_was(monkeypatch):
    net = mlp(4, 5, 3)
    whiten(net, PRONG(), X)
    state = copy.deepcopy(net.state_dict())
    monkeypatch.setattr(net[2], "planned", lambda new, plain=None: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fold(net)
    assert whitened_names(net) == ["0", "2"]
    assert all(torch.equal(x, state[key]) for key, x in net.state_dict().items())


def test_layers_that_saw_nothing_finite_are_named_and_keep_their_constants():
    net = mlp(4, 5, 3)
    state = copy.deepcopy(net.state_dict())
    with pytest.warns(UserWarning, match="natgrad: 0, 2: no input seen, or none that was finite"):
        whiten(net, PRONG(), X * torch.nan)
    assert all(torch.equal(net.state_dict()[key], x) for key, x in state.items())


def test_a_model_that_an_optimizer_listens_to_is_refused_until_it_lets_go():
    net = mlp(4, 6, 3)
    opt = natgrad.KFAC(net, lr=0.1)
    with pytest.raises(ValueError, match=r"is preconditioned by a natgrad.*opt\.remove\(\)"):
        whiten(net, PRONG(), normal(20, 4))
    opt.remove()
    whiten(net, PRONG(), normal(20, 4))
