"""Products with the exact Fisher matrix of remembered calls, against dense ``J^T R J``."""

from __future__ import annotations

import copy
from collections import namedtuple
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import natgrad
from natgrad import Bernoulli, Categorical, Gaussian, Likelihood
from natgrad.logits import logits_of
from natgrad.replay import Replay
from tests.networks import mlp, normal

BATCH = 6


class Attention(nn.Module):
    """Embeddings, both kinds of torch's attention, and the functional one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.last = nn.Embedding(5, 4), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.3, batch_first=True)
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = self.layer(h)
        h = F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None], is_causal=True)[:, 0]
        return self.last(h)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.last = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.last.weight = self.embedding.weight
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(torch.tanh(self.embedding(tokens)))


class Given(nn.Module):
    """Inputs in whatever holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 5, 3)

    def forward(self, given: Any, scale: Any = None) -> dict[str, Tensor]:
        while not isinstance(given, Tensor):
            given = given["x"] if isinstance(given, dict) else given[0]
        f = self.net(given)
        return {"loss": f.sum(), "logits": f if scale is None else f * scale}


class Across(nn.Module):
    """The batch is the second dimension of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.mean(0))


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(4, 3),
    ).double()  # fmt: skip


TOKENS = torch.arange(BATCH * 3).reshape(BATCH, 3) * 7 % 5
X = normal(BATCH, 4)
Pair = namedtuple("Pair", ["x", "other"])
MODELS: dict[str, tuple[Any, Likelihood, tuple[Any, ...], dict[str, Any]]] = {
    "mlp": (lambda: mlp(4, 5, 3), Categorical(), (X,), {}),
    "bernoulli": (lambda: mlp(4, 5, 3), Bernoulli(), (X,), {}),
    "gaussian": (lambda: mlp(4, 5, 3), Gaussian(), (X,), {}),
    "cnn": (convolutional, Categorical(), (normal(BATCH, 2, 5, 5),), {}),
    "attention": (Attention, Categorical(), (TOKENS,), {}),
    "tied": (Tied, Categorical(positions="sum"), (TOKENS,), {}),
    "dict": (Given, Categorical(), ({"x": X, "of no use": "text"},), {}),
    "list": (Given, Categorical(), ([X, 3],), {}),
    "named tuple": (Given, Categorical(), (Pair(X, None),), {}),
    "keywords": (Given, Categorical(), (), {"given": (X,), "scale": normal(BATCH, 1)}),
}
every_model = pytest.mark.parametrize("name", MODELS)


def remembered(
    net: nn.Module, likelihood: Likelihood, *args: Any, y: Tensor | None = None, **kwargs: Any
) -> Replay:
    """Having seen one call and its backward pass."""
    replay = Replay(net, likelihood, None, nullcontext)
    torch.manual_seed(7)
    f = logits_of(net(*args, **kwargs), None)
    loss = f.square().sum() if y is None else F.cross_entropy(f.movedim(-1, 1), y)
    loss.backward()
    return replay


def dense(
    net: nn.Module, likelihood: Likelihood, count: int, *args: Any, counted: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:  # fmt: skip
    """``1/n sum J^T R J`` with the same random numbers, in the order of the parameters."""

    def first(given: Any) -> Any:
        if isinstance(given, dict):
            return {key: first(value) for key, value in given.items()}
        if isinstance(given, (tuple, list)):
            return [first(value) for value in given]
        return given[:count] if isinstance(given, Tensor) else given

    net = copy.deepcopy(net)  # where nothing listens
    args, kwargs = tuple(first(args)), first(kwargs)
    buffers = {name: b.clone() for name, b in net.named_buffers()}

    def output(params: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(7)
        kept = {name: b.clone() for name, b in buffers.items()}
        return logits_of(functional_call(net, (params, kept), args, kwargs), None)

    params = {name: p.detach() for name, p in net.named_parameters()}
    f = output(params)
    found = torch.autograd.functional.jacobian(
        lambda *values: output(dict(zip(params, values, strict=True))), tuple(params.values())
    )
    J = torch.cat([part.reshape(f.numel(), -1) for part in found], 1)
    total = torch.zeros(J.shape[1], J.shape[1]).double()
    for column in likelihood.columns(f, None if counted is None else counted[:count]):
        rows = (column.reshape(-1, 1) * J).reshape(len(f), -1, J.shape[1]).sum(1)
        total += rows.mT @ rows / len(f)
    return total


def directions(net: nn.Module, seed: int = 0) -> list[Tensor]:
    return [normal(*p.shape, seed=seed + k) for k, p in enumerate(net.parameters())]


def check(replay: Replay, net: nn.Module, F: Tensor, fraction: float = 1.0) -> None:
    vectors = [directions(net, seed) for seed in (0, 100, 200)]
    found = replay.curved(list(net.parameters()), vectors, fraction)
    V = torch.stack([torch.cat([part.flatten() for part in v]) for v in vectors], 1)
    assert torch.allclose(found, V.mT @ F @ V, rtol=1e-9, atol=1e-12)


@every_model
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.01])
def test_products_are_those_of_the_dense_matrix(name, fraction):
    make, likelihood, args, kwargs = MODELS[name]
    net = make()
    replay = remembered(net, likelihood, *args, **kwargs)
    count = {1.0: 6, 0.5: 3, 0.01: 2}[fraction]
    check(replay, net, dense(net, likelihood, count, *args, **kwargs), fraction)
    if fraction < 1:
        whole = dense(net, likelihood, 6, *args, **kwargs)
        with pytest.raises(AssertionError):
            check(replay, net, whole, fraction)


@every_model
def test_the_double_backward_pass_gives_the_same(name):
    make, likelihood, args, kwargs = MODELS[name]
    net = make()
    replay = remembered(net, likelihood, *args, **kwargs)
    replay._forward_mode = False
    check(replay, net, dense(net, likelihood, 6, *args, **kwargs))


class Odd(torch.autograd.Function):
    """Has no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


def test_a_model_without_forward_mode_is_pushed_through_backwards():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return Odd.apply(self.net(x))

    net = Net()
    replay = remembered(net, Categorical(), X)
    check(replay, net, dense(net, Categorical(), 6, X))
    assert not replay._forward_mode


@pytest.mark.parametrize("positions", ["mean", "sum"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_targets_that_are_ignored_do_not_count(positions, fraction):
    y = torch.tensor([[0, -100, 2], [1, 1, -100], [-100] * 3, [2, 0, 1], [1, -100, 0], [0, 0, 0]])
    net, likelihood = Attention(), Categorical(positions=positions)
    replay = remembered(net, likelihood, TOKENS, y=y)
    count = int(6 * fraction)
    F = dense(net, likelihood, count, TOKENS, counted=y != -100)
    check(replay, net, F, fraction)
    with pytest.raises(AssertionError):
        check(replay, net, dense(net, likelihood, count, TOKENS), fraction)


def test_several_calls_count_by_their_examples():
    net = mlp(4, 5, 3)
    replay = Replay(net, Categorical(), None, nullcontext)
    total = torch.zeros(38 + 5, 38 + 5).double()
    for part in (X[:2], X[2:]):
        net(part).sum().backward()
        total += dense(net, Categorical(), 6, part) * len(part) / 6
    check(replay, net, total)
    assert replay.examples() == 6


def test_an_input_whose_batch_lies_elsewhere_is_taken_whole():
    net, x = Across(), normal(3, BATCH, 4)
    replay = remembered(net, Gaussian(), x)
    check(replay, net, dense(net, Gaussian(), 6, x), 0.25)


def test_curvature_elsewhere_than_the_parameters_are_now():
    net = mlp(4, 5, 3)
    replay = remembered(net, Categorical(), X)
    F, before = dense(net, Categorical(), 6, X), [p.detach().clone() for p in net.parameters()]
    v = directions(net)
    V = torch.cat([part.flatten() for part in v])
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    parameters = list(net.parameters())
    assert float(replay.curved(parameters, [v], 1.0, before)) == pytest.approx(float(V @ F @ V))
    assert float(replay.curved(parameters, [v], 1.0)) != pytest.approx(float(V @ F @ V), rel=0.1)


def test_in_half_precision_the_call_is_repeated_in_full():
    net = mlp(4, 5, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        replay = remembered(net, Categorical(), X.float())
        v = [part.float() for part in directions(net)]
        found = float(replay.curved(list(net.parameters()), [v], 1.0))
    V = torch.cat([part.flatten() for part in v]).double()
    F = dense(net, Categorical(), 6, X.float()).double()
    assert found == pytest.approx(float(V @ F @ V), rel=1e-5)


# losses -----------------------------------------------------------------------------------------


def test_the_loss_now_and_again():
    net, y = mlp(4, 5, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    replay = remembered(net, Categorical(), X)
    first = F.cross_entropy(net(X), y).item()
    replay.calls = replay.calls[:1]
    with torch.no_grad():
        net[0].weight.mul_(3)
    assert replay.loss(y) == pytest.approx(first, rel=1e-12)
    assert replay.loss_again(y) == pytest.approx(F.cross_entropy(net(X), y).item(), rel=1e-12)
    assert abs(first - replay.loss_again(y)) > 1e-3


def test_the_loss_again_is_in_the_precision_of_the_first():
    net, y = mlp(4, 50, 3).float(), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        replay = remembered(net, Categorical(), X.float())
    assert replay.loss(y) == replay.loss_again(y)
    full = F.cross_entropy(net(X.float()), y).item()
    assert replay.loss(y) == pytest.approx(full, rel=1e-2)
    assert replay.loss(y) != pytest.approx(full, rel=1e-6)


# what is remembered -----------------------------------------------------------------------------


def test_calls_that_do_not_train_are_not_remembered():
    net = mlp(4, 5, 3)
    replay = Replay(net, Categorical(), None, nullcontext)
    with torch.no_grad():
        net(X)
    net.eval()
    net(X).sum().backward()
    net.train()
    assert replay.calls == []
    for p in net.parameters():
        p.requires_grad_(False)
    net(X)
    assert replay.calls == []
    with pytest.raises(RuntimeError, match="no call of the model has led to a gradient"):
        replay.seen()


def test_one_without_a_backward_pass_is_not_counted_and_one_that_failed_neither():
    net = mlp(4, 5, 3)
    replay = Replay(net, Categorical(), None, nullcontext)
    net(X)
    with pytest.raises(RuntimeError):
        net(normal(2, 7))
    net(X[:2]).sum().backward()
    assert [len(call.f) for call in replay.seen()] == [2]


def test_calls_are_forgotten_after_the_step_and_with_the_gradients():
    net = mlp(4, 5, 3)
    opt = natgrad.KFAC(net, lr="auto", likelihood=Categorical())
    for forget in (opt.step, opt.zero_grad):
        net(X).sum().backward()
        assert len(opt.tuner.replay.calls) == 1
        forget()
        assert opt.tuner.replay.calls == []


def test_after_remove_nothing_is_remembered():
    net = mlp(4, 5, 3)
    opt = natgrad.KFAC(net, lr="auto", likelihood=Categorical())
    opt.remove()
    net(X).sum().backward()
    assert opt.tuner.replay.calls == []
    assert not net._forward_hooks
    assert not net._forward_pre_hooks
