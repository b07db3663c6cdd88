"""Taps: the samples they deliver are right, however the model is built and its output packed."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from natgrad import Categorical, Gaussian
from natgrad.layers import views_of
from natgrad.sample import Sample
from natgrad.tap import Tap
from tests import oracle
from tests.networks import SumPool, mlp, normal, relative
from tests.tapped import LIKELIHOODS, columns, fisher, kfac, samples


def equal(found: dict[str, Sample], expected: dict[str, Sample]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.allclose(s.a, expected[k].a, rtol=1e-12, atol=1e-14)
        and torch.allclose(s.g, expected[k].g, rtol=1e-12, atol=1e-14)
        for k, s in found.items()
    )


@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_samples_of_the_exact_fisher_do_not_depend_on_the_users_loss(kind, reduction):
    net, x = mlp(4, 5, 3), normal(6, 4)
    y = oracle.targets(kind, oracle.output(net, x))
    scale = 1 if reduction == "mean" else len(x)
    found = samples(
        net, x, LIKELIHOODS[kind], lambda f: scale * oracle.mean_nll(kind, f, y),
        reduction=reduction,
    )  # fmt: skip
    assert relative(fisher(found), oracle.fisher(net, x, kind)) < 1e-13


@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize("draws", [1, 3])
def test_samples_of_the_sampled_fisher_are_scores_at_the_draws(kind, draws):
    net, x = mlp(4, 5, 3), normal(6, 4)
    found = samples(net, x, LIKELIHOODS[kind], fisher="sampled", samples=draws, seed=5)
    f, generator = oracle.output(net, x), torch.Generator().manual_seed(5)
    for c in range(draws):
        y = LIKELIHOODS[kind].sample(f, generator)
        for layer, M in oracle.example_gradients(net, x, y, kind).items():
            J = columns(found[layer]).view(draws, len(x), -1)[c] * draws**0.5
            assert relative(J.view_as(M), M) < 1e-12


def test_seeds_name_the_draws():
    net, x = mlp(4, 3), normal(50, 4)
    one, two, other = (
        samples(net, x, Categorical(), fisher="sampled", seed=seed) for seed in (1, 1, 2)
    )
    assert equal(one, two)
    assert not equal(one, other)


Pair = namedtuple("Pair", ["hidden", "logits"])


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Packed(nn.Module):
    """A network whose output is packed in one way or another."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.net, self.pack = mlp(4, 5, 3), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.net(x), x * 2)


@pytest.mark.parametrize(
    ("pack", "key", "unpack"),
    [
        (lambda f, h: (f,), None, lambda o: o[0]),
        (lambda f, h: [3, f, "x"], None, lambda o: o[1]),
        (lambda f, h: (h, f), 1, lambda o: o[1]),
        (lambda f, h: (h, f), -1, lambda o: o[1]),
        (lambda f, h: Pair(h, f), None, lambda o: o.logits),
        (lambda f, h: {"hidden": h, "logits": f}, None, lambda o: o["logits"]),
        (lambda f, h: {"out": f, "step": 3}, None, lambda o: o["out"]),
        (lambda f, h: OrderedDict(hidden=h, out=f), "out", lambda o: o["out"]),
        (lambda f, h: Output(f, h), None, lambda o: o.logits),
        (lambda f, h: Output(h, f), "hidden", lambda o: o.hidden),
        (lambda f, h: {"deep": [h, (f,)]}, lambda o: o["deep"][1][0], lambda o: o["deep"][1][0]),
    ],
)
def test_logits_are_found_in_a_packed_output(pack, key, unpack):
    x = normal(6, 4)
    found = samples(
        Packed(pack), x, Categorical(), lambda out: unpack(out).square().sum(), logits=key
    )
    expected = samples(Packed(lambda f, h: f), x, Categorical())
    assert equal(found, expected)


class Inner(nn.Module):
    """The rest of a network given as a function of two Linear layers and the input."""

    def __init__(self, body: Any, likely: tuple[int, int] = (4, 3)) -> None:
        super().__init__()
        self.first, self.last, self.body = mlp(4, 4)[0], mlp(*likely)[0], body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.first, self.last, x)


def test_a_relu_in_place_after_a_layer_does_not_change_its_rows():
    x = normal(6, 4)
    nets = [Inner(lambda a, b, x, how=how: b(how(a(x)))) for how in (F.relu, F.relu_)]
    for likelihood in (Categorical(), None):
        plain, in_place = (samples(n, x, likelihood, lambda f: f.exp().sum()) for n in nets)
        assert equal(in_place, plain)
    assert relative(fisher(in_place := samples(nets[1], x, Gaussian())),
                    oracle.fisher(nets[0], x, "gaussian")) < 1e-12  # fmt: skip
    assert in_place.keys() == {"first", "last"}


@pytest.mark.parametrize("likelihood", [Gaussian(), None])
def test_a_module_used_twice_gives_the_block_of_its_total_gradient(likelihood):
    net, x = Inner(lambda a, b, x: b(a(a(x).tanh()).tanh())), normal(6, 4)
    y = normal(6, 3, seed=1)
    found = samples(net, x, likelihood, lambda f: oracle.mean_nll("gaussian", f, y))
    assert found["first"].positions == 2
    exact = (
        oracle.blocks(net, x, "gaussian")
        if likelihood
        else oracle.empirical_blocks(net, x, y, "gaussian")
    )
    for layer, expected in exact.items():
        assert relative(fisher({layer: found[layer]}), expected) < 1e-12


@pytest.mark.parametrize("likelihood", [Categorical(), None])
def test_checkpointing_does_not_count_a_layer_twice(likelihood):
    def checkpointed(a, b, x):
        return b(checkpoint(lambda h: a(h).tanh(), x, use_reentrant=False))

    def whole(a, b, x):
        return checkpoint(lambda h: b(a(h).tanh()), x, use_reentrant=False)

    x = normal(6, 4)
    plain = Inner(lambda a, b, x: b(a(x).tanh()))
    expected = samples(plain, x, likelihood, lambda f: f.exp().sum())
    for body in (checkpointed, whole):
        net = Inner(body)
        assert equal(samples(net, x, likelihood, lambda f: f.exp().sum()), expected)
        for p, q in zip(net.parameters(), plain.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("likelihood", [Categorical(), None])
def test_a_model_checkpointed_as_a_whole_is_counted_once(likelihood):
    net, x = mlp(4, 5, 3), normal(6, 4)
    expected = samples(net, x, likelihood, lambda f: f.exp().sum())
    views, found = views_of(net)[0], []
    Tap(net, views, lambda k, s: found.append((views[k].name, s)), likelihood=likelihood,
        fisher="exact")  # fmt: skip
    checkpoint(net, x, use_reentrant=False).exp().sum().backward()
    assert len(found) == 2
    assert equal(dict(found), expected)


def test_positions_flattened_into_the_batch_are_put_back_with_their_example():
    net = mlp(3, 4, 2)
    flattened = nn.Sequential(nn.Flatten(0, 1), *net, nn.Unflatten(0, (5, 3)))
    x = normal(5, 3, 3)
    found = samples(flattened, x, Gaussian())
    for name, sample in zip(("1", "3"), samples(net, x, Gaussian()).values(), strict=True):
        assert found[name].a.shape == sample.a.shape
        assert relative(fisher({name: found[name]}), fisher({name: sample})) < 1e-13


@pytest.mark.parametrize("class_dim", [-1, 1])
def test_only_positions_with_a_label_count(class_dim):
    net, x = mlp(3, 4, 3), normal(4, 3, 3)
    y = oracle.targets("categorical", oracle.output(net, x))
    y[0, 1] = y[2] = -100
    counted = x[y != -100]
    expected = oracle.blocks(net, counted, "categorical")  # every position an example of its own

    class Transposed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).movedim(-1, class_dim)

    found = samples(
        Transposed(*net), x, Categorical(class_dim=class_dim),
        lambda f: F.cross_entropy(f.movedim(class_dim, 1), y),
    )  # fmt: skip
    for layer, block in expected.items():
        assert relative(fisher({layer: found[layer]}), block) < 1e-12
    direct = list(Categorical().columns(oracle.output(net, x), y != -100))
    g = found["2"].g
    assert relative(g, torch.stack(direct)) < 1e-12


def test_the_sampled_fisher_is_zero_where_no_label_is():
    net, x = mlp(3, 4, 3), normal(4, 2, 3)
    y = torch.tensor([[0, -100], [1, 2], [-100, -100], [2, 0]])
    found = samples(
        net, x, Categorical(), lambda f: F.cross_entropy(f.flatten(0, 1), y.flatten()),
        fisher="sampled",
    )  # fmt: skip
    received = found["2"].g[0].abs().sum(-1) > 0
    assert torch.equal(received, y != -100)


def test_a_batch_without_any_label_delivers_nothing():
    net, x = mlp(3, 3), normal(4, 3)
    assert samples(net, x, Categorical(), lambda f: 0 * f.sum()) == {}


def test_layers_apart_from_the_output_deliver_nothing():
    net = Inner(lambda a, b, x: b(x) + 0 * a(x).detach().sum())
    assert samples(net, normal(6, 4), Gaussian()).keys() == {"last"}


def test_a_pooled_network_pairs_the_rows_of_every_position():
    net, x = nn.Sequential(*mlp(3, 4), nn.Tanh(), *mlp(4, 2), SumPool()), normal(5, 3, 3)
    for kind in oracle.KINDS:
        found = samples(net, x, LIKELIHOODS[kind])
        for layer, exact in oracle.blocks(net, x, kind).items():
            assert relative(fisher({layer: found[layer]}), exact) < 1e-12
            assert kfac(found[layer]).A.mean().shape == found[layer].a.shape[-1:] * 2
